"""Programs: what software and devices do to an IOMMU, as a list of typed operations.

A program is written, printed and read back one operation a line, so that a shrunk one can be
pasted into a test or a document:

    store 0x1000000 0x1001001 0x0
    write RTADDR 8 0x1000000
    write GCMD 4 0x40000000
    read FSTS 4
    submit 0x51 0x0
    invalidate queue
    dma-write a 0x4000 64
    dma-read edu 0x4000 64
    interrupt edu 0xfee00018 0x31
    renumber port 9

Registers are named, with "+4" for the upper half, or given by offset. Devices and bridges are
those of `topology`. "#" starts a comment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from iommu_emu.differential.registers import RegisterNames

__all__ = [
    "Dma",
    "Everything",
    "Interrupt",
    "Invalidate",
    "Operation",
    "Program",
    "ProgramError",
    "RegisterRead",
    "RegisterWrite",
    "Renumber",
    "Store",
    "Submit",
    "format_operation",
    "format_program",
    "kind",
    "parse_program",
]


class ProgramError(ValueError):
    """A program's text does not say an operation."""


class Everything(Enum):
    """How software invalidates everything that a unit caches.

    ROOT: by setting the root table pointer again, which drops all but interrupt entries
    (VT-d 2.4, CAP.ESRTPS).
    """

    QUEUE = "queue"
    REGISTERS = "registers"
    ROOT = "root"


@dataclass(frozen=True, slots=True)
class Store:
    """Software stores 64-bit words in memory, such as table entries."""

    address: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RegisterWrite:
    """One write to the unit's window, of 1, 2, 4 or 8 bytes."""

    offset: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class RegisterRead:
    """One read from the unit's window, of 1, 2, 4 or 8 bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Software puts descriptors at the queue's tail, and moves the tail past them."""

    descriptors: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Invalidate:
    """Software invalidates everything; a queue that stands still is set going first."""

    how: Everything


@dataclass(frozen=True, slots=True)
class Dma:
    """A device writes its pattern, or reads into its buffer."""

    device: str
    write: bool
    address: int
    length: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A device sends a message-signalled interrupt."""

    device: str
    address: int
    data: int


@dataclass(frozen=True, slots=True)
class Renumber:
    """Software gives the bus behind a bridge another number, and its devices another ID."""

    bridge: str
    bus: int


Operation = Store | RegisterWrite | RegisterRead | Submit | Invalidate | Dma | Interrupt | Renumber


@dataclass(frozen=True)
class Program:
    """Operations, and the configuration of the unit that they are for.

    Attributes:
        configuration: name of a configuration.
        operations: in order.
        seed: where it came from; None if a person wrote it.
    """

    configuration: str
    operations: tuple[Operation, ...]
    seed: int | None = None


def kind(operation: Operation) -> str:
    """Return the word that an operation is written with."""
    match operation:
        case Store():
            return "store"
        case RegisterWrite():
            return "write"
        case RegisterRead():
            return "read"
        case Submit():
            return "submit"
        case Invalidate():
            return "invalidate"
        case Dma():
            return "dma-write" if operation.write else "dma-read"
        case Interrupt():
            return "interrupt"
        case Renumber():
            return "renumber"


def format_operation(operation: Operation, names: RegisterNames) -> str:
    """Return the line of an operation."""
    word = kind(operation)
    match operation:
        case Store():
            arguments: Iterable[object] = map(hex, (operation.address, *operation.words))
        case RegisterWrite():
            where = names.name(operation.offset)
            arguments = (where, operation.size, hex(operation.value))
        case RegisterRead():
            arguments = (names.name(operation.offset), operation.size)
        case Submit():
            arguments = (hex(half) for pair in operation.descriptors for half in pair)
        case Invalidate():
            arguments = (operation.how.value,)
        case Dma():
            arguments = (operation.device, hex(operation.address), operation.length)
        case Interrupt():
            arguments = (operation.device, hex(operation.address), hex(operation.data))
        case Renumber():
            arguments = (operation.bridge, operation.bus)
    return " ".join((word, *map(str, arguments)))


def format_program(operations: Sequence[Operation], names: RegisterNames) -> str:
    """Return the text of a program, one operation a line."""
    return "".join(format_operation(operation, names) + "\n" for operation in operations)


def parse_program(text: str, names: RegisterNames) -> tuple[Operation, ...]:
    """Return the operations of a program's text.

    Raises:
        ProgramError: if a line is no operation; the message has its number.
    """
    operations = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            operations.append(_PARSERS[words[0]](words[1:], names))
        except KeyError:
            known = ", ".join(_PARSERS)
            raise ProgramError(
                f"line {number}: {words[0]!r} is none of the operations {known}"
            ) from None
        except (ValueError, IndexError) as error:
            raise ProgramError(f"line {number}: {line.strip()!r}: {error}") from None
    return tuple(operations)


def _submit(words: list[str], names: RegisterNames) -> Submit:
    halves = [int(word, 0) for word in words]
    if len(halves) % 2:
        raise ValueError("a descriptor has two halves, the low one first")
    return Submit(tuple(zip(halves[::2], halves[1::2], strict=True)))


def _size(word: str) -> int:
    if word not in ("1", "2", "4", "8"):
        raise ValueError(f"a register is accessed by 1, 2, 4 or 8 bytes, not {word}")
    return int(word)


_PARSERS: dict[str, Callable[[list[str], RegisterNames], Operation]] = {
    "store": lambda w, names: Store(int(w[0], 0), tuple(int(word, 0) for word in w[1:])),
    "write": lambda w, names: RegisterWrite(names.offset(w[0]), _size(w[1]), int(w[2], 0)),
    "read": lambda w, names: RegisterRead(names.offset(w[0]), _size(w[1])),
    "submit": _submit,
    "invalidate": lambda w, names: Invalidate(Everything(w[0])),
    "dma-write": lambda w, names: Dma(w[0], True, int(w[1], 0), int(w[2], 0)),
    "dma-read": lambda w, names: Dma(w[0], False, int(w[1], 0), int(w[2], 0)),
    "interrupt": lambda w, names: Interrupt(w[0], int(w[1], 0), int(w[2], 0)),
    "renumber": lambda w, names: Renumber(w[0], int(w[1], 0)),
}
