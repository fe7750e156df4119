"""One socket, and the function that is served on it."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from errno import EEXIST, EMFILE, ENFILE, ENODEV
from pathlib import Path
from typing import TYPE_CHECKING

from iommu_emu.core import FullError, StateError
from iommu_emu.pci.function import Function
from iommu_emu.vfio_user.commands import FunctionCommands
from iommu_emu.vfio_user.connection import Connection
from iommu_emu.vfio_user.interrupts import Interrupts
from iommu_emu.vfio_user.protocol import DMA_ACCESS, Command, Peer, ProtocolError
from iommu_emu.vfio_user.unit_page import UnitPage

if TYPE_CHECKING:
    from iommu_emu.vfio_user.server import Server

_MAX_PATH = 107  # bytes of a UNIX socket's address, without its NUL

__all__ = ["Endpoint"]


class Endpoint:
    """Serves one function to one client at a time; made by `Server.serve` and `serve_unit`.

    For the machine, the client's connection is the slot: when a version has been agreed on, the
    function is reset and hot-plugged at `address`; when the connection ends, it is removed by
    surprise. A unit's register page is in no bus; its unit goes through a power-on reset when a
    client connects.

    Args:
        server: whose loop it is in.
        function: what is served.
        path: where the socket is made; None: `connect` is called with connected sockets.
        address: where the function is hot-plugged, "01:00.0"; None for a register page.

    Attributes:
        function: what is served.
        path: the socket; None if there is none.
        connection: the client; None without one.
        plugged: whether a client has the function.
        interrupts: the client's event descriptors; None without a client.

    Raises:
        ValueError: if the path is too long for a socket.
        OSError: if no socket can be made there.
    """

    def __init__(
        self,
        server: Server,
        function: Function,
        path: str | os.PathLike[str] | None,
        address: str | int | None,
    ) -> None:
        self._server = server
        self.function = function
        self.path = None if path is None else Path(path)
        self._address = address
        self.connection: Connection | None = None
        self.plugged = False
        self._peer = Peer()
        self.interrupts: Interrupts | None = None
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        if self.path is not None:
            self._listener = _listen(self.path)
            status = os.stat(self.path)
            self._inode = status.st_dev, status.st_ino

    def __repr__(self) -> str:
        state = "with a client" if self.connection else "waiting"
        return f"<Endpoint {self.function.name!r} at {self.path}, {state}>"

    @property
    def address(self) -> str | int | None:
        """Where the function is hot-plugged at the next connection.

        Setting it moves nothing that is plugged: the guest unplugs and plugs, or its bridges are
        renumbered (`Bridge.set_bus_numbers`).
        """
        return self._address

    @address.setter
    def address(self, address: str | int) -> None:
        if self.plugged:
            raise StateError(f"{self.function.name} is plugged: unplug it before it moves")
        self._address = address

    @property
    def listener(self) -> socket.socket | None:
        """The listening socket; None without one."""
        return self._listener

    def qemu_device(self, **properties: str) -> str:
        """Return the value of QEMU's `-device` that connects here.

        Args:
            properties: more of them, such as bus="rp0", addr="0x5.0x1", id="nvme0".

        Raises:
            StateError: if the endpoint has no socket.
        """
        if self.path is None:
            raise StateError(f"{self!r} has no socket")
        socket_address = {"type": "unix", "path": str(self.path.absolute())}
        device = {"driver": "vfio-user-pci", "socket": socket_address, **properties}
        return json.dumps(device)

    # Clients.

    def accept(self) -> None:
        """Take a client that waits at the socket; a second one is turned away at once."""
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (EMFILE, ENFILE):
                self._server.turn_away(self._listener)
                self._server.note(self, "refused", reason="no file descriptor is left")
            return
        old = self.connection
        if old is not None and _hung_up(old.sock):
            old.close("the client went away")
            self.settle()
        if self.connection is None:
            self.connect(sock)
        else:
            sock.close()
            self._server.note(self, "refused", reason="there is a client already")

    def connect(self, sock: socket.socket) -> Connection:
        """Serve a client on a connected socket, which becomes the endpoint's property.

        Raises:
            StateError: if there is a client already.
        """
        if self.connection is not None:
            raise StateError(f"{self!r} has a client already")
        server = self._server
        self.interrupts = Interrupts(
            self.function,
            lambda fd, action: server.watch(fd, lambda: self.attempt(action)),
            server.unwatch,
        )
        commands = FunctionCommands(
            server.machine,
            self.function,
            server.memory,
            self.interrupts,
            client=self,
            negotiated=self._plug,
            present=self._present,
        )
        connection = Connection(sock, commands, lambda: server.update(self))
        self.connection = connection
        server.update(self)
        server.note(self, "connected")
        return connection

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something for the client; what goes wrong in it ends a connection, not the loop."""
        try:
            action()
        except Exception as error:
            self._server.blame(error, [self])

    def owns(self, caller: object) -> bool:
        """Whether a method's object is the function, or its port, which calls `on_done`."""
        function = self.function
        return caller is function or (function.attached and caller is function.dma)

    def fail(self, error: Exception) -> None:
        """End the client's connection over a mistake in what serves it."""
        reason = f"{type(error).__name__}: {error}"
        self._server.note(self, "error", reason=reason)
        if self.connection is not None:
            self.connection.close(f"internal error: {reason}")

    def _present(self) -> bool:
        return self.function.attached or isinstance(self.function, UnitPage)

    def _plug(self, peer: Peer) -> None:
        self._peer = peer
        function = self.function
        function.interrupt_sink = self.interrupts
        if isinstance(function, UnitPage):
            function.unit.reset(power_on=True)
        else:
            function.reset()
            try:
                self._server.machine.attach(function, self._address, configure=False)
            except (ValueError, FullError, StateError) as error:
                function.interrupt_sink = None
                raise ProtocolError(ENODEV, str(error), fatal=True) from None
        self.plugged = True

    def settle(self) -> None:
        """Give replies that waited, and clean up behind a client that has gone."""
        connection = self.connection
        if connection is None:
            return
        if connection.stalled and _hung_up(connection.sock):
            connection.close("the client went away")
        elif connection.stalled:
            self.attempt(connection.resume)
        if connection.closed:
            self.connection = None
            self.attempt(self._unplug)
            self._server.note(self, "disconnected", reason=connection.reason)

    def _unplug(self) -> None:
        self.plugged = False
        function = self.function
        function.interrupt_sink = None
        try:
            if function.attached:
                self._server.machine.remove(function)
        finally:
            if self.interrupts is not None:
                self.interrupts.close()
                self.interrupts = None
            self._server.memory.drop(self)

    def write_memory(
        self, address: int, data: bytes, on_reply: Callable[[int, bytes], None]
    ) -> bool:
        """Let the client write to its memory or interrupt range (DMA_WRITE).

        It goes out behind the reply to whatever is being answered. QEMU carries it out if the
        guest has enabled bus mastering of this function.

        Args:
            address: physical address.
            data: what is written.
            on_reply: called with the errno of the reply (0: done) and its body.

        Returns:
            False if there is no client, or it does not take as much at once.
        """
        if self.connection is None or not self.plugged or len(data) > self._peer.max_transfer:
            return False
        body = DMA_ACCESS.pack(address, len(data)) + data
        self.connection.command(Command.DMA_WRITE, body, on_reply)
        return True

    def close(self) -> None:
        """End the client's connection and remove the socket."""
        if self.connection is not None:
            self.connection.close("the server ends")
            self.settle()
        if self._listener is None or self.path is None:
            return
        self._listener.close()
        self._listener = None
        with suppress(OSError):  # somebody else has removed it
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._inode:
                self.path.unlink()


def _listen(path: Path) -> socket.socket:
    """Make a listening socket, in place of one that nobody serves any more."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ValueError(f"socket path must be at most {_MAX_PATH} bytes: {path}")
    if path.is_socket():
        if not _served(path):
            path.unlink()
    elif os.path.lexists(path):
        raise FileExistsError(EEXIST, "something that is no socket is in the way", str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen()
    except OSError as error:
        listener.close()
        raise OSError(error.errno, error.strerror, str(path)) from None
    return listener


def _served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
