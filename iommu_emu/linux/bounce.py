"""Which parts of a buffer an untrusted device gets to see, and which are bounced (os 4.4).

`plan_bounce` decides by a rule; a `BouncedBuffer` carries a plan out. A DMA API maps its `extents`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from iommu_emu.direction import Direction
from iommu_emu.linux.swiotlb import (
    PCI_BOUNDARY,
    Swiotlb,
    align_up,
    check_mask,
)
from iommu_emu.memory import PAGE

__all__ = [
    "BouncePlan",
    "BounceRule",
    "BouncedBuffer",
    "Extent",
    "Segment",
    "plan_bounce",
]


class BounceRule(Enum):
    """What is bounced of a buffer that does not fill whole granules of the IOMMU.

    NONE maps the granules it lies in: the device reaches what lies beside it. HEAD_TAIL bounces
    the partial granules at both ends and maps those between in place (third version of the
    proposal, 2019): they are the driver's own memory, so that unmaps must be strict. WHOLE bounces
    all of it (fourth version, and Linux since): slots alone may wait for a lazy flush.
    """

    NONE = "none"
    HEAD_TAIL = "head-tail"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a buffer.

    Attributes:
        offset: of its first byte in the buffer.
        size: bytes.
        iova_offset: of its first byte in the range of input addresses.
        bounced: whether it goes through slots; else it is mapped in place.
    """

    offset: int
    size: int
    iova_offset: int
    bounced: bool


@dataclass(frozen=True, slots=True)
class BouncePlan:
    """How a buffer is to be mapped; made by `plan_bounce`.

    Attributes:
        address: physical address of the buffer.
        size: bytes.
        granule: bytes of the IOMMU's smallest page.
        segments: parts of the buffer, in order; no two share a granule.
        keep_mask: low address bits that bounced segments share with the original.
    """

    address: int
    size: int
    granule: int
    segments: tuple[Segment, ...]
    keep_mask: int

    @property
    def iova_offset(self) -> int:
        """Offset of the buffer in the range of input addresses: below a granule."""
        return self.segments[0].iova_offset

    @property
    def iova_size(self) -> int:
        """Bytes of input addresses, whole granules."""
        return align_up(self.iova_offset + self.size, self.granule)

    @property
    def bounced_bytes(self) -> int:
        """Bytes of the buffer that go through slots."""
        return sum(segment.size for segment in self.segments if segment.bounced)

    @property
    def exposed_bytes(self) -> int:
        """Bytes of memory beside the buffer that the device will reach."""
        return sum(
            align_up(segment.iova_offset % self.granule + segment.size, self.granule) - segment.size
            for segment in self.segments
            if not segment.bounced
        )


def plan_bounce(
    address: int, size: int, granule: int, rule: BounceRule, *, min_align_mask: int = 0
) -> BouncePlan:
    """Say how a buffer is mapped for an untrusted device (os 4.4).

    Args:
        address: physical address.
        size: bytes, 1 or more.
        granule: bytes of the IOMMU's smallest page, a power of two of at least 4096.
        rule: what is bounced.
        min_align_mask: low address bits that the device needs kept, below the granule. HEAD_TAIL
            and mapping in place keep the whole offset in the granule.

    Raises:
        ValueError: if an argument is outside its range.
    """
    check_mask("min_align_mask", min_align_mask)
    if granule < PAGE or granule & (granule - 1):
        raise ValueError(f"granule must be a power of two of at least {PAGE}, not {granule}")
    if address < 0 or size < 1:
        raise ValueError(f"address must be 0 or more and size 1 or more, not {address}, {size}")
    if min_align_mask >= granule:
        raise ValueError(  # "Unsupported alignment constraint" (os 4.2)
            f"min_align_mask must be below the granule {granule:#x}, not {min_align_mask:#x}"
        )
    keep = granule - 1
    if rule is BounceRule.NONE or not (address | size) & keep:
        segments = [Segment(0, size, address & keep, bounced=False)]
    elif rule is BounceRule.WHOLE:
        keep = min_align_mask
        segments = [Segment(0, size, address & keep, bounced=True)]
    else:
        segments = list(_head_middle_tail(address, size, granule))
    return BouncePlan(address, size, granule, tuple(segments), keep)


