"""A small software driver for a ring NIC: rings in RAM, buffers that are mapped for one transfer.

How a buffer is mapped is the caller's business: a direct mapping, the DMA API of an operating
system, or anything else with the two methods of `Mapper`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from iommu_emu.devices.nic import (
    DESCRIPTOR,
    END_OF_FRAME,
    MAX_ENTRIES,
    MIN_ENTRIES,
    Cause,
    Control,
    DescriptorStatus,
    NicStatus,
    Register,
)
from iommu_emu.direction import Direction

if TYPE_CHECKING:
    from iommu_emu.devices.nic import Nic
    from iommu_emu.machine import Machine

PAGE = 4096
_ALL_CAUSES = sum(Cause)
_LONGEST = 0xFFFF  # bytes of a frame
_DONE = int(DescriptorStatus.DONE)

__all__ = ["DriverRing", "Mapper", "Mapping", "NicDriver", "Received", "Untranslated"]


class Mapper(Protocol):
    """Gives a device access to memory, and takes it away."""

    def map(self, physical: int, size: int, direction: Direction) -> int:
        """Return the IOVA by which the device reaches a buffer from now on.

        Args:
            physical: where the CPU sees it; not necessarily the start of a page.
            size: bytes.
            direction: which way the device moves data; rings are BIDIRECTIONAL.
        """

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Take back what `map` returned; same size, same direction."""


