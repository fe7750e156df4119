"""Build a machine from firmware's tables: units, the requesters they serve, reserved memory.

Real tables have quirks; none of them stops the build, and `Machine.notes` names each:

- a unit at base 0 is left out (firmware lists units that it has switched off);
- of two units at one base, and of two INCLUDE_PCI_ALL units in a segment, the first counts;
- a window that is not aligned to its size, or reaches into the next unit's, is cut;
- a structure that is listed twice counts once;
- a path through a bridge that nobody described gets the bridge built: as a root port on a root
  bus, as a switch port below; so a table alone makes a machine with the buses it speaks of;
- reserved memory whose limit lies below its base, or that is the single byte 0, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from iommu_emu import acpi
from iommu_emu.acpi.dmar import DeviceScope, Dmar, DmarFlags, Drhd, Rmrr, Scoped
from iommu_emu.acpi.ivrs import Ivhd, Ivmd, IvmdFlags, Ivrs
from iommu_emu.acpi.platforms import Device as PlatformDevice
from iommu_emu.acpi.table import AnyTable
from iommu_emu.amdvi import presets as amdvi_presets
from iommu_emu.amdvi.unit import WINDOW as AMDVI_WINDOW
from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.core import FullError
from iommu_emu.machine import Machine, ReservedRegion
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.topology import Bridge, FirmwareAlias, PortType
from iommu_emu.routing import LAST_REQUESTER, Rule, RuleKind
from iommu_emu.unit import MAX_WINDOW, Unit
from iommu_emu.vtd import presets as vtd_presets
from iommu_emu.vtd.unit import VtdUnit

ENDPOINT, SUB_HIERARCHY, IOAPIC, HPET = 1, 2, 3, 4  # device scope types (VT-d 12.3)
_PCI = (ENDPOINT, SUB_HIERARCHY)
_IVMD_ALL, _IVMD_ONE, _IVMD_RANGE = 0x20, 0x21, 0x22
_PAGE = 4096

__all__ = ["build_bridges", "populate"]


def populate(
    machine: Machine,
    table: AnyTable | bytes,
    preset: str = "default",
    unit_config: Mapping[str, Any] | None = None,
) -> None:
    """Add what a DMAR or IVRS table describes to a machine.

    Args:
        machine: a machine without units.
        table: a parsed table, or its bytes.
        preset: name of a unit preset of the vendor (`vtd.presets`, `amdvi.presets`).
        unit_config: values of the units' configuration that differ from table and preset.

    Raises:
        AcpiError: if bytes are no valid table.
        ValueError: if a unit cannot be built; the message says which, and why.
    """
    parsed = acpi.parse(table) if isinstance(table, (bytes, bytearray, memoryview)) else table
    options = {"name": preset, **(unit_config or {})}
    if isinstance(parsed, Dmar):
        rules = _populate_dmar(machine, parsed, options)
        machine.platform_opt_in = DmarFlags.DMA_CTRL_PLATFORM_OPT_IN in parsed.flags
    elif isinstance(parsed, Ivrs):
        rules = _populate_ivrs(machine, parsed, options)
    else:
        raise ValueError(f"table must be a DMAR or IVRS, not {type(parsed).__name__}")
    machine.rules = rules
    machine.topology_changed()


def build_bridges(machine: Machine, devices: Iterable[PlatformDevice]) -> None:
    """Attach the bridges of a platform and remember where its endpoints are.

    Args:
        machine: the machine.
        devices: bridges before what is behind them.
    """
    for device in devices:
        machine.places[device.name] = format_requester(device.bdf)
        number = device.bdf >> 8
        if machine.fabric.find_bus(0, number) is None:
            machine.fabric.add_root(0, number)
        if device.secondary is None:
            continue
        kind = PortType.ROOT_PORT if device.kind == "root-port" else PortType.PCIE_TO_PCI
        facing = device.external_facing
        slot = device.bdf & 0xFF if facing else None
        bridge = Bridge(device.name, kind, slot=slot, external_facing=facing)
        bridge.set_bus_numbers(device.secondary, device.subordinate or device.secondary)
        machine.attach(bridge, device.bdf)


# ---- DMAR (VT-d 12) ------------------------------------------------------------------------


def _populate_dmar(machine: Machine, table: Dmar, options: Mapping[str, Any]) -> list[Rule]:
    _build_missing_bridges(machine, table)
    rules: list[Rule] = []
    units: dict[tuple[int, int], Unit] = {}
    for drhd in table.units():
        unit = _vtd_unit(machine, table, drhd, units, options)
        if unit is not None:
            rules += _drhd_rules(machine, drhd, unit, rules)
    for rmrr in table.find(Rmrr):
        _reserve(machine, rmrr)
    return rules


def _vtd_unit(
    machine: Machine,
    table: Dmar,
    drhd: Drhd,
    units: dict[tuple[int, int], Unit],
    options: Mapping[str, Any],
) -> Unit | None:
    base = drhd.base_address
    what = f"DRHD at {base:#x} in segment {drhd.segment}"
    if not base:
        machine.notes.append(f"{what}: base 0, left out")
        return None
    if (drhd.segment, base) in units:
        machine.notes.append(f"{what}: listed again, the first one counts")
        return None
    if base % _PAGE or any(base == taken for _, taken in units):
        reason = "not a page's base" if base % _PAGE else "another segment's unit is there"
        machine.notes.append(f"{what}: {reason}, left out")
        return None
    width = min(max(table.host_address_width, 32), 52)
    if width != table.host_address_width and not units:
        machine.notes.append(
            f"host address width {table.host_address_width} is none of a machine, taken as {width}"
        )
    config: dict[str, Any] = {
        "base": base,
        "window": _window(machine, table, drhd),
        "host_address_width": width,
        **options,
    }
    try:
        unit = VtdUnit(machine, vtd_presets.preset(**config), drhd.segment)
    except (ValueError, FullError) as error:
        raise ValueError(f"{what}: {error}") from error
    units[drhd.segment, base] = unit
    return unit


def _window(machine: Machine, table: Dmar, drhd: Drhd) -> int:
    """Return the largest window that is aligned at its base and ends before the next unit."""
    base, window = drhd.base_address, min(drhd.register_window, MAX_WINDOW)
    end = min((d.base_address for d in table.units() if d.base_address > base), default=1 << 64)
    while window > _PAGE and (base % window or base + window > end):
        window //= 2
    if window != drhd.register_window:
        machine.notes.append(
            f"DRHD at {base:#x}: window of {drhd.register_window:#x} bytes cut to {window:#x}"
        )
    return window


def _drhd_rules(machine: Machine, drhd: Drhd, unit: Unit, before: list[Rule]) -> list[Rule]:
    rules = []
    if drhd.include_pci_all:
        same = [r for r in before if r.kind is RuleKind.ALL and r.unit.segment == drhd.segment]
        if same:
            machine.notes.append(
                f"DRHD at {drhd.base_address:#x}: INCLUDE_PCI_ALL as well as {same[0].unit!r}, "
                "which counts"
            )
        else:
            rules.append(Rule(unit, RuleKind.ALL))
    for scope in drhd.scopes:
        path = tuple(scope.path)
        if not path:
            machine.notes.append(f"DRHD at {drhd.base_address:#x}: a scope without a path")
            continue
        below = scope.type == SUB_HIERARCHY
        kind = RuleKind.SUB_HIERARCHY if below else RuleKind.ENDPOINT
        rules.append(Rule(unit, kind, start_bus=scope.start_bus, path=path))
        if scope.type in (IOAPIC, HPET):
            _remember(machine, scope, drhd.segment)
    return rules


def _remember(machine: Machine, scope: DeviceScope, segment: int) -> None:
    """Keep the requester ID of an I/O APIC or HPET."""
    found = machine.fabric.walk(segment, scope.start_bus, scope.path)
    name = "I/O APIC" if scope.type == IOAPIC else "HPET"
    _add_special(machine, name, scope.enumeration_id, segment, None if found is None else found[0])


def _add_special(
    machine: Machine, name: str, number: int, segment: int, requester: int | None
) -> None:
    if requester is None:
        machine.notes.append(f"{name} {number}: its path leads nowhere")
    elif name == "HPET":  # each of its timers may have a requester ID of its own
        machine.hpets.setdefault(number, []).append((segment, requester))
    elif number in machine.ioapics:
        machine.notes.append(f"{name} {number}: listed again, the first one counts")
    else:
        machine.ioapics[number] = segment, requester


def _reserve(machine: Machine, rmrr: Rmrr) -> None:
    base, limit = rmrr.base_address, rmrr.limit_address
    if limit < base or limit == 0:
        machine.notes.append(f"RMRR {base:#x}..{limit:#x}: no memory, left out")
        return
    requesters = []
    for scope in rmrr.scopes:
        found = machine.fabric.walk(rmrr.segment, scope.start_bus, scope.path)
        if found is None:
            machine.notes.append(f"RMRR {base:#x}: the path of a scope leads nowhere")
        else:
            requesters.append((found[0], found[0]))
    region = ReservedRegion(base, limit, rmrr.segment, tuple(requesters))
    if region in machine.reserved_regions:
        machine.notes.append(f"RMRR {base:#x}: listed again")
    else:
        machine.reserved_regions.append(region)


def _build_missing_bridges(machine: Machine, table: Dmar) -> None:
    """Build the bridges that scopes speak of and nobody has attached yet."""
    scoped = [s for s in table.structures if isinstance(s, Scoped)]
    scopes = [(getattr(s, "segment", 0), scope) for s in scoped for scope in s.scopes]
    pci = [(segment, scope) for segment, scope in scopes if scope.type in _PCI and scope.path]
    for segment, scope in pci:
        if machine.fabric.find_bus(segment, scope.start_bus) is None:
            machine.fabric.add_root(segment, scope.start_bus)
    for segment, scope in pci:
        bridges = len(scope.path) - (scope.type == ENDPOINT)
        for count in range(1, bridges + 1):
            if not _build_bridge(machine, segment, scope.start_bus, scope.path[:count]):
                break


def _build_bridge(
    machine: Machine, segment: int, start_bus: int, path: list[tuple[int, int]]
) -> bool:
    found = machine.fabric.walk(segment, start_bus, path)
    if found is None:
        return False
    requester, function = found
    if function is not None:
        return isinstance(function, Bridge)
    address = format_requester(requester, segment)
    kind = PortType.ROOT_PORT if len(path) == 1 else PortType.UPSTREAM
    try:
        machine.attach(Bridge(f"bridge {address}", kind), address)
    except ValueError as error:  # no bus number left
        machine.notes.append(f"bridge {address}: not built, {error}")
        return False
    return True


# ---- IVRS (AMD-Vi 14) ------------------------------------------------------------------------


def _populate_ivrs(machine: Machine, table: Ivrs, options: Mapping[str, Any]) -> list[Rule]:
    rules: list[Rule] = []
    units: dict[tuple[int, int], Unit] = {}
    bases: set[int] = set()
    for block in table.blocks():
        key = block.segment, block.device_id
        if key not in units:
            unit = _amdvi_unit(machine, block, table.iv_info, bases, options)
            if unit is None:
                continue
            units[key] = unit
        rules += _ivhd_rules(machine, block, units[key])
    for ivmd in table.find(Ivmd):
        _reserve_ivmd(machine, ivmd)
    return rules


def _amdvi_unit(
    machine: Machine, block: Ivhd, iv_info: int, bases: set[int], options: Mapping[str, Any]
) -> Unit | None:
    what = f"IVHD of {format_requester(block.device_id, block.segment)}"
    base = block.base_address
    if not base or base in bases:
        reason = "base 0" if not base else f"base {base:#x} is another unit's"
        machine.notes.append(f"{what}: {reason}, left out")
        return None
    if base % AMDVI_WINDOW:
        machine.notes.append(f"{what}: base {base:#x} is not a multiple of its window, left out")
        return None
    bases.add(base)
    config: dict[str, Any] = {
        "base": base,
        "device_id": block.device_id,
        **options,
    }
    width = iv_info >> 8 & 0x7F  # PASize
    if 32 <= width <= 52:
        config.setdefault("host_address_width", width)
    try:
        return AmdviUnit(machine, amdvi_presets.preset(**config), block.segment)
    except (ValueError, FullError) as error:
        raise ValueError(f"{what} at {base:#x}: {error}") from error


def _ivhd_rules(machine: Machine, block: Ivhd, unit: Unit) -> list[Rule]:
    rules = []
    # The IOMMU sits on the root bus of its devices.
    if machine.fabric.find_bus(block.segment, block.device_id >> 8) is None:
        machine.fabric.add_root(block.segment, block.device_id >> 8)
    for requesters in block.requesters():
        rules.append(Rule(unit, RuleKind.RANGE, requesters.first, requesters.last))
        if requesters.alias is not None:
            rules.append(Rule(unit, RuleKind.RANGE, requesters.alias, requesters.alias))
            machine.fabric.firmware_aliases.append(
                FirmwareAlias(block.segment, requesters.first, requesters.last, requesters.alias)
            )
    for special in block.specials():
        requester = special.source_device_id
        rules.append(Rule(unit, RuleKind.RANGE, requester, requester))
        name = {1: "I/O APIC", 2: "HPET"}.get(special.variety)
        if name is not None:
            _add_special(machine, name, special.handle, block.segment, requester)
    return rules


def _reserve_ivmd(machine: Machine, ivmd: Ivmd) -> None:
    base, length = ivmd.start_address, ivmd.memory_length
    if not length or base + length > 1 << 64:
        machine.notes.append(f"IVMD {base:#x}+{length:#x}: no memory, left out")
        return
    ranges = {
        _IVMD_ALL: (0, LAST_REQUESTER),
        _IVMD_ONE: (ivmd.device_id, ivmd.device_id),
        _IVMD_RANGE: (ivmd.device_id, ivmd.last_device_id),
    }
    if ivmd.type not in ranges:
        machine.notes.append(f"IVMD {base:#x}: type {ivmd.type:#x} says for no device, left out")
        return
    first, last = ranges[ivmd.type]
    if last < first:
        machine.notes.append(f"IVMD {base:#x}: device range {first:#x}..{last:#x} is empty")
        return
    exclusion = IvmdFlags.EXCLUSION_RANGE in ivmd.flags
    machine.reserved_regions.append(
        ReservedRegion(
            base=base,
            limit=base + length - 1,
            segment=ivmd.segment,
            requesters=((first, last),),
            # An exclusion range is passed both ways, whatever IR and IW say (AMD-Vi 14.4).
            readable=exclusion or IvmdFlags.READ in ivmd.flags,
            writable=exclusion or IvmdFlags.WRITE in ivmd.flags,
            exclusion=exclusion,
        )
    )
