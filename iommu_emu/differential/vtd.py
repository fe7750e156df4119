"""What differential testing knows of VT-d: registers, and how software invalidates."""

from __future__ import annotations

from functools import lru_cache

from iommu_emu import core
from iommu_emu.core import Vendor
from iommu_emu.differential import arena
from iommu_emu.differential.accesses import MemoryWrite, UnitWrite
from iommu_emu.differential.adapter import Adapter
from iommu_emu.differential.notes import Notes
from iommu_emu.differential.program import Everything
from iommu_emu.differential.registers import RegisterNames
from iommu_emu.differential.software import Bench
from iommu_emu.vtd.structures import (
    ContextInvalidation,
    InterruptEntryInvalidation,
    IotlbInvalidation,
    WaitDescriptor,
)

WINDOW_BASE = 0xFED9_0000
IVA_BASE = 0xF0  # QEMU: ECAP.IRO, CAP.FRO
RECORD_BASE = 0x220
RANGES = ((0x000, 0x100), (RECORD_BASE, 0x10))
"""Offset and bytes of what is compared after each operation: every register that QEMU has."""

GLOBAL = 1
DESCRIPTOR = 16
DOUBLE_WIDTH = 1 << 11  # IQA.DW
MOST_BROKEN = 64  # descriptors that are replaced before software gives up
WAITED = 0xD1FF  # what the wait of an invalidation leaves in memory

__all__ = ["ADAPTER", "VtdCommands", "register_names"]


