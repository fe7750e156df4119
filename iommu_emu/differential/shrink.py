"""Making a program that shows a difference as small as it gets (delta debugging)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from iommu_emu.differential.program import (
    Dma,
    Everything,
    Interrupt,
    Invalidate,
    Operation,
    RegisterWrite,
    Renumber,
    Store,
    Submit,
)
from iommu_emu.differential.vtd import register_names

INTERRUPT_REMAPPING = 1 << 25  # GCMD.IRE

Shows = Callable[[Sequence[Operation]], bool]

__all__ = ["is_fully_invalidated", "shrink"]


def is_fully_invalidated(operations: Sequence[Operation]) -> bool:
    """Whether everything is invalidated between each change and the next use by a device.

    A change is a store, a global command, or another bus number. Setting the root table pointer
    invalidates all but interrupt entries.
    """
    global_command = register_names().registers["GCMD"][0]
    translations = interrupts = remapping = False  # the first two: changed since invalidated
    for operation in operations:
        match operation:
            case Store() | Renumber():
                translations = interrupts = True
            case RegisterWrite(offset, _, value) if offset == global_command:
                translations = interrupts = True
                remapping |= bool(value & INTERRUPT_REMAPPING)
            case Invalidate(Everything.ROOT):
                translations = False
            case Invalidate():
                translations = interrupts = False
            case Dma() if translations:
                return False
            case Interrupt() if interrupts and remapping:
                return False
    return True


def shrink(operations: Sequence[Operation], shows: Shows) -> tuple[Operation, ...]:
    """Return the smallest part of a program that was found to show the same.

    Args:
        operations: a program that shows it.
        shows: whether a program shows it; it is asked only about fully invalidated ones.
    """

    def holds(candidate: Sequence[Operation]) -> bool:
        return is_fully_invalidated(candidate) and shows(candidate)

    smallest = tuple(operations)
    while True:
        before = smallest
        smallest = _drop_pieces(smallest, holds)
        smallest = _simplify(smallest, holds)
        if smallest == before:
            return smallest


def _drop_pieces(operations: tuple[Operation, ...], holds: Shows) -> tuple[Operation, ...]:
    """Drop ever smaller runs of operations."""
    length = max(1, len(operations) // 2)
    while True:
        start = 0
        while start < len(operations):
            candidate = operations[:start] + operations[start + length :]
            if len(candidate) < len(operations) and holds(candidate):
                operations = candidate
            else:
                start += length
        if length == 1:
            return operations
        length //= 2


def _simplify(operations: tuple[Operation, ...], holds: Shows) -> tuple[Operation, ...]:
    """Make single operations simpler: fewer descriptors, shorter transfers, fewer bits."""
    for index in range(len(operations)):
        for simpler in _simpler(operations[index]):
            candidate = (*operations[:index], simpler, *operations[index + 1 :])
            if holds(candidate):
                operations = candidate
    return operations


def _simpler(operation: Operation) -> list[Operation]:
    match operation:
        case Submit(descriptors) if len(descriptors) > 1:
            halves = (descriptors[: len(descriptors) // 2], descriptors[len(descriptors) // 2 :])
            singles = (descriptors[1:], descriptors[:-1])
            return [Submit(part) for part in (*halves, *singles)]
        case Dma(_, _, _, length) if length > 1:
            return [replace(operation, length=4)] if length > 4 else [replace(operation, length=1)]
        case RegisterWrite(_, size, value) if value:
            bits = [bit for bit in range(8 * size) if value >> bit & 1]
            return [replace(operation, value=1 << bit) for bit in bits] if len(bits) > 1 else []
        case _:
            return []
