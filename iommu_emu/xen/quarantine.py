"""Where devices go that were taken from a guest: dom_io, with a page table of their own or none.

What a device still has in flight cannot be drained in the fabric, and what it goes on sending
nobody controls. In quarantine it meets, depending on the mode:

- nothing: its context entry is cleared (VT-d) or blocked (AMD-Vi), and every request faults;
- its reserved memory alone, if firmware gave it some, since it must never be cut off from that;
- a scratch page wherever it goes, readable and writable: nothing faults, and nobody notices;
- in the proposal's full mode the same page, readable alone: writes fault, reads do not.

A scratch table has one page a level: each entry that is not in use points to the same page of the
next level. Each device has one of its own, tagged with a private pseudo domain ID (os 4.10).
"""

from __future__ import annotations

from array import array
from typing import Any

from iommu_emu.core import Access
from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.meter import FREE, Meter, Work
from iommu_emu.page_table import ENTRY_SIZE, PAGE_SIZE, coverage_shift
from iommu_emu.refused import RefusedError
from iommu_emu.xen.device import XenDevice
from iommu_emu.xen.domain import FIRST_PSEUDO
from iommu_emu.xen.parameter import Quarantine
from iommu_emu.xen.rmrr import IdentityMaps, IdentityRegion
from iommu_emu.xen.unit_driver import create_table

_PSEUDO_IDS = 0x7FFF  # all but FFFFh
PAGE_SHIFT = 12
SCRATCH = {
    Quarantine.SCRATCH_PAGE: Access.READ | Access.WRITE,
    Quarantine.FULL: Access.READ,
}

__all__ = ["PseudoIds", "QuarantineTable", "prepare", "tear_down"]


class PseudoIds:
    """Hands out pseudo domain IDs in rotation, so that one is not used again for long."""

    def __init__(self) -> None:
        self._next = 0
        self._taken: set[int] = set()

    def take(self) -> int | None:
        """Return an ID; None if all are taken."""
        for offset in range(_PSEUDO_IDS):
            candidate = FIRST_PSEUDO + (self._next + offset) % _PSEUDO_IDS
            if candidate not in self._taken:
                self._taken.add(candidate)
                self._next = candidate - FIRST_PSEUDO + 1
                return candidate
        return None

    def release(self, number: int | None) -> None:
        """Take an ID back."""
        self._taken.discard(number or 0)


class QuarantineTable:
    """Page table of one device in quarantine.

    Args:
        driver: of the device's unit.
        pseudo: its pseudo domain ID.
        regions: what it must always reach.
        scratch: permissions of the scratch page; None: there is none.
        meter: what charges virtual CPU 0 for every page that is filled or cleared.

    Attributes:
        domain: the table, and the ID of its translations.
        shared: the scratch page, and the page of each level above it, in this order.

    Raises:
        MemoryError: if there are no frames left; nothing is taken then.
        RefusedError: if a region cannot be mapped; the same.
    """

    def __init__(
        self,
        driver: Driver[Any],
        pseudo: int,
        regions: list[IdentityRegion],
        scratch: Access | None,
        meter: Meter = FREE,
    ) -> None:
        self._driver = driver
        self._meter = meter
        self._entries = driver.entry_format()
        self.domain: Domain = create_table(driver, pseudo)
        self.shared: list[int] = []
        try:
            maps = IdentityMaps()
            for region in regions:
                maps.add(region, [self.domain])
            if scratch is not None:
                self._build_shared(scratch)
                self._fill(self.domain.table.root, self.domain.table.levels, 0)
        except BaseException:
            self.destroy()
            raise

    @property
    def scratch_page(self) -> int | None:
        """Address of the scratch page; None without one."""
        return self.shared[0] if self.shared else None

    def clear(self) -> None:
        """Clear the scratch page, if there is one."""
        if self.shared:
            self._write(self.shared[0], array("Q", bytes(PAGE_SIZE)))

    def destroy(self) -> None:
        """Free everything; no device may use it any more."""
        self._driver.destroy_domain(self.domain)
        self._driver.frames.release(self.shared)
        self.shared = []

    def _build_shared(self, permissions: Access) -> None:
        """Make the scratch page, and the one page of each level below the top."""
        take = self._driver.frames.take
        self.shared.append(take())
        self.clear()
        self._leaf = self._entries.leaf_entry(PAGE_SHIFT, permissions) | self.shared[0]
        for level in range(1, self.domain.table.levels):
            self.shared.append(take())
            self._write(self.shared[level], array("Q", [self._entry(level)] * 512))

    def _entry(self, level: int) -> int:
        """Return what an unused entry of a table of a level becomes."""
        if level == 1:
            return self._leaf
        return self._entries.table_entry(level, self.shared[level - 1])

    def _fill(self, address: int, level: int, iova: int) -> None:
        """Fill the unused entries of a table, and of those below that hold reserved regions."""
        entries = array("Q", self._driver.memory.read(address, PAGE_SIZE))
        for index in range(PAGE_SIZE // ENTRY_SIZE):
            if not entries[index]:
                entries[index] = self._entry(level)
            elif level > 1:
                below = iova + (index << coverage_shift(level - 1))
                table = self.domain.table.table_address(level - 1, below)
                if table is not None:  # else a large page
                    self._fill(table, level - 1, below)
        self._write(address, entries)

    def _write(self, address: int, entries: array[int]) -> None:
        self._driver.memory.write(address, entries.tobytes())
        self._meter.spend(0, Work.ZERO, PAGE_SIZE)  # a page of entries takes no longer than zeros


def prepare(
    driver: Driver[Any],
    device: XenDevice,
    mode: Quarantine,
    *,
    reserved: bool = True,
    meter: Meter = FREE,
) -> None:
    """Make ready what a device will meet in quarantine, before it gets there.

    Xen does so before a device goes to a guest, when a failure is harmless, and again when it
    comes back, when what is there already is cleared alone.

    Args:
        driver: of the device's unit.
        device: the device.
        mode: of quarantine.
        reserved: whether reserved memory stays in reach.
        meter: what charges virtual CPU 0 for it.

    Raises:
        MemoryError: if there are no frames left.
        RefusedError: ENOSPC, if the device got no pseudo domain ID; or if a reserved region
            cannot be mapped.
    """
    if mode is Quarantine.NONE:
        return
    if device.quarantine is not None:
        device.quarantine.clear()
        return
    scratch = SCRATCH.get(mode)
    regions = device.regions if reserved else []
    if scratch is None and not regions:
        return
    if device.pseudo is None:
        raise RefusedError("ENOSPC", "all pseudo domain IDs are taken")
    device.quarantine = QuarantineTable(driver, device.pseudo, regions, scratch, meter)


def tear_down(device: XenDevice) -> None:
    """Free a device's page table of quarantine; it no longer uses it."""
    if device.quarantine is not None:
        device.quarantine.destroy()
        device.quarantine = None
