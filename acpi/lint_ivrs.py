"""Rules for IVRS tables."""

from __future__ import annotations

from collections.abc import Iterator

from iommu_emu.acpi.findings import Finding
from iommu_emu.acpi.ivrs import (
    ALL,
    END_RANGE,
    STARTS,
    VARIETY_NAMES,
    DeviceEntry,
    Ivhd,
    Ivhd10,
    Ivhd11,
    IvhdFlags,
    Ivmd,
    IvmdFlags,
    Ivrs,
    Requesters,
    SpecialEntry,
)
from iommu_emu.acpi.text import format_bdf

PAGE = 4096
REGISTERS_ALIGNMENT = 16384

TABLE = "AMD IOMMU 5.2.1"
IVHD = "AMD IOMMU 5.2.2"
IVMD = "AMD IOMMU 5.2.3"

_LEGACY_FLAGS = IvhdFlags.PREF_SUP | IvhdFlags.PPR_SUP
_EFR_RESERVED = 0x4C00_0000
_EFR2_RESERVED = ~0xBFF & (1 << 64) - 1


def _ranges_of(block: Ivhd) -> list[Requesters]:
    """Return what the block assigns by ranges, sorted by device ID."""
    ranges = [span for span in block.requesters() if span.entry.type in STARTS]
    return sorted(ranges, key=lambda span: (span.first, span.entry.offset))


def _header(table: Ivrs) -> Iterator[Finding]:
    if table.revision not in (1, 2):
        reason = f"revision {table.revision}; known are 1 and 2"
        yield Finding("note", "revision", table.offset_of("revision"), reason, TABLE)
    if not table.find(Ivhd):
        yield Finding("error", "no-iommu", table.length, "the table has no IVHD", TABLE)
    if table.find(Ivhd11) and not table.iv_info & 1:
        reason = "EFRSup is clear, so the EFR images of types 11h and 40h do not count"
        yield Finding("warning", "efr-not-valid", table.offset_of("iv_info"), reason, TABLE)


def _block(table: Ivrs) -> Iterator[Finding]:
    for block in table.find(Ivhd):
        at = block.offset_of("base_address")
        if block.base_address == 0:
            yield Finding("error", "ivhd-base-zero", at, "IVHD base is 0", IVHD)
        elif block.base_address % REGISTERS_ALIGNMENT:
            reason = f"IVHD base {block.base_address:#x} is not 16 KiB aligned"
            yield Finding("error", "ivhd-base-unaligned", at, reason, IVHD)
        if isinstance(block, Ivhd10) and block.features >> 30 == 3:
            reason = "HATS 3 is reserved"
            yield Finding("warning", "reserved-not-zero", block.offset_of("features"), reason, IVHD)
        if isinstance(block, Ivhd11):
            yield from _extended_block(block)


def _extended_block(block: Ivhd11) -> Iterator[Finding]:
    if block.flags & _LEGACY_FLAGS:
        reason = f"flags {int(block.flags):#x}: bits 7:6 are reserved in type {block.type:x}h"
        yield Finding("note", "ivhd-legacy-flags", block.offset_of("flags"), reason, IVHD)
    for name, mask in (("efr", _EFR_RESERVED), ("efr2", _EFR2_RESERVED)):
        if bits := getattr(block, name) & mask:
            reason = f"{name} has bits {bits:#x} that no revision defines"
            yield Finding("note", "efr-reserved", block.offset_of(name), reason, IVHD)


def _block_groups(table: Ivrs) -> Iterator[Finding]:
    """Compare blocks of one IOMMU with each other, and IOMMUs among them."""
    first: dict[tuple[int, int], Ivhd] = {}
    for block in table.find(Ivhd):
        model = first.setdefault((block.segment, block.device_id), block)
        if block.base_address != model.base_address:
            reason = f"base differs from that of the same IOMMU at {model.offset:#x}"
            at = block.offset_of("base_address")
            yield Finding("error", "ivhd-blocks-differ", at, reason, IVHD)
    owners: dict[int, Ivhd] = {}
    for block in first.values():
        owner = owners.setdefault(block.base_address, block)
        if owner is not block:
            reason = f"IOMMU {format_bdf(owner.device_id)} has the same base"
            at = block.offset_of("base_address")
            yield Finding("error", "ivhd-base-duplicate", at, reason, IVHD)


