"""Reserved regions: addresses that a device's domain must, or must not, map (os 4.7, 4.8, 4.9).

Firmware's RMRRs (VT-d) and IVMDs (AMD-Vi) are memory that a device may go on using whatever the
operating system does. User space cannot be given such a device: a domain of its own has no
place for the mapping, and the mapping gives it the platform's memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.machine import ReservedRegion
from iommu_emu.page_table import PAGE_SIZE
from iommu_emu.pci.function import Function
from iommu_emu.refused import RefusedError

if TYPE_CHECKING:
    from iommu_emu.domain import Domain
    from iommu_emu.machine import Machine

MSI_WINDOW = (0xFEE0_0000, 0xFEEF_FFFF)
HT_RANGE = (0xFD_0000_0000, 0xFF_FFFF_FFFF)  # our units do not set EFR2.HTRangeIgnore (AMD-Vi 7.1)
ISA_RANGE = (0, (16 << 20) - 1)  # what a floppy controller may reach
MAX_DIRECT = 4 << 30  # bytes of a region to map; far above what firmware uses
_ISA_BRIDGE, _USB, _DISPLAY = 0x0601, 0x0C03, 0x03

__all__ = [
    "KernelAge",
    "RegionType",
    "ResvRegion",
    "check_blocking_domain",
    "check_iova",
    "check_user_domain",
    "device_regions",
    "eligibility",
    "format_regions",
    "group_regions",
    "map_direct",
    "requires_direct",
    "usable_iova",
]


class KernelAge(Enum):
    """What a kernel does about devices whose memory firmware reserved."""

    UNCHECKED = "before the check of 2014"  # up to Linux 3.16
    # From 3.17 on VT-d's own check, when a domain of user space is attached.
    LINUX_6_1 = "Linux 6.1"
    # From 6.6 on the core's check for both vendors, when the group is claimed.
    LINUX_7_2 = "Linux 7.2"


class RegionType(Enum):
    """Kinds of reserved regions; `value` sorts regions of one start."""

    DIRECT = 0  # must be mapped 1:1 at all times
    DIRECT_RELAXABLE = 1  # mapped 1:1 for the kernel's drivers; user space does without
    RESERVED = 2  # never mapped
    MSI = 3  # the hardware's window of message interrupts
    SW_MSI = 4  # a window that software chose for them; not on x86

    @property
    def text(self) -> str:
        """Name in sysfs, where both kinds of MSI windows are "msi"."""
        return "msi" if self is RegionType.SW_MSI else self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class ResvRegion:
    """One reserved region.

    Attributes:
        first: first byte.
        last: last byte.
        type: what it is reserved for.
        permissions: of the 1:1 mapping: "r", "w" or "rw"; "" for none.
    """

    first: int
    last: int
    type: RegionType
    permissions: str = ""


def device_regions(
    machine: Machine, function: Function, age: KernelAge = KernelAge.LINUX_7_2
) -> list[ResvRegion]:
    """Return the reserved regions of a function; none if no unit serves it.

    Args:
        machine: the machine, with what firmware reserved.
        function: an attached function.
        age: before Linux 7.2, an AMD-Vi exclusion range is reserved instead of mapped 1:1.
    """
    unit = machine.unit_of(function)
    if unit is None:
        return []
    mine = [region for region in machine.reserved_regions if _applies(machine, region, function)]
    msi = ResvRegion(*MSI_WINDOW, RegionType.MSI)
    if isinstance(unit, AmdviUnit):
        unity = [_ivmd(region, age) for region in mine]
        return [*unity, msi, ResvRegion(*HT_RANGE, RegionType.RESERVED)]
    relaxable = _is_relaxable(function)
    kind = RegionType.DIRECT_RELAXABLE if relaxable else RegionType.DIRECT
    regions = [ResvRegion(region.base, region.limit, kind, "rw") for region in mine]
    if _class(function) >> 8 == _ISA_BRIDGE:
        regions.append(ResvRegion(*ISA_RANGE, RegionType.DIRECT_RELAXABLE, "rw"))
    return [*regions, msi]


def _applies(machine: Machine, region: ReservedRegion, function: Function) -> bool:
    """Return whether firmware means this function, or on VT-d a bridge above it (os 4.7)."""
    named = [function]
    if not isinstance(machine.unit_of(function), AmdviUnit):
        named += machine.fabric.bridges_above(function)
    return region.segment == function.segment and any(
        first <= each.address <= last for each in named for first, last in region.requesters
    )


def _ivmd(region: ReservedRegion, age: KernelAge) -> ResvRegion:
    if region.exclusion and age is not KernelAge.LINUX_7_2:
        return ResvRegion(region.base, region.limit, RegionType.RESERVED)
    permissions = "r" * region.readable + "w" * region.writable
    return ResvRegion(region.base, region.limit, RegionType.DIRECT, permissions)


def _class(function: Function) -> int:
    return function.config.get(0x09, 3)


def _is_relaxable(function: Function) -> bool:
    """Return whether only firmware's own use is meant, which ends when a driver takes over.

    That is so for USB (legacy keyboard) and graphics (boot console).
    """
    code = _class(function)
    return code >> 8 == _USB or code >> 16 == _DISPLAY


def group_regions(
    machine: Machine, group: IommuGroup, age: KernelAge = KernelAge.LINUX_7_2
) -> list[ResvRegion]:
    """Return the reserved regions of a group in order, those of one type that touch as one."""
    regions = {
        region for function in group.members for region in device_regions(machine, function, age)
    }
    merged: list[ResvRegion] = []
    newest: dict[RegionType, int] = {}  # where in `merged` the last one of a type is
    for region in sorted(regions, key=lambda r: (r.first, r.type.value, r.last)):
        at = newest.get(region.type)
        if at is not None and region.first <= merged[at].last + 1:
            merged[at] = replace(merged[at], last=max(merged[at].last, region.last))
        else:
            newest[region.type] = len(merged)
            merged.append(region)
    return merged


def format_regions(regions: Iterable[ResvRegion]) -> str:
    """Return regions as a group's `reserved_regions` file in sysfs shows them."""
    return "".join(f"0x{r.first:016x} 0x{r.last:016x} {r.type.text}\n" for r in regions)


