"""What a kernel decides at boot: which units it switches on, and how devices are translated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.driver import Driver
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flusher import caches_not_present
from iommu_emu.linux.parameters import KernelBuild, Parameters
from iommu_emu.linux.swiotlb import SEGMENT_SIZE
from iommu_emu.page_table import PAGE_SIZE
from iommu_emu.pci.topology import Bridge
from iommu_emu.unit import Unit
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["BootPlan", "make_drivers", "plan_boot", "split_ram"]

_BY_COMMAND_LINE = " (set via kernel command line)"


@dataclass(frozen=True)
class BootPlan:
    """What a kernel decides.

    Attributes:
        units: those that it switches on.
        default_type: of groups of which nobody wants anything else.
        log: what it says meanwhile.
    """

    units: tuple[Unit, ...]
    default_type: DomainType
    log: tuple[str, ...]


def plan_boot(machine: Machine, given: Parameters, build: KernelBuild) -> BootPlan:
    """Decide what a kernel does with a machine (os 4.5, 4.6).

    Args:
        machine: the machine as firmware leaves it.
        given: the command line.
        build: what holds where it says nothing.
    """
    log = list(given.log)
    identity, strict = given.passthrough, given.strict
    if identity is None:
        identity = build.default is DomainType.IDENTITY
    if strict is None:
        strict = build.default is DomainType.STRICT
    how = "" if given.passthrough is None else _BY_COMMAND_LINE
    log.append(f"iommu: Default domain type: {'Passthrough' if identity else 'Translated'}{how}")
    if not identity:
        how = "" if given.strict is None else _BY_COMMAND_LINE
        mode = "strict" if strict else "lazy"
        log.append(f"iommu: DMA domain TLB invalidation policy: {mode} mode{how}")

    disabled = not (build.intel_on if given.intel is None else given.intel)
    forced = _forced(machine, given)
    if forced and (disabled or given.off):
        log.append("DMAR: Intel-IOMMU force enabled due to platform opt in")
        identity |= disabled  # only devices that are not trusted are translated then
    intel = forced or not (disabled or given.off)
    amd = given.amd and not given.off
    units = [unit for unit in machine.units if (amd if isinstance(unit, AmdviUnit) else intel)]
    for line in _virtualized(units):
        log.append(line)
        strict = True
    translated = DomainType.STRICT if strict else DomainType.LAZY
    return BootPlan(tuple(units), DomainType.IDENTITY if identity else translated, tuple(log))


def _forced(machine: Machine, given: Parameters) -> bool:
    """Whether firmware's wish and an external-facing port switch VT-d on (os 4.5)."""
    external = any(
        isinstance(function, Bridge) and function.external_facing
        for function in machine.fabric.functions()
    )
    return machine.platform_opt_in and external and given.intel is not False


def _virtualized(units: Sequence[Unit]) -> list[str]:
    """Return what is said of units that make every domain strict: each line once (os 4.6)."""
    lines = {
        "DMAR: IOMMU batching disallowed due to virtualization"
        if isinstance(unit, VtdUnit)
        else "AMD-Vi: Using strict mode due to virtualization"
        for unit in units
        if caches_not_present(unit)
    }
    return sorted(lines)


def split_ram(given: Parameters, ram: range, pool_size: int) -> tuple[range, range]:
    """Return what of its RAM a kernel gives away, and the end of it: its bounce buffers.

    Args:
        given: the command line.
        ram: physical addresses.
        pool_size: bytes of bounce buffers, unless the command line says otherwise; 0: none.

    Raises:
        ValueError: if no pool has that size, or it leaves nothing of the RAM.
    """
    size = pool_size if given.pool_size is None else given.pool_size
    if given.swiotlb == "noforce":
        size = 0
    if size and (size < SEGMENT_SIZE or size & (size - 1)):
        raise ValueError(
            f"pool_size must be 0 or a power of two of at least {SEGMENT_SIZE}, not {size}"
        )
    if size >= ram.stop - ram.start:
        raise ValueError(
            f"pool_size must be below the {ram.stop - ram.start} bytes of ram, not {size}: "
            "make ram larger, or the pool smaller (swiotlb=)"
        )
    return range(ram.start, ram.stop - size), range(ram.stop - size, ram.stop)


def make_drivers(machine: Machine, units: Sequence[Unit], frames: range) -> dict[Unit, Driver[Any]]:
    """Return a driver for each unit, not started; each has an equal share of the frames."""
    share = (frames.stop - frames.start) // max(1, len(units)) & -PAGE_SIZE
    drivers: dict[Unit, Driver[Any]] = {}
    for number, unit in enumerate(units):
        start = frames.start + number * share
        mine = range(start, start + share)
        if isinstance(unit, AmdviUnit):
            drivers[unit] = AmdviDriver(machine, unit, mine)
        elif isinstance(unit, VtdUnit):
            drivers[unit] = VtdDriver(machine, unit, mine)
    return drivers
