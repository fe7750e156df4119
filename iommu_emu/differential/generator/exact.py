"""Exactly invalidated programs: after each change software does what it owes, and no more.

What it owes is the table of VT-d 9.4: for a context entry the device's context and its domain's
translations, for a page-table entry the pages that it maps, for a root entry everything; and
without caching mode nothing where nothing was present. A unit whose caches answer by the
specification cannot be told from one without caches, so these programs have to agree with QEMU
in full.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from iommu_emu.differential import arena
from iommu_emu.differential.configurations import configuration
from iommu_emu.differential.generator import commands, dma, queue, registers, tables
from iommu_emu.differential.generator.draft import Draft
from iommu_emu.differential.program import Program, Store, Submit

WEIGHTS = {"dma": 32, "change": 16, "repair": 8, "map": 6, "acknowledge": 14}
CONTEXT, IOTLB = 1, 2
GLOBAL, DOMAIN, SELECTIVE = 1, 2, 3
PRESENT = 1
LARGEST_MASK = 18  # CAP.MAMV of QEMU: a range of 1 GiB

__all__ = ["generate_exact"]


@dataclass
class _Owed:
    """What software has to invalidate before the next transfer, in this order."""

    contexts: list[tuple[int, int]] = field(default_factory=list)  # requester ID, domain ID
    domains: list[int] = field(default_factory=list)
    pages: list[tuple[int, int, int]] = field(default_factory=list)  # domain ID, address, mask
    everything: bool = False


def generate_exact(seed: int, configuration_name: str) -> Program:
    """Return the exactly invalidated program of a seed.

    Args:
        seed: any number.
        configuration_name: of the unit that the program is for.

    Raises:
        ValueError: if there is no such configuration.
    """
    draft = Draft(seed, configuration(configuration_name), shares_tables=False)
    rng = draft.rng
    tables.set_up(draft)
    if rng.random() < 0.6:
        queue.set_up(draft, odd=False)
    commands.set_root(draft)
    commands.enable_translation(draft)
    owed = _Owed(everything=True)
    for _ in range(rng.choice((10, 25, 40))):
        words, begin = dict(draft.words), len(draft.operations)
        match rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]:
            case "dma":
                _pay(draft, owed)
                owed = _Owed()
                draft.changed = False  # all that was owed is done
                dma.transfer(draft)
            case "change":
                tables.change_an_entry(draft)
            case "repair":
                tables.repair(draft)
            case "map":
                tables.map_another(draft)
            case "acknowledge":
                registers.acknowledge_faults(draft)
        for operation in draft.operations[begin:]:
            if isinstance(operation, Store):
                _owe(draft, owed, operation, words)
    return Program(configuration_name, tuple(draft.operations), seed)


def _owe(draft: Draft, owed: _Owed, store: Store, words: dict[int, int]) -> None:
    """Note what a store obliges software to (VT-d 9.4); `words` is what there was before."""
    page = store.address & ~0xFFF
    always = draft.capabilities.caching_mode
    if page == draft.root:
        owed.everything |= always or bool(words.get(store.address & ~0xF, 0) & PRESENT)
    elif page in draft.contexts.values():
        entry = store.address & ~0xF
        low, high = words.get(entry, 0), words.get(entry + 8, 0)
        requester = draft.requesters[draft.reach[entry][0]]
        number = high >> 8 & 0xFFFF
        if low & PRESENT:
            owed.contexts.append((requester, number))
            owed.domains.append(number)
        elif always:
            owed.contexts.append((requester, 0))  # the tag of what is not present (9.5)
    elif store.address in draft.levels:
        if not always and not words.get(store.address, 0) & tables.BOTH:
            return
        mask = 9 * (draft.levels[store.address] - 1)
        name, iova = draft.reach[store.address]
        for number in _numbers(draft, name):
            if mask > LARGEST_MASK:
                owed.domains.append(number)
            else:
                owed.pages.append((number, iova >> 12 + mask << 12 + mask, mask))


def _numbers(draft: Draft, name: str) -> set[int]:
    """Return the domain IDs under which the page table of a device is in use."""
    domain = draft.owners[name]
    numbers = set()
    for table in draft.contexts.values():
        for entry in range(table, table + arena.PAGE, 16):
            low = draft.words.get(entry, 0)
            if domain is not None and low & ~0xFFF == domain.root:
                numbers.add(draft.words.get(entry + 8, 0) >> 8 & 0xFFFF)
    return numbers


def _pay(draft: Draft, owed: _Owed) -> None:
    """Do what is owed: contexts, then translations; by the queue if it is on."""
    if owed.everything:
        _do(draft, CONTEXT, GLOBAL, 0, 0)
        _do(draft, IOTLB, GLOBAL, 0, 0)
        return
    for requester, number in owed.contexts:
        _do(draft, CONTEXT, SELECTIVE, number, requester)
    for number in owed.domains:
        _do(draft, IOTLB, DOMAIN, number, 0)
    for number, address, mask in owed.pages:
        _do(draft, IOTLB, SELECTIVE, number, address | mask)


def _do(draft: Draft, kind: int, granularity: int, number: int, what: int) -> None:
    """Do one invalidation; `what` is a requester ID, or an address with its mask."""
    if draft.queue_on:
        low = kind | granularity << 4 | number << 16
        high = what if kind == IOTLB else 0
        draft.emit(Submit(((low | what << 32 if kind == CONTEXT else low, high),)))
    elif kind == CONTEXT:
        draft.write("CCMD", 1 << 63 | granularity << 61 | what << 16 | number)
    else:
        if granularity == SELECTIVE:
            draft.write("IVA", what)
        draft.write("IOTLB", 1 << 63 | granularity << 60 | number << 32)