# ---- who may have the device ---------------------------------------------------------------


def requires_direct(
    machine: Machine, function: Function, age: KernelAge = KernelAge.LINUX_7_2
) -> bool:
    """Return whether a function must keep a 1:1 mapping at all times (os 4.6)."""
    regions = device_regions(machine, function, age)
    return any(region.type is RegionType.DIRECT for region in regions)


def check_blocking_domain(
    machine: Machine, function: Function, age: KernelAge, driver: str = "vfio-pci"
) -> None:
    """Check that a function may be put into the blocking domain, as a claim does (os 4.8).

    Raises:
        RefusedError: EINVAL, if it must keep a 1:1 mapping and the kernel looks at that.
    """
    if age is KernelAge.LINUX_7_2 and requires_direct(machine, function, age):
        raise RefusedError(
            "EINVAL",
            f"{device_name(function)} must keep the 1:1 mapping of {_direct(machine, function)}, "
            "which a domain for user space does not have",
            f"{driver} {device_name(function)}: "
            "Firmware has requested this device have a 1:1 IOMMU mapping",
        )


def check_user_domain(
    machine: Machine, function: Function, age: KernelAge, driver: str = "vfio-pci"
) -> None:
    """Check that a function may be attached to a domain that user space controls.

    Raises:
        RefusedError: EPERM, if it has an RMRR that is not relaxable, and VT-d's driver looks at
            that; AMD's never did.
    """
    locked = age is KernelAge.LINUX_6_1 and requires_direct(machine, function, age)
    if locked and not isinstance(machine.unit_of(function), AmdviUnit):
        raise RefusedError(
            "EPERM",
            f"{device_name(function)} may go on using {_direct(machine, function)} (RMRR), "
            "which user space's domain neither maps nor can keep it from",
            f"{driver} {device_name(function)}: DMAR: "
            "Device is ineligible for IOMMU domain attach due to platform RMRR requirement",
        )