def _range_ends(table: Ivrs) -> Iterator[Finding]:
    for block in table.find(Ivhd):
        start: DeviceEntry | None = None
        for entry in block.entries:
            if not isinstance(entry, DeviceEntry):
                continue
            if entry.type == END_RANGE:
                yield from _range_end(start, entry)
                start = None
            elif start and entry.type in STARTS:
                yield _no_end(start)
            elif start:
                reason = f"{entry.name} inside the range from {format_bdf(start.device_id)}"
                yield Finding("warning", "range-interrupted", entry.offset, reason, IVHD)
            if entry.type in STARTS:
                start = entry
        if start:
            yield _no_end(start)


def _no_end(start: DeviceEntry) -> Finding:
    reason = f"range from {format_bdf(start.device_id)} has no end"
    return Finding("error", "range-without-end", start.offset, reason, IVHD)


def _range_end(start: DeviceEntry | None, end: DeviceEntry) -> Iterator[Finding]:
    if start is None:
        reason = f"range to {format_bdf(end.device_id)} has no start"
        yield Finding("error", "range-without-start", end.offset, reason, IVHD)
    elif end.device_id < start.device_id:
        reason = f"range ends before its start {format_bdf(start.device_id)}"
        yield Finding("error", "range-reversed", end.offset, reason, IVHD)
    if end.setting:
        reason = "the setting of a range is that of its start"
        yield Finding("warning", "reserved-not-zero", end.offset_of("setting"), reason, IVHD)


def _range_overlaps(table: Ivrs) -> Iterator[Finding]:
    for block in table.find(Ivhd):
        reach: Requesters | None = None  # the range so far that goes furthest
        for span in _ranges_of(block):
            if reach and span.first <= reach.last:
                reason = f"{span.entry.name} {_span(span)} overlaps "
                reason += f"{reach.entry.name} {_span(reach)}"
                yield Finding("warning", "range-overlap", span.entry.offset, reason, IVHD)
            if not reach or span.last > reach.last:
                reach = span


def _span(span: Requesters) -> str:
    return f"{format_bdf(span.first)}-{format_bdf(span.last)}"


def _own_device(table: Ivrs) -> Iterator[Finding]:
    for block in table.find(Ivhd):
        for span in block.requesters():
            # An entry for all devices cannot leave the IOMMU out.
            if span.first <= block.device_id <= span.last and span.entry.type != ALL:
                reason = f"{_span(span)} covers the IOMMU itself, {format_bdf(block.device_id)}"
                yield Finding("warning", "covers-itself", span.entry.offset, reason, IVHD)


def _several_iommus(table: Ivrs) -> Iterator[Finding]:
    """Compare each IOMMU with the one before it that reaches furthest."""
    ranges = {
        (block.segment, block.device_id, block.offset): _ranges_of(block)
        for block in table.blocks()
    }
    hulls = [
        (segment, spans[0].first, max(span.last for span in spans), device, offset)
        for (segment, device, offset), spans in ranges.items()
        if spans
    ]
    for before, after, offset in _collisions(hulls):
        reason = f"device IDs of IOMMUs {before} and {after} interleave"
        yield Finding("note", "iommus-interleaved", offset, reason, IVHD)
    claims = [
        (segment, span.first, span.last, device, span.entry.offset)
        for (segment, device, _), spans in ranges.items()
        for span in spans
    ]
    for before, after, offset in _collisions(claims):
        reason = f"IOMMUs {before} and {after} claim the same device IDs"
        yield Finding("warning", "device-in-two-iommus", offset, reason, IVHD)


def _collisions(spans: list[tuple[int, int, int, int, int]]) -> Iterator[tuple[str, str, int]]:
    """Yield what overlaps, from (segment, first, last, owner, offset): owners and an offset."""
    reach: tuple[int, int, int, int, int] | None = None
    for span in sorted(spans):
        segment, first, last, owner, offset = span
        if reach and reach[0] == segment and first <= reach[2] and owner != reach[3]:
            yield format_bdf(reach[3]), format_bdf(owner), offset
        if not reach or reach[0] != segment or last > reach[2]:
            reach = span


