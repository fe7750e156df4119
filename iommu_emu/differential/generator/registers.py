"""Writes and reads of any register, and what software does about faults (VT-d 2)."""

from __future__ import annotations

from iommu_emu.differential.generator.draft import Draft
from iommu_emu.differential.program import RegisterRead, RegisterWrite
from iommu_emu.differential.vtd import RANGES, register_names

# Writes to these decide what everything after them means; other topics write them.
STEERING = ("GCMD", "RTADDR", "IQA", "IQT", "CCMD", "IOTLB", "IRTA")
VECTORS = range(0x20, 0xF0)
WINDOW_END = 0x230  # of QEMU
WIDE_WRITE = 60  # one in so many 32-bit registers is written with 8 bytes; QEMU asserts at some

__all__ = ["acknowledge_faults", "event_control", "read_any", "write_any"]


def write_any(draft: Draft) -> None:
    """Write any register, or any place without one, with any bits."""
    rng = draft.rng
    names = register_names()
    if not draft.capabilities.interrupt_remapping and draft.one_in(12):
        draft.write("IRTA", draft.bits(64))
        return
    if draft.one_in(4):
        base, size = rng.choice(RANGES)
        offset = rng.randrange(base, base + size, 4)
        if names.name(offset).split("+")[0] in STEERING or offset in (0x18, 0x1C):
            return
        draft.emit(RegisterWrite(offset, 4, draft.bits(32)))
        return
    name = rng.choice([name for name in names.registers if name not in STEERING])
    offset, size = names.registers[name]
    if size == 4:
        wide = offset % 8 == 0 and draft.one_in(WIDE_WRITE)
        width = 8 if wide else 4
        draft.emit(RegisterWrite(offset, width, draft.bits(8 * width)))
        return
    width = rng.choice((4, 8))
    offset += rng.randrange(0, size, width)
    draft.emit(RegisterWrite(offset, width, draft.bits(8 * width)))


def read_any(draft: Draft) -> None:
    """Read any register, by any width, or where there is none."""
    rng = draft.rng
    if draft.one_in(4):
        width = rng.choice((4, 8, 1, 2))
        step = 4 if draft.one_in(20) else width
        draft.emit(RegisterRead(rng.randrange(0, WINDOW_END - width, step), width))
        return
    name = rng.choice(list(register_names().registers))
    offset, size = register_names().registers[name]
    width = min(size, rng.choice((4, 8)))
    draft.emit(RegisterRead(offset + rng.randrange(0, size, width), width))


def acknowledge_faults(draft: Draft) -> None:
    """Clear the fault record, the overflow and errors, in full or in part."""
    rng = draft.rng
    match rng.randrange(6):
        case 0 | 1 | 2:
            # As Linux: the record's F, then the rest.
            draft.write("FRCD", 1 << 31, 4, offset=12)
            draft.write("FSTS", 0x7D if draft.one_in(2) else 1)
        case 3:
            draft.write("FRCD", 1 << 63 | draft.bits(63), 8, offset=8)
        case 4:
            draft.write("FSTS", draft.bits(32), 4)
        case _:
            draft.write("FRCD", draft.bits(32), 4, offset=rng.choice((0, 4, 8, 12)))


def event_control(draft: Draft) -> None:
    """Program an event's message; mask and unmask it."""
    rng = draft.rng
    prefix = rng.choice(("FE", "IE"))
    if draft.one_in(2):
        # Physical APIC 0, fixed.
        draft.write(f"{prefix}DATA", rng.choice(VECTORS))
        draft.write(f"{prefix}ADDR", 0xFEE0_0000)
        if draft.one_in(3):
            draft.write(f"{prefix}UADDR", draft.bits(32) if draft.one_in(3) else 0)
    draft.write(f"{prefix}CTL", rng.choice((0, 0, 1 << 31, 1 << 30, 0xFFFFFFFF)))
