"""What is seen of a program on one side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Observation", "Step"]


@dataclass
class Step:
    """What is seen of one operation.

    Attributes:
        results: values that its accesses read.
        registers: dump of the register ranges after it.
        causes: of our side: diagnostics of the faults that it met, recorded or not, and notes.
        stale: of our side: a device used an entry that the tables no longer say.
        clean: of our side: everything that the operation may meet was invalidated since it changed.
        overwritten: of our side: a device has written a table, which software does not know.
        written: of our side: what was last written to each DWORD of the registers, by offset.
        expected: of our side: what the fields of a fault record of this operation may be.
    """

    results: list[int]
    registers: bytes
    causes: list[str] = field(default_factory=list)
    stale: bool = False
    clean: bool = False
    overwritten: bool = False
    written: Mapping[int, int] = field(default_factory=dict)
    expected: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Observation:
    """What is seen of a whole program.

    Attributes:
        steps: one an operation, as far as it came.
        memory: the arenas at the end, in the order of `arena.REGIONS`; empty if it did not end.
        vectors: interrupt vectors that reached APIC 0.
        died: why the process ended in the middle; empty if it did not.
    """

    steps: list[Step]
    memory: tuple[bytes, ...] = ()
    vectors: frozenset[int] = frozenset()
    died: str = ""