@lru_cache
def register_names() -> RegisterNames:
    """Return VT-d's registers where QEMU has them."""
    rows = []
    for row in core.registers(Vendor.VTD):
        base = {0: 0, 1: IVA_BASE, 2: RECORD_BASE}[row.base]
        fields = tuple(
            (field.name, field.high, field.low)
            for field in core.fields(Vendor.VTD)
            if field.register == row.index
        )
        rows.append((row.name, base + row.offset, row.width // 8, fields))
    return RegisterNames(rows)


@lru_cache
def _at(name: str) -> int:
    return register_names().registers[name][0]


@lru_cache
def _field(register: str, name: str) -> int:
    """Return the mask of a field."""
    index = next(row.index for row in core.registers(Vendor.VTD) if row.name == register)
    return next(
        row.mask for row in core.fields(Vendor.VTD) if row.register == index and row.name == name
    )


class VtdCommands:
    """What software does to a VT-d unit's command interface.

    Attributes:
        root: RTADDR as the last SRTP of this program latched it.
        translations_clean: whether contexts and translations were invalidated since a change.
        interrupts_clean: the same of interrupt entries.
    """

    def __init__(self) -> None:
        self.root = 0
        self.changed()

    def changed(self) -> None:
        """Note that something has changed that a cache may hold."""
        self.translations_clean = self.interrupts_clean = False

    def submit(self, bench: Bench, descriptors: tuple[tuple[int, int], ...]) -> None:
        """Put descriptors at the tail and move it; outside the arenas only the tail moves."""
        iqa, tail = bench.peek(_at("IQA"), 8), bench.peek(_at("IQT"), 8)
        base, size = iqa & ~0xFFF, arena.PAGE << (iqa & 7)
        for low, high in descriptors:
            tail %= size
            if arena.inside(base + tail, DESCRIPTOR):
                data = low.to_bytes(8, "little") + high.to_bytes(8, "little")
                bench.do(MemoryWrite(base + tail, data))
            tail += DESCRIPTOR
        bench.do(UnitWrite(_at("IQT"), 8, tail % size))

    def invalidate(self, bench: Bench, how: Everything) -> None:
        """Invalidate everything, by another way if the one asked for is closed.

        While the queue is on, commands by register are ignored (2.6), and it may be somewhere
        where it cannot be used; in another mode than legacy neither is accepted (7.1). Setting
        the root table pointer always is.
        """
        queue_on = bench.peek(_at("GSTS"), 4) & _field("GSTS", "QIES")
        iqa = bench.peek(_at("IQA"), 8)
        usable = arena.inside(iqa & ~0xFFF, arena.PAGE << (iqa & 7)) and not iqa & DOUBLE_WIDTH
        other_mode = self.root & _field("RTADDR", "TTM")
        if how is Everything.ROOT or other_mode or (queue_on and not usable):
            self._set_root_again(bench)
            self.translations_clean = True
        elif queue_on:
            self._revive_queue(bench)
            interrupts = bench.peek(_at("ECAP"), 8) & _field("ECAP", "IR")
            self.submit(bench, everything(interrupts=bool(interrupts)))
            done = bench.peek(_at("IQH"), 8) == bench.peek(_at("IQT"), 8)
            self.translations_clean = self.interrupts_clean = done
        else:
            bench.do(UnitWrite(_at("CCMD"), 8, 1 << 63 | GLOBAL << 61))
            bench.do(UnitWrite(_at("IOTLB"), 8, 1 << 63 | GLOBAL << 60))
            self.translations_clean = True

    def switch_off(self, bench: Bench) -> None:
        """Clear TE and leave the queue and interrupt remapping as they are."""
        kept = _field("GSTS", "QIES") | _field("GSTS", "IRES") | _field("GSTS", "CFIS")
        bench.do(UnitWrite(_at("GCMD"), 4, bench.peek(_at("GSTS"), 4) & kept))

    def note(self, bench: Bench, offset: int, value: int) -> None:
        """Follow a write of the program: SRTP latches what RTADDR holds."""
        if offset == _at("GCMD"):
            self.changed()
            if value & _field("GCMD", "SRTP"):
                self.root = bench.peek(_at("RTADDR"), 8)

    def _set_root_again(self, bench: Bench) -> None:
        toggles = sum(_field("GSTS", name) for name in ("TES", "QIES", "IRES", "CFIS"))
        status = bench.peek(_at("GSTS"), 4) & toggles
        bench.do(UnitWrite(_at("RTADDR"), 8, self.root))
        bench.do(UnitWrite(_at("GCMD"), 4, status | _field("GCMD", "SRTP")))

    def _revive_queue(self, bench: Bench) -> None:
        """Replace the descriptors that the queue stumbles over, as Linux does (7.6)."""
        for _ in range(MOST_BROKEN):
            if not bench.peek(_at("FSTS"), 4) & _field("FSTS", "IQE"):
                return
            iqa, head = bench.peek(_at("IQA"), 8), bench.peek(_at("IQH"), 8)
            base, size = iqa & ~0xFFF, arena.PAGE << (iqa & 7)
            inside = arena.inside(base + head, DESCRIPTOR)
            if inside:
                bench.do(MemoryWrite(base + head, _wait().to_bytes(DESCRIPTOR, "little")))
            if bench.peek(_at("IQT"), 8) >= size or not inside:
                bench.do(UnitWrite(_at("IQT"), 8, head))
            bench.do(UnitWrite(_at("FSTS"), 4, _field("FSTS", "IQE")))
            # QEMU goes on at a write to the tail only.
            bench.do(UnitWrite(_at("IQT"), 8, bench.peek(_at("IQT"), 8)))


def everything(*, interrupts: bool) -> tuple[tuple[int, int], ...]:
    """Return the descriptors that invalidate everything, in the order of 9.4, and a wait."""
    values = [ContextInvalidation.build_int(g=GLOBAL), IotlbInvalidation.build_int(g=GLOBAL)]
    if interrupts:
        values.append(InterruptEntryInvalidation.build_int())
    values.append(_wait())
    return tuple((value & (1 << 64) - 1, value >> 64) for value in values)


def _wait() -> int:
    return WaitDescriptor.build_int(sw=1, status_data=WAITED, status_address=arena.STATUS)


ADAPTER = Adapter(
    names=register_names(),
    ranges=RANGES,
    window=WINDOW_BASE,
    faults=tuple(f"{row.name}: {row.condition}" for row in core.faults(Vendor.VTD)),
    error="IQERCD.IQEI",
    commands=VtdCommands,
    annotator=Notes,
    # QEMU keeps the interrupt table that it has latched.
    forgotten=(
        UnitWrite(_at("IRTA"), 8, 0),
        UnitWrite(_at("GCMD"), 4, _field("GCMD", "SIRTP")),
    ),
)
"""VT-d in legacy mode."""
