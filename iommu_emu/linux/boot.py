"""What a kernel decides at boot: which units it switches on, and how devices are translated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flusher import caches_not_present
from iommu_emu.linux.parameters import KernelBuild, Parameters
from iommu_emu.pci.topology import Bridge
from iommu_emu.unit import Unit
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["BootPlan", "plan_boot"]

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
