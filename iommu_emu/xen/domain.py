"""Xen's domains, as the IOMMU knows them: memory, 1:1 maps, and a page table for each unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.meter import FREE, Meter, Work
from iommu_emu.page_table import PAGE_SIZE
from iommu_emu.xen.charge import charged
from iommu_emu.xen.rmrr import IdentityMaps
from iommu_emu.xen.unit_driver import create_table

DOM0 = 0
DOM_IO = 0x7FF1
FIRST_PSEUDO = 0x8000  # IDs of quarantined devices start here
_WORDS = {DOM_IO: "IO"}

__all__ = ["DOM0", "DOM_IO", "FIRST_PSEUDO", "MemoryRange", "XenDomain"]


@dataclass(frozen=True)
class MemoryRange:
    """Memory of a domain.

    Attributes:
        address: where its devices find it.
        machine: where it is.
        size: bytes.
    """

    address: int
    machine: int
    size: int


class XenDomain:
    """A domain.

    Args:
        number: domain ID.
        name: for people.
        memory: what its devices may reach.
        superpages: whether large pages may be used.
        meter: what charges virtual CPU 0 when memory comes or goes.

    Attributes:
        identity: its 1:1 maps.
        tables: its page table for each unit that has a device of its.
        dying: it is being destroyed.
        crashed: Xen stopped it.
    """

    def __init__(
        self,
        number: int,
        name: str,
        memory: list[MemoryRange] | None = None,
        *,
        superpages: bool = True,
        meter: Meter = FREE,
    ) -> None:
        self.number = number
        self.name = name
        self.memory = memory or []
        self.identity = IdentityMaps()
        self.tables: dict[Driver[Any], Domain] = {}
        self.dying = False
        self.crashed = False
        self._page_size = None if superpages else PAGE_SIZE
        self._meter = meter

    def __str__(self) -> str:
        """Return the domain as Xen's log names it."""
        word = _WORDS.get(self.number)
        return f"d{self.number}" if word is None else f"d[{word}]"

    def __repr__(self) -> str:
        return f"<XenDomain {self} {self.name!r}, {len(self.memory)} ranges of memory>"

    def table(self, driver: Driver[Any]) -> Domain:
        """Return its page table for a unit; make it if there is none.

        Raises:
            MemoryError: if there are no frames left for it; there is none then.
            RefusedError: if memory and 1:1 maps collide; the same.
        """
        if driver in self.tables:
            return self.tables[driver]
        table = create_table(driver, self.number)
        try:
            for each in self.memory:
                table.map(each.address, each.machine, each.size, page_size=self._page_size)
            self.identity.enter(table)
        except BaseException:
            self.identity.leave(table)
            driver.destroy_domain(table)
            raise
        self.tables[driver] = table
        return table

    def add_memory(self, mapping: MemoryRange) -> None:
        """Let the domain's devices reach more memory.

        Args:
            mapping: what they reach, and where.

        Raises:
            ValueError: if it is no whole pages, or something is there; nothing has changed then.
            MemoryError: if there are no frames left for tables; the same.
        """
        start, stop = mapping.address, mapping.address + mapping.size
        if mapping.size < 1 or (start | mapping.machine | mapping.size) % PAGE_SIZE:
            raise ValueError(f"mapping must be of whole pages, not {mapping}")
        if any(m.address < stop and start < m.address + m.size for m in self.memory):
            raise ValueError(f"{self} has memory at {start:#x}..{stop:#x} already")
        done: list[Domain] = []
        try:
            for driver, table in self.tables.items():
                with charged(self._meter, driver, Work.INVALIDATE_PAGE):
                    table.map(
                        mapping.address, mapping.machine, mapping.size, page_size=self._page_size
                    )
                self._meter.spend(0, Work.TABLE_MAP, mapping.size // PAGE_SIZE)
                done.append(table)
        except (ValueError, MemoryError):
            for table in done:
                table.unmap(mapping.address, mapping.size)
            raise
        self.memory.append(mapping)

    def remove_memory(self, machine: range) -> None:
        """Take memory away, and flush; ranges are cut where they have to be."""
        kept: list[MemoryRange] = []
        for each in self.memory:
            first = max(each.machine, machine.start)
            stop = min(each.machine + each.size, machine.stop)
            if first >= stop:
                kept.append(each)
                continue
            offset = each.address - each.machine
            for driver, table in self.tables.items():
                with charged(self._meter, driver, Work.INVALIDATE_PAGE):
                    table.unmap(first + offset, stop - first)
                self._meter.spend(0, Work.TABLE_UNMAP, (stop - first) // PAGE_SIZE)
            if each.machine < first:
                kept.append(MemoryRange(each.address, each.machine, first - each.machine))
            if stop < each.machine + each.size:
                end = each.machine + each.size
                kept.append(MemoryRange(stop + offset, stop, end - stop))
        self.memory = kept
