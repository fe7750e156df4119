"""A small software driver: rings in RAM, buffers that are mapped for one transfer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from iommu_emu.devices.driver import Buffer, DeviceDriver
from iommu_emu.devices.nic.controller import Nic
from iommu_emu.devices.nic.descriptors import DESCRIPTOR, END_OF_FRAME, DescriptorStatus
from iommu_emu.devices.nic.driver_ring import Done, DriverRing
from iommu_emu.devices.nic.mapper import BatchMapper, Mapper, Untranslated
from iommu_emu.devices.nic.registers import (
    ALL_CAUSES,
    MAX_ENTRIES,
    MIN_ENTRIES,
    Control,
    NicStatus,
    Register,
)
from iommu_emu.direction import Direction
from iommu_emu.memory import PAGE

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

_LONGEST = 0xFFFF  # bytes of a frame

__all__ = ["NicDriver", "Received"]


class Received(NamedTuple):
    """What one receive buffer held.

    Attributes:
        data: bytes of the frame.
        last: whether the frame ends with them.
        status: what the controller wrote back.
    """

    data: bytes
    last: bool
    status: DescriptorStatus


class NicDriver(DeviceDriver[Nic]):
    """Programs one controller.

    Buffers have a fixed size and lie side by side: with less than 4096 bytes, several share a
    page. Each is mapped when the controller gets it, and unmapped when it has given it back.

    Args:
        machine: the machine.
        device: the controller.
        memory: RAM for rings and buffers, as physical addresses.
        mapper: how the controller reaches it; None: at its physical addresses.
        entries: descriptors of each ring, 2..4096; one of them is always left free.
        buffer_size: bytes of a buffer, 64..65535.
        rings: memory of the receive and of the transmit ring that the controller reaches already,
            as coherent memory is; None: part of `memory`, which the mapper maps.

    Attributes:
        rx: the receive ring.
        tx: the transmit ring.
        free: physical addresses of the buffers that nobody uses.
        statuses: status of the last descriptor of each frame that `reclaim` found sent, or not.

    Raises:
        ValueError: if a number is outside its range, or memory is too small for the rings or a
            buffer for each descriptor.
    """

    def __init__(
        self,
        machine: Machine,
        device: Nic,
        memory: range,
        mapper: Mapper | None = None,
        *,
        entries: int = 64,
        buffer_size: int = 2048,
        rings: Sequence[Buffer] | None = None,
    ) -> None:
        if not MIN_ENTRIES <= entries <= MAX_ENTRIES:
            raise ValueError(f"entries must be in {MIN_ENTRIES}..{MAX_ENTRIES}, not {entries}")
        if not 64 <= buffer_size <= 0xFFFF:
            raise ValueError(f"buffer_size must be in 64..65535, not {buffer_size}")
        start = first = -(-memory.start // PAGE) * PAGE
        ring_size = 0
        if rings is None:
            ring_size = -(-DESCRIPTOR.size * entries // PAGE) * PAGE
            first += 2 * ring_size
        elif len(rings) != 2 or any(ring.size < DESCRIPTOR.size * entries for ring in rings):
            raise ValueError(f"rings must be two of {DESCRIPTOR.size * entries} bytes or more")
        needed = first + 2 * entries * buffer_size - memory.start
        if needed > len(memory):
            raise ValueError(f"memory must have at least {needed:#x} bytes, not {len(memory):#x}")
        super().__init__(machine, device)
        self.mapper: Mapper = Untranslated() if mapper is None else mapper
        # Looked at once: to ask a protocol takes longer than to receive a frame.
        self._batches = self.mapper if isinstance(self.mapper, BatchMapper) else None
        self.buffer_size = buffer_size
        self.statuses: deque[DescriptorStatus] = deque(maxlen=MAX_ENTRIES)
        self.free: deque[int] = deque(range(first, memory.stop - buffer_size + 1, buffer_size))
        rx, tx = rings or (None, None)
        self.rx = DriverRing(
            machine.memory, Register.RECEIVE, start, entries, Direction.FROM_DEVICE, rx
        )
        self.tx = DriverRing(
            machine.memory, Register.TRANSMIT, start + ring_size, entries, Direction.TO_DEVICE, tx
        )
        self._partial = bytearray()  # of the frame that is arriving
        self._spoilt = False  # it is to be thrown away

    # Starting and stopping.

    def start(self, causes: int = ALL_CAUSES) -> None:
        """Set the rings up, give the controller all receive buffers, and switch it on.

        Args:
            causes: which of `Cause` interrupt.

        Raises:
            RuntimeError: if the controller is not switched off, or rejects its rings.
            Exception: whatever the mapper raises; nothing stays mapped then.
        """
        if self.rx.iova is not None or self.read(Register.STATUS):
            raise RuntimeError("the controller is in use: stop it first")
        try:
            for ring in (self.rx, self.tx):
                self._set_up(ring)
            self.write(Register.CAUSE, ALL_CAUSES)
            self.write(Register.ENABLE, causes)
            self.write(Register.CONTROL, int(Control.RECEIVE | Control.TRANSMIT))
            status = NicStatus(self.read(Register.STATUS))
            if status != NicStatus.RECEIVE | NicStatus.TRANSMIT:
                raise RuntimeError(f"the controller does not start: {status!r}")
            self.refill()
        except BaseException:
            self.stop()
            raise

    def _set_up(self, ring: DriverRing) -> None:
        ring.clear()
        if ring.mapped is None:
            ring.iova = self.mapper.map(ring.physical, ring.size, Direction.BIDIRECTIONAL)
        else:
            ring.iova = ring.mapped.iova
        self.write(ring.register + Register.BASE_LOW, ring.iova & 0xFFFF_FFFF)
        self.write(ring.register + Register.BASE_HIGH, ring.iova >> 32)
        self.write(ring.register + Register.SIZE, ring.entries)

    def stop(self) -> None:
        """Switch the controller off, wait until nothing is in flight, and unmap everything.

        Raises:
            TimeoutError: if the controller does not stop, and no event is due that could help.
        """
        if self.device.attached:
            self.write(Register.CONTROL, 0)
            while self.read(Register.STATUS):
                if not self.machine.clock.run_to_next_event():
                    raise TimeoutError("the controller does not stop, and no event is due")
        for ring in (self.rx, self.tx):
            while ring.buffers:
                self._release(ring, ring.buffers.popleft())
            if ring.iova is not None:
                iova, ring.iova = ring.iova, None
                if ring.mapped is None:
                    self.mapper.unmap(iova, ring.size, Direction.BIDIRECTIONAL)
        self._forget_frame()

    def _release(self, ring: DriverRing, buffer: Buffer) -> None:
        self.free.append(buffer.physical)
        self.mapper.unmap(buffer.iova, buffer.size, ring.direction)

    def _ring_doorbell(self, ring: DriverRing) -> None:
        self.write(ring.register + Register.TAIL, ring.tail)

    # Receiving.

    def refill(self) -> int:
        """Give the controller buffers until its ring is full; return how many.

        Raises:
            Exception: whatever the mapper raises; the controller has the buffers before then.
        """
        ring = self.rx
        given = 0
        try:
            while ring.room and self.free:
                given += self._give(min(ring.room, len(self.free)))
        finally:
            if given:
                self._ring_doorbell(ring)
        return given

    def _give(self, count: int) -> int:
        """Map free buffers and put them into the receive ring, at most `count`; return how many."""
        ring, size = self.rx, self.buffer_size
        if self._batches is not None:
            buffers = [(physical, size) for physical in islice(self.free, count)]
            iovas = self._batches.map_batch(buffers, ring.direction)
        else:
            iovas = [self.mapper.map(self.free[0], size, ring.direction)]
        for iova in iovas:
            ring.put(Buffer(self.free.popleft(), iova, size))
        return len(iovas)

    def take(self) -> Received | None:
        """Return what the next receive buffer holds, unmapped; None: none is done.

        The buffer goes back to `free`, `refill` gives the controller another one.
        """
        done = self.rx.take()
        if done is None:
            return None
        # Unmapped before it is read: what the device writes from now on is not for us.
        self._release(self.rx, done.buffer)
        return self._received(done)

    def take_all(self, limit: int) -> list[Received]:
        """Return what the next receive buffers hold, unmapped together.

        Args:
            limit: how many at most.
        """
        ring = self.rx
        taken: list[Done] = []
        while len(taken) < limit and (done := ring.take()) is not None:
            taken.append(done)
        if not taken:
            return []
        buffers = [done.buffer for done in taken]
        self.free.extend(buffer.physical for buffer in buffers)
        if self._batches is not None:
            self._batches.unmap_batch([(b.iova, b.size) for b in buffers], ring.direction)
        else:
            for buffer in buffers:
                self.mapper.unmap(buffer.iova, buffer.size, ring.direction)
        return [self._received(done) for done in taken]

    def _received(self, done: Done) -> Received:
        buffer = done.buffer
        data = self.machine.memory.read(buffer.physical, min(done.length, buffer.size))
        return Received(data, bool(done.flags & END_OF_FRAME), DescriptorStatus(done.status))

    def poll(self) -> list[bytes]:
        """Return the frames that arrived whole, and give the controller new buffers.

        Frames with an error, or longer than any can be, are thrown away.
        """
        frames: list[bytes] = []
        # The controller may go on meanwhile: one round of the ring is enough for a call.
        for _ in range(self.rx.entries):
            received = self.take()
            if received is None:
                break
            self._gather(received, frames)
        self.refill()
        return frames

    def _gather(self, received: Received, frames: list[bytes]) -> None:
        too_long = len(self._partial) + len(received.data) > _LONGEST
        if too_long or received.status != DescriptorStatus.DONE:
            self._spoilt = True
            self._partial.clear()
        if not self._spoilt:
            self._partial += received.data
        if received.last:
            if not self._spoilt:
                frames.append(bytes(self._partial))
            self._forget_frame()

    def _forget_frame(self) -> None:
        self._partial.clear()
        self._spoilt = False

    # Transmitting.

    def post(self, *parts: bytes) -> bool:
        """Put a frame into the transmit ring, a descriptor for each part; `kick` tells of it.

        Args:
            parts: pieces of the frame, each 1..`buffer_size` bytes.

        Returns:
            False if descriptors or buffers are short; `reclaim` may help.

        Raises:
            ValueError: if there is no part, or one is empty, longer than a buffer, or there are
                more than the ring ever takes.
            Exception: whatever the mapper raises; nothing is posted or mapped then.
        """
        ring = self.tx
        if not 0 < len(parts) < ring.entries:
            raise ValueError(f"a frame must have 1..{ring.entries - 1} parts, not {len(parts)}")
        for part in parts:
            if not 0 < len(part) <= self.buffer_size:
                raise ValueError(f"a part must have 1..{self.buffer_size} bytes, not {len(part)}")
        if ring.room < len(parts) or len(self.free) < len(parts):
            return False
        buffers: list[Buffer] = []
        try:
            for part in parts:
                physical = self.free[0]
                self.machine.memory.write(physical, part)
                iova = self.mapper.map(physical, len(part), ring.direction)
                self.free.popleft()
                buffers.append(Buffer(physical, iova, len(part)))
        except BaseException:
            for buffer in buffers:
                self._release(ring, buffer)
            raise
        for buffer in buffers:
            ring.put(buffer, END_OF_FRAME if buffer is buffers[-1] else 0)
        return True

    def kick(self) -> None:
        """Ring the doorbell of the transmit ring."""
        self._ring_doorbell(self.tx)

    def send(self, *parts: bytes) -> bool:
        """Put a frame into the transmit ring and ring its doorbell; see `post`."""
        posted = self.post(*parts)
        if posted:
            self.kick()
        return posted

    def reclaim(self) -> int:
        """Take back the buffers that the controller is done with; return how many."""
        count = 0
        while (done := self.tx.take()) is not None:
            self._release(self.tx, done.buffer)
            if done.flags & END_OF_FRAME:
                self.statuses.append(DescriptorStatus(done.status))
            count += 1
        return count
