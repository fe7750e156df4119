"""Under-invalidated programs: tables change, and software invalidates some of what it should.

Everything else is in order: what the caches may hold is what these programs are about.
"""

from __future__ import annotations

from iommu_emu.differential.configurations import configuration
from iommu_emu.differential.generator import commands, dma, queue, tables
from iommu_emu.differential.generator.draft import Draft
from iommu_emu.differential.program import Program, Submit

WEIGHTS = {"dma": 40, "change": 14, "repair": 8, "map": 4, "invalidate": 16, "root": 1}
GRANULARITIES = (1, 2, 2, 3, 3, 3, 3)

__all__ = ["generate_partial"]


def generate_partial(seed: int, configuration_name: str) -> Program:
    """Return the under-invalidated program of a seed.

    Args:
        seed: any number.
        configuration_name: of the unit that the program is for.

    Raises:
        ValueError: if there is no such configuration.
    """
    draft = Draft(seed, configuration(configuration_name))
    rng = draft.rng
    tables.set_up(draft)
    if rng.random() < 0.7:
        queue.set_up(draft)
    commands.set_root(draft)
    commands.enable_translation(draft)
    for _ in range(rng.choice((10, 25, 40))):
        match rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]:
            case "dma":
                draft.changed = False  # nothing is invalidated on the way to a transfer
                dma.transfer(draft)
            case "change":
                tables.change_an_entry(draft)
            case "repair":
                tables.repair(draft)
            case "map":
                tables.map_another(draft)
            case "invalidate":
                _invalidate(draft)
            case "root":
                commands.set_root(draft)
    return Program(configuration_name, tuple(draft.operations), seed)


def _invalidate(draft: Draft) -> None:
    """Invalidate contexts or translations at some granularity, where something is mapped."""
    rng = draft.rng
    granularity = rng.choice(GRANULARITIES)
    domain = rng.choice(draft.domains)
    if rng.random() < 0.3:
        source, mask = rng.choice(list(draft.requesters.values())), rng.randrange(4)
        if draft.queue_on:
            low = 1 | granularity << 4 | domain.number << 16 | source << 32 | mask << 48
            draft.emit(Submit(((low, 0),)))
        else:
            value = 1 << 63 | granularity << 61 | mask << 32 | source << 16 | domain.number
            draft.write("CCMD", value)
        return
    iova = rng.choice(domain.mappings).iova if domain.mappings else 0
    high = iova & ~0xFFF | rng.randrange(2) << 6 | rng.choice((0, 0, 1, 9, 18))
    if draft.queue_on:
        draft.emit(Submit(((2 | granularity << 4 | domain.number << 16, high),)))
    else:
        draft.write("IVA", high)
        draft.write("IOTLB", 1 << 63 | granularity << 60 | domain.number << 32)