class Untranslated:
    """The mapper of a device without an IOMMU before it."""

    def map(self, physical: int, size: int, direction: Direction) -> int:
        """Return the physical address."""
        return physical

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Do nothing."""


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


class Mapping(NamedTuple):
    """A buffer that the device reaches.

    Attributes:
        physical: where the CPU sees it.
        iova: where the device sees it.
        size: bytes.
    """

    physical: int
    iova: int
    size: int


class DriverRing:
    """Software's view of a ring.

    Attributes:
        register: offset of its registers.
        physical: where the CPU sees it.
        entries: descriptors.
        direction: of its buffers.
        iova: where the device sees it; None: it is not mapped.
        head: index of the descriptor that the device gives back next.
        tail: index of the one that it gets next.
        buffers: what the device has, from head up to tail.
    """

    def __init__(self, register: int, physical: int, entries: int, direction: Direction) -> None:
        self.register = register
        self.physical = physical
        self.entries = entries
        self.direction = direction
        self.iova: int | None = None
        self.head = self.tail = 0
        self.buffers: deque[Mapping] = deque()

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return DESCRIPTOR.size * self.entries

    @property
    def room(self) -> int:
        """Descriptors that are free; one always stays so, or a full ring would look empty."""
        return self.entries - 1 - len(self.buffers)


class NicDriver:
    """Programs one controller, as an operating system does: by registers and memory alone.

    Buffers have a fixed size and lie side by side: with less than 4096 bytes, several share a
    page. Each is mapped when the controller gets it, and unmapped when it has given it back.

    Args:
        machine: the machine.
        device: the controller.
        memory: RAM for rings and buffers, as physical addresses.
        mapper: how the controller reaches it; None: at its physical addresses.
        entries: descriptors of each ring, 2..4096; one of them is always left free.
        buffer_size: bytes of a buffer, 64..65535.

    Attributes:
        rx: the receive ring.
        tx: the transmit ring.
        free: physical addresses of the buffers that nobody uses.
        statuses: status of the last descriptor of each frame that `reclaim` found sent, or not.

    Raises:
        ValueError: if a number is outside its range, or `memory` is too small for the rings and
            a buffer for each descriptor.
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
    ) -> None:
        if not MIN_ENTRIES <= entries <= MAX_ENTRIES:
            raise ValueError(f"entries must be in {MIN_ENTRIES}..{MAX_ENTRIES}, not {entries}")
        if not 64 <= buffer_size <= 0xFFFF:
            raise ValueError(f"buffer_size must be in 64..65535, not {buffer_size}")
        ring_size = -(-DESCRIPTOR.size * entries // PAGE) * PAGE
        start = -(-memory.start // PAGE) * PAGE
        first = start + 2 * ring_size
        needed = first + 2 * entries * buffer_size - memory.start
        if needed > len(memory):
            raise ValueError(f"memory must have at least {needed:#x} bytes, not {len(memory):#x}")
        self.machine = machine
        self.device = device
        self.mapper: Mapper = Untranslated() if mapper is None else mapper
        self.buffer_size = buffer_size
        self.statuses: deque[DescriptorStatus] = deque(maxlen=MAX_ENTRIES)
        self.free: deque[int] = deque(range(first, memory.stop - buffer_size + 1, buffer_size))
        self.rx = DriverRing(Register.RECEIVE, start, entries, Direction.FROM_DEVICE)
        self.tx = DriverRing(Register.TRANSMIT, start + ring_size, entries, Direction.TO_DEVICE)
        self._partial = bytearray()  # of the frame that is arriving
        self._spoilt = False  # it is to be thrown away

    # Registers.

    def read(self, register: int) -> int:
        """Read a register of BAR 0."""
        return self.machine.mmio_read(self.device.bar_address(0) + register, 4)

    def write(self, register: int, value: int, size: int = 4) -> None:
        """Write a register of BAR 0."""
        self.machine.mmio_write(self.device.bar_address(0) + register, size, value)

    def use_msix(self, address: int = 0xFEE0_0000, data: int = 0x40) -> None:
        """Switch MSI-X on: receiving is sent as `data`, transmitting as `data` + 1.

        Raises:
            ValueError: if the address or data does not fit in 64 or 32 bits.
        """
        msix = self.device.msix
        assert msix is not None
        for vector in range(msix.vectors):
            entry = msix.table + 16 * vector
            self.write(entry, address, 8)
            self.write(entry + 8, data + vector)
            self.write(entry + 12, 0)
        self.device.config.write(msix.control, 2, 0x8000)

    # Starting and stopping.

    def start(self, causes: int = _ALL_CAUSES) -> None:
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
            self.write(Register.CAUSE, _ALL_CAUSES)
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
        ring.head = ring.tail = 0
        self.machine.memory.write(ring.physical, bytes(ring.size))
        ring.iova = self.mapper.map(ring.physical, ring.size, Direction.BIDIRECTIONAL)
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
                self.mapper.unmap(iova, ring.size, Direction.BIDIRECTIONAL)
        self._forget_frame()

    def _release(self, ring: DriverRing, buffer: Mapping) -> None:
        self.free.append(buffer.physical)
        self.mapper.unmap(buffer.iova, buffer.size, ring.direction)

    # Descriptors.

    def _put(self, ring: DriverRing, buffer: Mapping, flags: int) -> None:
        descriptor = DESCRIPTOR.pack(buffer.iova, buffer.size, flags, 0)
        self.machine.memory.write(ring.physical + DESCRIPTOR.size * ring.tail, descriptor)
        ring.buffers.append(buffer)
        ring.tail = (ring.tail + 1) % ring.entries

    def _take(self, ring: DriverRing) -> tuple[Mapping, int, int, int] | None:
        """Return the next buffer that the controller gave back: it, length, flags, status."""
        if not ring.buffers:
            return None
        at = ring.physical + DESCRIPTOR.size * ring.head
        data = self.machine.memory.read(at, DESCRIPTOR.size)
        _, length, flags, status = DESCRIPTOR.unpack(data)
        if not status & _DONE:
            return None
        ring.head = (ring.head + 1) % ring.entries
        return ring.buffers.popleft(), length, flags, status

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
                physical = self.free[0]
                iova = self.mapper.map(physical, self.buffer_size, ring.direction)
                self.free.popleft()
                self._put(ring, Mapping(physical, iova, self.buffer_size), 0)
                given += 1
        finally:
            if given:
                self._ring_doorbell(ring)
        return given

    def take(self) -> Received | None:
        """Return what the next receive buffer holds, unmapped; None: none is done.

        The buffer goes back to `free`, `refill` gives the controller another one.
        """
        taken = self._take(self.rx)
        if taken is None:
            return None
        buffer, length, flags, status = taken
        # Unmapped before it is read: what the device writes from now on is not for us.
        self._release(self.rx, buffer)
        data = self.machine.memory.read(buffer.physical, min(length, buffer.size))
        return Received(data, bool(flags & END_OF_FRAME), DescriptorStatus(status))

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
        buffers: list[Mapping] = []
        try:
            for part in parts:
                physical = self.free[0]
                self.machine.memory.write(physical, part)
                iova = self.mapper.map(physical, len(part), ring.direction)
                self.free.popleft()
                buffers.append(Mapping(physical, iova, len(part)))
        except BaseException:
            for buffer in buffers:
                self._release(ring, buffer)
            raise
        for buffer in buffers:
            self._put(ring, buffer, END_OF_FRAME if buffer is buffers[-1] else 0)
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
        while (taken := self._take(self.tx)) is not None:
            buffer, _, flags, status = taken
            self._release(self.tx, buffer)
            if flags & END_OF_FRAME:
                self.statuses.append(DescriptorStatus(status))
            count += 1
        return count
