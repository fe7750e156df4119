"""Names of registers and of their fields, for programs and for what differs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Difference", "RegisterNames"]

_NAME = re.compile(r"([A-Za-z]\w*)(?:\+(\d+))?")


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of a register that is not the same on both sides.

    Attributes:
        field: "FSTS.PPF"; bits of no field are "FSTS.reserved", bytes of no register "+0x098".
        ours: its value here.
        qemu: its value there.
    """

    field: str
    ours: int
    qemu: int

    def __str__(self) -> str:
        return f"{self.field}: {self.ours:#x} here, {self.qemu:#x} in QEMU"


@dataclass(frozen=True, slots=True)
class _Register:
    name: str
    offset: int
    size: int
    fields: tuple[tuple[str, int, int], ...]  # name, highest bit, lowest bit


class RegisterNames:
    """The registers of one window.

    Attributes:
        registers: offset and bytes of each register by name.

    Args:
        rows: name, offset, bytes, and (name, highest bit, lowest bit) of the fields of each.
    """

    def __init__(self, rows: list[tuple[str, int, int, tuple[tuple[str, int, int], ...]]]) -> None:
        self._rows = [_Register(*row) for row in rows]
        self._by_name = {row.name: row for row in self._rows}
        self._by_byte = {row.offset + byte: row for row in self._rows for byte in range(row.size)}
        self.registers = {row.name: (row.offset, row.size) for row in self._rows}

    def name(self, offset: int) -> str:
        """Return the name of the register at an offset, "NAME+4" inside one, else the number."""
        row = self._by_byte.get(offset)
        if row is None:
            return hex(offset)
        within = offset - row.offset
        return row.name if within == 0 else f"{row.name}+{within}"

    def offset(self, name: str) -> int:
        """Return the offset that `name` writes.

        Raises:
            ValueError: if there is no such register.
        """
        if name[:1].isdigit():
            return int(name, 0)
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in self._by_name:
            raise ValueError(f"there is no register {name!r}")
        return self._by_name[match[1]].offset + int(match[2] or 0)

    def differences(self, base: int, ours: bytes, qemu: bytes) -> Iterator[Difference]:
        """Yield what differs between two dumps that begin at offset `base`."""
        seen = set()
        for byte, (mine, theirs) in enumerate(zip(ours, qemu, strict=True)):
            if mine == theirs:
                continue
            row = self._by_byte.get(base + byte)
            if row is None:
                yield Difference(f"+{base + byte:#05x}", mine, theirs)
            elif row not in seen:
                seen.add(row)
                begin = row.offset - base
                end = begin + row.size
                yield from _field_differences(row, ours[begin:end], qemu[begin:end])

    def value(self, dump: bytes, base: int, name: str) -> int:
        """Return a whole register out of a dump that begins at offset `base`."""
        row = self._by_name[name]
        begin = row.offset - base
        return int.from_bytes(dump[begin : begin + row.size], "little")

    def extract(self, register: str, field: str, value: int) -> int:
        """Return a field of a register's value.

        Raises:
            ValueError: if there is no such field.
        """
        for name, high, low in self._by_name[register].fields:
            if name == field:
                return value >> low & (2 << high - low) - 1
        raise ValueError(f"{register} has no field {field!r}")


def _field_differences(row: _Register, ours: bytes, qemu: bytes) -> Iterator[Difference]:
    mine, theirs = int.from_bytes(ours, "little"), int.from_bytes(qemu, "little")
    rest = (1 << 8 * row.size) - 1
    for name, high, low in row.fields:
        mask = (2 << high) - (1 << low)
        rest &= ~mask
        if (mine ^ theirs) & mask:
            yield Difference(f"{row.name}.{name}", (mine & mask) >> low, (theirs & mask) >> low)
    if (mine ^ theirs) & rest:
        yield Difference(f"{row.name}.reserved", mine & rest, theirs & rest)
