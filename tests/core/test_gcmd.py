"""Global commands and status (VT-d 2.4): one-shot, toggle, and what each does to the caches."""

from __future__ import annotations

import pytest
from core_bench import (
    CFI,
    IRE,
    QIE,
    ROOT_TABLE,
    SIRTP,
    SRTP,
    TE,
    WBF,
    Bench,
)

from iommu_emu.core import CacheId

IRT = 0x4_0000
TOGGLES = [TE, QIE, IRE, CFI]
ONE_SHOTS = [SRTP, SIRTP]


@pytest.fixture
def full() -> Bench:
    return Bench(interrupt_remapping=True, write_buffer_flush=True)


@pytest.mark.parametrize("bit", TOGGLES)
def test_gcmd_toggle_follows_the_level(full: Bench, bit: int) -> None:
    assert full.read("GSTS") == 0
    full.write("GCMD", bit)
    assert full.read("GSTS") == bit
    full.write("GCMD", bit)  # the present state: no command
    assert full.read("GSTS") == bit
    full.write("GCMD", 0)
    assert full.read("GSTS") == 0


@pytest.mark.parametrize("bit", ONE_SHOTS)
def test_gcmd_one_shot_stays_set(full: Bench, bit: int) -> None:
    full.write("GCMD", bit)
    assert full.read("GSTS") == bit
    full.write("GCMD", 0)  # writing 0 has no effect
    assert full.read("GSTS") == bit
    full.write("GCMD", bit)
    assert full.read("GSTS") == bit


def test_gcmd_write_buffer_flush_is_done_at_once(full: Bench) -> None:
    full.write("GCMD", WBF)
    assert full.read("GSTS") == 0


def test_gcmd_reads_0(full: Bench) -> None:
    full.write("GCMD", TE | SRTP)
    assert full.read("GCMD") == 0


def test_gcmd_bits_leave_each_other_alone(full: Bench) -> None:
    for bit in (SRTP, TE, QIE, SIRTP, IRE, CFI):
        full.command(bit)
    assert full.read("GSTS") == TE | SRTP | QIE | IRE | SIRTP | CFI
    for bit in TOGGLES:
        full.command(bit, on=False)
    assert full.read("GSTS") == SRTP | SIRTP


@pytest.mark.parametrize("bit", [QIE, IRE, SIRTP, CFI, WBF, 1 << 29, 1 << 28, 1 << 0, 1 << 22])
def test_gcmd_bit_of_a_missing_feature_does_nothing(bit: int) -> None:
    bench = Bench(queued_invalidation=False)
    bench.write("GCMD", bit)
    assert bench.read("GSTS") == 0


def test_gcmd_several_changes_at_once_are_all_done(full: Bench) -> None:
    """Software error, but harmless: every changed bit is a command (2.4)."""
    full.attach().map(0x5000, 0x20_0000)
    full.write("RTADDR", ROOT_TABLE)
    full.write("GCMD", SRTP | TE)
    assert full.read("GSTS") == SRTP | TE
    assert full.reads(0x5000) == 0x20_0000


# ---- SRTP -----------------------------------------------------------------------------------


def test_gcmd_root_pointer_counts_only_after_srtp(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.write("RTADDR", 0x10_0000_0000)
    assert bench.fault(0x5000) == 0
    bench.command(SRTP)
    bench.attach(0x18)
    assert bench.fault(0x5000, requester=0x18) == 0x08


def caches(bench: Bench) -> tuple[int, int, int]:
    kinds = (CacheId.CONTEXT, CacheId.IOTLB, CacheId.PAGING)
    return tuple(len(bench.unit.entries(kind)) for kind in kinds)


def filled(**arguments: object) -> Bench:
    bench = Bench(**arguments)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    return bench


@pytest.mark.parametrize("esrtps", [False, True])
def test_gcmd_srtp_invalidates_only_with_esrtps(esrtps: bool) -> None:
    bench = filled(root_invalidates=esrtps)
    assert caches(bench) == (1, 1, 3)
    bench.command(SRTP)
    assert caches(bench) == ((0, 0, 0) if esrtps else (1, 1, 3))


@pytest.mark.parametrize("esrtps", [False, True])
def test_gcmd_srtp_while_enabled_shows_stale_translations_without_esrtps(esrtps: bool) -> None:
    bench = filled(root_invalidates=esrtps)
    bench.poke(0x6000, 0, 0)  # an empty root table
    bench.set_root(0x6000)
    assert bench.fault(0x5000) == (0x01 if esrtps else 0)


@pytest.mark.parametrize("on", [True, False])
def test_gcmd_te_drops_nothing(on: bool) -> None:
    """SMTS=0: entries survive TE 1->0; TE 0->1 defines no invalidation."""
    bench = filled()
    bench.command(TE, on=False)
    if on:
        bench.command(TE)
    assert caches(bench) == (1, 1, 3)


# ---- SIRTP and IRE --------------------------------------------------------------------------


def with_cached_interrupt(**arguments: object) -> Bench:
    bench = Bench(interrupt_remapping=True, **arguments)
    bench.poke(IRT, 0x31_0001, 0)
    bench.write("IRTA", IRT | 7)
    bench.command(SIRTP)
    bench.command(IRE)
    assert bench.port().write(0xFEE0_0010, b"\0\0\0\0").ok
    assert interrupts(bench) == 1
    return bench


def interrupts(bench: Bench) -> int:
    return len(bench.unit.entries(CacheId.INTERRUPT))


@pytest.mark.parametrize("esirtps", [False, True])
def test_gcmd_sirtp_invalidates_only_with_esirtps(esirtps: bool) -> None:
    bench = with_cached_interrupt(interrupt_table_invalidates=esirtps)
    bench.command(SIRTP)
    assert interrupts(bench) == (0 if esirtps else 1)


@pytest.mark.parametrize("esirtps", [False, True])
def test_gcmd_ire_off_invalidates_only_with_esirtps(esirtps: bool) -> None:
    bench = with_cached_interrupt(interrupt_table_invalidates=esirtps)
    bench.command(IRE, on=False)
    assert interrupts(bench) == (0 if esirtps else 1)


def test_gcmd_ire_on_drops_nothing() -> None:
    bench = with_cached_interrupt()
    bench.command(IRE, on=False)
    bench.command(IRE)
    assert interrupts(bench) == 1


def test_gcmd_srtp_leaves_interrupt_entries() -> None:
    bench = with_cached_interrupt(root_invalidates=True)
    bench.set_root()
    assert interrupts(bench) == 1


def test_gcmd_interrupt_table_counts_only_after_sirtp() -> None:
    bench = with_cached_interrupt()
    bench.write("IRTA", 0x10_0000_0000)
    assert bench.port().write(0xFEE0_0030, b"\0\0\0\0").fault == 0x22  # entry 1, not present
    bench.command(SIRTP)
    assert bench.port().write(0xFEE0_0030, b"\0\0\0\0").fault == 0x23  # no RAM there
