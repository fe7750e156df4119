"""Interrupt remapping: tables legal and broken, and the requests that meet them (VT-d 10)."""

from __future__ import annotations

from iommu_emu.differential import arena
from iommu_emu.differential.generator.commands import IRE, SIRTP, one_shot, switch
from iommu_emu.differential.generator.draft import U64, Draft
from iommu_emu.differential.program import Interrupt, Store

BASE = 0xFEE0_0000
REMAPPABLE, SHV = 1 << 4, 1 << 3
EIME = 1 << 11
PRESENT, FPD = 1, 2
TABLE = arena.INTERRUPT_TABLES[0]
ENTRIES = 8  # that programs fill, of 16
SIZE = 3  # IRTA.S: 2**(3 + 1) entries
VECTORS = range(0x20, 0xF0)

__all__ = ["change_an_entry", "send", "set_up"]


def set_up(draft: Draft) -> None:
    """Make a table, latch it, and switch remapping on."""
    draft.remapping = True
    for index in range(ENTRIES):
        if not draft.one_in(5):
            draft.emit(Store(TABLE + 16 * index, _entry(draft)))
    extended = EIME if draft.capabilities.extended_interrupts and draft.one_in(3) else 0
    base = draft.rng.choice(arena.HOLES) if draft.one_in(15) else TABLE
    draft.write("IRTA", base | draft.rng.choice((SIZE, SIZE, 0, 15)) | extended)
    one_shot(draft, SIRTP)
    switch(draft, IRE, True)


def change_an_entry(draft: Draft) -> None:
    """Change an entry of the table, legally or not."""
    if not (draft.remapping and draft.queue_on):
        return  # without the queue nothing invalidates interrupt entries
    rng = draft.rng
    low, high = _entry(draft)
    match rng.randrange(8):
        case 0:
            low &= ~PRESENT
        case 1:
            low = low & ~PRESENT | FPD
        case 2:
            low |= 1 << rng.choice((12, 13, 14, 15, 24, 28, 31))
        case 3:
            low = low & ~(7 << 5) | rng.randrange(8) << 5
        case 4:
            low |= 1 << rng.randrange(32, 64)
        case 5:
            high |= 1 << rng.randrange(20, 64)
        case 6:
            high ^= 1 << rng.randrange(0, 20)
        case _:
            low |= 1 << rng.randrange(2, 12)
    if draft.one_in(3):
        high ^= 1 << rng.randrange(0, 20)  # two things at once: which comes first?
    draft.interrupt = rng.randrange(ENTRIES)
    draft.emit(Store(TABLE + 16 * draft.interrupt, (low & U64, high & U64)))


def send(draft: Draft) -> None:
    """Send an interrupt as MSI: remappable or not, with and without a subhandle."""
    rng = draft.rng
    draft.invalidate()
    device = rng.choice(draft.configuration.topology.edus)
    data = rng.choice(VECTORS)
    address = BASE
    if draft.remapping and not draft.one_in(6):
        index = rng.choice((draft.interrupt, rng.randrange(ENTRIES + 2)))
        if draft.one_in(8):
            index = rng.choice((15, 16, 0xFFFF))
        address |= REMAPPABLE | (index & 0x7FFF) << 5 | (index >> 15) << 2
        if draft.one_in(3):
            address |= SHV
            data = rng.choice((0, 0, 1, 2, 0x10, 0x8000))
    draft.emit(Interrupt(device, address, data))


def _entry(draft: Draft) -> tuple[int, int]:
    """Return a legal entry for APIC 0 that most of our devices may use."""
    rng = draft.rng
    low = PRESENT | rng.choice(VECTORS) << 16 | draft.one_in(8) << 1
    source = rng.choice([draft.requesters[name] for name in draft.configuration.topology.edus])
    match rng.randrange(4):
        case 0 | 1:
            high = 0
        case 2:
            high = 1 << 18 | rng.randrange(4) << 16 | source
        case _:
            first = rng.choice((0, source >> 8))
            high = 2 << 18 | first << 8 | rng.choice((first, 0xFF))
    return low, high
