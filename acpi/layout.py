"""Records: dataclasses whose fields are their own binary layout.

A field made by `u8`, `u16`, `u32`, `u64`, `string`, `blob` or `flag_set` is at once an attribute
with a type and a default, one member of the construct `Struct` that parses and builds the record,
and the text form of the value. The order of the class body is the order of the bytes; a subclass
appends, or, by redefining a field, keeps its place. So no layout is written twice.

Variable parts follow the fixed one: the children (scopes, entries, structures), then `rest`, the
bytes that nobody understood, which is why everything survives parse and build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from enum import IntFlag
from typing import Any, ClassVar, TypeVar, overload

from construct import (
    Bytes,
    Construct,
    ConstructError,
    ExprAdapter,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
)

from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.text import BYTES, DECIMAL, HEX, STRING, Text, flag_names

R = TypeVar("R", bound="Record")


def wire(subcon: Construct, default: Any, text: Text | None, compare: bool = True) -> Any:
    """Return a dataclass field that is a member of the record's binary layout.

    Without `text` the field takes no part in descriptions.
    """
    return field(default=default, compare=compare, metadata={"subcon": subcon, "text": text})


def u8(default: int = 0, text: Text = DECIMAL) -> Any:
    """Return an unsigned 8-bit field."""
    return wire(Int8ul, default, text)


def u16(default: int = 0, text: Text = DECIMAL) -> Any:
    """Return an unsigned little-endian 16-bit field."""
    return wire(Int16ul, default, text)


def u32(default: int = 0, text: Text = DECIMAL) -> Any:
    """Return an unsigned little-endian 32-bit field."""
    return wire(Int32ul, default, text)


def u64(default: int = 0, text: Text = HEX) -> Any:
    """Return an unsigned little-endian 64-bit field."""
    return wire(Int64ul, default, text)


def blob(size: int) -> Any:
    """Return a field of `size` raw bytes, zero by default."""
    return wire(Bytes(size), bytes(size), BYTES)


def string(size: int, default: str = "") -> Any:
    """Return a fixed-size text field; bytes above 7Fh are kept, as Latin-1.

    Only trailing NULs are stripped, and put back by the builder, so no byte gets lost.
    """
    subcon = ExprAdapter(
        Bytes(size),
        lambda data, _: data.decode("latin-1").rstrip("\0"),
        lambda text, _: text.encode("latin-1").ljust(size, b"\0"),
    )
    return wire(subcon, default, STRING)


def flag_set(subcon: Construct, kind: type[IntFlag]) -> Any:
    """Return a field of named single-bit flags; bits without a name are kept."""
    adapter = ExprAdapter(subcon, lambda value, _: kind(value), lambda value, _: int(value))
    return wire(adapter, kind(0), flag_names(kind))


class Computed:
    """A member of the layout that the record works out itself, such as its length."""

    def __init__(self, subcon: Construct, value: Callable[[Any], int]) -> None:
        self.subcon = subcon
        self.value = value

    @overload
    def __get__(self, record: None, owner: type) -> Computed: ...
    @overload
    def __get__(self, record: object, owner: type) -> int: ...
    def __get__(self, record: object | None, owner: type) -> int | Computed:
        return self if record is None else self.value(record)


@dataclass(kw_only=True)
class Record:
    """A run of bytes with a meaning: the base of tables, structures, scopes and entries.

    Attributes:
        offset: Where `parse` found it, in bytes from the start of the table; 0 in a record that
            was made otherwise. It takes no part in comparisons.
        rest: Bytes after everything that is understood: padding, or the body of an unknown type.
    """

    layout: ClassVar[Any] = Struct()
    names: ClassVar[dict[int, str]] = {}
    children: ClassVar[str] = ""  # name of the list attribute that holds them
    child: ClassVar[type[Record]]  # their family: a class whose layout is the common header
    registry: ClassVar[dict[int, type[Any]]] = {}  # of a family: type number to class
    derived: ClassVar[tuple[str, ...]] = ()  # properties worth showing to people

    offset: int = field(default=0, compare=False)
    rest: bytes = field(default=b"", metadata={"text": BYTES})

    def __init_subclass__(cls) -> None:
        """Append the fields of the class body to the inherited layout."""
        members = {member.name: member for member in cls.layout.subcons}
        for name, value in vars(cls).items():
            if isinstance(value, Field) and "subcon" in value.metadata:
                members[name] = name / value.metadata["subcon"]
            elif isinstance(value, Computed):
                members[name] = name / value.subcon
        cls.layout = Struct(*members.values())

    @classmethod
    def kind(cls: type[R], number: int) -> type[R]:
        """Return the class of this family for a type number; the family itself if unknown."""
        return cls.registry.get(number, cls)

    @classmethod
    def claimed_length(cls, data: bytes, start: int, end: int) -> int:
        """Return the length in bytes that the header at `start` claims."""
        return int(_header(cls, data, start).length)

    @classmethod
    def is_padding(cls, data: bytes, start: int, end: int) -> bool:
        """Tell whether what is left of the parent is padding instead of a record."""
        return False

    @classmethod
    def parse(cls: type[R], data: bytes, start: int, end: int) -> R:
        """Parse the record that fills `data[start:end]`.

        Raises:
            AcpiError: The record, or one inside it, is cut off or overruns.
        """
        size = cls.layout.sizeof()
        if end - start < size:
            raise AcpiError(f"{cls.__name__} needs {size} bytes and has {end - start}", start)
        values = cls.layout.parse(data[start : start + size])
        wired = {f.name: values[f.name] for f in fields(cls) if "subcon" in f.metadata}
        record = cls(offset=start, **wired)
        record.parse_tail(data, start + size, end)
        return record

    def parse_tail(self, data: bytes, start: int, end: int) -> None:
        """Parse what follows the fixed part: children, as long as there are any, then `rest`."""
        while self.children and start < end and not self.child.is_padding(data, start, end):
            size = self._child_length(data, start, end)
            number = _header(self.child, data, start).type
            record = self.child.kind(number).parse(data, start, start + size)
            getattr(self, self.children).append(record)
            start += size
        self.rest = data[start:end]

    def _child_length(self, data: bytes, start: int, end: int) -> int:
        header = self.child.layout.sizeof()
        what, left = self.child.__name__, end - start
        if left < header:
            raise AcpiError(f"{left} stray bytes, too few for the header of a {what}", start)
        size = self.child.claimed_length(data, start, end)
        if size < header:
            raise AcpiError(f"{what} of length {size}, its header alone has {header}", start)
        if size > left:
            raise AcpiError(f"{what} of {size} bytes overruns the {left} that are left", start)
        return size

    def tail(self) -> bytes:
        """Return the bytes after the fixed part."""
        records = getattr(self, self.children) if self.children else []
        return b"".join(record.to_bytes() for record in records) + self.rest

    def measure(self) -> int:
        """Return the length in bytes, everything included."""
        return int(self.layout.sizeof()) + len(self.tail())

    def offset_of(self, name: str) -> int:
        """Return where a field of the fixed part is, in bytes from the start of the table."""
        names = [member.name for member in self.layout.subcons]
        before = self.layout.subcons[: names.index(name)]
        return self.offset + sum(int(member.sizeof()) for member in before)

    def walk(self) -> Iterator[Record]:
        """Yield this record and all inside it, in the order of their bytes."""
        yield self
        for child in getattr(self, self.children) if self.children else []:
            yield from child.walk()

    def to_bytes(self) -> bytes:
        """Build the record, lengths computed.

        Raises:
            AcpiError: A value does not fit its field.
        """
        values = {member.name: getattr(self, member.name) for member in self.layout.subcons}
        try:
            return bytes(self.layout.build(values)) + self.tail()
        except (ConstructError, UnicodeEncodeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise AcpiError(f"{type(self).__name__}: {reason}") from error


def _header(family: type[Record], data: bytes, start: int) -> Any:
    return family.layout.parse(data[start : start + family.layout.sizeof()])


@dataclass(kw_only=True)
class Typed(Record):
    """A record whose first field is a type number, with a name for people."""

    type: int = 0

    @property
    def name(self) -> str:
        """The short name of the type, `UNKNOWN` if it has none."""
        return self.names.get(self.type, "UNKNOWN")
