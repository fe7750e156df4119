"""Software's view of a ring: descriptors that it fills, and takes back when they are done with."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from iommu_emu.devices.driver import Buffer
from iommu_emu.devices.nic.descriptors import DESCRIPTOR, DONE
from iommu_emu.direction import Direction

if TYPE_CHECKING:
    from iommu_emu.memory import PhysicalMemory

__all__ = ["Done", "DriverRing"]


class Done(NamedTuple):
    """A descriptor that the controller has given back.

    Attributes:
        buffer: that it was about.
        length: as written back; likewise what follows.
        flags: see `descriptors`.
        status: bits of `DescriptorStatus`.
    """

    buffer: Buffer
    length: int
    flags: int
    status: int


class DriverRing:
    """Software's view of a ring.

    Args:
        memory: of the machine.
        register: offset of its registers.
        physical: where the CPU sees it.
        entries: descriptors.
        direction: of its buffers.
        mapped: its memory, if whoever gave it has mapped it; `physical` is not used then.

    Attributes:
        iova: where the device sees it; None: it is not mapped.
        head: index of the descriptor that the device gives back next.
        tail: index of the one that it gets next.
        buffers: what the device has, from head up to tail.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        register: int,
        physical: int,
        entries: int,
        direction: Direction,
        mapped: Buffer | None = None,
    ) -> None:
        self.register = register
        self.physical = physical if mapped is None else mapped.physical
        self.entries = entries
        self.direction = direction
        self.mapped = mapped
        self.iova: int | None = None
        self.buffers: deque[Buffer] = deque()
        self._memory = memory
        self.head = self.tail = 0

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return DESCRIPTOR.size * self.entries

    @property
    def room(self) -> int:
        """Descriptors that are free; one always stays so, or a full ring would look empty."""
        return self.entries - 1 - len(self.buffers)

    def clear(self) -> None:
        """Begin anew, with every descriptor 0."""
        self.head = self.tail = 0
        self._memory.write(self.physical, bytes(self.size))

    def put(self, buffer: Buffer, flags: int = 0) -> None:
        """Fill in the next descriptor; the device has it once the doorbell is rung."""
        descriptor = DESCRIPTOR.pack(buffer.iova, buffer.size, flags, 0)
        self._memory.write(self.physical + DESCRIPTOR.size * self.tail, descriptor)
        self.buffers.append(buffer)
        self.tail = (self.tail + 1) % self.entries

    def take(self) -> Done | None:
        """Return the next descriptor that the device has given back; None: there is none."""
        if not self.buffers:
            return None
        _, length, flags, status = self._descriptor(self.head)
        if not status & DONE:
            return None
        self.head = (self.head + 1) % self.entries
        return Done(self.buffers.popleft(), length, flags, status)

    def ready(self, limit: int = 1) -> int:
        """Return how many descriptors the device has given back; stop at `limit`."""
        most = min(limit, len(self.buffers))
        for count in range(most):
            if not self._descriptor((self.head + count) % self.entries)[3] & DONE:
                return count
        return most

    def _descriptor(self, index: int) -> tuple[int, ...]:
        """Return address, length, flags and status."""
        at = self.physical + DESCRIPTOR.size * index
        return DESCRIPTOR.unpack(self._memory.read(at, DESCRIPTOR.size))
