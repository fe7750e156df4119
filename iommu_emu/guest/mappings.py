"""What a guest has mapped: its second-stage tables, read as they lie in its memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iommu_emu.bitfields import Entry
from iommu_emu.core import NotRamError
from iommu_emu.memory import PAGE, PhysicalMemory
from iommu_emu.vtd.structures import ContextEntry, RootEntry
from iommu_emu.vtd.unit import VtdUnit

MAX_TABLES = 1 << 16  # looked at in one go: a guest may link tables to themselves
PASS_THROUGH = 2  # translation type (VT-d 4.3)
_ADDRESS = (1 << 52) - PAGE
_READ_WRITE = 3
_PAGE_SIZE = 1 << 7

__all__ = ["DomainMappings", "leaf_entry", "mappings_of"]


@dataclass(frozen=True)
class DomainMappings:
    """The domain of one requester.

    Attributes:
        requester: requester ID.
        domain: domain ID.
        pass_through: whether nothing is translated.
        levels: of its page table.
        pages: present leaves by the bytes that one covers.
    """

    requester: int
    domain: int
    pass_through: bool
    levels: int
    pages: dict[int, int]

    @property
    def mapped(self) -> int:
        """Bytes mapped."""
        return sum(size * count for size, count in self.pages.items())


def _context(unit: VtdUnit, memory: PhysicalMemory, requester: int) -> Entry | None:
    """Return the present context entry of a requester (VT-d 4.1, 4.3)."""
    root = unit.read("RTADDR") & ~(PAGE - 1)
    entry = RootEntry.parse_int(_read(memory, root + 16 * (requester >> 8), 16))
    if not entry.p:
        return None
    context = ContextEntry.parse_int(_read(memory, entry.ctp + 16 * (requester & 0xFF), 16))
    return context if context.p else None


def mappings_of(unit: VtdUnit, memory: PhysicalMemory, requester: int) -> DomainMappings | None:
    """Return what a requester's tables map now; None: it has no present context entry.

    Tables outside memory count as empty, and no more than 65536 tables are read.
    """
    try:
        context = _context(unit, memory, requester)
    except NotRamError:
        return None
    if context is None:
        return None
    levels = context.aw + 2
    passing = context.tt == PASS_THROUGH
    pages: dict[int, int] = {}
    if not passing:
        _count(memory, context.ssptptr, levels, pages)
    return DomainMappings(requester, context.did, passing, levels, pages)


def _count(memory: PhysicalMemory, root: int, levels: int, pages: dict[int, int]) -> None:
    """Count the leaves below a table, level by level (VT-d 4.8)."""
    tables, budget = [root], MAX_TABLES
    for level in range(levels, 0, -1):
        below: list[int] = []
        for table in tables[:budget]:
            entries = _table(memory, table)
            present = entries[(entries & _READ_WRITE) != 0]
            leaves = present if level == 1 else present[(present & _PAGE_SIZE) != 0]
            if len(leaves):
                size = PAGE << 9 * (level - 1)
                pages[size] = pages.get(size, 0) + len(leaves)
            if level > 1:
                linked = present[(present & _PAGE_SIZE) == 0] & _ADDRESS
                below += [int(address) for address in linked[: budget - len(below)]]
        budget -= len(tables)
        if budget <= 0:
            return
        tables = below


def leaf_entry(
    unit: VtdUnit, memory: PhysicalMemory, requester: int, address: int
) -> tuple[int, int] | None:
    """Return where the leaf entry of an IOVA lies and what it holds; None: it is not mapped."""
    try:
        context = _context(unit, memory, requester)
        if context is None or context.tt == PASS_THROUGH:
            return None
        table = context.ssptptr
        for level in range(context.aw + 2, 0, -1):
            at = table + 8 * (address >> 12 + 9 * (level - 1) & 0x1FF)
            value = memory.read_u64(at)
            if not value & _READ_WRITE:
                return None
            if level == 1 or value & _PAGE_SIZE:
                return at, value
            table = value & _ADDRESS
    except NotRamError:
        pass
    return None


def _read(memory: PhysicalMemory, address: int, length: int) -> int:
    return int.from_bytes(memory.read(address, length), "little")


def _table(memory: PhysicalMemory, address: int) -> NDArray[np.uint64]:
    try:
        return np.frombuffer(memory.read(address, PAGE), np.uint64)
    except NotRamError:
        return np.zeros(0, np.uint64)
