"""The default domain of a group: of which type it is, and what is in it from the beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iommu_emu.bar_windows import HIGH_BARS, LOW_BARS
from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.linux.dma_device import DmaDomain
from iommu_emu.linux.domain_type import QUIRKS, DomainType, combined_type
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.linux.iova import CACHED_ORDERS, IovaDomain
from iommu_emu.linux.reserved_regions import RegionType, ResvRegion, group_regions, map_direct
from iommu_emu.pci.function import Function
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

__all__ = ["choose_type", "create_default", "create_table", "ids", "map_firmware"]


def ids(function: Function) -> tuple[int, int]:
    """Return vendor and device ID, by which software knows a device."""
    return function.config.get(0x00, 2), function.config.get(0x02, 2)


def choose_type(linux: Linux, group: IommuGroup, wanted: DomainType | None) -> DomainType:
    """Return the type that a group's default domain gets (os 4.6).

    Args:
        linux: the kernel.
        group: one of its groups, with all of its members.
        wanted: what the administrator asks for; None: nothing.

    Raises:
        RefusedError: EINVAL, if a member must have another type.
    """
    members = list(group.members)
    insisted = [(device_name(f), kind) for f in members if (kind := _insisted(linux, f))]
    lazily = linux.dma.lazy_untrusted and linux.default_type is DomainType.LAZY
    untrusted = [] if lazily else [device_name(f) for f in members if linux.is_untrusted(f)]
    kind, lines = combined_type(group.number, insisted, untrusted, wanted)
    for line in lines:
        linux.log.write(line)
    if kind is None:
        said = {linux.attributes.get(ids(function)) for function in members}
        if False in said:
            kind = DomainType.STRICT
        elif True in said:
            kind = DomainType.LAZY
    return kind or linux.default_type


def _insisted(linux: Linux, function: Function) -> DomainType | None:
    """Return the type that the unit's driver insists on for a device (os 4.6)."""
    unit = linux.machine.unit_of(function)
    if not isinstance(unit, VtdUnit):
        return None
    if not unit.capabilities.pass_through:
        return DomainType.STRICT
    return QUIRKS.get(ids(function))


def create_table(driver: Driver[Any]) -> Domain:
    """Return a new, empty domain of four levels, or of as many as the unit has."""
    levels = driver.entry_format().levels
    return driver.create_domain(4 if 4 in levels else max(levels))


def create_default(
    linux: Linux, driver: Driver[Any], group: IommuGroup, kind: DomainType
) -> DmaDomain:
    """Create a default domain, with the group's reserved regions in it.

    Args:
        linux: the kernel.
        driver: of the unit before the group.
        group: for whom.
        kind: IDENTITY, STRICT or LAZY.

    Raises:
        RefusedError: EINVAL, if a region that must be mapped cannot be, or is none.
        ValueError: if the unit is out of domain IDs.
        MemoryError: if the driver has no frames left.
    """
    if kind is DomainType.IDENTITY:
        return DmaDomain(kind)
    table = create_table(driver)
    domain = DmaDomain(kind, table)
    regions = group_regions(linux.machine, group, linux.age)
    try:
        domain.iovas = _iovas(linux, driver, table, regions)
        map_firmware(table, regions, next(iter(group.members)))
    except Exception:
        driver.destroy_domain(table)
        raise
    if kind is DomainType.LAZY:
        domain.queue = linux.flusher.make_queue(driver, domain)
    return domain


def _iovas(
    linux: Linux, driver: Driver[Any], table: Domain, regions: list[ResvRegion]
) -> IovaDomain:
    """Return the input addresses of a domain, less what is reserved (os 4.2)."""
    last = (1 << driver.entry_format().input_bits(table.table.levels)) - 1
    legacy = linux.queue.locked  # the list of all domains is older than the magazines
    orders = 0 if legacy else CACHED_ORDERS
    iovas = IovaDomain(linux.clock, cpus=linux.cpus, last=last, cached_orders=orders)
    for window in (LOW_BARS, HIGH_BARS):  # of the host bridge
        iovas.reserve(window.start, window.stop - 1)
    for region in regions:
        if region.type is RegionType.SW_MSI:
            continue
        try:
            iovas.reserve(region.first, region.last)
        except ValueError as error:
            raise RefusedError("EINVAL", f"firmware's table makes no sense: {error}") from error
    return iovas


def map_firmware(table: Domain, regions: list[ResvRegion], function: Function) -> None:
    """Map what firmware wants mapped 1:1, before a device is attached (os 4.6).

    Raises:
        RefusedError: EINVAL, if it cannot be mapped; nothing of it is then.
        MemoryError: if the driver has no frames left; the same.
    """
    try:
        map_direct(table, regions)
    except ValueError as error:
        raise RefusedError(
            "EINVAL",
            str(error),
            f"pci {device_name(function)}: "
            "IOMMU driver was not able to establish FW requested direct mapping.",
        ) from error
