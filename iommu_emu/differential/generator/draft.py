"""A program in the making, and what its generator knows of the state that it leads to."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from iommu_emu.differential import arena
from iommu_emu.differential.configurations import Configuration
from iommu_emu.differential.program import (
    Everything,
    Invalidate,
    Operation,
    RegisterRead,
    RegisterWrite,
    Renumber,
    Store,
)
from iommu_emu.differential.vtd import register_names

U64 = (1 << 64) - 1

__all__ = ["U64", "Domain", "Draft", "Mapping"]


@dataclass
class Mapping:
    """A page that a domain has had mapped: input page, log2 of its size, output page."""

    iova: int
    shift: int
    target: int


@dataclass
class Domain:
    """A page table, and what is mapped in it."""

    number: int
    levels: int
    root: int
    mappings: list[Mapping] = field(default_factory=list)


class Draft:
    """Operations so far, and knowledge that topics share.

    Attributes:
        rng: the only source of chance.
        shares_tables: entries may be changed to point to a table that another one points to.
        configuration: of the unit.
        capabilities: of the unit.
        operations: so far.
        changed: something that a cache may hold has changed since all was invalidated.
        enabled: toggle bits of GCMD that are on, as far as the generator knows.
        remapping: interrupt remapping has been set up.
        words: what each table word was last set to, by address.
        good: what a broken one was before.
        root: the root table.
        contexts: context table of each bus.
        domains: of the context entries.
        owners: domain of each device, by name; None: pass-through.
        requesters: requester ID of each device.
        free_tables: pages for further tables.
        interrupt: index of the interrupt table entry that changed last.
        levels: paging level of each word of a page table.
        reach: for each table word, a device and an input address that lead through it.
        target: the device and address of the word that changed last, until it is used.
    """

    def __init__(
        self, seed: int, configuration: Configuration, *, shares_tables: bool = True
    ) -> None:
        self.rng = random.Random(seed)
        self.shares_tables = shares_tables
        self.configuration = configuration
        self.capabilities = configuration.capabilities
        self.operations: list[Operation] = []
        self.changed = False
        self.enabled = 0
        self.remapping = False
        self.words: dict[int, int] = {}
        self.good: dict[int, int] = {}
        self.root = self.rng.choice(arena.ROOTS)
        self.contexts: dict[int, int] = {}
        self.domains: list[Domain] = []
        self.owners: dict[str, Domain | None] = {}
        self.requesters = {
            name: place.requester for name, place in configuration.topology.devices.items()
        }
        self.interrupt = 0
        self.levels: dict[int, int] = {}
        self.reach: dict[int, tuple[str, int]] = {}
        self.target: tuple[str, int] | None = None
        self.free_tables = list(arena.TABLES)
        self.rng.shuffle(self.free_tables)

    def emit(self, operation: Operation) -> None:
        """Add an operation."""
        self.operations.append(operation)
        self.changed |= isinstance(operation, Store | Renumber)

    def store(self, address: int, *words: int) -> None:
        """Store words, and remember them as table entries."""
        self.emit(Store(address, words))
        for number, word in enumerate(words):
            self.words[address + 8 * number] = word

    def write(self, register: str, value: int, size: int | None = None, offset: int = 0) -> None:
        """Write a register by name, whole unless a size is given."""
        at, whole = register_names().registers[register]
        self.emit(RegisterWrite(at + offset, size or whole, value))

    def read(self, register: str) -> None:
        """Read a whole register by name."""
        at, whole = register_names().registers[register]
        self.emit(RegisterRead(at, whole))

    def invalidate(self) -> None:
        """Invalidate everything unless nothing has changed since the last time."""
        if not self.changed:
            return
        ways = [Everything.QUEUE, Everything.REGISTERS]
        if not self.remapping:
            ways.append(Everything.ROOT)
        self.emit(Invalidate(self.rng.choice(ways)))
        self.changed = False

    @property
    def queue_on(self) -> bool:
        """Whether the queue is enabled, as far as the generator knows."""
        return bool(self.enabled >> 26 & 1)

    # Chance.

    def one_in(self, n: int) -> bool:
        """True once in `n` times."""
        return self.rng.randrange(n) == 0

    def bits(self, width: int) -> int:
        """Return a value of so many bits: a single one, a few, many, none or all."""
        full = (1 << width) - 1
        match self.rng.randrange(6):
            case 0:
                return 1 << self.rng.randrange(width)
            case 1:
                return full
            case 2:
                return 0
            case 3:
                return (1 << self.rng.randrange(width)) | (1 << self.rng.randrange(width))
            case 4:
                return full ^ 1 << self.rng.randrange(width)
            case _:
                return self.rng.getrandbits(width)
