"""The receive ring: frames into buffers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from iommu_emu.devices.dma import DmaError, DmaTasks, Work
from iommu_emu.devices.nic.descriptors import DONE, END_OF_FRAME, FAULT
from iommu_emu.devices.nic.registers import Cause
from iommu_emu.devices.nic.ring import ADDRESSES, Ring, State

if TYPE_CHECKING:
    from iommu_emu.devices.nic.controller import Nic

FIFO = 64  # frames that wait for the ring
_RECEIVED, _NO_DESCRIPTOR = int(Cause.RECEIVED), int(Cause.NO_DESCRIPTOR)

__all__ = ["FIFO", "ReceiveRing"]


class ReceiveRing(Ring):
    """Puts frames into buffers.

    A frame that finds no descriptor is dropped; one of which a part is in memory already waits for
    more of them.

    Args:
        nic: the controller.
    """

    def __init__(self, nic: Nic) -> None:
        self._frames: deque[bytes] = deque()
        self._offset = 0  # in the first frame
        super().__init__(nic, int(Cause.RECEIVE_FAILED))

    def begin(self) -> None:
        """Forget what was under way; the frames are lost."""
        super().begin()
        self.nic.statistics.rx_missed += len(self._frames)
        self._frames.clear()
        self._offset = 0

    def receive(self, frame: bytes) -> None:
        """Take a frame, or drop it if the ring is off or has too many."""
        if self.state is not State.RUNNING or len(self._frames) >= FIFO:
            self.nic.statistics.rx_missed += 1
            return
        self._frames.append(frame)
        self.run()

    def work(self, dma: DmaTasks) -> Work[None]:
        """Put frames into buffers as long as there are both."""
        while not dma.closed and self._frames:
            if (yield from self.fetch(dma)):
                yield from self._store(dma)
            elif self._offset:
                return
            else:
                self._frames.popleft()
                self.nic.statistics.rx_no_descriptor += 1
                self.nic.happened(_NO_DESCRIPTOR)

    def _store(self, dma: DmaTasks) -> Work[None]:
        """Put what is left of the first frame into the next buffer, as much as there is room."""
        address, length, _ = self.next
        data = self._frames[0][self._offset : self._offset + length]
        flags, status = 0, DONE
        try:
            if address + len(data) > ADDRESSES:
                raise DmaError("the buffer ends behind the last address")
            if data:
                yield from dma.write(address, data)
        except DmaError:
            data, flags, status = b"", END_OF_FRAME, DONE | FAULT
        else:
            self._offset += len(data)
            if self._offset == len(self._frames[0]):
                flags = END_OF_FRAME
        yield from self.write_back(dma, len(data), flags, status)

    def finished(self, flags: int, status: int) -> None:
        """Count a frame, and interrupt, once all of it is in memory."""
        if not flags & END_OF_FRAME:
            return
        frame, self._offset = self._frames.popleft(), 0
        statistics = self.nic.statistics
        if status & FAULT:
            statistics.rx_faults += 1
        else:
            statistics.rx_frames += 1
            statistics.rx_bytes += len(frame)
        self.nic.happened(_RECEIVED)
