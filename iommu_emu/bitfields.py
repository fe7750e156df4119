"""Memory structures declared as lists of bit fields, numbered as the specifications do.

Bit numbers run over the whole entry: bit 64 is bit 0 of the second quadword, and memory is
little-endian. A declaration names every bit, so that reserved and ignored ones are as visible as
the fields between them:

    RootEntry = Structure(
        "RootEntry", 128, "Root entry (VT-d 4.1).",
        [bit("p", 0), reserved(11, 1), address("ctp", 63, 12), reserved(127, 64)],
    )
    RootEntry.build(p=1, ctp=0x5000)      # 16 bytes
    RootEntry.parse(data).ctp             # 0x5000
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import construct

__all__ = [
    "Entry",
    "Field",
    "Kind",
    "Structure",
    "address",
    "bit",
    "constant",
    "field",
    "ignored",
    "reserved",
]


class Kind(Enum):
    """What software may put in a field, and what hardware does with it."""

    VALUE = "value"  # a number, counted from the field's lowest bit
    ADDRESS = "address"  # bits of an address in their place: low bits are zero
    CONSTANT = "constant"  # tells this structure from others; build fills it in
    RESERVED = "reserved"  # must be 0, checked
    IGNORED = "ignored"  # never checked, free for software


@dataclass(frozen=True)
class Field:
    """Bits `high` to `low` of a structure.

    Attributes:
        name: attribute of the parsed entry.
        high: highest bit, counted over the whole entry.
        low: lowest bit.
        kind: what the bits are for.
        shift: for an address, its bit that sits at `low`.
        value: for a constant, what it holds.
    """

    name: str
    high: int
    low: int
    kind: Kind = Kind.VALUE
    shift: int = 0
    value: int = 0

    @property
    def width(self) -> int:
        """Number of bits."""
        return self.high - self.low + 1

    @property
    def mask(self) -> int:
        """The field's bits in the whole entry."""
        return ((1 << self.width) - 1) << self.low

    def encode(self, structure: str, value: int) -> int:
        """Return the field's bits, counted from 0, for a value.

        Raises:
            ValueError: if the value does not fit the field.
        """
        if self.kind is Kind.CONSTANT and value != self.value:
            raise ValueError(f"{structure}.{self.name} is always {self.value:#x}, not {value:#x}")
        bits = value >> self.shift
        if value < 0 or bits >> self.width or bits << self.shift != value:
            limit = ((1 << self.width) - 1) << self.shift
            step = f" in steps of {1 << self.shift:#x}" if self.shift else ""
            raise ValueError(
                f"{structure}.{self.name} must be in 0..{limit:#x}{step}, not {value:#x}"
            )
        return bits


def bit(name: str, position: int) -> Field:
    """Declare a single bit."""
    return Field(name, position, position)


def field(name: str, high: int, low: int) -> Field:
    """Declare a number in bits `high` to `low`."""
    return Field(name, high, low)


def address(name: str, high: int, low: int, shift: int | None = None) -> Field:
    """Declare an address whose bits from `shift` up sit at `low`.

    Without `shift` they keep their place within the quadword, as most do.
    """
    return Field(name, high, low, Kind.ADDRESS, low % 64 if shift is None else shift)


def constant(name: str, high: int, low: int, value: int) -> Field:
    """Declare bits that tell this structure from others, as an opcode does."""
    return Field(name, high, low, Kind.CONSTANT, value=value)


def _unnamed(kind: Kind, high: int, low: int | None) -> Field:
    if low is None:
        return Field(f"{kind.value}_{high}", high, high, kind)
    return Field(f"{kind.value}_{high}_{low}", high, low, kind)


def reserved(high: int, low: int | None = None) -> Field:
    """Declare bits that must be 0 and are checked; named `reserved_HIGH_LOW`."""
    return _unnamed(Kind.RESERVED, high, low)


def ignored(high: int, low: int | None = None) -> Field:
    """Declare bits that hardware never looks at; named `ignored_HIGH_LOW`."""
    return _unnamed(Kind.IGNORED, high, low)


class Entry(dict[str, int]):
    """A parsed structure: field names to values, readable as attributes too."""

    def __getattr__(self, name: str) -> int:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        return "Entry(" + ", ".join(f"{name}={value:#x}" for name, value in self.items()) + ")"


class Structure:
    """One memory structure: a construct, and what its bits are for.

    Args:
        name: name for messages.
        bits: size, a multiple of 8.
        description: what it is and where it is specified.
        fields: every bit, lowest first.

    Attributes:
        construct: the construct, to embed the structure in others.
        size: bytes.
        reserved_mask: bits that must be 0 whatever the unit's capabilities are.

    Raises:
        ValueError: if the fields do not cover the bits exactly once.
    """

    def __init__(self, name: str, bits: int, description: str, fields: Iterable[Field]) -> None:
        self.name = name
        self.bits = bits
        self.size = bits // 8
        self.__doc__ = description
        self.fields = tuple(fields)
        self._by_name = {declared.name: declared for declared in self.fields}
        self._check_coverage()
        self.reserved_mask = sum(f.mask for f in self.fields if f.kind is Kind.RESERVED)
        self._constants = sum(f.value << f.low for f in self.fields)
        # construct reads bits from the highest down; a byte swap makes that little-endian.
        downwards = [f.name / construct.BitsInteger(f.width) for f in reversed(self.fields)]
        self.construct = construct.ByteSwapped(construct.BitStruct(*downwards))
        self._parse = lru_cache(maxsize=1024)(self._parse_uncached)

    def _check_coverage(self) -> None:
        position = 0
        for declared in self.fields:
            if declared.low != position or declared.high < declared.low:
                raise ValueError(
                    f"{self.name}: {declared.name} starts at {declared.low}, "
                    f"bit {position} comes next"
                )
            position = declared.high + 1
        if position != self.bits or self.bits % 8:
            raise ValueError(f"{self.name}: fields cover {position} of {self.bits} bits")
        if len(self._by_name) != len(self.fields):
            raise ValueError(f"{self.name}: a field name occurs twice")

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __getitem__(self, name: str) -> Field:
        return self._by_name[name]

    def _parse_uncached(self, data: bytes) -> tuple[tuple[str, int], ...]:
        parsed = self.construct.parse(data)
        return tuple((f.name, parsed[f.name] << f.shift) for f in self.fields)

    def parse(self, data: bytes) -> Entry:
        """Decode the structure.

        Raises:
            ValueError: if `data` is not exactly `size` bytes.
        """
        if len(data) != self.size:
            raise ValueError(f"{self.name} is {self.size} bytes, not {len(data)}")
        return Entry(self._parse(bytes(data)))

    def parse_int(self, value: int) -> Entry:
        """Decode the structure from one number, as registers and log records come."""
        return self.parse(value.to_bytes(self.size, "little"))

    def build(self, **values: int) -> bytes:
        """Encode the structure; fields that are not given are 0, constants fill themselves in.

        Raises:
            ValueError: if a name is not a field, or a value does not fit.
        """
        return self.build_int(**values).to_bytes(self.size, "little")

    def build_int(self, **values: int) -> int:
        """Encode the structure as one number; see `build`."""
        unknown = values.keys() - self._by_name.keys()
        if unknown:
            raise ValueError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        whole = self._constants
        for name, value in values.items():
            declared = self._by_name[name]
            whole |= declared.encode(self.name, value) << declared.low
        return whole