def _head_middle_tail(address: int, size: int, granule: int) -> Iterator[Segment]:
    start = address % granule
    head = min(size, -address % granule)
    tail = (address + size) % granule if head < size else 0
    middle = size - head - tail
    if head:
        yield Segment(0, head, start, bounced=True)
    if middle:
        yield Segment(head, middle, start + head, bounced=False)
    if tail:
        yield Segment(size - tail, tail, start + size - tail, bounced=True)


@dataclass(frozen=True, slots=True)
class Extent:
    """Whole granules to map.

    Attributes:
        iova_offset: of its first byte in the range of input addresses.
        physical: physical address.
        size: bytes.
    """

    iova_offset: int
    physical: int
    size: int


class BouncedBuffer:
    """A buffer with its bounced segments in slots, padding zeroed.

    All of its segments are in slots, or, after an exception, none. Linux removes the mapping from
    the IOMMU before `release`, so that the device cannot change what is being copied (os 4.1).

    Args:
        pool: where the slots are taken.
        plan: how the buffer is to be mapped.
        direction: which way the data goes.
        boundary_mask: no segment's slots cross a multiple of this plus one.
        cpu: number of the virtual CPU.

    Attributes:
        plan: as given.
        extents: what to map, in order of input addresses, without gaps.

    Raises:
        NotRamError, MappingTooLargeError, PoolFullError: as `Swiotlb.map`.
    """

    def __init__(
        self,
        pool: Swiotlb,
        plan: BouncePlan,
        direction: Direction,
        *,
        boundary_mask: int = PCI_BOUNDARY,
        cpu: int = 0,
    ) -> None:
        self.plan = plan
        self._pool = pool
        self._direction = direction
        self._bounced: dict[Segment, int] = {}  # to the address of its bounce buffer
        self._released = False
        try:
            for segment in plan.segments:
                if segment.bounced:
                    self._bounced[segment] = pool.map(
                        plan.address + segment.offset,
                        segment.size,
                        direction,
                        min_align_mask=plan.keep_mask,
                        alloc_align_mask=plan.granule - 1,
                        boundary_mask=boundary_mask,
                        zero_padding=True,
                        cpu=cpu,
                    )
        except Exception:
            self.release(skip_sync=True)
            raise
        self.extents = tuple(self._extent(segment) for segment in plan.segments)

    def _extent(self, segment: Segment) -> Extent:
        physical = self._bounced.get(segment, self.plan.address + segment.offset)
        before = segment.iova_offset % self.plan.granule
        size = align_up(before + segment.size, self.plan.granule)
        return Extent(segment.iova_offset - before, physical - before, size)

    def sync_for_cpu(self, offset: int = 0, size: int | None = None) -> None:
        """Copy out what the device wrote to a part of the buffer; nothing for TO_DEVICE.

        Args:
            offset: of the first byte in the buffer.
            size: bytes; None: to the buffer's end.

        Raises:
            ValueError: if the range is not inside the buffer, or it is released.
        """
        for address, length in self._parts(offset, size):
            self._pool.sync_for_cpu(address, length)

    def sync_for_device(self, offset: int = 0, size: int | None = None) -> None:
        """Copy in what the CPU wrote to a part of the buffer; nothing for FROM_DEVICE.

        Args:
            offset: of the first byte in the buffer.
            size: bytes; None: to the buffer's end.

        Raises:
            ValueError: if the range is not inside the buffer, or it is released.
        """
        for address, length in self._parts(offset, size):
            self._pool.sync_for_device(address, length)

    def release(self, *, skip_sync: bool = False) -> None:
        """Copy out what the device wrote, and free the slots; without effect the second time.

        Args:
            skip_sync: copy nothing out (DMA_ATTR_SKIP_CPU_SYNC).
        """
        for segment, address in list(self._bounced.items()):
            self._pool.unmap(address, segment.size, self._direction, skip_sync=skip_sync)
            del self._bounced[segment]
        self._released = True

    def _parts(self, offset: int, size: int | None) -> Iterator[tuple[int, int]]:
        """Yield address and size of what of a range is in slots."""
        if self._released:
            raise ValueError("the buffer must not be released before it is synchronised")
        end = self.plan.size if size is None else offset + size
        if not 0 <= offset < end <= self.plan.size:
            raise ValueError(
                f"range {offset:#x}..{end:#x} must be inside the buffer's {self.plan.size:#x} bytes"
            )
        for segment, address in self._bounced.items():
            first = max(offset, segment.offset)
            last = min(end, segment.offset + segment.size)
            if first < last:
                yield address + first - segment.offset, last - first
