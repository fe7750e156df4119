"""How values are written for people: the texts of TOML descriptions, JSON and listings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

Hops = list[tuple[int, int]]
BitNames = Mapping[str, tuple[int, int]]  # name -> (low bit, high bit)


@dataclass(frozen=True)
class Text:
    """How one field is written.

    Attributes:
        dump: Value to TOML literal.
        load: What TOML read back to the value; raises ValueError or TypeError on nonsense.
        decode: Value to a list of flag names, or to a dictionary of bit fields; None if a
            number says it all.
        mask: The bits that have a name; None if all have a meaning.
    """

    dump: Callable[[Any], str]
    load: Callable[[Any], Any]
    decode: Callable[[int], list[str] | dict[str, int]] | None = None
    mask: int | None = None

    def note(self, value: int) -> str:
        """Return the decoded bits as one line, bit fields of value 0 left out."""
        decoded = self.decode(value) if self.decode else []
        if isinstance(decoded, dict):
            return ", ".join(f"{name}={bits}" for name, bits in decoded.items() if bits)
        return ", ".join(decoded)


def format_bdf(requester: int) -> str:
    """Write a 16-bit requester ID as `bus:device.function`, `0x00e3` as `00:1c.3`."""
    return f"{requester >> 8:02x}:{requester >> 3 & 31:02x}.{requester & 7}"


def parse_bdf(text: str) -> int:
    """Read `bus:device.function` (hexadecimal) as a 16-bit requester ID.

    Raises:
        ValueError: The text is something else.
    """
    match = re.fullmatch(r"([0-9a-fA-F]{1,2}):([01]?[0-9a-fA-F])\.([0-7])", text)
    if not match:
        raise ValueError(f"{text!r} is no bus:device.function such as 00:1c.3")
    bus, device, function = (int(part, 16) for part in match.groups())
    return bus << 8 | device << 3 | function


def format_path(path: Hops) -> str:
    """Write the hops of a device scope as `1c.4/00.0`, hexadecimal as in a BDF."""
    return "/".join(f"{device:02x}.{function:x}" for device, function in path)


def parse_path(text: str) -> Hops:
    """Read what `format_path` writes.

    Raises:
        ValueError: The text is something else.
    """
    hops = [hop.split(".") for hop in text.split("/")] if text else []
    if any(len(hop) != 2 for hop in hops):
        raise ValueError(f"{text!r} is no path such as 1c.4/00.0")
    return [(int(device, 16), int(function, 16)) for device, function in hops]


def format_size(size: int) -> str:
    """Write a number of bytes in the largest binary unit that divides it: `64 KiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size % 1024 or not size or unit == "TiB":
            return f"{size} {unit}"
        size //= 1024
    raise AssertionError("unreachable")


def quote(text: str) -> str:
    """Write a TOML basic string: JSON's escapes, and DEL, which TOML does not allow bare."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no integer")
    if value < 0:
        raise ValueError(f"{value} is negative")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _load_bdf(value: Any) -> int:
    return parse_bdf(value) if isinstance(value, str) else _integer(value)


def _dump_uid(uid: bytes) -> str:
    if uid.isascii() and uid.decode("ascii").isprintable():
        return quote(uid.decode("ascii"))
    return f"[{', '.join(f'{byte:#04x}' for byte in uid)}]"


def _load_uid(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, list):
        return bytes(value)
    return _integer(value).to_bytes(8, "little")


DECIMAL = Text(str, _integer)
HEX = Text(hex, _integer)
BDF = Text(lambda value: quote(format_bdf(value)), _load_bdf)
PATH = Text(lambda path: quote(format_path(path)), lambda value: parse_path(_string(value)))
STRING = Text(quote, _string)
BYTES = Text(lambda data: quote(data.hex(" ")), lambda value: bytes.fromhex(_string(value)))
UID = Text(_dump_uid, _load_uid)


def named(names: Mapping[int, str]) -> Text:
    """Return the text of a type number with a name: `"DRHD"`, or the number itself."""
    numbers = {name: number for number, name in names.items()}

    def load(value: Any) -> int:
        if not isinstance(value, str):
            return _integer(value)
        if value not in numbers:
            raise ValueError(f"{value!r} is none of {', '.join(numbers)}")
        return numbers[value]

    return Text(lambda value: quote(names[value]) if value in names else hex(value), load)


def flag_names(kind: type[IntFlag]) -> Text:
    """Return the text of single-bit flags: a list of names, unnamed bits as one number."""
    mask = sum(kind)

    def decode(value: int) -> list[str]:
        return [str(flag.name) for flag in kind if value & flag]

    def dump(value: int) -> str:
        unnamed = value & ~mask
        items = [quote(name) for name in decode(value)] + ([hex(unnamed)] if unnamed else [])
        return f"[{', '.join(items)}]"

    def load(value: Any) -> IntFlag:
        bits = 0
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item not in kind.__members__:
                raise ValueError(f"{item!r} is none of {', '.join(kind.__members__)}")
            bits |= kind[item] if isinstance(item, str) else _integer(item)
        return kind(bits)

    return Text(dump, load, decode, mask)


def bit_fields(names: BitNames) -> Text:
    """Return the text of a register image: a hexadecimal number that decodes to fields."""
    masks = {name: (2 << high) - (1 << low) for name, (low, high) in names.items()}

    def decode(value: int) -> dict[str, int]:
        return {name: (value & masks[name]) >> low for name, (low, _) in names.items()}

    return Text(hex, _integer, decode, sum(masks.values()))
