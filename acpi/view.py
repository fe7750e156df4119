"""Tables as a tree for a terminal."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import singledispatch

from rich.text import Text
from rich.tree import Tree

from iommu_emu.acpi.description import items
from iommu_emu.acpi.dmar import HPET, IOAPIC, NAMESPACE, DeviceScope, Drhd, Rmrr
from iommu_emu.acpi.header import Table
from iommu_emu.acpi.ivrs import DeviceEntry, HidEntry, Ivhd, Ivmd, SpecialEntry
from iommu_emu.acpi.layout import Record, Typed
from iommu_emu.acpi.text import format_bdf, format_path, format_size


def render(table: Table) -> Tree:
    """Return a tree: the header, and each structure with its offset and what is in it."""
    bad = "" if table.checksum_ok else "  checksum wrong"
    title = Text(f"{table.signature} ", style="bold")
    title.append(f"{table.length} bytes{bad}", style="red" if bad else "dim")
    tree = Tree(title, guide_style="dim")
    hidden = {"signature", "reserved", "trailing", "rest"}
    tree.add(Text(_fields(table, hidden - _odd(table), defaults=True)))
    for structure in table.structures:
        branch = tree.add(_line(structure))
        for child in getattr(structure, structure.children) if structure.children else []:
            branch.add(_line(child))
    return tree


def _line(record: Typed) -> Text:
    line = Text(f"{record.offset:#06x} ", style="dim")
    line.append(record.name, style="bold cyan")
    if record.name == "UNKNOWN" or isinstance(record, (Ivhd, Ivmd)):
        line.append(f" {record.type:02x}h", style="cyan")
    return line.append(f"  {summary(record)}", style="default")


@singledispatch
def summary(record: Record) -> str:
    """Say what is in a record in one line; fields with their default value are left out."""
    return _fields(record)


@summary.register
def _(unit: Drhd) -> str:
    window = _memory(unit.base_address, unit.register_window)
    return _join(window, _fields(unit, skip={"base_address", "size"}))


@summary.register
def _(rmrr: Rmrr) -> str:
    region = _memory(rmrr.base_address, rmrr.region_size)
    return _join(region, _fields(rmrr, skip={"base_address", "limit_address"}))


@summary.register
def _(scope: DeviceScope) -> str:
    place = f"{scope.start_bus:02x}:{format_path(scope.path)}"
    if scope.type in (IOAPIC, HPET, NAMESPACE):
        place = f"{scope.enumeration_id} at {place}"
    return _join(place, _fields(scope, skip={"enumeration_id", "start_bus", "path"}))


@summary.register
def _(block: Ivhd) -> str:
    place = f"IOMMU {format_bdf(block.device_id)} at {block.base_address:#x}"
    return _join(place, _fields(block, skip={"device_id", "base_address"}))


@summary.register
def _(ivmd: Ivmd) -> str:
    devices = {0x20: "all devices", 0x21: format_bdf(ivmd.device_id)}.get(
        ivmd.type, f"{format_bdf(ivmd.device_id)}-{format_bdf(ivmd.last_device_id)}"
    )
    region = _memory(ivmd.start_address, ivmd.memory_length)
    skip = {"device_id", "last_device_id", "start_address", "memory_length"}
    return _join(region, devices, _fields(ivmd, skip))


@summary.register
def _(entry: DeviceEntry) -> str:
    return _join(format_bdf(entry.device_id), _fields(entry, skip={"device_id"}))


@summary.register
def _(entry: SpecialEntry) -> str:
    shown = {"handle", "source_device_id", "variety"}
    what = {1: "I/O APIC", 2: "HPET"}.get(entry.variety, f"variety {entry.variety}")
    place = f"{what} {entry.handle} as {format_bdf(entry.source_device_id)}"
    return _join(place, _fields(entry, skip=shown))


@summary.register
def _(entry: HidEntry) -> str:
    place = f"{format_bdf(entry.device_id)} is {entry.hid!r}"
    return _join(place, _fields(entry, skip={"device_id", "hid"}))


def _memory(start: int, size: int) -> str:
    return f"{start:#x}-{start + size - 1:#x} ({format_size(size)})"


def _odd(record: Record) -> set[str]:
    """Return the names of the fields that differ from their default."""
    return {name for name, _, _ in items(record)}


def _fields(record: Record, skip: Collection[str] = (), defaults: bool = False) -> str:
    shown = []
    for name, literal, note in items(record, defaults):
        if name == "flags" and literal.startswith("["):
            shown.append(literal.strip("[]").replace('"', "").replace(",", ""))
        elif name != "type" and name not in skip:
            shown.append(f"{name} {_plain(literal)}" + (f" ({note})" if note else ""))
    return _join(*shown)


def _plain(literal: str) -> str:
    """Return a TOML string without quotes and escapes, if a terminal can show it."""
    text = str(json.loads(literal)) if literal.startswith('"') else literal
    return text if text.isprintable() else literal


def _join(*parts: str) -> str:
    return "  ".join(part for part in parts if part)
