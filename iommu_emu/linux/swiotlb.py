"""Bounce buffers: Linux's swiotlb pool.

The pool is 2 KiB slots in segments of 128; a mapping takes consecutive slots of one segment. Its
data is copied in at `map`, and out at `unmap` and `sync_for_cpu`. Behaviour is that of current
kernels (os 4.4). Which parts of a buffer are bounced is bounce.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.core import FullError
from iommu_emu.direction import Direction
from iommu_emu.memory import PAGE, PhysicalMemory

__all__ = [
    "DEFAULT_POOL",
    "SEGMENT_SLOTS",
    "SLOT_SIZE",
    "MappingTooLargeError",
    "PoolFullError",
    "Slot",
    "Swiotlb",
    "SwiotlbStatistics",
    "max_mapping_size",
]

SLOT_SIZE = 2048  # IO_TLB_SHIFT 11
SEGMENT_SLOTS = 128  # IO_TLB_SEGSIZE
SEGMENT_SIZE = SLOT_SIZE * SEGMENT_SLOTS
DEFAULT_POOL = 64 << 20  # IO_TLB_DEFAULT_SIZE
PCI_BOUNDARY = 0xFFFF_FFFF  # segment boundary mask of PCI devices


class PoolFullError(FullError):
    """No free slots in a row that a mapping could take."""


class MappingTooLargeError(ValueError):
    """A mapping that the pool cannot hold, however empty it is."""


@dataclass(slots=True)
class SwiotlbStatistics:
    """What a pool did so far.

    Attributes:
        mapped: mappings made.
        failed: mappings refused because they fit no slots.
        copied_to_device: bytes copied into slots.
        copied_from_device: bytes copied out of slots.
        zeroed: bytes of padding cleared.
        used_high_water: most slots in use at once.
    """

    mapped: int = 0
    failed: int = 0
    copied_to_device: int = 0
    copied_from_device: int = 0
    zeroed: int = 0
    used_high_water: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """State of one slot.

    Attributes:
        original: address of the buffer, plus 2 KiB for each slot before this one; None: free, or
            padding.
        remaining: bytes of the buffer from `original` on.
        free: number of free slots from this one to the next used one or the segment's end.
    """

    original: int | None
    remaining: int
    free: int


@dataclass(frozen=True, slots=True, eq=False)
class _Mapping:
    """A live mapping: `size` bytes at `address`, in slots `first` to `first` + `slots`."""

    address: int
    original: int
    size: int
    direction: Direction
    first: int
    slots: int


@dataclass(slots=True)
class _Area:
    """Slots that the CPUs which start here search first; each has a lock of its own in Linux."""

    start: int
    index: int = 0  # where the next search begins, counted from `start`
    used: int = 0


def check_mask(name: str, mask: int) -> None:
    if mask < 0 or mask & (mask + 1):
        raise ValueError(f"{name} must be a power of two less one, not {mask:#x}")


def align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def max_mapping_size(min_align_mask: int = 0) -> int:
    """Return how many bytes a driver may map at once (os 4.4).

    Args:
        min_align_mask: low address bits that a bounce buffer shares with its original.
    """
    check_mask("min_align_mask", min_align_mask)
    return max(0, SEGMENT_SIZE - align_up(min_align_mask, SLOT_SIZE))


class Swiotlb:
    """Pool of bounce buffers in a machine's RAM.

    Args:
        memory: the machine's physical memory.
        base: where the pool lies, a multiple of 4096; its RAM is zeroed.
        size: bytes, a power of two of at least 256 KiB.
        cpus: number of virtual CPUs; the pool has as many areas, rounded up to a power of two,
            and no more than segments.

    Attributes:
        base: first byte.
        size: bytes.
        statistics: what the pool did so far.

    Raises:
        ValueError: if an argument is outside its range.
        NotRamError: if the pool is not inside one piece of RAM.
    """

    def __init__(
        self, memory: PhysicalMemory, base: int, size: int = DEFAULT_POOL, cpus: int = 1
    ) -> None:
        if size < SEGMENT_SIZE or size & (size - 1):
            raise ValueError(
                f"size must be a power of two of at least {SEGMENT_SIZE} (a segment), not {size}"
            )
        if base % PAGE:
            raise ValueError(f"base must be a multiple of {PAGE}, not {base:#x}")
        if cpus < 1:
            raise ValueError(f"cpus must be 1 or more, not {cpus}")
        memory.view(base, size)[:] = 0
        self.base = base
        self.size = size
        self.statistics = SwiotlbStatistics()
        self._memory = memory
        count = size // SLOT_SIZE
        areas = min(1 << (cpus - 1).bit_length(), count // SEGMENT_SLOTS)
        self._area_slots = count // areas
        self._areas = [_Area(start) for start in range(0, count, self._area_slots)]
        self._free = [SEGMENT_SLOTS - index % SEGMENT_SLOTS for index in range(count)]
        self._owners: list[_Mapping | None] = [None] * count

    def __repr__(self) -> str:
        return (
            f"<Swiotlb {self.base:#x}..{self.base + self.size - 1:#x}, "
            f"{self.used_slots} of {len(self._free)} slots used>"
        )

    @property
    def areas(self) -> int:
        """Number of areas."""
        return len(self._areas)

    @property
    def used_slots(self) -> int:
        """Number of slots in use, with those that are padding."""
        return sum(area.used for area in self._areas)

    @property
    def free_slots(self) -> int:
        """Number of free slots."""
        return len(self._free) - self.used_slots

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.size

    def slot(self, index: int) -> Slot:
        """Return the state of a slot.

        Raises:
            ValueError: if the pool has no slot of that number.
        """
        if not 0 <= index < len(self._free):
            raise ValueError(f"index must be in 0..{len(self._free) - 1}, not {index}")
        mapping = self._owners[index]
        if mapping is not None:
            before = index * SLOT_SIZE - (mapping.address - self.base) // SLOT_SIZE * SLOT_SIZE
            if 0 <= before < mapping.size:
                return Slot(mapping.original + before, mapping.size - before, 0)
        return Slot(None, 0, self._free[index])

    # ---- mapping -----------------------------------------------------------------------------

    def map(
        self,
        original: int,
        size: int,
        direction: Direction,
        *,
        min_align_mask: int = 0,
        alloc_align_mask: int = 0,
        boundary_mask: int = PCI_BOUNDARY,
        zero_padding: bool = False,
        cpu: int = 0,
    ) -> int:
        """Copy a buffer into slots, whatever the direction.

        What the device does not overwrite of a FROM_DEVICE buffer thus comes back as it was, and
        no slot shows what it held before.

        Args:
            original: physical address of the buffer.
            size: bytes, 1 or more.
            direction: which way the data goes.
            min_align_mask: low address bits that the bounce buffer shares with the original
                (the device's; NVMe: 0xfff).
            alloc_align_mask: the slots taken begin and end at multiples of this plus one (the
                IOMMU's granule).
            boundary_mask: the slots taken do not cross a multiple of this plus one.
            zero_padding: clear the slots taken before and behind the data, as Linux does for
                untrusted devices.
            cpu: number of the virtual CPU.

        Returns:
            Physical address of the bounce buffer.

        Raises:
            ValueError: if an argument is outside its range, or the buffer is in the pool.
            NotRamError: if the buffer is not RAM.
            MappingTooLargeError: if it does not fit a segment; nothing is mapped.
            PoolFullError: if no free slots in a row can take it; nothing is mapped.
        """
        check_mask("min_align_mask", min_align_mask)
        check_mask("alloc_align_mask", alloc_align_mask)
        check_mask("boundary_mask", boundary_mask)
        if max(min_align_mask, alloc_align_mask) >= SEGMENT_SIZE:
            raise ValueError(
                f"min_align_mask and alloc_align_mask must be below {SEGMENT_SIZE:#x} (a segment), "
                f"not {min_align_mask:#x} and {alloc_align_mask:#x}"
            )
        if boundary_mask < SLOT_SIZE - 1:
            raise ValueError(
                f"boundary_mask must be at least {SLOT_SIZE - 1:#x}, not {boundary_mask:#x}"
            )
        if original < 0 or size < 1 or cpu < 0:
            raise ValueError(
                f"original and cpu must be 0 or more and size 1 or more, "
                f"not {original:#x}, {cpu} and {size}"
            )
        if original < self.base + self.size and original + size > self.base:
            raise ValueError(f"the buffer {original:#x}+{size:#x} is in the pool {self!r}")

        # The shared bits below the allocation's alignment, or below a slot, are an offset in it.
        offset = original & min_align_mask & (alloc_align_mask | (SLOT_SIZE - 1))
        total = align_up(offset + size, alloc_align_mask + 1)
        slots = -(-total // SLOT_SIZE)
        if slots > SEGMENT_SLOTS:
            raise self._too_large(size, min_align_mask)
        data = self._memory.read(original, size)
        if not (min_align_mask or alloc_align_mask) and total >= PAGE:
            alloc_align_mask = PAGE - 1  # a page or more is page aligned if nothing else is asked
        first = self._take(original, slots, min_align_mask, alloc_align_mask, boundary_mask, cpu)
        if first is None:
            if size > max_mapping_size(min_align_mask):
                raise self._too_large(size, min_align_mask)
            self.statistics.failed += 1
            raise PoolFullError(
                f"no {slots} free slots in a row that fit a mapping of {size} bytes: "
                f"{self.used_slots} of {len(self._free)} slots are used; "
                "unmap something, or make the pool larger"
            )

        start = self.base + first * SLOT_SIZE
        address = start + offset
        mapping = _Mapping(address, original, size, direction, first, slots)
        self._owners[first : first + slots] = [mapping] * slots
        if zero_padding:
            behind = start + slots * SLOT_SIZE - (address + size)
            self._memory.write(start, bytes(offset))
            self._memory.write(address + size, bytes(behind))
            self.statistics.zeroed += offset + behind
        self._memory.write(address, data)
        self.statistics.copied_to_device += size
        self.statistics.mapped += 1
        return address

    def sync_for_cpu(self, address: int, size: int) -> None:
        """Copy out what the device wrote; nothing for TO_DEVICE.

        Args:
            address: in the bounce buffer, its beginning or later.
            size: bytes, 1 or more, no more than the mapping has from there on.

        Raises:
            ValueError: if the range is not inside one mapping.
        """
        mapping = self._inside(address, size)
        if mapping.direction is not Direction.TO_DEVICE:
            self._copy_out(mapping, address, size)

    def sync_for_device(self, address: int, size: int) -> None:
        """Copy in what the CPU wrote; nothing for FROM_DEVICE.

        Args:
            address: in the bounce buffer, its beginning or later.
            size: bytes, 1 or more, no more than the mapping has from there on.

        Raises:
            ValueError: if the range is not inside one mapping.
        """
        mapping = self._inside(address, size)
        if mapping.direction is not Direction.FROM_DEVICE:
            original = mapping.original + address - mapping.address
            self._memory.write(address, self._memory.read(original, size))
            self.statistics.copied_to_device += size

    def unmap(
        self, address: int, size: int, direction: Direction, *, skip_sync: bool = False
    ) -> None:
        """Copy out what the device wrote, and free the slots.

        Args:
            address: what `map` returned.
            size: bytes, as mapped.
            direction: as mapped.
            skip_sync: copy nothing out (DMA_ATTR_SKIP_CPU_SYNC).

        Raises:
            ValueError: if there is no such mapping; it stays mapped then.
        """
        mapping = self._inside(address, size)
        if (mapping.address, mapping.size, mapping.direction) != (address, size, direction):
            raise ValueError(
                f"address, size and direction must be those mapped, {mapping.address:#x}, "
                f"{mapping.size} and {mapping.direction.value}, not {address:#x}, {size} and "
                f"{direction.value}"
            )
        if not skip_sync and direction is not Direction.TO_DEVICE:
            self._copy_out(mapping, address, size)
        self._release(mapping)

    def _copy_out(self, mapping: _Mapping, address: int, size: int) -> None:
        original = mapping.original + address - mapping.address
        self._memory.write(original, self._memory.read(address, size))
        self.statistics.copied_from_device += size

    def _inside(self, address: int, size: int) -> _Mapping:
        if address in self and size > 0:
            mapping = self._owners[(address - self.base) // SLOT_SIZE]
            if mapping is not None:
                offset = address - mapping.address
                if offset >= 0 and offset + size <= mapping.size:
                    return mapping
        raise ValueError(f"range {address:#x}+{size:#x} is not inside one mapping of {self!r}")

    def _too_large(self, size: int, min_align_mask: int) -> MappingTooLargeError:
        self.statistics.failed += 1
        return MappingTooLargeError(
            f"a mapping of {size} bytes does not fit a segment ({SEGMENT_SLOTS} slots of "
            f"{SLOT_SIZE} bytes) with its alignment; map at most "
            f"{max_mapping_size(min_align_mask)} bytes at once"
        )

    # ---- slots -------------------------------------------------------------------------------

    def _take(
        self,
        original: int,
        slots: int,
        min_align_mask: int,
        alloc_align_mask: int,
        boundary_mask: int,
        cpu: int,
    ) -> int | None:
        """Take consecutive free slots: from the CPU's own area, or else from the next with some.

        Returns:
            Number of the first, or None.
        """
        alloc_align_mask |= SLOT_SIZE - 1
        min_align_mask &= ~alloc_align_mask  # the bits below are the offset in the slots
        # From one slot that is aligned to the next.
        stride = (max(alloc_align_mask, min_align_mask) >> SLOT_SIZE.bit_length() - 1) + 1
        for step in range(len(self._areas)):
            area = self._areas[(cpu + step) % len(self._areas)]
            if slots > self._area_slots - area.used:
                continue
            index, checked = area.index, 0
            while checked < self._area_slots:
                first = area.start + index
                address = self.base + first * SLOT_SIZE
                if address & alloc_align_mask or (address ^ original) & min_align_mask:
                    advance = 1
                elif (
                    self._free[first] >= slots
                    and (address & boundary_mask) + slots * SLOT_SIZE <= boundary_mask + 1
                ):
                    self._mark(area, first, slots)
                    return first
                else:
                    advance = stride
                index += advance
                checked += advance
                if index >= self._area_slots:
                    index = 0
        return None

    def _mark(self, area: _Area, first: int, slots: int) -> None:
        """Take slots, and let the next search of the area begin behind them."""
        self._free[first : first + slots] = [0] * slots
        self._count_before(first, 0)
        area.index = (first - area.start + slots) % self._area_slots
        area.used += slots
        self.statistics.used_high_water = max(self.statistics.used_high_water, self.used_slots)

    def _release(self, mapping: _Mapping) -> None:
        """Free slots, joined with the free ones around them; where to search next stays."""
        end = mapping.first + mapping.slots
        run = self._free[end] if end % SEGMENT_SLOTS else 0
        for index in range(end - 1, mapping.first - 1, -1):
            run += 1
            self._free[index] = run
            self._owners[index] = None
        self._count_before(mapping.first, run)
        self._areas[mapping.first // self._area_slots].used -= mapping.slots

    def _count_before(self, first: int, run: int) -> None:
        """Correct the lengths of the free run that ends before a slot; runs end with segments."""
        index = first - 1
        while (index + 1) % SEGMENT_SLOTS and self._free[index]:
            run += 1
            self._free[index] = run
            index -= 1
