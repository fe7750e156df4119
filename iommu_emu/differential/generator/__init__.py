"""The generator of programs: seeded, one module a topic.

`generate` makes one program from a seed and a configuration; the same two give the same program.
Each program has its own mixture of topics, so that some are mostly registers, some mostly
descriptors and some mostly DMA through tables that keep changing. Fully invalidated programs
invalidate everything after each change before the next DMA.
"""

from __future__ import annotations

from collections.abc import Callable

from iommu_emu.differential.configurations import configuration
from iommu_emu.differential.generator import commands, dma, interrupts, queue, registers, tables
from iommu_emu.differential.generator.draft import Draft
from iommu_emu.differential.generator.exact import generate_exact
from iommu_emu.differential.generator.partial import generate_partial
from iommu_emu.differential.program import Program

Topic = Callable[[Draft], None]

__all__ = ["TOPICS", "generate", "generate_exact", "generate_partial"]

TOPICS: dict[str, tuple[Topic, int]] = {
    "map": (tables.map_another, 6),
    "break": (tables.change_an_entry, 12),
    "repair": (tables.repair, 5),
    "dma": (dma.transfer, 24),
    "acknowledge": (registers.acknowledge_faults, 10),
    "event": (registers.event_control, 6),
    "register": (registers.write_any, 8),
    "read": (registers.read_any, 4),
    "command": (commands.toggle, 4),
    "command-odd": (commands.odd_command, 1),
    "queue": (queue.valid_descriptors, 8),
    "queue-broken": (queue.broken_descriptor, 3),
    "queue-state": (queue.registers_of_the_queue, 3),
    "queue-fill": (queue.fill, 1),
    "invalidate-by-register": (commands.invalidate_by_register, 5),
    "interrupt": (interrupts.send, 6),
    "interrupt-table": (interrupts.change_an_entry, 3),
    "renumber": (tables.renumber, 1),
}
"""Each topic by name, and its weight in an average program."""


def generate(seed: int, configuration_name: str) -> Program:
    """Return the fully invalidated program of a seed.

    Args:
        seed: any number.
        configuration_name: of the unit that the program is for.

    Raises:
        ValueError: if there is no such configuration.
    """
    draft = Draft(seed, configuration(configuration_name))
    rng = draft.rng
    # Its own mixture: some topics not at all, some often.
    weights = [weight * rng.choice((0, 1, 1, 1, 3)) for _, weight in TOPICS.values()]
    if not any(weights):
        weights = [weight for _, weight in TOPICS.values()]
    actions = [topic for topic, _ in TOPICS.values()]
    begin(draft)
    for _ in range(rng.choice((5, 15, 25, 25, 40))):
        rng.choices(actions, weights)[0](draft)
    return Program(configuration_name, tuple(draft.operations), seed)


def begin(draft: Draft) -> None:
    """Set up tables, root, perhaps the queue and interrupt remapping, and switch on."""
    rng = draft.rng
    tables.set_up(draft)
    if rng.random() < 0.6:
        queue.set_up(draft)
    if draft.capabilities.interrupt_remapping and rng.random() < 0.4:
        interrupts.set_up(draft)
    commands.set_root(draft)
    if rng.random() < 0.93:
        commands.enable_translation(draft)
