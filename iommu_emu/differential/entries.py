"""The known differences from QEMU: `differences.toml`, one entry each.

An entry explains a difference only where one of its matches fits: the operation that made it
appear, the field, and, as far as they are given, both values, our diagnostic of the fault, notes
on the operation, and what our side has to say there. So a match is as narrow as register, bit and
cause, and a wrong value of ours does not hide behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, resources
from typing import Any, Protocol

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

FILE = "differences.toml"

# A fault record and what follows from it, on the side that has it.
_RAISED = ("FSTS.PPF", "FSTS.PFO", "FECTL.IP", "FRCD.F")
_RECORDED = ("FRCD.FI", "FRCD.SID", "FRCD.T1")

__all__ = ["Entry", "Finding", "Match", "Surroundings", "load", "parse"]


@dataclass(frozen=True)
class Finding:
    """One field that differs after one operation, and what is known about it.

    Attributes:
        step: index of the operation; the number of operations for what is seen at the end.
        operation: its text; "end" at the end.
        field: a register's field, "result[0]", "abort", "stale", "memory.data" or "vector".
        ours: our value.
        qemu: QEMU's value.
        causes: our diagnostics of the faults in this operation, and notes on it.
        detail: for people.
    """

    step: int
    operation: str
    field: str
    ours: int
    qemu: int
    causes: tuple[str, ...] = ()
    detail: str = ""

    def __str__(self) -> str:
        what = self.detail or f"{self.ours:#x} here, {self.qemu:#x} in QEMU"
        causes = f" ({'; '.join(self.causes)})" if self.causes else ""
        return f"{self.operation}: {self.field}: {what}{causes}"


class Surroundings(Protocol):
    """What a match can ask about our side, beside the finding."""

    def state(self, field: str) -> int:
        """Value of a field after the operation."""

    def before(self, field: str) -> int:
        """Value of a field before the operation."""

    def written(self, field: str) -> int:
        """Value of a field as the program last wrote it."""

    def expected(self, field: str) -> tuple[int, ...]:
        """What a field may be, by the operation alone."""


@dataclass(frozen=True)
class Match:
    """When a finding belongs to an entry; what is empty or false does not matter.

    Attributes:
        operations: beginnings of the operation's text, such as "write IQA" or "dma-".
        fields: names of fields.
        ours: our values.
        qemu: QEMU's values.
        causes: beginnings of diagnostics or notes, such as "LSS.2"; one is among the operation's.
        notes: beginnings of diagnostics or notes; all are among the operation's.
        without: beginnings of diagnostics or notes; none is among the operation's.
        state: fields of our registers after the operation, and their values.
        written: fields of registers, and their values as the program last wrote them.
        masked: our value is QEMU's and one of these.
        as_written: our value is what the program last wrote.
        unchanged: our value is what it was before the operation.
        expected: our value is one that follows from the operation alone.
        detail: a part of the detail, such as an assertion.
    """

    operations: tuple[str, ...]
    fields: tuple[str, ...]
    ours: tuple[int, ...] = ()
    qemu: tuple[int, ...] = ()
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    state: tuple[tuple[str, int], ...] = ()
    written: tuple[tuple[str, int], ...] = ()
    masked: tuple[int, ...] = ()
    as_written: bool = False
    unchanged: bool = False
    expected: bool = False
    detail: str = ""

    def fits(self, finding: Finding, around: Surroundings) -> bool:
        """Whether a finding is of this kind."""
        said = finding.causes
        return (
            any(finding.operation.startswith(each) for each in self.operations)
            and finding.field in self.fields
            and (not self.ours or finding.ours in self.ours)
            and (not self.qemu or finding.qemu in self.qemu)
            and (not self.causes or any(_said(said, each) for each in self.causes))
            and all(_said(said, each) for each in self.notes)
            and not any(_said(said, each) for each in self.without)
            and (not self.masked or any(finding.qemu & m == finding.ours for m in self.masked))
            and self.detail in finding.detail
            and all(around.state(name) == value for name, value in self.state)
            and all(around.written(name) == value for name, value in self.written)
            and (not self.as_written or around.written(finding.field) == finding.ours)
            and (not self.unchanged or around.before(finding.field) == finding.ours)
            and (not self.expected or finding.ours in around.expected(finding.field))
        )


@dataclass(frozen=True)
class Entry:
    """One known difference.

    Attributes:
        name: short, with hyphens.
        title: one line.
        section: of the fact sheet or of the specification that decides.
        decides: what it says.
        ours: what this project does.
        qemu: what QEMU does.
        program: the smallest one that shows it.
        matches: what belongs to it.
        diverges: after it the two are in different states, so a comparison ends there.
        beside: names of the other entries that its program cannot help showing.
        configuration: name of the configuration that the program is for.
    """

    name: str
    title: str
    section: str
    decides: str
    ours: str
    qemu: str
    program: str
    matches: tuple[Match, ...]
    diverges: bool = False
    beside: tuple[str, ...] = ()
    configuration: str = "q35"


def _said(causes: Sequence[str], beginning: str) -> bool:
    return any(cause.startswith(beginning) for cause in causes)


def parse(text: str) -> tuple[Entry, ...]:
    """Return the entries of a document.

    Raises:
        ValueError: if it is not one; the message names the entry.
    """
    entries = []
    for table in tomllib.loads(text)["difference"]:
        name = table.get("name", "?")
        try:
            matches = tuple(match for each in table.pop("match") for match in _matches(each))
            beside = tuple(table.pop("beside", ()))
            entries.append(Entry(matches=matches, beside=beside, **table))
        except (KeyError, TypeError) as error:
            raise ValueError(f"difference {name!r}: {error}") from error
    names = [entry.name for entry in entries]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"differences of the same name: {', '.join(sorted(twice))}")
    return tuple(entries)


def _matches(table: dict[str, Any]) -> Iterator[Match]:
    """Yield the matches of a table; one with `record` stands for those of a whole record."""
    table = dict(table)
    record, codes = table.pop("record", None), table.pop("codes", [])
    if record is None:
        yield _match(table)
        return
    if record not in ("ours", "qemu"):
        raise KeyError(f"record of a match must be ours or qemu, not {record!r}")
    mine = record == "ours"
    raised = {"ours": [int(mine)], "qemu": [int(not mine)]}
    told = {"expected": True, "state": {"FRCD.F": 1}} if mine else {"unchanged": True}
    reason = {"ours": codes, "state": {"FRCD.F": 1}} if mine else {"qemu": codes, "unchanged": True}
    yield _match(table | raised | {"fields": _RAISED})
    yield _match(table | told | {"fields": _RECORDED})
    yield _match(table | reason | {"fields": ["FRCD.FR"]})


def _match(table: dict[str, Any]) -> Match:
    unknown = set(table) - set(Match.__dataclass_fields__)
    if unknown:
        raise KeyError(f"match has no {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {
        name: tuple(value.items()) if isinstance(value, dict) else _frozen(value)
        for name, value in table.items()
    }
    return Match(**values)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache
def load() -> tuple[Entry, ...]:
    """Return the entries of the package."""
    return parse(resources.files("iommu_emu.differential").joinpath(FILE).read_text("utf-8"))
