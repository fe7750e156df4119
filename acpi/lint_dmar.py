"""Rules for DMAR tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from iommu_emu.acpi.dmar import (
    HPET,
    IOAPIC,
    NAMESPACE,
    PCI_ENDPOINT,
    PCI_SUB_HIERARCHY,
    SCOPE_NAMES,
    Andd,
    Atsr,
    DeviceScope,
    Dmar,
    DmarFlags,
    Drhd,
    Rhsa,
    Rmrr,
    Satc,
    Scoped,
    Sidp,
)
from iommu_emu.acpi.findings import Finding
from iommu_emu.acpi.text import format_path, format_size

PAGE = 4096


def _header(table: Dmar) -> Iterator[Finding]:
    if table.revision != 1:
        reason = f"revision {table.revision}; the specification knows 1"
        yield Finding("note", "revision", table.offset_of("revision"), reason, "VT-d 8.1")
    if DmarFlags.X2APIC_OPT_OUT in table.flags and DmarFlags.INTR_REMAP not in table.flags:
        reason = "X2APIC_OPT_OUT means nothing without INTR_REMAP"
        at = table.offset_of("flags")
        yield Finding("warning", "x2apic-opt-out-alone", at, reason, "VT-d 8.1")
    if not table.units():
        yield Finding("error", "no-unit", table.length, "the table has no DRHD", "VT-d 8.3")


def _order(table: Dmar) -> Iterator[Finding]:
    for before, after in pairwise(table.structures):
        if after.type < before.type:
            reason = f"type {after.type} follows type {before.type}; types should ascend"
            yield Finding("warning", "structure-order", after.offset, reason, "VT-d 8.2")


def _unit_registers(table: Dmar) -> Iterator[Finding]:
    for unit in table.units():
        at = unit.offset_of("base_address")
        if unit.base_address == 0:
            remapping = DmarFlags.INTR_REMAP in table.flags
            reason = f"DRHD base is 0 and INTR_REMAP is {'set' if remapping else 'clear'}"
            yield Finding("error", "drhd-base-zero", at, reason, "VT-d 8.3")
        elif unit.base_address % unit.register_window:
            reason = f"DRHD base {unit.base_address:#x} is not aligned to its register window"
            yield Finding("error", "drhd-base-unaligned", at, reason, "VT-d 8.3")
        if unit.size & 0xF0:
            reason = f"reserved bits are not 0: Drhd.size is {unit.size:#x}"
            yield Finding(
                "warning", "reserved-not-zero", unit.offset_of("size"), reason, "VT-d 8.3"
            )
        if unit.register_window > PAGE:
            window = format_size(unit.register_window)
            reason = f"register window of {window}, where older software maps 4 KiB"
            at_size = unit.offset_of("size")
            yield Finding("note", "drhd-large-window", at_size, reason, "VT-d 8.3")


def _unit_collisions(table: Dmar) -> Iterator[Finding]:
    units = sorted(table.units(), key=lambda unit: (unit.base_address, unit.offset))
    for other, unit in pairwise(units):
        if unit.base_address < other.base_address + other.register_window:
            same = unit.base_address == other.base_address
            code = "drhd-base-duplicate" if same else "drhd-overlap"
            reason = f"registers at {unit.base_address:#x} overlap those of the DRHD at "
            reason += f"offset {other.offset:#x}"
            yield Finding("error", code, unit.offset_of("base_address"), reason, "VT-d 8.3")


def _include_pci_all(table: Dmar) -> Iterator[Finding]:
    seen: dict[int, Drhd] = {}
    for unit in table.units():
        catcher = seen.get(unit.segment)
        if catcher and unit.include_pci_all:
            reason = f"second INCLUDE_PCI_ALL unit of segment {unit.segment}, "
            reason += f"after the one at {catcher.offset:#x}"
            yield Finding("error", "include-pci-all-twice", unit.offset, reason, "VT-d 8.3")
        elif catcher:
            reason = f"follows the INCLUDE_PCI_ALL unit of segment {unit.segment}, "
            reason += f"which should be the last: {catcher.offset:#x}"
            code = "include-pci-all-not-last"
            yield Finding("warning", code, unit.offset, reason, "VT-d 8.3")
        if unit.include_pci_all:
            seen.setdefault(unit.segment, unit)
        elif not unit.scopes:
            reason = "DRHD has neither device scopes nor INCLUDE_PCI_ALL"
            yield Finding("warning", "drhd-without-devices", unit.offset, reason, "VT-d 8.3")


def _address_width(table: Dmar) -> Iterator[Finding]:
    lasts = [
        (unit.offset_of("base_address"), unit.base_address + unit.register_window - 1)
        for unit in table.units()
    ]
    lasts += [(rmrr.offset_of("limit_address"), rmrr.limit_address) for rmrr in table.find(Rmrr)]
    for at, last in lasts:
        if last >> table.host_address_width:
            reason = f"{last:#x} is beyond the host address width of {table.host_address_width}"
            yield Finding("error", "address-too-wide", at, reason, "VT-d 8.1")


def _rmrr(table: Dmar) -> Iterator[Finding]:
    for rmrr in table.find(Rmrr):
        base, limit = rmrr.base_address, rmrr.limit_address
        at_base, at_limit = rmrr.offset_of("base_address"), rmrr.offset_of("limit_address")
        if base == limit == 0:
            yield Finding("error", "rmrr-zero", at_base, "RMRR from 0 to 0", "VT-d 8.4")
        elif base == 0:
            reason = "RMRR starts at address 0"
            yield Finding("warning", "rmrr-base-zero", at_base, reason, "VT-d 8.4")
        if base % PAGE:
            reason = f"RMRR base {base:#x} is not page-aligned"
            yield Finding("error", "rmrr-base-unaligned", at_base, reason, "VT-d 8.4")
        if limit < base:
            reason = f"RMRR limit {limit:#x} is below its base {base:#x}"
            yield Finding("error", "rmrr-reversed", at_limit, reason, "VT-d 8.4")
        if (limit + 1) % PAGE:
            reason = f"RMRR limit {limit:#x} is not the last byte of a page"
            yield Finding("error", "rmrr-limit-unaligned", at_limit, reason, "VT-d 8.4")
        if not rmrr.scopes:
            reason = "RMRR names no device"
            yield Finding("warning", "rmrr-without-devices", rmrr.offset, reason, "VT-d 8.4")


def _ats(table: Dmar) -> Iterator[Finding]:
    for atsr in table.find(Atsr):
        if atsr.all_ports and atsr.scopes:
            reason = "ATSR with ALL_PORTS lists devices, too"
            yield Finding("warning", "atsr-all-ports-scopes", atsr.offset, reason, "VT-d 8.5")
        if not atsr.all_ports and not atsr.scopes:
            reason = "ATSR names no root port"
            yield Finding("warning", "atsr-without-ports", atsr.offset, reason, "VT-d 8.5")
    has_sidp = bool(table.find(Sidp))
    for satc in table.find(Satc):
        if has_sidp:
            reason = "SATC is to be ignored, as the table has SIDP"
            yield Finding("note", "satc-ignored", satc.offset, reason, "VT-d 8.9")


def _scope_types(table: Dmar) -> Iterator[Finding]:
    for structure in table.find(Scoped):
        allowed, one_hop, section = _allowed_scopes(structure)
        for scope in structure.scopes:
            if scope.type not in allowed and scope.type in SCOPE_NAMES:
                reason = f"{structure.name} may not list a scope of type {scope.name}"
                yield Finding("warning", "scope-type", scope.offset, reason, section)
            if one_hop and len(scope.path) != 1:
                reason = f"{structure.name} wants one hop, has {len(scope.path)}"
                yield Finding("warning", "scope-hops", scope.offset, reason, section)


def _allowed_scopes(structure: Scoped) -> tuple[Iterable[int], bool, str]:
    """Return the scope types that a structure may list, whether with one hop only, and why."""
    if isinstance(structure, Atsr):
        return (PCI_SUB_HIERARCHY,), False, "VT-d 8.5"
    if isinstance(structure, Satc):
        return (PCI_ENDPOINT,), True, "VT-d 8.8"
    if isinstance(structure, Sidp):
        return (PCI_ENDPOINT, NAMESPACE), True, "VT-d 8.9"
    if isinstance(structure, Drhd) and structure.include_pci_all:
        return (IOAPIC, HPET, NAMESPACE), False, "VT-d 8.3"
    return SCOPE_NAMES, False, "VT-d 8.3.1"


def _scope_contents(table: Dmar) -> Iterator[Finding]:
    section = "VT-d 8.3.1"
    for structure in table.find(Scoped):
        for scope in structure.scopes:
            if not scope.path:
                yield Finding("error", "scope-empty", scope.offset, "path has no hop", section)
            if any(device > 31 or function > 7 for device, function in scope.path):
                reason = f"path {format_path(scope.path)}: no such device and function"
                yield Finding("error", "scope-path", scope.offset, reason, section)
            if scope.flags and not isinstance(structure, Sidp):
                reason = f"scope flags {int(scope.flags):#x} are reserved outside SIDP"
                at = scope.offset_of("flags")
                yield Finding("warning", "reserved-not-zero", at, reason, section)


def _shared_scopes(table: Dmar) -> Iterator[Finding]:
    """Find devices that two units claim, and interrupt sources with the same number."""
    owners: dict[tuple[int, int, int, str], Drhd] = {}
    numbers: dict[tuple[int, int], DeviceScope] = {}
    for unit in table.units():
        for scope in unit.scopes:
            key = (unit.segment, scope.type, scope.start_bus, format_path(scope.path))
            owner = owners.setdefault(key, unit)
            if owner is not unit and scope.type in (PCI_ENDPOINT, PCI_SUB_HIERARCHY):
                place = f"{scope.start_bus:02x}:{format_path(scope.path)}"
                reason = f"{place} is in the scope of the DRHD at {owner.offset:#x}, too"
                yield Finding("error", "scope-in-two-units", scope.offset, reason, "VT-d 8.3")
            if scope.type == IOAPIC:
                first = numbers.setdefault((scope.type, scope.enumeration_id), scope)
                if first is not scope:
                    reason = f"I/O APIC {scope.enumeration_id} is listed at {first.offset:#x}, too"
                    yield Finding("warning", "ioapic-duplicate", scope.offset, reason, "VT-d 8.3.1")


def _rhsa(table: Dmar) -> Iterator[Finding]:
    bases = {unit.base_address for unit in table.units()}
    for rhsa in table.find(Rhsa):
        if rhsa.base_address not in bases:
            reason = f"RHSA is about {rhsa.base_address:#x}, where no DRHD is"
            at = rhsa.offset_of("base_address")
            yield Finding("warning", "rhsa-without-unit", at, reason, "VT-d 8.6")


def _andd(table: Dmar) -> Iterator[Finding]:
    scopes = [scope for structure in table.find(Scoped) for scope in structure.scopes]
    used = {scope.enumeration_id for scope in scopes if scope.type == NAMESPACE}
    seen: set[int] = set()
    for andd in table.find(Andd):
        number, at = andd.device_number, andd.offset_of("device_number")
        if number not in used:
            reason = f"ANDD {number} ({andd.object_name}) is in no device scope"
            yield Finding("warning", "andd-unused", at, reason, "VT-d 8.7")
        if number in seen:
            reason = f"another ANDD has the number {number}"
            yield Finding("error", "andd-duplicate", at, reason, "VT-d 8.7")
        seen.add(number)
    for scope in scopes:
        if scope.type == NAMESPACE and scope.enumeration_id not in seen:
            reason = f"no ANDD has the number {scope.enumeration_id}"
            yield Finding("error", "andd-missing", scope.offset, reason, "VT-d 8.7")


RULES = (
    _header,
    _order,
    _unit_registers,
    _unit_collisions,
    _include_pci_all,
    _address_width,
    _rmrr,
    _ats,
    _scope_types,
    _scope_contents,
    _shared_scopes,
    _rhsa,
    _andd,
)
