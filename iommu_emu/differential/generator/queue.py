"""The invalidation queue: descriptors of every kind, and the queue's own registers (VT-d 7)."""

from __future__ import annotations

from iommu_emu.differential import arena
from iommu_emu.differential.generator.commands import QIE, switch
from iommu_emu.differential.generator.draft import Draft
from iommu_emu.differential.program import Submit

CONTEXT, IOTLB, INTERRUPT, WAIT = 1, 2, 4, 5
IF, SW, FN = 1 << 4, 1 << 5, 1 << 6
RESERVED = {
    CONTEXT: (0xFFFC_0000_0000_F1C0, (1 << 64) - 1),
    IOTLB: (0xFFFF_FFFF_0000_F100, 0xF80),
    INTERRUPT: (0xFFFF_0000_07FF_F1E0, (1 << 64) - 1),
    WAIT: (0x0000_0000_FFFF_F180, 3),
}
ENTRIES = 256  # of a queue of one page
MAX_ADDRESS_MASK = 18  # CAP.MAMV of QEMU

__all__ = [
    "broken_descriptor",
    "fill",
    "registers_of_the_queue",
    "set_up",
    "valid_descriptors",
]


def set_up(draft: Draft, *, odd: bool = True) -> None:
    """Program the queue's address and switch it on; it may be an odd one, or nowhere."""
    size = draft.rng.choice((0, 0, 0, 1))
    base = draft.rng.choice(arena.QUEUES)
    if odd and draft.one_in(25):
        base, size = draft.rng.choice(((arena.HOLES[0], 0), (base, 2), (base, 7)))
    draft.write("IQA", base | size)
    if draft.one_in(2):
        draft.write("IQT", 0)
    switch(draft, QIE, True)


def valid_descriptors(draft: Draft) -> None:
    """Submit a few descriptors that are all right."""
    count = draft.rng.choice((1, 1, 2, 4))
    draft.emit(Submit(tuple(_valid(draft) for _ in range(count))))


def broken_descriptor(draft: Draft) -> None:
    """Submit a descriptor with something wrong, perhaps between two good ones."""
    broken = _broken(draft)
    before = [_valid(draft)] if draft.one_in(3) else []
    after = [_valid(draft)] if draft.one_in(3) else []
    draft.emit(Submit((*before, broken, *after)))
    if draft.one_in(3):
        draft.write("FSTS", draft.rng.choice((1 << 4, 1 << 4 | 1, 0x7F)))


def fill(draft: Draft) -> None:
    """Submit so many that the queue is full or wraps."""
    count = draft.rng.choice((ENTRIES - 1, ENTRIES - 2, ENTRIES // 2))
    draft.emit(Submit((_global_iotlb(),) * count))
    if draft.one_in(2):
        draft.emit(Submit((_global_iotlb(),) * 3))


def registers_of_the_queue(draft: Draft) -> None:
    """Write IQT, IQA, ICS or the error's status as software might, and might not."""
    rng = draft.rng
    match rng.randrange(7):
        case 0:
            draft.write("IQT", rng.choice((0, 16, 0x40, 0xFF0, 0x1000, 0x7FFF0, 8)))
        case 1:
            draft.write("IQT", rng.getrandbits(32), 4, offset=4)
        case 2:
            draft.write("ICS", rng.choice((1, 0, 0xFFFFFFFF)))
        case 3:
            draft.write("FSTS", 1 << 4)
        case 4:
            draft.emit(Submit(()))
        case 5:
            draft.read("IQA")
        case 6 if not draft.enabled & QIE:
            value = rng.choice(arena.QUEUES) | rng.choice((0, 1, 7, 0x800, 0x7F8))
            draft.write("IQA", value)


def _global_iotlb() -> tuple[int, int]:
    return IOTLB | 1 << 4, 0


def _valid(draft: Draft) -> tuple[int, int]:
    rng = draft.rng
    kinds = [CONTEXT, IOTLB, WAIT, WAIT]
    if draft.capabilities.interrupt_remapping:
        kinds.append(INTERRUPT)
    domain = rng.choice((0, 1, 2, 0x7F, 0xFFFF)) << 16
    match rng.choice(kinds):
        case 1:
            source = rng.choice(list(draft.requesters.values()))
            granularity = rng.randint(1, 3)
            return CONTEXT | granularity << 4 | domain | source << 32 | rng.randrange(4) << 48, 0
        case 2:
            granularity = rng.randint(1, 3)
            address = rng.choice((0x4000, 0x20_0000, rng.getrandbits(52) << 12)) & ~0xFFF
            high = address | rng.randrange(2) << 6 | rng.choice((0, 1, 9, MAX_ADDRESS_MASK))
            return IOTLB | granularity << 4 | rng.randrange(4) << 6 | domain, high
        case 4:
            mask = rng.randint(0, draft.capabilities.max_handle_mask)
            return INTERRUPT | rng.randrange(2) << 4 | mask << 27 | rng.getrandbits(16) << 32, 0
        case _:
            if draft.one_in(3):
                return WAIT | IF | rng.randrange(2) * FN, 0
            address = arena.STATUS + 4 * rng.randrange(64)
            return WAIT | SW | rng.randrange(2) * FN | rng.getrandbits(32) << 32, address


def _broken(draft: Draft) -> tuple[int, int]:
    rng = draft.rng
    match rng.randrange(7):
        case 0:
            kind = rng.choice((0, 6, 7, 8, 9, 10, 11, 15, 3))
            return kind | rng.getrandbits(2) << 4, 0
        case 1:
            return rng.choice((CONTEXT, IOTLB)), 0  # granularity 0
        case 2:
            return IOTLB | 3 << 4, 0x4000 | rng.choice((19, 32, 63))
        case 3:
            return INTERRUPT | 1 << 4 | rng.choice((16, 31)) << 27, 0
        case 4:
            flags = rng.choice((0, FN, IF | FN, SW | IF))
            return WAIT | flags, arena.STATUS if flags & SW else 0
        case 5:
            return WAIT | SW | 5 << 32, rng.choice(arena.HOLES)
        case _:
            kind = rng.choice(list(RESERVED))
            low, high = kind, 0
            if kind != INTERRUPT:
                low |= SW if kind == WAIT else 1 << 4
            if kind == WAIT:
                high = arena.STATUS
            return _with_reserved_bit(draft, kind, low, high)


def _with_reserved_bit(draft: Draft, kind: int, low: int, high: int) -> tuple[int, int]:
    masks = RESERVED[kind]
    bits = [bit for bit in range(128) if masks[bit // 64] >> bit % 64 & 1]
    bit = draft.rng.choice(bits)
    return (low | 1 << bit, high) if bit < 64 else (low, high | 1 << bit - 64)
