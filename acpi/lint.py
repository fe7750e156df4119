"""The linter: rules for every table, and those for DMAR and IVRS from their own modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from iommu_emu.acpi import lint_dmar, lint_ivrs
from iommu_emu.acpi.dmar import Andd, Dmar
from iommu_emu.acpi.findings import Finding
from iommu_emu.acpi.header import CHECKSUM_OFFSET, Table
from iommu_emu.acpi.layout import Typed
from iommu_emu.acpi.table import AnyTable

__all__ = ["Finding", "check"]

HEADER = "ACPI 5.2.6"


def check(table: AnyTable) -> list[Finding]:
    """Judge a table, as `parse(data, strict=False)` returns it.

    Returns:
        What is wrong or unusual, in the order of the bytes; empty for a perfect table.
    """
    own: Sequence[Callable[[Any], Iterator[Finding]]]
    own = lint_dmar.RULES if isinstance(table, Dmar) else lint_ivrs.RULES
    section = "VT-d 8.2" if isinstance(table, Dmar) else "AMD IOMMU 5.2.1"
    findings = [finding for rule in own for finding in rule(table)]
    findings += [finding for rule in RULES for finding in rule(table, section)]
    return sorted(findings, key=lambda finding: (finding.offset, finding.code))


def _checksum(table: Table, _: str) -> Iterator[Finding]:
    if not table.checksum_ok:
        right = table.to_bytes()[CHECKSUM_OFFSET]
        reason = f"checksum is {table.checksum:#04x}, should be {right:#04x}"
        yield Finding("error", "checksum", CHECKSUM_OFFSET, reason, HEADER)


def _trailing_bytes(table: Table, _: str) -> Iterator[Finding]:
    if table.trailing:
        reason = f"{len(table.trailing)} bytes follow the {table.length} of the table"
        yield Finding("warning", "trailing-bytes", table.length, reason, HEADER)


def _identifiers(table: Table, _: str) -> Iterator[Finding]:
    for name in ("oem_id", "oem_table_id", "creator_id"):
        value = getattr(table, name)
        if not (value.isascii() and value.isprintable()):
            reason = f"{name} {value.encode('latin-1').hex(' ')} is no printable ASCII"
            yield Finding("warning", "identifier-not-ascii", table.offset_of(name), reason, HEADER)


def _duplicates(table: Table, section: str) -> Iterator[Finding]:
    seen: dict[bytes, Typed] = {}
    for structure in table.structures:
        first = seen.setdefault(structure.to_bytes(), structure)
        if first is not structure:
            reason = f"{structure.name} repeats the one at {first.offset:#x}"
            yield Finding("warning", "duplicate-structure", structure.offset, reason, section)


def _alignment(table: Table, section: str) -> Iterator[Finding]:
    for structure in table.structures:
        if structure.offset % 4:
            reason = f"{structure.name} is not 4-byte aligned"
            yield Finding("note", "structure-unaligned", structure.offset, reason, section)


def _unknown_types(table: Table, section: str) -> Iterator[Finding]:
    for record in table.walk():
        if isinstance(record, Typed) and record.type not in record.names:
            what = type(record).__name__
            reason = f"{what} of unknown type {record.type:#x}, kept as it is"
            code = f"unknown-{'scope' if what == 'DeviceScope' else what.lower()}-type"
            yield Finding("note", code, record.offset, reason, section)


def _reserved(table: Table, section: str) -> Iterator[Finding]:
    for record in table.walk():
        for field in fields(record):
            value = getattr(record, field.name)
            mask = getattr(field.metadata.get("text"), "mask", None)
            if field.name.startswith("reserved"):
                wrong = any(value) if isinstance(value, bytes) else value != 0
                shown = value.hex(" ") if isinstance(value, bytes) else f"{value:#x}"
            else:
                wrong = mask is not None and bool(value & ~mask)
                shown = f"{value:#x}" if wrong else ""
            if wrong:
                reason = f"reserved bits are not 0: {type(record).__name__}.{field.name} is {shown}"
                at = record.offset_of(field.name)
                yield Finding("warning", "reserved-not-zero", at, reason, section)


def _padding(table: Table, section: str) -> Iterator[Finding]:
    for record in table.walk():
        unknown = isinstance(record, Typed) and record.type not in record.names
        expected = b"\0" if isinstance(record, Andd) else b""
        if unknown or record.rest == expected:
            continue
        extra = record.rest.removeprefix(expected)
        at = record.offset + record.measure() - len(extra)
        what = type(record).__name__
        if not record.rest:
            yield Finding("warning", "name-unterminated", at, f"{what} ends without a NUL", section)
        elif any(extra):
            reason = f"{len(extra)} unexplained bytes at the end of the {what}"
            yield Finding("warning", "stray-bytes", at, reason, section)
        else:
            reason = f"{len(extra)} bytes of padding at the end of the {what}"
            yield Finding("note", "padding", at, reason, section)


RULES: tuple[Callable[[Table, str], Iterator[Finding]], ...] = (
    _checksum,
    _trailing_bytes,
    _identifiers,
    _duplicates,
    _alignment,
    _unknown_types,
    _reserved,
    _padding,
)
