"""Root, context and page tables: legal ones, and every way to break an entry (VT-d 4)."""

from __future__ import annotations

from iommu_emu.differential import arena
from iommu_emu.differential.generator.draft import U64, Domain, Draft, Mapping
from iommu_emu.differential.program import Renumber

READ, WRITE, BOTH = 1, 2, 3
LARGE = 1 << 7
SNOOP = 1 << 11
MULTI_LEVEL, DEVICE_TLB, PASS_THROUGH = 0, 1, 2
INTERRUPT_BASE = 0xFEE0_0000
IOVAS = (0x0, 0x4000, 0x1F_F000, 0x20_0000, 0x4000_0000, 0x7F_FFFF_F000, 0x1234_5000)
HIGH_IOVAS = (0x80_0000_0000, 0xFFFF_FFFF_F000, 0x1234_5678_9000)

__all__ = ["change_an_entry", "map_another", "renumber", "repair", "set_up"]


def set_up(draft: Draft) -> None:
    """Make a root table, context tables, and one to three domains with some pages."""
    rng = draft.rng
    levels = sorted(draft.capabilities.levels)
    first = 1 if draft.capabilities.caching_mode else 0  # domain 0 is reserved then (9.3)
    # A domain ID stands for one page table (9.3).
    for number in rng.sample((first, 1 + first, 2 + first, 0x7F, 0xFFFF), rng.randint(1, 3)):
        draft.domains.append(Domain(number, rng.choice(levels), draft.free_tables.pop()))
    for name, requester in draft.requesters.items():
        passes = draft.capabilities.pass_through and draft.one_in(8)
        draft.owners[name] = None if passes else rng.choice(draft.domains)
        if not draft.one_in(10):
            _store_context(draft, name, requester)
    for domain in draft.domains:
        if domain in draft.owners.values():
            for _ in range(rng.randint(1, 4)):
                _map(draft, domain)


def map_another(draft: Draft) -> None:
    """Map one more page somewhere, or one again to somewhere else."""
    used = [owner for owner in draft.owners.values() if owner is not None]
    if used:
        _map(draft, draft.rng.choice(used))


def renumber(draft: Draft) -> None:
    """Give a bus another number, so that its devices get another requester ID."""
    bridges = [
        place
        for place in draft.configuration.topology.bridges.values()
        if place.model == "pcie-root-port" and place.secondary == place.subordinate
    ]
    place = draft.rng.choice(bridges)
    bus = draft.rng.choice((place.secondary, 9, 0x7F, 0xFE))
    draft.emit(Renumber(place.name, bus))
    for name, device in draft.configuration.topology.devices.items():
        if device.under == place.name:
            draft.requesters[name] = bus << 8 | device.devfn
            if not draft.one_in(3):
                _store_context(draft, name, draft.requesters[name])


def repair(draft: Draft) -> None:
    """Put back what an earlier operation broke."""
    if draft.good:
        address = draft.rng.choice(list(draft.good))
        draft.store(address, draft.good.pop(address))
        draft.target = draft.reach.get(address)


def change_an_entry(draft: Draft) -> None:
    """Change one word of an entry: legally, or so that it faults."""
    rng = draft.rng
    address = rng.choice(list(draft.words))
    word = draft.words[address]
    draft.good.setdefault(address, word)
    page = address & ~0xFFF
    if page == draft.root:
        changed = _root_word(draft, word, high=bool(address & 8))
    elif page in draft.contexts.values():
        name, _ = draft.reach[address]
        alone = list(draft.owners.values()).count(draft.owners[name]) == 1
        changed = _context_word(draft, word, high=bool(address & 8), alone=alone)
    else:
        changed = _paging_word(draft, word)
    draft.store(address, changed)
    draft.target = draft.reach.get(address)


# ---- making legal entries ---------------------------------------------------------------------


def _store_context(draft: Draft, name: str, requester: int) -> None:
    """Store the context entry of a device, and what leads to it."""
    bus, devfn = requester >> 8, requester & 0xFF
    if bus not in draft.contexts:
        taken = set(draft.contexts.values())
        free = [page for page in arena.CONTEXTS if page not in taken]
        if not free:
            return
        draft.contexts[bus] = free[0]
        draft.store(draft.root + 16 * bus, free[0] | 1, 0)
    entry = draft.contexts[bus] + 16 * devfn
    draft.store(entry, *_context_entry(draft, draft.owners[name]))
    for word in (entry, entry + 8, draft.root + 16 * bus, draft.root + 16 * bus + 8):
        draft.reach[word] = name, 0


def _context_entry(draft: Draft, domain: Domain | None) -> tuple[int, int]:
    fpd = draft.one_in(12) << 1
    if domain is None:
        largest = max(draft.capabilities.levels)
        return 1 | fpd | PASS_THROUGH << 2, largest - 2 | 0xFFFE << 8
    return 1 | fpd | domain.root, domain.levels - 2 | domain.number << 8


