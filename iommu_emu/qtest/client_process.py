"""A QEMU process under qtest: start, connect, notice its death, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence

from iommu_emu.qemu.environment import clean_environment
from iommu_emu.qtest.client import DEFAULT_TIMEOUT, DisconnectedError, QtestClient, QtestError
from iommu_emu.qtest.client_qmp import QmpClient

START_TIMEOUT = 60.0  # seconds until QEMU has connected
STOP_TIMEOUT = 5.0
WITHOUT_DEFAULTS = [
    *("-display", "none", "-audio", "none", "-nodefaults", "-net", "none"),
    *("-run-with", "exit-with-parent=on"),
]
KEPT_STDERR = 64 << 10  # bytes, from the end

__all__ = ["QemuDied", "QemuProcess"]


class QemuDied(DisconnectedError):  # noqa: N818 -- it died; that is its name
    """QEMU ended by itself.

    Attributes:
        status: exit status, negative for a signal.
        stderr: the end of what it wrote to standard error.
    """

    def __init__(self, status: int | None, stderr: str) -> None:
        self.status = status
        self.stderr = stderr
        last = stderr.strip().splitlines()[-1:] or ["nothing on standard error"]
        super().__init__(f"QEMU ended with {self.cause}: {last[0]}")

    @property
    def cause(self) -> str:
        """The signal's name, or the exit status, for people."""
        if self.status is None:
            return "an unknown status"
        if self.status < 0:
            return signal.Signals(-self.status).name
        return f"status {self.status}"


class QemuProcess:
    """A QEMU that runs no guest code: its devices driven over qtest, with QMP beside it.

    Use it as a context manager; leaving ends the process.

    Attributes:
        qtest: the qtest connection.
        qmp: the QMP connection.

    Args:
        command: how to start QEMU, such as `find_qemu().argv`.
        arguments: machine and devices, such as ["-machine", "q35", "-device", "edu"].
        timeout: s to wait for a reply.

    Raises:
        QemuDied: if QEMU ends before it has connected.
        QtestError: if it does not connect in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        arguments: Sequence[str] = (),
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._undo = contextlib.ExitStack()
        try:
            self._start(command, arguments, timeout)
        except BaseException:
            self.close()
            raise

    def _start(self, command: Sequence[str], arguments: Sequence[str], timeout: float) -> None:
        # `close` closes it; the rule does not see that through the stack.
        self._stderr = self._undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        # The folder goes as soon as QEMU has connected: nothing is left, however we end.
        with tempfile.TemporaryDirectory(prefix="iommu-emu-") as folder:
            listeners = []
            for name in ("qtest", "qmp"):
                listener = self._undo.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(f"{folder}/{name}")
                listener.listen(1)
                listeners.append(listener)
            channels = [
                *("-accel", "qtest", "-qtest", f"unix:{folder}/qtest", "-qtest-log", "/dev/null"),
                *("-chardev", f"socket,path={folder}/qmp,id=qmp"),
                *("-mon", "chardev=qmp,mode=control"),
            ]
            self._process = subprocess.Popen(
                [*command, *channels, *WITHOUT_DEFAULTS, *arguments],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
            )
            self._undo.callback(self._stop)
            qtest, qmp = [self._undo.enter_context(self._accept(each)) for each in listeners]
        self.qtest = self._undo.enter_context(QtestClient(qtest, timeout=timeout))
        with self.noticing():
            self.qmp = QmpClient(qmp, timeout=timeout)

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + START_TIMEOUT
        listener.settimeout(0.05)
        while True:
            try:
                return listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self._obituary() from None
                if time.monotonic() > deadline:
                    raise QtestError(f"QEMU did not connect in {START_TIMEOUT:g} s") from None

    def close(self) -> None:
        """End QEMU, close the connections, remove the files; again: nothing happens."""
        self._undo.close()

    def __enter__(self) -> QemuProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kill(self) -> None:
        """Kill the process, as something outside might."""
        self._process.kill()

    def reset(self) -> None:
        """Reset the machine as its reset line does, and wait until that is done."""
        with self.noticing():
            self.qmp.execute("system_reset")
            self.qmp.wait_event("RESET")

    def monitor(self, command: str) -> str:
        """Do a command of the monitor for people and return its text."""
        with self.noticing():
            return str(self.qmp.execute("human-monitor-command", command_line=command))

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """Turn the end of a connection inside the block into `QemuDied`."""
        try:
            yield
        except QemuDied:
            raise
        except DisconnectedError as error:
            raise self._obituary() from error

    def _obituary(self) -> QemuDied:
        try:
            status = self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            status = None
        end = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, end - KEPT_STDERR))
        return QemuDied(status, self._stderr.read().decode("utf-8", "replace"))

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
