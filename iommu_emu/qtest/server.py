"""The qtest server: one machine, the clients that drive it, and the loop that serves them."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from iommu_emu import __version__
from iommu_emu.qtest.catalogue import Catalogue
from iommu_emu.qtest.command_line import Channel, CommandLine, UsageError, parse
from iommu_emu.qtest.connection import Connection, accept, connect, listen
from iommu_emu.qtest.monitor import Monitor
from iommu_emu.qtest.options import OptionError
from iommu_emu.qtest.protocol import Protocol
from iommu_emu.qtest.q35 import Q35
from iommu_emu.qtest.qmp import QmpSession
from iommu_emu.qtest.session import Log, QtestSession

QEMU_VERSION = (11, 1, 0)  # the version whose command line and devices we follow
VERSION_TEXT = f"QEMU emulator version {'.'.join(map(str, QEMU_VERSION))} (iommu-emu {__version__})"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

__all__ = ["VERSION_TEXT", "Server", "main"]


class Server:
    """Serves one machine until the last client has gone, a client quits it, or a signal comes.

    Where it connects, as libqtest has it do, the end of the last connection is the end; where it
    listens, the next client is taken.

    Args:
        line: the command line.

    Raises:
        UsageError: if a device or a socket of the command line cannot be had.
    """

    def __init__(self, line: CommandLine) -> None:
        self._line = line
        self._selector = selectors.PollSelector()  # takes plain files as standard input
        self._connections: dict[Connection, QtestSession | QmpSession] = {}
        self._listeners: dict[socket.socket, Channel] = {}
        self._waiting: list[Connection] = []  # connected, with nobody to answer them yet
        self._log = Log(line.qtest_log)
        try:
            # As in QEMU, clients are connected before devices are made, so that they see us die.
            for channel in [*filter(None, [line.qtest]), *line.qmp]:
                self._open(channel)
            self._make_machine()
        except BaseException:
            self.close()
            raise

    def _open(self, channel: Channel) -> None:
        try:
            if channel.server:
                self._listeners[listen(channel)] = channel
            else:
                self._waiting.append(connect(channel))
        except OSError as error:
            reason = error.strerror or error  # a path that is too long has no number
            raise UsageError(f"Failed to connect to '{channel.path}': {reason}") from None

    def _make_machine(self) -> None:
        line = self._line
        try:
            self._board = None if line.machine == "none" else Q35(line.memory, line.memory_below_4g)
        except MemoryError:
            raise UsageError(f"cannot allocate {line.memory >> 20} MiB of memory") from None
        reserved = {1} if line.default_vga else set()
        if line.default_network:
            reserved.add(2)
        self._catalogue = Catalogue(self._board, frozenset(reserved))
        for written, properties in line.devices:
            try:
                self._catalogue.make(properties)
            except OptionError as error:
                raise UsageError(f"{written}: {error}") from None
        major, minor, micro = QEMU_VERSION
        self._version = {
            "qemu": {"major": major, "minor": minor, "micro": micro},
            "package": f"iommu-emu {__version__}",
        }
        self._monitor = Monitor(
            line.machine,
            self._board,
            self._catalogue,
            self._version,
            line.stopped,
            self._emit,
        )

    def _emit(self, name: str, data: Mapping[str, object] | None) -> None:
        for session in list(self._connections.values()):
            if isinstance(session, QmpSession):
                session.event(name, data)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the run, if the command line asks for it.

        Raises:
            UsageError: if the file cannot be written.
        """
        line = self._line
        if line.record is None or self._board is None:
            yield
            return
        from iommu_emu.recording import RecordingError, recording

        notes = {"command": " ".join(written for written, _ in line.devices)}
        options = {"notes": notes, "max_time": line.record_time}
        try:
            with recording(self._board.machine, line.record, **options):
                yield
        except (RecordingError, OSError) as error:
            raise UsageError(f"-record {line.record}: {error}") from None

    # The loop.

    def run(self, signals: int) -> None:
        """Serve until the end.

        Args:
            signals: file descriptor that becomes readable when a signal asks for the end.
        """
        self._selector.register(signals, selectors.EVENT_READ, self._signalled)
        for listener in self._listeners:
            self._await(listener)
        while self._waiting:
            self._serve(self._waiting.pop(0))
        while not self._monitor.quitting and self._watch_all():
            behind = self._behind()
            for key, events in self._selector.select(0 if behind else None):
                key.data(events)
            for session in behind:
                session.proceed()

    def _behind(self) -> list[QtestSession]:
        """Return the conversations that could go on without anything new to read."""
        sessions = self._connections.values()
        return [
            session for session in sessions if isinstance(session, QtestSession) and session.behind
        ]

    def _signalled(self, events: int) -> None:
        self._monitor.shut_down("host-signal")

    def _await(self, listener: socket.socket) -> None:
        """Take one client of a listener; the next one has to wait until that has gone."""

        def take(events: int) -> None:
            connection = accept(self._listeners[listener], listener)
            if connection is not None:
                self._selector.unregister(listener)
                self._serve(connection)

        self._selector.register(listener, selectors.EVENT_READ, take)

    def _serve(self, connection: Connection) -> None:
        """Start a conversation."""
        if connection.channel is self._line.qtest:
            protocol = Protocol(self._board, lambda: self._monitor.running)
            self._connections[connection] = QtestSession(protocol, connection, self._log)
        else:
            self._connections[connection] = QmpSession(
                self._monitor.commands, self._version, connection.send
            )

    def _watch_all(self) -> bool:
        """Watch every connection; whether anybody is left who could say something."""
        for connection in list(self._connections):
            self._watch(connection)
        return bool(self._connections or self._listeners)

    def _watch(self, connection: Connection) -> None:
        """Wait for what the connection can do next; end it if the other end is gone."""
        for descriptor in {connection.incoming, connection.outgoing}:
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        if not connection.open:
            self._end(connection)
            return
        wanted = {connection.incoming: 0, connection.outgoing: 0}
        if not connection.full and self._connections[connection] not in self._behind():
            wanted[connection.incoming] |= selectors.EVENT_READ
        if connection.unsent:
            wanted[connection.outgoing] |= selectors.EVENT_WRITE
        for descriptor, events in wanted.items():
            if events:
                self._selector.register(descriptor, events, self._ready(connection))

    def _ready(self, connection: Connection) -> Callable[[int], None]:
        def act(events: int) -> None:
            if events & selectors.EVENT_WRITE:
                connection.flush()
            if events & selectors.EVENT_READ:
                self._connections[connection].receive(connection.read())

        return act

    def _end(self, connection: Connection) -> None:
        session = self._connections.pop(connection)
        if isinstance(session, QtestSession):
            session.close()
        connection.finish()
        for listener, channel in self._listeners.items():
            if channel is connection.channel:
                self._await(listener)

    def close(self) -> None:
        """Close every connection and listener, and remove the listeners' files."""
        for connection in [*self._connections, *self._waiting]:
            connection.finish()
        self._connections.clear()
        for listener, channel in self._listeners.items():
            listener.close()
            if channel.path is not None and os.path.exists(channel.path):
                os.unlink(channel.path)
        self._selector.close()
        self._log.close()


def _catch_signals() -> int:
    """Have signals that ask for the end written to a pipe.

    Returns:
        The pipe's reading end.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: None)
    return reader


def _ignore_signals() -> None:
    """Let the process end as it wants to: libqtest sends SIGTERM to one that has just quit."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main(words: Sequence[str], program: str, help_text: str) -> int:
    """Run the server.

    Args:
        words: the command line, without the program's name.
        program: the program's name, for messages.
        help_text: what `-help` prints.

    Returns:
        Exit code: 0 at the end of the run, 1 if the command line cannot be taken.
    """
    try:
        line = parse(words, VERSION_TEXT, help_text)
        if line.answer is not None:
            print(line.answer)
            return 0
        if line.qtest is None and not line.qmp:
            raise UsageError("nobody to serve: give -qtest unix:PATH, or see -help")
        if line.exit_with_parent:
            from iommu_emu.qtest.parent import exit_with_parent

            exit_with_parent()
        signals = _catch_signals()
        with contextlib.closing(Server(line)) as server, server.recording():
            server.run(signals)
    except (UsageError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    finally:
        _ignore_signals()
    return 0
