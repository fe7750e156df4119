"""Records as lines for people: what a kernel did, and what the unit made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from iommu_emu import core
from iommu_emu.core import (
    U32,
    Access,
    AddressType,
    Answer,
    CoreUnit,
    MessageKind,
    Outcome,
    RecordKind,
    Reset,
    Status,
    Vendor,
    Verdict,
)
from iommu_emu.pci.address import format_requester
from iommu_emu.recording.format import Recording, config_name, kind_name
from iommu_emu.recording.tables import RegisterNames, UnitTables

__all__ = ["describe"]

_PERMISSIONS = ((Access.READ, "r"), (Access.WRITE, "w"))
_BATCH = 4096  # records converted at once
_FIRST_ERROR = 1 << 63  # values from here on are negative return codes


class _Row(NamedTuple):
    """One record, its columns as Python's numbers."""

    kind: int
    size: int
    id: int
    number: int
    value: list[int]

    def data(self, size: int, first: int = 1) -> bytes:
        """Return `size` bytes of the values from `first` on."""
        return b"".join(v.to_bytes(8, "little") for v in self.value[first:])[:size]


class _Narrator:
    """Follows a recording from its first record on."""

    def __init__(self, units: Sequence[CoreUnit]) -> None:
        self.tables = [UnitTables(RegisterNames(unit)) for unit in units]
        self.ports: list[tuple[int, int]] = []  # segment, requester ID
        self.routes: list[tuple[int, int, int]] = []  # first, last, unit
        self.time = 0

    def follow(self, row: _Row) -> None:
        """Take in what later records are told with."""
        value = row.value
        if row.kind in (RecordKind.ADVANCE, RecordKind.TIME):
            self.time = value[0]
        elif row.kind == RecordKind.PORT:
            self.ports.append((value[0], row.id))
        elif row.kind == RecordKind.REQUESTER and row.number < len(self.ports):
            self.ports[row.number] = self.ports[row.number][0], row.id
        elif row.kind == RecordKind.ROUTE and row.size:
            self.routes.append((value[0], value[1], row.number))
        elif row.kind == RecordKind.MMIO_WRITE and row.number < len(self.tables):
            self.tables[row.number].write(value[0], row.size, value[1])

    def line(self, row: _Row) -> str:
        """Return what a record says."""
        try:
            tell = _TELL.get(RecordKind(row.kind))
            text = "" if tell is None else tell(self, row)
        except ValueError as error:  # no such register size, status, …: not from our recorder
            text = f"(not understood: {error})"
        return f"{kind_name(row.kind).replace('_', ' '):<13} {text}".rstrip()

    def port(self, number: int) -> str:
        if number < len(self.ports):
            segment, requester = self.ports[number]
            return format_requester(requester, segment)
        return f"port {number}"

    def vendor(self, requester: int) -> Vendor | None:
        for first, last, unit in reversed(self.routes):
            if first <= requester <= last and unit < len(self.tables):
                return self.tables[unit].names.vendor
        return self.tables[0].names.vendor if self.tables else None

    def cause(self, requester: int, diagnostic: int) -> str:
        vendor = self.vendor(requester)
        rows = () if vendor is None else core.faults(vendor)
        if diagnostic < len(rows):
            row = rows[diagnostic]
            return f"fault {row.code:#04x} {row.name}: {row.condition}"
        return f"diagnostic {diagnostic}"


def _mmio(narrator: _Narrator, row: _Row) -> str:
    offset, value = row.value[:2]
    arrow = "=" if row.kind == RecordKind.MMIO_READ else "<-"
    if row.number < len(narrator.tables) and row.size in (4, 8):
        text = narrator.tables[row.number].names.text(offset, row.size, value)
    else:
        text = f"{offset:#05x} {value:#x}"
    name, rest = text.split(" ", 1)
    return f"unit {row.number} {name} {arrow} {rest}"


def _request(row: _Row) -> str:
    address, length, pasid, flags, rest = row.value
    at = AddressType(rest & 0xFF)
    text = f"{Access(row.size).name or row.size} {address:#x}+{length:#x}"
    if flags & core.RequestFlag.HAS_PASID:
        text += f" PASID {pasid:#x}"
    return text if at is AddressType.UNTRANSLATED else f"{text} {at.name}"


def _dma(narrator: _Narrator, row: _Row) -> str:
    posted = " posted" if row.value[4] >> 16 else ""
    return f"{narrator.port(row.number)} {_request(row)}{posted}"


def _translate(narrator: _Narrator, row: _Row) -> str:
    return f"unit {row.number} {format_requester(row.id)} {_request(row)}"