def _map(draft: Draft, domain: Domain) -> None:
    """Map one page, with the tables that lead to it."""
    rng = draft.rng
    level = rng.choice((1, 1, 1, 1, 2, 3))
    shift = 12 + 9 * (level - 1)
    choices = IOVAS if domain.levels == 3 else IOVAS + HIGH_IOVAS
    if domain.mappings and draft.one_in(3):
        near = rng.choice(domain.mappings)
        iova = (near.iova + rng.choice((-1, 1)) * (1 << shift)) % (1 << 12 + 9 * domain.levels)
    else:
        iova = rng.choice(choices)
    iova = iova >> shift << shift
    users = [name for name, owner in draft.owners.items() if owner is domain]
    table = domain.root
    for depth in range(domain.levels, level, -1):
        address = table + 8 * (iova >> 12 + 9 * (depth - 1) & 0x1FF)
        draft.levels[address] = depth
        draft.reach[address] = rng.choice(users), iova
        entry = draft.words.get(address, 0)
        if not entry & BOTH or entry & LARGE or entry & ~0xFFF & _above(draft):
            if len(draft.free_tables) < 2:
                return
            entry = draft.free_tables.pop() | _permissions(draft, mostly=12)
            draft.store(address, entry)
        table = entry & ~0xFFF & ~(U64 << 52)
        if table not in arena.TABLES:
            return
    target = _target(draft, shift)
    leaf = target | _permissions(draft, mostly=5)
    if level > 1:
        leaf |= LARGE
    if draft.one_in(12):
        leaf |= rng.choice((1 << 2, 0x38, 1 << 6, 1 << 8, 1 << 9, 1 << 10, 1 << 52, 1 << 63))
    address = table + 8 * (iova >> shift & 0x1FF)
    draft.store(address, leaf)
    draft.levels[address] = level
    draft.reach[address] = rng.choice(users), iova
    domain.mappings.append(Mapping(iova, shift, target))


def _target(draft: Draft, shift: int) -> int:
    """Return an output page: mostly data, now and then nothing, or the interrupt range."""
    rng = draft.rng
    if shift == 30:
        return rng.choice((0, 0, arena.HIGH))
    if shift == 21:
        return rng.choice(
            (arena.LOW, arena.LOW, arena.HIGH, INTERRUPT_BASE if draft.one_in(4) else 0)
        )
    if draft.one_in(14):
        return rng.choice((*arena.HOLES, INTERRUPT_BASE, INTERRUPT_BASE + 0xFF000))
    return rng.choice(arena.DATA)


def _permissions(draft: Draft, mostly: int) -> int:
    return draft.rng.choice((READ, WRITE)) if draft.one_in(mostly) else BOTH


def _above(draft: Draft) -> int:
    """Return the address bits that the host does not have."""
    return (U64 << draft.configuration.host_address_width) & ((1 << 52) - 1)


# ---- breaking them -----------------------------------------------------------------------------


def _root_word(draft: Draft, word: int, *, high: bool) -> int:
    rng = draft.rng
    if high:
        return rng.choice((0, 1, 1 << 63, draft.bits(64)))
    return rng.choice(
        (
            word & ~1,
            word | 1 << rng.randrange(1, 12),
            word | 1 << rng.randrange(draft.configuration.host_address_width, 64),
            rng.choice(arena.HOLES) | 1,
            rng.choice((*arena.CONTEXTS, *arena.JUNK)) | 1,
            0,
        )
    )


def _context_word(draft: Draft, word: int, *, high: bool, alone: bool) -> int:
    """Change half of a context entry; one that shares its domain keeps table and width (9.3)."""
    rng = draft.rng
    if high:
        width = rng.choice((0, 4, 5, 6, 7, *(levels - 2 for levels in draft.capabilities.levels)))
        return rng.choice(
            (
                word & ~7 | (width if alone else rng.choice((0, 4, 5, 6, 7))),
                word | rng.randrange(1, 16) << 3,
                word ^ 1 << 7,
                word | 1 << rng.randrange(24, 64),
                word ^ 1 << rng.randrange(12, 24),  # a domain that nobody has
            )
        )
    changes = [
        word ^ 1,
        word ^ 2,
        word & ~1 | 2,
        word & ~0xC | rng.randrange(4) << 2,
        word | 1 << rng.randrange(4, 12),
        word | 1 << rng.randrange(draft.configuration.host_address_width, 64),
    ]
    if alone:
        changes += [word & 0xFFF | rng.choice(pages) for pages in (arena.HOLES, arena.JUNK)]
    return rng.choice(changes)


def _paging_word(draft: Draft, word: int) -> int:
    """Change a second-stage entry of any level (VT-d 4.8)."""
    rng = draft.rng
    width = draft.configuration.host_address_width
    return rng.choice(
        (
            word & ~BOTH,
            word ^ READ,
            word ^ WRITE,
            word ^ LARGE,
            word ^ SNOOP,
            word ^ 1 << 62,
            word ^ 1 << 61,
            word ^ 1 << 63,
            word | 1 << rng.randrange(52, 61),
            word | 1 << rng.randrange(2, 11),
            word | 1 << rng.randrange(width, 52),
            word | rng.choice((1 << 12, 1 << 20, 1 << 29)) if word & LARGE else word & ~WRITE,
            word & 0xFFF & ~LARGE | rng.choice(arena.HOLES),
            word & 0xFFF & ~LARGE | rng.choice(arena.JUNK),
            word & 0xFFF & ~LARGE | rng.choice(arena.TABLES if draft.shares_tables else arena.JUNK),
        )
    )
