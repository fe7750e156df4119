"""A QEMU whose devices are ours: one process, one event loop, and no files.

The initial file system and the ACPI table are memory files, and a device's socket is in the file
system only until QEMU has connected: whatever happens to either side, nothing is left behind.
QEMU ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iommu_emu.guest.board import PAGE_DEVFN, UNIT_BASE, Board, build_dmar
from iommu_emu.guest.errors import GuestError, GuestTimeoutError
from iommu_emu.qemu import Qemu, clean_environment
from iommu_emu.qtest.client import QtestError
from iommu_emu.qtest.client_qmp import QmpClient
from iommu_emu.vfio_user import Endpoint, Event, Server
from iommu_emu.vfio_user.qemu import memory_arguments, port_id, register_page_commands, root_port

STOP_TIMEOUT = 5.0  # s that QEMU has to end by itself
_QMP_TIMEOUT = 30.0
_TICK = 0.05  # s between two looks at a condition that no descriptor tells of
_LAST_WORDS = 1.0  # s that QEMU has to say why it ends
_KEPT_STDERR = 64 << 10  # bytes, from the end
_READ = 1 << 16

__all__ = ["VirtualMachine"]


class VirtualMachine:
    """A guest in QEMU, stopped before its first instruction; `run` lets it go.

    Everything happens in `wait`: QEMU's requests to our devices, its console, the clock.
    Use it as a context manager; leaving ends QEMU.

    Args:
        qemu: which QEMU.
        board: our side of the devices.
        kernel: the bzImage.
        initramfs: the guest's first file system.
        command_line: the kernel's.
        memory_mib: RAM of the guest.
        on_output: takes what the console prints.
        on_tick: called every 50 ms or so.

    Attributes:
        server: serves our devices.
        output_ended: whether the console is closed: QEMU has ended.
        events: what the server reported that a person should know.

    Raises:
        GuestError: if QEMU does not start.
    """

    def __init__(
        self,
        qemu: Qemu,
        board: Board,
        *,
        kernel: Path,
        initramfs: bytes,
        command_line: str,
        memory_mib: int,
        on_output: Callable[[bytes], None],
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.output_ended = False
        self._next_tick = 0.0
        self.events: deque[str] = deque(maxlen=100)
        self._board = board
        self._on_output = on_output
        self._on_tick = on_tick
        self._stderr = bytearray()
        self._offers: set[socket.socket] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._undo = contextlib.ExitStack()
        try:
            self.server = self._undo.enter_context(Server(board.machine, self._note))
            self._undo.callback(self._withdraw_all)
            self._endpoints: dict[str, Endpoint] = {
                name: self.server.serve(device, None, board.address(name))
                for name, device in board.devices().items()
            }
            self._endpoints["unit"] = self.server.serve_unit(board.unit, None)
            # QEMU's names of the root ports stay, whatever the firmware's bus numbers are.
            self._places = {name: {"bus": port_id(board.port(name))} for name in board.devices()}
            page = f"{PAGE_DEVFN >> 3:#x}.{PAGE_DEVFN & 7:#x}"
            self._places["unit"] = {"bus": "pcie.0", "addr": page}
            self._start(qemu, kernel, initramfs, command_line, memory_mib)
        except BaseException:
            self.close()
            raise

    def _start(
        self, qemu: Qemu, kernel: Path, initramfs: bytes, command_line: str, memory_mib: int
    ) -> None:
        # What QEMU gets is closed on our side as soon as it has it.
        with contextlib.ExitStack() as given:
            initrd = given.enter_context(_memory_file("initramfs", initramfs))
            dmar = given.enter_context(_memory_file("dmar", build_dmar()))
            ours, qmp = socket.socketpair()
            self._undo.callback(ours.close)
            given.callback(qmp.close)
            arguments = [
                *memory_arguments(f"{memory_mib}M"),
                *("-accel", "tcg", "-cpu", "qemu64,+rdrand", "-smp", "1"),
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
                *("-run-with", "exit-with-parent=on"),
                *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
                *("-chardev", f"socket,id=qmp,fd={qmp.fileno()}"),
                *("-object", "monitor-qmp,id=monitor,chardev=qmp"),
                *("-acpitable", f"file=/proc/self/fd/{dmar}"),
                *("-kernel", str(kernel), "-initrd", f"/proc/self/fd/{initrd}"),
                *("-append", command_line),
            ]
            for name in self._board.devices():
                arguments += ["-device", root_port(self._board.port(name))]
            for name in self._endpoints:
                arguments += ["-device", json.dumps(self._properties(name))]
            self._process = subprocess.Popen(
                [*qemu.argv, *arguments],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[initrd, dmar, qmp.fileno()],
                start_new_session=True,  # Ctrl-C is for us; we end QEMU
            )
        self._undo.callback(self._stop)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._watch(self._process.stdout.fileno(), self._output)
        self._watch(self._process.stderr.fileno(), self._complaint)
        try:
            self.qmp = QmpClient(ours, timeout=_QMP_TIMEOUT, wait=self._wait_readable)
            for command in register_page_commands(PAGE_DEVFN, UNIT_BASE):
                self.qmp.execute("human-monitor-command", command_line=command)
        except QtestError as error:
            raise self._ended(f"QEMU does not start: {error}") from error

    def _properties(self, name: str) -> dict[str, Any]:
        """Return what QEMU needs to know to plug one of our devices in, now."""
        return {
            "driver": "vfio-user-pci",
            "id": name,
            "socket": {"type": "unix", "path": self._offer(name)},
            **self._places[name],
        }

    def _offer(self, name: str) -> str:
        """Let QEMU connect to one of our devices, once; return the socket's path."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="iommu-emu-")
        path = f"{self._folder.name}/{name}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(path)
        except OSError as error:
            listener.close()
            raise GuestError(f"socket {path}: {error}; is TMPDIR too long?") from error
        listener.listen(1)
        self._offers.add(listener)
        self.server.watch(listener.fileno(), lambda: self._accept(name, listener))
        return path

    def _accept(self, name: str, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._withdraw(listener)
        self._endpoints[name].connect(connection)

    def _withdraw(self, listener: socket.socket) -> None:
        self.server.unwatch(listener.fileno())
        listener.close()
        self._offers.remove(listener)
        if not self._offers:
            self._remove_folder()

    def _withdraw_all(self) -> None:
        for listener in list(self._offers):
            self._withdraw(listener)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    # Being alive.

    def run(self) -> None:
        """Let the guest run."""
        with self._refusals("cont"):
            self.qmp.execute("cont")

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Serve the guest until a condition holds.

        Args:
            condition: looked at often.
            seconds: of real time that it has.
            what: what is waited for, for the message.

        Raises:
            GuestTimeoutError: if it does not hold in time.
            GuestError: if QEMU ends before.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            now = time.monotonic()
            if self.output_ended:
                raise self._ended(f"the guest ended while we waited for {what}")
            if now > deadline:
                raise GuestTimeoutError(f"{what} took more than {seconds:g} s")
            if now >= self._next_tick:
                self._next_tick = now + _TICK
                self._on_tick()
            self.server.run_once(_TICK)

    def unplug(self, name: str, seconds: float) -> None:
        """Ask the guest to let go of a device, and wait until QEMU has removed it.

        Raises:
            GuestTimeoutError: if the guest does not let go of it in time.
        """
        with self._refusals(f"unplug {name}"):
            self.qmp.execute("device_del", id=name)
        endpoint = self._endpoints[name]
        self.wait(lambda: endpoint.connection is None, seconds, f"the guest to let go of {name}")

    def plug(self, name: str) -> None:
        """Plug a device in again."""
        with self._refusals(f"plug {name}"):
            self.qmp.execute("device_add", **self._properties(name))

    def follow_buses(self) -> None:
        """Take over the bus numbers that the guest's firmware chose."""
        with self._refusals("query-pci"):
            self._board.follow_buses(self.qmp.execute("query-pci"))
        for name in self._board.devices():
            if not self._endpoints[name].plugged:
                self._endpoints[name].address = self._board.address(name)

    @property
    def clean_exit(self) -> bool:
        """Whether QEMU has ended as it does when the guest powers off."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.output_ended and self._process.wait(STOP_TIMEOUT) == 0
        return False

    def close(self) -> None:
        """End QEMU and our side of its devices; again: nothing happens."""
        self._undo.close()

    def __enter__(self) -> VirtualMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Inside.

    def _watch(self, fd: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)
        watched = True

        def readable() -> None:
            nonlocal watched
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                return
            if not data:
                self.server.unwatch(fd)
                watched = False
            take(data)

        self.server.watch(fd, readable)
        self._undo.callback(lambda: self.server.unwatch(fd) if watched else None)

    def _output(self, data: bytes) -> None:
        if data:
            self._on_output(data)
        else:
            self.output_ended = True

    def _complaint(self, data: bytes) -> None:
        self._stderr += data
        del self._stderr[:-_KEPT_STDERR]

    def _wait_readable(self, connection: socket.socket, seconds: float) -> bool:
        """Serve the guest until QMP has something to read, or QEMU has ended."""
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        self.server.watch(connection.fileno(), lambda: None)
        try:
            return self.server.run_until(lambda: bool(poller.poll(0)), max(0.0, seconds))
        finally:
            self.server.unwatch(connection.fileno())

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except QtestError as error:
            raise self._ended(f"{what}: {error}") from error

    def _ended(self, what: str) -> GuestError:
        """Return an error with the last words of QEMU, which may be about to end."""
        stderr = self._process.stderr
        assert stderr is not None
        with contextlib.suppress(subprocess.TimeoutExpired, BlockingIOError):
            self._process.wait(_LAST_WORDS)
            while data := os.read(stderr.fileno(), _READ):
                self._complaint(data)
        status = self._process.poll()
        if status is not None and status < 0:
            what += f"; QEMU was killed by {signal.Signals(-status).name}"
        said = self._stderr.decode(errors="replace").strip().splitlines()
        return GuestError(what + (f"; QEMU said: {said[-1]}" if said else ""))

    def _note(self, event: Event) -> None:
        if event.kind not in ("connected", "disconnected", "interrupt"):
            self.events.append(f"{event.kind} {event.name} {event.details}")

    def _stop(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@contextlib.contextmanager
def _memory_file(name: str, content: bytes) -> Iterator[int]:
    """Make a file that has no name in any folder; yield its descriptor."""
    fd = os.memfd_create(f"iommu-emu-{name}", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        yield fd
    finally:
        os.close(fd)