def _translated(narrator: _Narrator, row: _Row) -> str:
    address, output, diagnostic, _, packed = row.value
    outcome = Outcome(row.size)
    text = f"{format_requester(row.id)} {address:#x}"
    if diagnostic:
        recorded = "" if packed >> 24 else " (not recorded)"
        return f"{text}: {narrator.cause(row.id, diagnostic)}{recorded}"
    if outcome is Outcome.MEMORY:
        permissions = Access(packed >> 8 & 3)
        granted = "".join(name for access, name in _PERMISSIONS if access & permissions)
        return f"{text} -> {output:#x} {granted}, page {1 << (packed & 63):#x}, domain {row.number}"
    return f"{text}: {outcome.name.lower()}"


def _fetch(narrator: _Narrator, row: _Row) -> str:
    address, data = row.value[0], row.data(8 * row.size)
    known = (tables.fetched(address, data) for tables in narrator.tables)
    text = next((text for text in known if text), None)
    if text is None and narrator.tables:
        text = narrator.tables[0].anonymous(data)
    quadwords = " ".join(f"{value:016x}" for value in row.value[1 : 1 + row.size])
    return f"{address:#x} = {quadwords} {text or ''}"


def _store(narrator: _Narrator, row: _Row) -> str:
    address, data = row.value[0], row.data(row.size)
    known = (tables.stored(address, data) for tables in narrator.tables)
    text = next((text for text in known if text), None)
    number = int.from_bytes(data, "little")
    return f"{address:#x} <- " + (text or f"{number:0{2 * row.size}x}")


def _message(narrator: _Narrator, row: _Row) -> str:
    address, data, size, segment, token = row.value
    kind = MessageKind(row.size)
    if kind is MessageKind.UNIT:
        return f"unit {row.number} interrupts: {address:#x} <- {data & 0xFFFF_FFFF:#x}"
    sender = format_requester(row.id, segment)
    if kind is MessageKind.INTERRUPT:
        return f"{sender} interrupts: {address:#x} <- {data & 0xFFFF_FFFF:#x}"
    if kind is MessageKind.INVALIDATE:
        return f"{sender} is to drop {address:#x}..{data:#x}, ITag {token}"
    if kind is MessageKind.BAR_READ:
        return f"{sender} reads {size} bytes of window {row.number} at {address:#x}, token {token}"
    return f"{sender} writes {size} bytes to window {row.number} at {address:#x}"


def _completion(narrator: _Narrator, row: _Row) -> str:
    status, done, token, address, _ = row.value
    if status >= _FIRST_ERROR:
        return f"error {status - (1 << 64)}"
    text = f"{Status(status).name.lower().replace('_', ' ')} {address:#x} after {done} bytes"
    return f"{text}, token {token}" if Status(status) is Status.PENDING else text


def _config(narrator: _Narrator, row: _Row) -> str:
    return f"{config_name(row.id, row.number)} = {row.value[0]:#x}"


def _route(narrator: _Narrator, row: _Row) -> str:
    first, last = row.value[:2]
    target = f"unit {row.number}" if row.size else "no unit"
    return f"{format_requester(first, row.id)}..{format_requester(last & 0xFFFF)} to {target}"


def _returned(narrator: _Narrator, row: _Row) -> str:
    value = row.value[0]
    return str(value - (1 << 64) if value >= _FIRST_ERROR else value)


def _range(narrator: _Narrator, row: _Row) -> str:
    return f"{row.value[0]:#x}+{row.value[1]:#x}"


def _port_number(narrator: _Narrator, row: _Row) -> str:
    return narrator.port(row.number)


def _unit_number(narrator: _Narrator, row: _Row) -> str:
    return f"unit {row.number}"


def _rule(narrator: _Narrator, row: _Row) -> str:
    first, last, *requesters = row.value[:4]
    types = "|".join(str(at) for at in range(4) if row.id >> at & 1)
    senders = "..".join(format_requester(requester) for requester in requesters)
    return (
        f"{narrator.port(row.number)} AT {types} {first:#x}..{last:#x} of {senders}: "
        f"{Verdict(row.size).name.lower()}"
    )


def _answers(narrator: _Narrator, row: _Row) -> str:
    answer = Answer(row.size).name.lower().replace("_", " ")
    return f"{narrator.port(row.number)} answers {answer} {row.value[0]} ns"


