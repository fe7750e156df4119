"""A qtest client as QEMU's libqtest is one: it listens, starts the server, and is connected to."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import tempfile
from pathlib import Path

from installed_command import IOMMU_EMU

TIMEOUT = 60.0  # s; only a hang is that slow
SERVER = [IOMMU_EMU, "qtest"]


class EndedError(Exception):
    """The server closed the connection."""


class Line:
    """One end of a socket, read line by line."""

    def __init__(self, stream: socket.socket) -> None:
        stream.settimeout(TIMEOUT)
        self.stream = stream
        self._rest = b""

    def send(self, text: str) -> None:
        try:
            self.stream.sendall(text.encode("latin-1"))
        except BrokenPipeError:
            raise EndedError from None

    def receive(self) -> str:
        while b"\n" not in self._rest:
            try:
                data = self.stream.recv(1 << 16)
            except ConnectionResetError:  # it ended with a command unread
                data = b""
            if not data:
                raise EndedError
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode().rstrip("\r")

    def wait_for_end(self) -> None:
        try:
            while True:
                self.receive()
        except EndedError:
            return


class Peer:
    """Two listening sockets, the server's process, and the two connections it makes.

    Attributes:
        qtest: the connection for qtest commands.
        qmp: the connection for the monitor.
        process: the server.
        irqs: "raise 21" and so on, as they came.
        events: QMP events as they came.
    """

    def __init__(
        self,
        arguments: str = "",
        *,
        command: list[str] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="qtest-")
        self.irqs: list[str] = []
        self.events: list[dict] = []
        folder = Path(self._folder.name)
        listeners = [listen(folder / "sock"), listen(folder / "qmp")]
        line = (
            f"exec {shlex.join(command or SERVER)} -qtest unix:{folder}/sock "
            f"-qtest-log /dev/null -chardev socket,path={folder}/qmp,id=char0 "
            "-mon chardev=char0,mode=control -display none -audio none "
            f"-run-with exit-with-parent=on {arguments} -accel qtest"
        )
        self.process = subprocess.Popen(["/bin/sh", "-c", line], stderr=subprocess.PIPE, env=env)
        self.qtest, self.qmp = (Line(accept(listener)) for listener in listeners)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()
        for line in (self.qtest, self.qmp):
            line.stream.close()
        self._folder.cleanup()

    def ask(self, command: str) -> str:
        """Send a qtest command; returns its reply."""
        self.qtest.send(command + "\n")
        while (reply := self.qtest.receive()).startswith("IRQ "):
            self.irqs.append(reply[4:])
        return reply

    def ok(self, command: str) -> str:
        """Send a qtest command that must succeed; returns what follows OK."""
        reply = self.ask(command)
        assert reply.split()[0] == "OK", (command, reply)
        return reply[3:]

    def read(self, address: int, size: int = 8) -> int:
        return int(self.ok(f"read{' bw l   q'[size]} {address:#x}"), 0)

    def write(self, address: int, value: int, size: int = 8) -> None:
        self.ok(f"write{' bw l   q'[size]} {address:#x} {value:#x}")

    def config_write(self, devfn: int, offset: int, value: int, letter: str = "l") -> None:
        self.ok(f"outl 0xcf8 {1 << 31 | devfn << 8 | offset:#x}")
        self.ok(f"out{letter} 0xcfc {value:#x}")

    def config_read(self, devfn: int, offset: int) -> int:
        self.ok(f"outl 0xcf8 {1 << 31 | devfn << 8 | offset:#x}")
        return int(self.ok("inl 0xcfc"), 0)

    def qmp_receive(self) -> dict:
        """Return the next message that is no event."""
        while True:
            message = json.loads(self.qmp.receive())
            if "event" not in message:
                return message
            self.events.append(message)

    def qmp_negotiate(self) -> None:
        assert "QMP" in self.qmp_receive()
        assert self.execute("qmp_capabilities") == {"return": {}}

    def execute(self, command: str, **arguments: object) -> dict:
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self.qmp.send(json.dumps(message))
        return self.qmp_receive()

    def end(self) -> tuple[int, str]:
        """Wait for the server's end; returns its exit status and what it said."""
        error = self.process.communicate(timeout=TIMEOUT)[1].decode()
        return self.process.returncode, error


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def accept(listener: socket.socket) -> socket.socket:
    with listener:
        listener.settimeout(TIMEOUT)
        return listener.accept()[0]


def run(arguments: str) -> tuple[int, str, str]:
    """Run the server without a client; returns exit status, output and errors."""
    done = subprocess.run(
        [*SERVER, *shlex.split(arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "80"},
    )
    return done.returncode, done.stdout, done.stderr
