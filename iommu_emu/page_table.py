"""Page tables that software builds: a radix tree of 4 KiB tables, for either vendor's entries.

The tree's own bookkeeping, not memory, decides what is mapped: a test may edit tables behind its
back, and mistakes are found before anything is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from iommu_emu.core import Access

__all__ = ["PAGE_SIZE", "EntryFormat", "FrameAllocator", "Memory", "PageTable", "table_key"]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
LEVEL_BITS = 9
ENTRY_SIZE = 8


class Memory(Protocol):
    """Physical memory as software sees it; `iommu_emu.memory.PhysicalMemory` is one."""

    def read(self, address: int, length: int, /) -> bytes:
        """Read bytes."""

    def write(self, address: int, data: bytes, /) -> None:
        """Write bytes."""


class FrameAllocator:
    """Hands out zeroed 4 KiB frames of a range of RAM.

    Args:
        memory: where the frames are.
        frames: their addresses; start and stop are multiples of 4096.

    Raises:
        ValueError: if the range is empty or not page aligned.
    """

    def __init__(self, memory: Memory, frames: range) -> None:
        if frames.start % PAGE_SIZE or frames.stop % PAGE_SIZE or frames.stop <= frames.start:
            raise ValueError(
                f"frames must be a page-aligned range, not {frames.start:#x}..{frames.stop:#x}"
            )
        self._memory = memory
        self._next = frames.start
        self._stop = frames.stop
        self._released: list[int] = []

    @property
    def available(self) -> int:
        """Number of frames left."""
        return len(self._released) + (self._stop - self._next) // PAGE_SIZE

    def take(self, count: int = 1) -> int:
        """Return the address of `count` consecutive zeroed frames.

        Raises:
            MemoryError: if there are not that many.
        """
        if count == 1 and self._released:
            address = self._released.pop()
        else:
            address = self._next
            if address + count * PAGE_SIZE > self._stop:
                raise MemoryError(f"the driver's memory range has no {count} frames left")
            self._next += count * PAGE_SIZE
        self._memory.write(address, bytes(count * PAGE_SIZE))
        return address

    def release(self, addresses: Iterable[int]) -> None:
        """Take frames back, one by one."""
        self._released.extend(addresses)


class EntryFormat(ABC):
    """How a vendor encodes page-table entries.

    Attributes:
        levels: depths that the unit supports.
        page_shifts: log2 of the page sizes that a leaf may have.
        preferred_shifts: those that `PageTable.map` picks from by itself.
        output_bits: width of a physical address.
    """

    levels: frozenset[int]
    page_shifts: frozenset[int]
    preferred_shifts: frozenset[int]
    output_bits: int

    @abstractmethod
    def input_bits(self, levels: int) -> int:
        """Return the width of an input address."""

    @abstractmethod
    def table_entry(self, level: int, address: int) -> int:
        """Return the entry at a level that points to the table of the next lower level."""

    @abstractmethod
    def leaf_entry(self, shift: int, permissions: Access) -> int:
        """Return the entry of a page at address 0; its address is or-ed in."""

    def leaf_entries(self, physical: int, shift: int, permissions: Access, count: int) -> list[int]:
        """Return the entries of consecutive pages, as they follow each other in a table."""
        template = self.leaf_entry(shift, permissions)
        copies = 1 << (shift - PAGE_SHIFT) % LEVEL_BITS
        pages = range(physical, physical + (count << shift), 1 << shift)
        return [template | page for page in pages for _ in range(copies)]


def leaf_level(shift: int) -> int:
    """Return the level whose tables hold the leaves of a page size."""
    return (shift - PAGE_SHIFT) // LEVEL_BITS + 1


def coverage_shift(level: int) -> int:
    """Return log2 of the bytes that one table of a level covers."""
    return PAGE_SHIFT + LEVEL_BITS * level


def table_key(level: int, iova: int) -> tuple[int, int]:
    """Return what identifies the table of a level that covers an address."""
    return level, iova >> coverage_shift(level)


@dataclass(frozen=True)
class _Run:
    """Consecutive pages of one size: the bytes first..last go to physical and up."""

    first: int
    last: int
    physical: int
    shift: int
    permissions: Access

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def part(self, first: int, last: int) -> _Run:
        return replace(self, first=first, last=last, physical=self.physical + first - self.first)


@dataclass
class _Table:
    address: int
    used: int = 0


class PageTable:
    """A page table of one domain.

    Args:
        memory: where tables are written.
        frames: where they come from.
        entries: the vendor's encoding.
        levels: depth.

    Attributes:
        root: address of the top table.

    Raises:
        ValueError: if the unit does not support the depth.
    """

    def __init__(
        self, memory: Memory, frames: FrameAllocator, entries: EntryFormat, levels: int
    ) -> None:
        if levels not in entries.levels:
            raise ValueError(f"levels must be one of {sorted(entries.levels)}, not {levels}")
        self._memory = memory
        self._frames = frames
        self._entries = entries
        self.levels = levels
        self._runs: list[_Run] = []
        self.root = frames.take()
        self._tables = {table_key(levels, 0): _Table(self.root)}

    # ---- what is mapped ----------------------------------------------------------------------

    def _overlapping(self, first: int, last: int) -> list[_Run]:
        at = bisect_right(self._runs, first, key=lambda run: run.first)
        start = at - 1 if at and self._runs[at - 1].last >= first else at
        stop = bisect_right(self._runs, last, key=lambda run: run.first)
        return self._runs[start:stop]

    @property
    def mapped(self) -> int:
        """Bytes that are mapped."""
        return sum(run.size for run in self._runs)

    def lookup(self, iova: int) -> tuple[int, Access] | None:
        """Return physical address and permissions of an address, or None if it is not mapped."""
        for run in self._overlapping(iova, iova):
            return run.physical + iova - run.first, run.permissions
        return None

    def table_address(self, level: int, iova: int) -> int | None:
        """Return the address of the table of a level that covers an address, or None."""
        table = self._tables.get(table_key(level, iova))
        return table.address if table else None

    def entry_address(self, level: int, iova: int) -> int | None:
        """Return the address of an address's entry in its table of a level, or None."""
        table = self.table_address(level, iova)
        index = iova >> coverage_shift(level - 1) & 0x1FF
        return None if table is None else table + ENTRY_SIZE * index

    # ---- mapping -----------------------------------------------------------------------------

    def map(
        self,
        iova: int,
        physical: int,
        size: int,
        permissions: Access,
        page_sizes: Iterable[int] | None = None,
    ) -> None:
        """Map a range, with the largest pages that fit.

        Args:
            iova: first input address.
            physical: where it goes.
            size: bytes.
            permissions: READ, WRITE or both.
            page_sizes: sizes to pick from, in bytes; None: what the unit prefers.

        Raises:
            ValueError: if a number is not aligned or out of range, or part of it is mapped.
            MemoryError: if there are not enough frames for tables.
        """
        shifts = self._allowed(page_sizes)
        self._check_range(iova, size, "map")
        unit = 1 << min(shifts)
        for name, value in (("iova", iova), ("physical", physical), ("size", size)):
            if value % unit:
                raise ValueError(f"{name} must be a multiple of {unit:#x}, not {value:#x}")
        limit = 1 << self._entries.output_bits
        if not 0 <= physical <= limit - size:
            raise ValueError(f"physical range must end at or below {limit:#x}, not {physical:#x}")
        for run in self._overlapping(iova, iova + size - 1):
            raise ValueError(f"iova {max(iova, run.first):#x} is mapped already")
        runs = list(self._plan(iova, physical, size, permissions, shifts))
        if any(self._covers_table(run) for run in runs):
            # Tables without entries, kept by an unmap: they are used, not replaced.
            runs = list(self._plan(iova, physical, size, permissions, shifts[-1:]))
            if any(self._covers_table(run) for run in runs):
                raise ValueError(f"pages of {unit:#x} do not fit between the tables at {iova:#x}")
        missing = {key for run in runs for key in self._missing_tables(run)}
        if len(missing) > self._frames.available:
            raise MemoryError(f"{len(missing)} tables needed, {self._frames.available} frames left")
        for run in runs:
            self._write(run)
            self._runs.insert(bisect_right(self._runs, run.first, key=lambda r: r.first), run)

    def _allowed(self, page_sizes: Iterable[int] | None) -> list[int]:
        if page_sizes is None:
            shifts = set(self._entries.preferred_shifts)
        else:
            shifts = {size.bit_length() - 1 for size in page_sizes}
            sizes = {1 << shift for shift in self._entries.page_shifts}
            refused = set(page_sizes) - sizes
            if refused or not shifts:
                listed = ", ".join(f"{size:#x}" for size in sorted(sizes))
                raise ValueError(f"page_size must be of {listed}, not {sorted(refused)}")
        return sorted((s for s in shifts if leaf_level(s) <= self.levels), reverse=True)

    def _check_range(self, iova: int, size: int, what: str) -> None:
        limit = 1 << self._entries.input_bits(self.levels)
        if size <= 0:
            raise ValueError(f"size must be above 0, not {size:#x}")
        if not 0 <= iova <= limit - size:
            raise ValueError(f"{what} must stay in 0..{limit - 1:#x}, not {iova:#x}+{size:#x}")

    @staticmethod
    def _plan(
        iova: int, physical: int, size: int, permissions: Access, shifts: list[int]
    ) -> Iterator[_Run]:
        """Cut a range into runs; `shifts` come largest first."""
        end = iova + size
        while iova < end:
            larger = None
            for shift in shifts:
                aligned = (iova | physical) % (1 << shift) == 0
                if aligned and end - iova >= 1 << shift:
                    break
                # A larger size can come into play only if both addresses agree below it.
                if (iova ^ physical) % (1 << shift) == 0:
                    larger = shift
            stop = end
            if larger is not None:
                boundary = -(-iova >> larger) << larger
                stop = boundary if iova < boundary < end else end
            length = stop - iova >> shift << shift
            yield _Run(iova, iova + length - 1, physical, shift, permissions)
            iova += length
            physical += length

    def _covers_table(self, run: _Run) -> bool:
        """Whether a table is there where a run's leaves would go."""
        level = leaf_level(run.shift)
        if level == 1:
            return False
        first, last = (address >> coverage_shift(level - 1) for address in (run.first, run.last))
        return any((level - 1, index) in self._tables for index in range(first, last + 1))

    def _missing_tables(self, run: _Run) -> Iterator[tuple[int, int]]:
        for level in range(leaf_level(run.shift), self.levels):
            _, first = table_key(level, run.first)
            _, last = table_key(level, run.last)
            for index in range(first, last + 1):
                if (level, index) not in self._tables:
                    yield level, index

    def _write(self, run: _Run) -> None:
        """Write a run's leaves, one slice of entries a table."""
        level = leaf_level(run.shift)
        span = 1 << coverage_shift(level)
        entry_shift = coverage_shift(level - 1)
        for first in range(run.first // span * span, run.last + 1, span):
            part = run.part(max(first, run.first), min(first + span - 1, run.last))
            values = self._entries.leaf_entries(
                part.physical, part.shift, part.permissions, part.size >> part.shift
            )
            table = self._table(level, part.first)
            index = part.first >> entry_shift & 0x1FF
            self._memory.write(table.address + ENTRY_SIZE * index, array("Q", values).tobytes())
            table.used += len(values)

    def _table(self, level: int, iova: int) -> _Table:
        """Return the table of a level that covers an address; link new ones from the top."""
        key = table_key(level, iova)
        found = self._tables.get(key)
        if found is not None:
            return found
        above = self._table(level + 1, iova)
        created = self._tables[key] = _Table(self._frames.take())
        index = iova >> coverage_shift(level) & 0x1FF
        entry = self._entries.table_entry(level + 1, created.address)
        self._memory.write(above.address + ENTRY_SIZE * index, entry.to_bytes(8, "little"))
        above.used += 1
        return created

    # ---- unmapping ---------------------------------------------------------------------------

    def unmap(self, iova: int, size: int, *, keep_tables: bool = False) -> list[int]:
        """Unmap a range, and every table that gets empty.

        Args:
            iova: first input address.
            size: bytes.
            keep_tables: of those tables, unlink only what the range covers whole, as Linux does.

        Returns:
            The frames of those tables: the unit may still use them until it is invalidated.

        Raises:
            ValueError: if part of the range is not mapped, or a page would be split.
        """
        self._check_range(iova, size, "unmap")
        end = iova + size
        position = iova
        parts = []
        runs = self._overlapping(iova, end - 1)
        for run in runs:
            if run.first > position:
                break
            first, last = max(run.first, iova), min(run.last, end - 1)
            for name, value in (("iova", first), ("end of the range", last + 1)):
                if (value - run.first) % (1 << run.shift):
                    raise ValueError(f"{name} {value:#x} splits a page of {1 << run.shift:#x}")
            parts.append(run.part(first, last))
            position = last + 1
        if position < end:
            raise ValueError(f"iova {position:#x} is not mapped")
        at = self._runs.index(runs[0])
        kept = [run.part(run.first, iova - 1) for run in runs if run.first < iova]
        kept += [run.part(end, run.last) for run in runs if run.last >= end]
        self._runs[at : at + len(runs)] = kept
        whole = range(iova, end) if keep_tables else None
        return [frame for part in parts for frame in self._clear(part, whole)]

    def _clear(self, run: _Run, whole: range | None) -> Iterator[int]:
        level = leaf_level(run.shift)
        span = 1 << coverage_shift(level)
        entry_shift = coverage_shift(level - 1)
        for first in range(run.first // span * span, run.last + 1, span):
            part = run.part(max(first, run.first), min(first + span - 1, run.last))
            count = part.size >> entry_shift
            table = self._tables[table_key(level, part.first)]
            index = part.first >> entry_shift & 0x1FF
            self._memory.write(table.address + ENTRY_SIZE * index, bytes(ENTRY_SIZE * count))
            table.used -= count
            yield from self._prune(level, part.first, whole)

    def _prune(self, level: int, iova: int, whole: range | None) -> Iterator[int]:
        """Unlink an empty table, then those above it; `whole` must cover it if given."""
        key = table_key(level, iova)
        table = self._tables[key]
        if table.used or level == self.levels:
            return
        if whole is not None:
            first = key[1] << coverage_shift(level)
            if whole.start > first or whole.stop < first + (1 << coverage_shift(level)):
                return
        del self._tables[key]
        above = self._tables[table_key(level + 1, iova)]
        index = iova >> coverage_shift(level) & 0x1FF
        self._memory.write(above.address + ENTRY_SIZE * index, bytes(ENTRY_SIZE))
        above.used -= 1
        yield table.address
        yield from self._prune(level + 1, iova, whole)

    def frames(self) -> list[int]:
        """Return the frames of every table."""
        return [table.address for table in self._tables.values()]