_TELL: dict[RecordKind, Callable[[_Narrator, _Row], str]] = {
    RecordKind.MACHINE: lambda _, row: f"{row.value[0]} transactions, {row.value[1]} messages",
    RecordKind.RAM: _range,
    RecordKind.BAR: lambda n, row: f"{_range(n, row)} window {row.number}",
    RecordKind.UNMAP: lambda _, row: f"{row.value[0]:#x}",
    RecordKind.CONFIG: _config,
    RecordKind.UNIT: lambda _, row: Vendor(row.size).name,
    RecordKind.ROUTE: _route,
    RecordKind.PORT: lambda _, row: format_requester(row.id, row.value[0]),
    RecordKind.PORT_REMOVE: _port_number,
    RecordKind.PORT_DESTROY: _port_number,
    RecordKind.LATENCY: lambda n, row: f"{n.port(row.number)} {row.value[0]}, {row.value[1]} ns",
    RecordKind.REQUESTER: lambda n, row: f"{n.port(row.number)} is {format_requester(row.id)}",
    RecordKind.ADVANCE: lambda _, row: f"to {row.value[0]} ns",
    RecordKind.TAKE: lambda _, row: f"{row.number} messages",
    RecordKind.ANSWER: lambda _, row: (
        f"token {row.number}: " + (f"{row.value[0]} bytes" if row.size else "unsupported request")
    ),
    RecordKind.MMIO_READ: _mmio,
    RecordKind.MMIO_WRITE: _mmio,
    RecordKind.TRANSLATE: _translate,
    RecordKind.DMA: _dma,
    RecordKind.DMA_TAKE: lambda n, row: f"{n.port(row.number)} token {row.value[0]}",
    RecordKind.RESET: lambda n, row: f"{_unit_number(n, row)} {Reset(row.size).name.lower()}",
    RecordKind.STEP: _unit_number,
    RecordKind.TIMING: lambda n, row: (
        f"{_unit_number(n, row)} command {row.value[0]}, invalidation {row.value[1]}, "
        f"wait {row.value[2]} ns" + (", by hand" if row.size else "")
    ),
    RecordKind.ATS: lambda n, row: (
        f"{_answers(n, row)}, {row.value[2] & U32} sets of {row.value[2] >> 32}"
    ),
    RecordKind.ATS_ENABLE: lambda n, row: f"{n.port(row.number)} {'on' if row.size else 'off'}",
    RecordKind.ATS_ANSWER: _answers,
    RecordKind.ATS_DROP: lambda n, row: (
        f"{n.port(row.number)} {row.value[0]:#x}..{row.value[1]:#x}"
    ),
    RecordKind.ATS_COMPLETE: lambda n, row: (
        f"{n.port(row.number)} ITags {row.value[0]:#x}, one of {row.size}"
    ),
    RecordKind.RULE: _rule,
    RecordKind.NO_RULES: _port_number,
    RecordKind.TIME: lambda _, row: f"{row.value[0]} ns",
    RecordKind.FETCH: _fetch,
    RecordKind.STORE: _store,
    RecordKind.MESSAGE: _message,
    RecordKind.PAYLOAD: lambda _, row: row.data(row.size, 0).hex(" "),
    RecordKind.TRANSLATED: _translated,
    RecordKind.COMPLETION: _completion,
    RecordKind.RETURN: _returned,
}


def describe(
    recording: Recording, units: Sequence[CoreUnit], first: int = 0, last: int | None = None
) -> Iterator[str]:
    """Return records as lines: number, time in µs, what it is, what it says.

    Effects are indented below the input that caused them.

    Args:
        recording: what `read` returned.
        units: the units of its replay, in their order; they name the registers.
        first: number of the first record, from 0.
        last: number of the last record; None: to the end.
    """
    narrator = _Narrator(units)
    end = len(recording) if last is None else min(last + 1, len(recording))
    for position, row in enumerate(_rows(recording.records[:end])):
        narrator.follow(row)
        if position < first:
            continue
        indent = "" if row.kind < RecordKind.TIME else "  "
        yield f"{position:>7} {narrator.time / 1000:>12.3f}  {indent}{narrator.line(row)}"


def _rows(records: NDArray[Any]) -> Iterator[_Row]:
    for first in range(0, len(records), _BATCH):
        batch = records[first : first + _BATCH]
        columns = (batch[name].tolist() for name in _Row._fields)
        yield from map(_Row._make, zip(*columns, strict=True))


def describe_one(record: NDArray[Any], units: Sequence[CoreUnit]) -> str:
    """Return one record, shape (1,), as a line, without what came before it."""
    (row,) = _rows(record)
    return _Narrator(units).line(row)
