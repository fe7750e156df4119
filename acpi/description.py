"""Tables as text: TOML that builds again, and plain dictionaries for JSON.

A description names what differs from the default; lengths and the checksum are computed:

    signature = "DMAR"
    host_address_width = 39
    flags = ["INTR_REMAP"]

    [[structures]]
    type = "DRHD"
    flags = ["INCLUDE_PCI_ALL"]
    base_address = 0xfed91000
    scopes = [
        { type = "IOAPIC", enumeration_id = 2, start_bus = 0xf0, path = "1f.0" },
    ]

Flags are lists of names (a number stands for unnamed bits), device IDs are `bus:device.function`,
paths of scopes are hops `device.function` joined by `/`, raw bytes are strings of hexadecimal
digits. A number is accepted wherever a name or a device ID is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import IntFlag
from importlib import import_module
from typing import Any

from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.header import Table
from iommu_emu.acpi.layout import Record, Typed
from iommu_emu.acpi.table import AnyTable, build, parse, table_class

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def to_toml(table: Table) -> str:
    """Return the description of a table; `build(from_toml(to_toml(table)))` builds it again."""
    lines = [f"signature = {_dump(table, 'signature')}"]
    lines += [line for line in _lines(table) if not line.startswith("signature ")]
    for structure in table.structures:
        lines += ["", "[[structures]]", *_lines(structure)]
        if structure.children:
            lines += _inline_array(structure)
    return "\n".join(lines) + "\n"


def from_toml(text: str) -> AnyTable:
    """Read a description, build it, and return the table with its offsets filled in.

    A `platform` section is allowed and ignored; `platforms` reads it.

    Raises:
        AcpiError: The text is no TOML, or a key or value in it is not known.
    """
    return from_dict(load_toml(text))


def load_toml(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        AcpiError: The text is no TOML.
    """
    try:
        return dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise AcpiError(f"no TOML: {str(error) or type(error).__name__}") from error


def from_dict(description: Mapping[str, Any]) -> AnyTable:
    """Read a description that TOML has been read from already; otherwise as `from_toml`."""
    keys = {key: value for key, value in description.items() if key != "platform"}
    # Trailing bytes and offsets depend on the bytes, so the result is parsed from them.
    return parse(build(_load(table_class(keys.get("signature")), keys, "table")))


def to_dict(table: Table) -> dict[str, Any]:
    """Return a table as dictionaries, lists, numbers and strings: the shape of the JSON output.

    Numbers are as stored. Bytes are hexadecimal strings, `rest` and `trailing` only where there
    are any. A field whose bits have names is followed by `…_bits`: the names of the flags that
    are set, or the value of each bit field.
    """
    result = _record_dict(table)
    result["checksum_ok"] = table.checksum_ok
    result["structures"] = result.pop("structures")  # the long part last
    return result


def _described(record: Record) -> Iterator[tuple[Field[Any], Any]]:
    """Yield the fields that take part in descriptions, with their texts."""
    for field in fields(record):
        if text := field.metadata.get("text"):
            yield field, text


def _dump(record: Record, name: str) -> str:
    texts = {field.name: text for field, text in _described(record)}
    return str(texts[name].dump(getattr(record, name)))


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def items(record: Record, defaults: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield name, TOML literal and note of each field, the type first.

    Fields that have their default value are left out unless `defaults` is set.
    """
    if isinstance(record, Typed):
        literal = _dump(record, "type")
        yield "type", literal, "" if literal.startswith('"') else record.name
    for field, text in sorted(_described(record), key=lambda item: _position(record, item[0])):
        value = getattr(record, field.name)
        if field.name != "type" and (defaults or value != _default(field)):
            literal = text.dump(value)
            yield field.name, literal, "" if literal.startswith("[") else text.note(value)


def _position(record: Record, field: Field[Any]) -> int:
    """Return the place of a field in the bytes; the variable part comes last, `rest` behind it."""
    names = [member.name for member in record.layout.subcons]
    if field.name in names:
        return names.index(field.name)
    return len(names) + (field.name in ("rest", "trailing"))


def _lines(record: Record) -> list[str]:
    return [
        f"{name} = {literal}" + (f"  # {note}" if note else "")
        for name, literal, note in items(record)
    ]


def _inline_array(record: Record) -> list[str]:
    """Return the children as an array of inline tables, one a line."""
    children: list[Record] = getattr(record, record.children)
    if not children:
        return []
    rows = [
        ", ".join(f"{name} = {literal}" for name, literal, _ in items(child)) for child in children
    ]
    return [f"{record.children} = [", *(f"    {{ {row} }}," for row in rows), "]"]


def _load(kind: type[Record], keys: Any, where: str) -> Any:
    """Make a record from a dictionary; `where` leads to it in error messages."""
    if not isinstance(keys, Mapping):
        raise AcpiError(f"{where}: {keys!r} is no table of keys")
    values: dict[str, Any] = {}
    known = {field.name: field.metadata.get("text") for field in fields(kind)}
    for name, value in keys.items():
        if name == kind.children:
            values[name] = _load_children(kind, value, f"{where}.{name}")
            continue
        if (field_text := known.get(name)) is None:
            raise AcpiError(f"{where}: unknown key {name!r}")
        try:
            values[name] = field_text.load(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise AcpiError(f"{where}.{name}: {error}") from error
    return kind(**values)


def _load_children(kind: type[Record], items: Any, where: str) -> list[Any]:
    if not isinstance(items, list):
        raise AcpiError(f"{where}: {items!r} is no array")
    children = []
    for number, item in enumerate(items):
        place = f"{where}[{number}]"
        if not isinstance(item, Mapping) or "type" not in item:
            raise AcpiError(f"{place}: the type is missing")
        header: Typed = _load(kind.child, {"type": item["type"]}, place)
        children.append(_load(kind.child.kind(header.type), item, place))
    return children


def _record_dict(record: Record) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if isinstance(record, Typed):
        result |= {"type": record.type, "name": record.name, "offset": record.offset}
        result["length"] = record.length  # type: ignore[attr-defined]
    texts = {field.name: text for field, text in _described(record)}
    for name in [member.name for member in record.layout.subcons]:
        value = getattr(record, name)
        result[name] = _plain(value)
        if (text := texts.pop(name, None)) and text.decode:
            result[f"{name}_bits"] = text.decode(value)
    for name in texts:
        if (value := getattr(record, name)) or name not in ("rest", "trailing"):
            result[name] = _plain(value)
    result |= {name: getattr(record, name) for name in record.derived}
    if record.children:
        result[record.children] = [_record_dict(c) for c in getattr(record, record.children)]
    return result


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, bytes):
        return value.hex()
    return int(value) if isinstance(value, IntFlag) else value