def _direct(machine: Machine, function: Function) -> str:
    regions = device_regions(machine, function)
    direct = [region for region in regions if region.type is RegionType.DIRECT]
    return ", ".join(f"{region.first:#x}..{region.last:#x}" for region in direct)


def eligibility(
    machine: Machine, function: Function, age: KernelAge = KernelAge.LINUX_7_2
) -> RefusedError | None:
    """Return what keeps a function from user space by reason of reserved regions; None: nothing."""
    try:
        check_blocking_domain(machine, function, age)
        check_user_domain(machine, function, age)
    except RefusedError as error:
        return error
    return None


# ---- which addresses are free ----------------------------------------------------------------


def _excluded(regions: Iterable[ResvRegion]) -> list[ResvRegion]:
    """Return what user space must not map, in order: all but the relaxable ones (os 4.8)."""
    kept = (region for region in regions if region.type is not RegionType.DIRECT_RELAXABLE)
    return sorted(kept, key=lambda region: region.first)


def usable_iova(regions: Iterable[ResvRegion], last: int) -> list[tuple[int, int]]:
    """Return the ranges of 0..last that user space may map, as (first, last)."""
    ranges = []
    start = 0
    for region in _excluded(regions):
        if region.first > last:
            break
        if region.first > start:
            ranges.append((start, region.first - 1))
        start = max(start, region.last + 1)
    if start <= last:
        ranges.append((start, last))
    return ranges


def check_iova(regions: Iterable[ResvRegion], iova: int, size: int) -> None:
    """Check that user space may map a range of input addresses.

    Args:
        regions: of the group.
        iova: first input address.
        size: bytes, 1 or more.

    Raises:
        ValueError: if the range is not inside 64 bits.
        RefusedError: EINVAL, if it overlaps a reserved region that is not relaxable.
    """
    end = iova + size - 1
    if iova < 0 or size < 1 or end >> 64:
        raise ValueError(f"iova and size must name bytes in 0..2**64-1, not {iova:#x}+{size:#x}")
    for region in _excluded(regions):
        if region.first <= end and iova <= region.last:
            raise RefusedError(
                "EINVAL",
                f"input addresses {iova:#x}..{end:#x} overlap the reserved region "
                f"{region.first:#x}..{region.last:#x} ({region.type.text})",
            )


def map_direct(domain: Domain, regions: Sequence[ResvRegion]) -> int:
    """Map direct regions, relaxable or not, 1:1 in a domain of the kernel (os 4.6).

    Pages that are mapped already stay as they are. Call it before devices are attached.

    Args:
        domain: where.
        regions: of a device or group.

    Returns:
        Bytes mapped.

    Raises:
        ValueError: if a region does not fit in the domain's input addresses or has more than
            4 GiB; nothing of any region stays mapped then.
        MemoryError: if there are no frames left for tables; the same.
    """
    done: list[tuple[int, int]] = []
    try:
        for region in regions:
            if not region.permissions:
                continue
            for first, size in _unmapped(domain, region):
                domain.map(first, first, size, region.permissions)
                done.append((first, size))
    except (ValueError, MemoryError):
        for first, size in reversed(done):
            domain.unmap(first, size)
        raise
    return sum(size for _, size in done)


def _unmapped(domain: Domain, region: ResvRegion) -> list[tuple[int, int]]:
    """Return the runs (first, size) of whole pages of a region that nothing maps yet."""
    size = region.last + 1 - region.first
    if size > MAX_DIRECT:
        raise ValueError(
            f"a direct region may have {MAX_DIRECT:#x} bytes at most, not {size:#x}: "
            f"{region.first:#x}..{region.last:#x}"
        )
    # Linux rounds both ends up to pages, so what precedes the first whole page is left out.
    start, end = (
        -(-address // PAGE_SIZE) * PAGE_SIZE for address in (region.first, region.last + 1)
    )
    runs: list[tuple[int, int]] = []
    for page in range(start, end, PAGE_SIZE):
        if domain.table.lookup(page) is not None:
            continue
        if runs and sum(runs[-1]) == page:
            runs[-1] = runs[-1][0], runs[-1][1] + PAGE_SIZE
        else:
            runs.append((page, PAGE_SIZE))
    return runs
