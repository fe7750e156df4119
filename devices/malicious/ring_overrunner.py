"""ring-overrunner: a network controller that goes on where a buffer or its ring ends."""

from __future__ import annotations

from iommu_emu.core import Completion
from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.devices.nic import Nic, Register
from iommu_emu.devices.nic.descriptors import DESCRIPTOR

JUNK = b"\xff"

__all__ = ["DEVICE", "JUNK", "RingOverrunner"]


class RingOverrunner(MaliciousDevice, Nic):
    """Works as `Nic` does for its driver, and writes behind each buffer that it fills.

    Args:
        name: for people.
        overrun: bytes that it writes too many.

    Attributes:
        overruns: where it wrote behind a buffer, and what came of it.
    """

    msi_vectors = 0  # MSI-X, as the honest one

    def __init__(self, name: str = "nic", *, overrun: int = 64) -> None:
        super().__init__(name, (Nic.vendor_id, Nic.device_id))
        self.overrun = overrun
        self.overruns: list[tuple[int, Completion]] = []

    def receive(self, frame: bytes) -> None:
        """Take a frame from the network, and write behind the buffer that it goes to."""
        end = self._end_of_buffer()
        super().receive(frame)
        if end is not None:
            self.overruns.append((end, self.write(end, JUNK * self.overrun)))

    def overrun_ring(self) -> Completion:
        """Write behind the last descriptor of the receive ring."""
        base, size = self._ring(Register.BASE_LOW, 8), self._ring(Register.SIZE)
        return self.write(base + DESCRIPTOR.size * size, JUNK * self.overrun)

    def _end_of_buffer(self) -> int | None:
        head = self._ring(Register.HEAD)
        if head == self._ring(Register.TAIL):
            return None
        at = self._ring(Register.BASE_LOW, 8) + DESCRIPTOR.size * head
        read = self.read(at, DESCRIPTOR.size)
        if not read.ok:
            return None
        address, length, *_ = DESCRIPTOR.unpack(read.data)
        return int(address) + int(length)

    def _ring(self, register: Register, size: int = 4) -> int:
        return self.bar_read(0, Register.RECEIVE + register, size)


DEVICE = RingOverrunner