def _specials(table: Ivrs) -> Iterator[Finding]:
    for block in table.find(Ivhd):
        seen: dict[tuple[int, int], SpecialEntry] = {}
        for entry in block.specials():
            if entry.variety not in VARIETY_NAMES:
                reason = f"variety {entry.variety} is neither I/O APIC nor HPET"
                at = entry.offset_of("variety")
                yield Finding("warning", "special-variety", at, reason, IVHD)
                continue
            first = seen.setdefault((entry.variety, entry.handle), entry)
            if first is not entry:
                what = VARIETY_NAMES[entry.variety]
                reason = f"{what} handle {entry.handle} is that of {first.offset:#x}, too"
                yield Finding("error", "special-handle-duplicate", entry.offset, reason, IVHD)


def _hid_devices(table: Ivrs) -> Iterator[Finding]:
    for block in table.find(Ivhd):
        for entry in block.hid_devices():
            at, length = entry.offset_of("uid_length"), entry.uid_length
            if block.type != 0x40:
                reason = f"ACPI HID entry in a block of type {block.type:x}h; only 40h may have it"
                yield Finding("warning", "hid-outside-40h", entry.offset, reason, IVHD)
            if entry.uid_format > 2:
                reason = f"UID format {entry.uid_format} is not known"
                yield Finding("warning", "uid-format", entry.offset_of("uid_format"), reason, IVHD)
            elif entry.uid_format == 1 and length != 8:
                reason = f"integer UID has {length} bytes instead of 8"
                yield Finding("warning", "uid-length", at, reason, IVHD)
            elif (entry.uid_format == 0) != (length == 0):
                reason = f"UID of format {entry.uid_format} has {length} bytes"
                yield Finding("warning", "uid-length", at, reason, IVHD)


def _memory(table: Ivrs) -> Iterator[Finding]:
    for ivmd in table.find(Ivmd):
        at = ivmd.offset_of("memory_length")
        if ivmd.memory_length == 0:
            yield Finding("error", "ivmd-empty", at, "IVMD of length 0", IVMD)
        elif ivmd.memory_length % PAGE:
            reason = f"IVMD length {ivmd.memory_length:#x} is no multiple of a page"
            yield Finding("warning", "ivmd-length-unaligned", at, reason, IVMD)
        if ivmd.start_address % PAGE:
            reason = f"IVMD start {ivmd.start_address:#x} is not page-aligned"
            at = ivmd.offset_of("start_address")
            yield Finding("warning", "ivmd-start-unaligned", at, reason, IVMD)
        if ivmd.start_address + ivmd.memory_length > 1 << 64:
            reason = "IVMD goes past the last address"
            yield Finding("error", "ivmd-wraps", ivmd.offset, reason, IVMD)
        yield from _memory_devices(ivmd)


def _memory_devices(ivmd: Ivmd) -> Iterator[Finding]:
    at = ivmd.offset_of("last_device_id")
    if ivmd.type == 0x22 and ivmd.last_device_id < ivmd.device_id:
        reason = f"device range ends before its start {format_bdf(ivmd.device_id)}"
        yield Finding("error", "ivmd-range-reversed", at, reason, IVMD)
    if ivmd.type != 0x22 and ivmd.last_device_id:
        reason = "an end of a device range means something in type 22h only"
        yield Finding("warning", "reserved-not-zero", at, reason, IVMD)
    if ivmd.type == 0x23:
        reason = "not every revision defines type 23h; software may ignore it"
        yield Finding("note", "ivmd-type-23h", ivmd.offset, reason, IVMD)
    at = ivmd.offset_of("flags")
    kinds = ivmd.flags & (IvmdFlags.UNITY | IvmdFlags.EXCLUSION_RANGE)
    if kinds == IvmdFlags.UNITY | IvmdFlags.EXCLUSION_RANGE:
        reason = "IVMD is a unity map and an exclusion range at once"
        yield Finding("warning", "ivmd-two-kinds", at, reason, IVMD)
    if not kinds:
        reason = "IVMD is neither a unity map nor an exclusion range"
        yield Finding("warning", "ivmd-no-kind", at, reason, IVMD)


RULES = (
    _header,
    _block,
    _block_groups,
    _range_ends,
    _range_overlaps,
    _own_device,
    _several_iommus,
    _specials,
    _hid_devices,
    _memory,
)
