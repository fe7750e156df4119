"""Reads a journal as tuples, for the tests of journals."""

from __future__ import annotations

from typing import Any

from core_bench import Bench

from iommu_emu.core import Journal, RecordKind


def row(record: Any) -> tuple[Any, ...]:
    """Return kind, size, id, number and the values up to the last that is not 0."""
    values = record["value"].tolist()
    while values and not values[-1]:
        values.pop()
    numbers = (int(record[name]) for name in ("size", "id", "number"))
    return (RecordKind(record["kind"]), *numbers, *values)


def rows(journal: Journal, *kinds: RecordKind) -> list[tuple[Any, ...]]:
    return [row(r) for r in journal.take() if not kinds or r["kind"] in kinds]


def started(bench: Bench) -> Journal:
    """Return a journal whose first records, which build the machine, were taken."""
    journal = Journal(bench.machine)
    journal.take()
    return journal
