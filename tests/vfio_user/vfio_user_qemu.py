"""A real QEMU without a running CPU, driven over its qtest socket while our server serves it."""

import socket
import subprocess
import time
from contextlib import contextmanager

from iommu_emu.qemu import clean_environment

PATIENCE = 30  # s


class QemuMachine:
    """A q35 that executes nothing: what its CPU would do is done by qtest commands."""

    def __init__(self, server, process, qtest):
        self.server = server
        self.process = process
        self._qtest = qtest
        self._received = b""

    def wait_for(self, condition, what):
        assert self.server.run_until(condition, PATIENCE), f"not in {PATIENCE} s: {what}"

    def _line(self):
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._received:
            try:
                data = self._qtest.recv(65536)
            except BlockingIOError:
                assert time.monotonic() < deadline, "QEMU does not answer"
                self.server.run_once(0.001)
                continue
            assert data, f"QEMU has ended: {self.process.poll()}"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def command(self, *words):
        """Send a qtest command; returns the words of its answer behind OK."""
        text = " ".join(hex(word) if isinstance(word, int) else word for word in words)
        self._qtest.sendall(text.encode() + b"\n")
        while (line := self._line()).startswith("IRQ"):
            pass
        status, *values = line.split()
        assert status == "OK", line
        return values

    def read32(self, address):
        return int(self.command("readl", address)[0], 16)

    def write32(self, address, value):
        self.command("writel", address, value)

    def config_write(self, devfn, offset, size, value, bus=0):
        self.command("outl", 0xCF8, 1 << 31 | bus << 16 | devfn << 8 | offset & ~3)
        self.command(f"out{' bw l'[size]}", 0xCFC + (offset & 3), value)

    def config_read32(self, devfn, offset, bus=0):
        self.command("outl", 0xCF8, 1 << 31 | bus << 16 | devfn << 8 | offset)
        return int(self.command("inl", 0xCFC)[0], 16)

    def enable(self, devfn, bars, bus=0):
        """Place BARs, by index, and switch on memory access and bus mastering."""
        for index, address in bars.items():
            self.config_write(devfn, 0x10 + 4 * index, 4, address, bus)
        self.config_write(devfn, 4, 2, 6, bus)

    def kill(self):
        self.process.kill()
        self.process.wait()


@contextmanager
def started(qemu, server, folder, *arguments, memory="64M"):
    """Yield a QEMU with shared memory and the given further arguments; it is killed behind."""
    path = folder / "qtest.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, (folder / "qemu.log").open("wb") as log:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        process = subprocess.Popen(
            [
                *qemu.argv,
                *("-machine", "q35,memory-backend=ram", "-accel", "qtest", "-m", memory),
                *("-object", f"memory-backend-memfd,id=ram,size={memory},share=on"),
                *("-nodefaults", "-display", "none", "-qtest", f"unix:{path}"),
                *("-qtest-log", "none", "-run-with", "exit-with-parent=on"),
                *arguments,
            ],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            with _accept(listener, server, process, folder) as qtest:
                qtest.setblocking(False)
                yield QemuMachine(server, process, qtest)
        finally:
            process.kill()
            process.wait()


def _accept(listener, server, process, folder):
    """Return the qtest connection; QEMU makes its devices only after it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            server.run_once(0.01)
        assert process.poll() is None, (folder / "qemu.log").read_text()
        assert time.monotonic() < deadline, "QEMU does not connect"
