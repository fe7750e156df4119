"""The transmit ring: frames out of buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommu_emu.devices.dma import DmaError, DmaTasks, Work
from iommu_emu.devices.nic.descriptors import DONE, END_OF_FRAME, FAULT, LENGTH
from iommu_emu.devices.nic.registers import Cause
from iommu_emu.devices.nic.ring import ADDRESSES, Ring

if TYPE_CHECKING:
    from iommu_emu.devices.nic.controller import Nic

_TRANSMITTED = int(Cause.TRANSMITTED)

__all__ = ["TransmitRing"]


class TransmitRing(Ring):
    """Gathers frames from buffers, and sends those that are whole.

    Args:
        nic: the controller.
    """

    def __init__(self, nic: Nic) -> None:
        self._parts: list[bytes] = []
        self._gathered = 0  # bytes in them
        self._error = 0  # what spoilt the frame
        super().__init__(nic, int(Cause.TRANSMIT_FAILED))

    def begin(self) -> None:
        """Forget what was under way."""
        super().begin()
        self._begin_frame()

    def _begin_frame(self) -> None:
        self._parts = []
        self._gathered = self._error = 0

    def work(self, dma: DmaTasks) -> Work[None]:
        """Send frames as long as there are descriptors."""
        while not dma.closed and (yield from self.fetch(dma)):
            yield from self._gather(dma)

    def _gather(self, dma: DmaTasks) -> Work[None]:
        """Read the next buffer, unless it or one before has spoilt the frame."""
        address, length, flags = self.next
        if self._gathered + length > self.nic.max_frame:
            self._error |= LENGTH
        if length and not self._error:
            yield from self._read(dma, address, length)
        elif flags & END_OF_FRAME and not self._gathered and not self._error:
            self._error = LENGTH
        if self._error:
            self._parts.clear()
        yield from self.write_back(dma, length, flags, DONE | self._error)

    def _read(self, dma: DmaTasks, address: int, length: int) -> Work[None]:
        try:
            if address + length > ADDRESSES:
                raise DmaError("the buffer ends behind the last address")
            self._parts.append((yield from dma.read(address, length)))
        except DmaError:
            self._error |= FAULT
        else:
            self._gathered += length

    def finished(self, flags: int, status: int) -> None:
        """Send a frame, or say why not, once all of its buffers are done with."""
        if not flags & END_OF_FRAME:
            return
        statistics = self.nic.statistics
        frame = b"".join(self._parts)
        self._begin_frame()
        if status & FAULT:
            statistics.tx_faults += 1
        elif status & LENGTH:
            statistics.tx_length += 1
        else:
            statistics.tx_frames += 1
            statistics.tx_bytes += len(frame)
        self.nic.happened(_TRANSMITTED)
        if frame:
            self.nic.transmit(frame)
