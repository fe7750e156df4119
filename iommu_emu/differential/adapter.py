"""What differential testing has to know of one kind of unit.

`vtd.ADAPTER` is the one there is. Another mode or vendor brings its own: registers, software for
its command interface, and notes; a generator beside `generator/`, and configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from iommu_emu.differential.accesses import UnitWrite
from iommu_emu.differential.program import Operation
from iommu_emu.differential.registers import RegisterNames
from iommu_emu.differential.software import Commands
from iommu_emu.machine import Machine

__all__ = ["Adapter", "Annotator"]


class Annotator(Protocol):
    """Takes notes on the operations of a program; see `notes.Notes`."""

    def begin(self) -> None:
        """Note the state before an operation."""

    def take(self, operation: Operation, requester: int, root: int) -> list[str]:
        """Return the notes on an operation that has just been carried out."""

    def errors(self, operation: Operation, root: int) -> tuple[int, ...]:
        """Return what the error register may say after it."""


@dataclass(frozen=True)
class Adapter:
    """One kind of unit.

    Attributes:
        names: its registers where QEMU has them.
        ranges: offset and bytes of what is compared after each operation.
        window: physical address of the registers.
        faults: text of each diagnostic, by number.
        error: name of the field that says what was wrong with a command.
        commands: makes the software of a program.
        annotator: makes what takes notes, from a machine and its unit.
        forgotten: register writes that undo what QEMU's reset does not.
    """

    names: RegisterNames
    ranges: tuple[tuple[int, int], ...]
    window: int
    faults: tuple[str, ...]
    error: str
    commands: Callable[[], Commands]
    annotator: Callable[[Machine, Any], Annotator]
    forgotten: tuple[UnitWrite, ...] = ()

    def part(self, dump: bytes, offset: int, size: int) -> bytes | None:
        """Return what a dump of the ranges has at an offset; None if that is not in it."""
        at = 0
        for base, length in self.ranges:
            if base <= offset and offset + size <= base + length:
                begin = at + offset - base
                return dump[begin : begin + size]
            at += length
        return None

    def value(self, dump: bytes, field: str) -> int:
        """Return a field, such as "FSTS.PPF", out of a dump of the ranges.

        Raises:
            ValueError: if it is not compared.
        """
        register, _, name = field.partition(".")
        offset, size = self.names.registers[register]
        part = self.part(dump, offset, size)
        if part is None:
            raise ValueError(f"{field} is not compared")
        return self.names.extract(register, name, int.from_bytes(part, "little"))
