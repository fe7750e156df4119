"""Memory that firmware reserved for devices (RMRR, unity map), mapped 1:1 where they are (os 4.10).

A device may go on using such memory whatever Xen does, and nobody knows what for. So the mapping
goes to a domain before the device does, and leaves the old owner after the device has left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.page_table import PAGE_SIZE
from iommu_emu.pci.function import Function
from iommu_emu.refused import RefusedError

if TYPE_CHECKING:
    from iommu_emu.domain import Domain
    from iommu_emu.machine import Machine

MAX_PAGES = 1 << 16  # of one region; far above what firmware uses

__all__ = ["IdentityMaps", "IdentityRegion", "identity_regions"]


@dataclass(frozen=True)
class IdentityRegion:
    """A range that a device must find at its physical address.

    Attributes:
        base: first byte.
        end: last byte.
        permissions: "r", "w", "rw", or "" for none.
        devices: how many devices firmware gave it to.
    """

    base: int
    end: int
    permissions: str = "rw"
    devices: int = 1

    @property
    def pages(self) -> range:
        """Addresses of its pages: the last byte's address is rounded up as if it were the end."""
        first = self.base // PAGE_SIZE * PAGE_SIZE
        return range(first, -(-self.end // PAGE_SIZE) * PAGE_SIZE, PAGE_SIZE)


def identity_regions(machine: Machine, function: Function) -> list[IdentityRegion]:
    """Return what firmware reserved for a function, in the table's order.

    An RMRR names its devices. A unity map holds for the requester ID with which the device
    reaches the unit as well.
    """
    amdvi = isinstance(machine.unit_of(function), AmdviUnit)
    requesters = machine.fabric.aliases(function) if amdvi else [function.address]
    found = []
    for region in machine.reserved_regions:
        if region.segment != function.segment or not any(
            first <= requester <= last
            for requester in requesters
            for first, last in region.requesters
        ):
            continue
        if amdvi and not region.exclusion:
            # Xen's reader of IVMDs takes IR for IW and the other way round.
            permissions = "r" * region.writable + "w" * region.readable
        else:
            permissions = "rw"
        found.append(IdentityRegion(region.base, region.limit, permissions, len(region.requesters)))
    return found


@dataclass
class _Mapped:
    permissions: str
    count: int = 0
    relaxed: bool = False
    runs: list[tuple[Domain, int, int]] = field(default_factory=list)


class IdentityMaps:
    """The 1:1 maps of one domain, counted: devices may share one."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], _Mapped] = {}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._maps)

    def add(
        self, region: IdentityRegion, tables: Iterable[Domain], *, relaxed: bool = False
    ) -> None:
        """Map a region in every table of the domain, or count one more user of it.

        Args:
            region: what to map.
            tables: the domain's.
            relaxed: pages where the domain has something else stay as they are.

        Raises:
            RefusedError: EADDRINUSE, if it overlaps another region or has other permissions than
                before; EBUSY, if the domain has something else at one of its pages and `relaxed`
                is False; EINVAL, if it has more than 65,536 pages or a table does not reach so far.
                Nothing is mapped then.
            MemoryError: if there are no frames left for tables; the same.
        """
        key = region.base, region.end
        known = self._maps.get(key)
        if known is None:
            self._check(region)
            known = _Mapped(region.permissions, relaxed=relaxed)
            try:
                for table in tables:
                    self._map(region.pages, known, table)
            except (RefusedError, MemoryError):
                self._unmap(known)
                raise
            self._maps[key] = known
        elif known.permissions != region.permissions:
            raise RefusedError(
                "EADDRINUSE",
                f"{region.base:#x}..{region.end:#x} is mapped {known.permissions!r} already, "
                f"not {region.permissions!r}",
            )
        known.count += 1

    def remove(self, region: IdentityRegion) -> None:
        """Take one user of a region away; unmap it, and flush, after the last one."""
        key = region.base, region.end
        known = self._maps.get(key)
        if known is None:
            return
        known.count -= 1
        if not known.count:
            del self._maps[key]
            self._unmap(known)

    def enter(self, table: Domain) -> None:
        """Map every region in a further table of the domain."""
        for (base, end), known in self._maps.items():
            self._map(IdentityRegion(base, end).pages, known, table)

    def leave(self, table: Domain) -> None:
        """Forget what is mapped in a table that is going away."""
        for known in self._maps.values():
            known.runs = [run for run in known.runs if run[0] is not table]

    def clear(self) -> None:
        """Forget every region; the tables are going away."""
        self._maps.clear()

    def _check(self, region: IdentityRegion) -> None:
        if len(region.pages) > MAX_PAGES:
            raise RefusedError(
                "EINVAL",
                f"a reserved region may have {MAX_PAGES} pages at most, not {len(region.pages)}",
            )
        for base, end in self._maps:
            if base <= region.end and region.base <= end:
                raise RefusedError(
                    "EADDRINUSE",
                    f"{region.base:#x}..{region.end:#x} overlaps {base:#x}..{end:#x}, which is "
                    "mapped 1:1 already",
                )

    @staticmethod
    def _map(pages: range, known: _Mapped, table: Domain) -> None:
        """Map those pages that the table has not got yet, in runs."""
        if not known.permissions:
            return
        runs: list[tuple[int, int]] = []
        for page in pages:
            found = table.table.lookup(page)
            if found is None:
                if runs and sum(runs[-1]) == page:
                    runs[-1] = runs[-1][0], runs[-1][1] + PAGE_SIZE
                else:
                    runs.append((page, PAGE_SIZE))
            elif found[0] != page and not known.relaxed:
                raise RefusedError(
                    "EBUSY", f"the domain has {found[0]:#x} at {page:#x}, not what is reserved"
                )
        for first, size in runs:
            try:
                table.map(first, first, size, known.permissions)
            except ValueError as error:  # beyond what the unit translates
                raise RefusedError(
                    "EINVAL", f"what is reserved cannot be mapped: {error}"
                ) from error
            known.runs.append((table, first, size))

    @staticmethod
    def _unmap(known: _Mapped) -> None:
        while known.runs:
            table, first, size = known.runs.pop()
            table.unmap(first, size)
