"""What devices do: reads and writes at addresses that are mapped, nearly mapped, and not."""

from __future__ import annotations

from dataclasses import replace

from iommu_emu.differential import arena
from iommu_emu.differential.generator.draft import Draft
from iommu_emu.differential.generator.tables import HIGH_IOVAS, INTERRUPT_BASE, IOVAS
from iommu_emu.differential.program import Dma

LENGTHS = (1, 2, 3, 4, 4, 8, 16, 64, 64, 256, 0x1000, 0x1800)
BEHIND_INTERRUPTS = INTERRUPT_BASE + 0x1C_0000  # in the same 2 MiB
LONGEST_READ = 0x1000

__all__ = ["transfer"]


def transfer(draft: Draft) -> None:
    """Let a device read or write, with everything invalidated."""
    rng = draft.rng
    topology = draft.configuration.topology
    last = draft.operations[-1]
    if isinstance(last, Dma) and last.device in topology.edus and draft.one_in(2):
        # The same again the other way: what a cached translation denies or allows.
        draft.emit(replace(last, write=not last.write))
        return
    if not draft.one_in(6) or draft.changed:
        draft.invalidate()
    target, draft.target = draft.target, None
    device = target[0] if target else rng.choice(list(topology.devices))
    writes = device in topology.testdevs or draft.one_in(3)
    length = rng.choice(LENGTHS)
    if device in topology.edus:
        length = min(length, LONGEST_READ)
    address = target[1] if target and draft.enabled >> 31 & 1 else 0
    if not address:
        address = _address(draft, device, length)
    draft.emit(Dma(device, writes, address, length))


def _address(draft: Draft, device: str, length: int) -> int:
    """Return an address: data behind a mapping, mostly."""
    rng = draft.rng
    domain = draft.owners[device]
    offset = rng.choice((0, 4, 0x80, 0xFFC, 0x1000 - length % 0x1000, 0x7FF)) & 0xFFF
    if domain is None or not draft.enabled >> 31 & 1:
        # Untranslated: the address has to be where a write may go.
        return rng.choice((*arena.TARGETS, arena.HOLES[0])) + offset % 0x800
    if domain.mappings and not draft.one_in(5):
        mapping = rng.choice(domain.mappings)
        if mapping.shift == 12:
            return mapping.iova + offset
        return mapping.iova + _inside(draft, mapping.target, mapping.shift)
    return _odd_address(draft) + offset


def _inside(draft: Draft, target: int, shift: int) -> int:
    """Return an offset in a large page at which there is data, or nothing, or interrupts."""
    rng = draft.rng
    there = [page - target for page in arena.TARGETS if target <= page < target + (1 << shift)]
    if target <= INTERRUPT_BASE < target + (1 << shift):
        there += [INTERRUPT_BASE - target, BEHIND_INTERRUPTS - target]
    return (rng.choice(there) if there else 0) % (1 << shift)


def _odd_address(draft: Draft) -> int:
    """Return a page that is perhaps mapped, out of reach, or in the interrupt range."""
    rng = draft.rng
    return rng.choice(
        (
            *IOVAS,
            *HIGH_IOVAS,
            1 << 39,
            1 << 47,
            1 << 48,
            1 << 57,
            (1 << 64) - 0x4000,
            1 << rng.randrange(12, 62),
            INTERRUPT_BASE - 0x1000,
            INTERRUPT_BASE + 0x10_0000,
            INTERRUPT_BASE if draft.one_in(3) else 0x8000,
        )
    )
