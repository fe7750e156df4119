"""The stale-use detector: which entry changed, at which level, what was owed (VT-d 9.4)."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_bench import (
    DEVICE,
    DOMAIN,
    GLOBAL,
    IRE,
    OTHER,
    READ,
    RW,
    SELECTIVE,
    SIRTP,
    WRITE,
    Bench,
    ByRegister,
    R,
    interrupt_descriptor,
)
from hit_cost import build, instructions

from iommu_emu.core import CacheId, IotlbLookup, Owed, StaleUse, TableLevel

CONTEXT_OWED = Owed.CONTEXT_DEVICE | Owed.IOTLB_DOMAIN
GLOBAL_OWED = Owed.CONTEXT_GLOBAL | Owed.IOTLB_GLOBAL


def watched(**arguments: object) -> Bench:
    bench = Bench(**arguments)
    bench.unit.watch(True)
    return bench


@pytest.fixture
def unit() -> Bench:
    """Watched; a page at 5000h of domain 1, used once."""
    bench = watched()
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    bench.enable()
    assert bench.reads(0x5000) == 0x20_0000
    return bench


def table_of(bench: Bench, requester: int = DEVICE) -> int:
    return bench.peek(bench.context_entry(requester)) & ~0xFFF


def entry(bench: Bench, level: int, iova: int = 0x5000) -> int:
    at = table_of(bench)
    for above in range(4, level, -1):
        at = bench.peek(at + 8 * (iova >> 12 + 9 * (above - 1) & 0x1FF)) & ~0xFFF
    return at + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)


def uses(bench: Bench) -> list[StaleUse]:
    found, lost = bench.unit.stale_uses()
    assert lost == 0
    return found


def only(bench: Bench) -> StaleUse:
    (use,) = uses(bench)
    return use


# ---- no false alarms ------------------------------------------------------------------------


def test_stale_use_of_nothing_is_not_reported(unit: Bench) -> None:
    for address in (0x5000, 0x5FFC, 0x6000):
        for access in (READ, WRITE):
            unit.translate(address, access)
    assert uses(unit) == []


def test_stale_use_after_the_right_invalidation_is_none(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0x30_0000 | RW)
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x5000)
    assert unit.reads(0x5000) == 0x30_0000
    assert uses(unit) == []


@pytest.mark.parametrize("bits", [1 << 8, 1 << 9, 1 << 52, 1 << 63])
def test_stale_use_needs_a_difference_that_the_device_sees(unit: Bench, bits: int) -> None:
    at = entry(unit, 1)
    unit.poke(at, unit.peek(at) | bits)
    unit.translate(0x5000)
    assert uses(unit) == []


def test_stale_use_of_another_page_is_not_reported(unit: Bench) -> None:
    unit.poke(entry(unit, 1, 0x6000), 0x30_0000 | RW)
    assert unit.reads(0x5000) == 0x20_0000
    assert unit.reads(0x6000) == 0x30_0000
    assert uses(unit) == []


def test_stale_use_of_a_permission_counts_when_it_is_used(unit: Bench) -> None:
    at = entry(unit, 1)
    unit.poke(at, unit.peek(at) & ~RW | R)
    unit.translate(0x5000, READ)
    assert uses(unit) == []
    unit.translate(0x5000, WRITE)
    use = only(unit)
    assert (use.cached.fault, use.fresh.fault) == (0, 5)


def test_stale_use_watch_off_reports_nothing(unit: Bench) -> None:
    unit.unit.watch(False)
    unit.poke(entry(unit, 1), 0)
    assert unit.reads(0x5000) == 0x20_0000
    assert unit.unit.stale_uses() == ([], 0)
    unit.unit.watch(True)
    assert uses(unit) == []


# ---- one report, field by field -------------------------------------------------------------


def test_stale_use_report(unit: Bench) -> None:
    at = entry(unit, 1)
    unit.machine.advance_to(77)
    unit.poke(at, 0x30_0000 | RW)
    result = unit.translate(0x5678, WRITE, length=8)
    use = only(unit)
    assert use.request.address == 0x5678
    assert (use.request.requester, use.request.access, use.request.length) == (DEVICE, WRITE, 8)
    assert use.cached == result
    assert (use.cached.address, use.fresh.address) == (0x20_0678, 0x30_0678)
    assert (use.time, use.cache) == (77, CacheId.IOTLB)
    assert (use.level, use.entry) == (1, at)
    assert (use.before, use.after) == (0x20_0000 | RW, 0x30_0000 | RW)
    assert use.owed is Owed.IOTLB_PAGE


def test_stale_use_is_reported_each_time_and_taken_once(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0)
    unit.translate(0x5000)
    unit.translate(0x5000)
    assert len(uses(unit)) == 2
    assert uses(unit) == []


def test_stale_use_reports_come_oldest_first(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0)
    for offset in range(0, 400, 4):
        unit.translate(0x5000 + offset)
    assert [use.request.address for use in uses(unit)] == [0x5000 + n for n in range(0, 400, 4)]


def test_stale_use_reports_that_do_not_fit_are_counted(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0)
    for _ in range(300):
        unit.translate(0x5000)
    found, lost = unit.unit.stale_uses()
    assert (len(found), lost) == (256, 44)
    unit.translate(0x5000)
    assert len(uses(unit)) == 1


# ---- every level, and what was owed ---------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_stale_use_of_a_page_table_entry(unit: Bench, level: int) -> None:
    at = entry(unit, level)
    before = unit.peek(at)
    unit.poke(at, 0)
    unit.translate(0x5000)
    use = only(unit)
    assert (use.level, use.entry, use.before, use.after) == (level, at, before, 0)
    assert use.owed is Owed.IOTLB_PAGE


@pytest.mark.parametrize("level", [2, 3, 4])
def test_stale_use_of_a_pointer_to_another_table(unit: Bench, level: int) -> None:
    """The new table leads to another page: the entry that points there is what changed."""
    at = entry(unit, level)
    before = unit.peek(at)
    table, top = unit.table(), 0
    unit.poke(at, table | RW)
    for below in range(level - 1, 0, -1):
        top = table + 8 * (0x5000 >> 12 + 9 * (below - 1) & 0x1FF)
        table = unit.table()
        unit.poke(top, table | RW)
    unit.translate(0x5000)
    use = only(unit)
    assert (use.level, use.entry, use.before) == (level, at, before)
    assert use.after == unit.peek(at)


def test_stale_use_of_a_cached_table(unit: Bench) -> None:
    """The leaf is new to the IOTLB, the way to it is stale."""
    at = entry(unit, 2)
    unit.poke(entry(unit, 1, 0x6000), 0x21_0000 | RW)
    unit.poke(at, 0)
    assert unit.reads(0x6000) == 0x21_0000
    use = only(unit)
    assert (use.cache, use.level, use.entry) == (CacheId.PAGING, 2, at)
    assert use.owed is Owed.IOTLB_PAGE


def test_stale_use_with_a_wrong_hint(unit: Bench) -> None:
    """IH=1 said that tables are unchanged, and one was not."""
    at = entry(unit, 2)
    unit.poke(at, 0)
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x5000, ih=1)
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert (use.cache, use.level, use.entry) == (CacheId.PAGING, 2, at)


def test_stale_use_of_a_context_entry(unit: Bench) -> None:
    at = unit.context_entry()
    before = unit.peek(at)
    unit.poke(at, 0)
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert (use.cache, use.level) == (CacheId.IOTLB, TableLevel.CONTEXT)
    assert (use.entry, use.before, use.after) == (at, before, 0)
    assert use.owed == CONTEXT_OWED


def test_stale_use_of_the_upper_half_of_a_context_entry(unit: Bench) -> None:
    at = unit.context_entry()
    unit.poke(at + 8, 1 << 8 | 7)
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert (use.level, use.entry) == (TableLevel.CONTEXT, at + 8)
    assert (use.before, use.after) == (1 << 8 | 2, 1 << 8 | 7)


def test_stale_use_of_a_cached_context_entry(unit: Bench) -> None:
    unit.poke(entry(unit, 1, 0x6000), 0x21_0000 | RW)
    unit.poke(unit.context_entry(), 0)
    assert unit.reads(0x6000) == 0x21_0000
    use = only(unit)
    assert use.level == TableLevel.CONTEXT
    assert use.owed == CONTEXT_OWED


def test_stale_use_after_half_of_the_duty(unit: Bench) -> None:
    """The context cache was invalidated, the IOTLB was not."""
    unit.attach(domain=2).map(0x5000, 0x30_0000)
    ByRegister(unit).context(SELECTIVE, 1, DEVICE)
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert use.level == TableLevel.CONTEXT
    assert use.owed is Owed.IOTLB_DOMAIN


def test_stale_use_after_half_of_the_duty_with_the_context_cached_anew(unit: Bench) -> None:
    """Another page brought the new context entry in: it is not the context cache that is stale."""
    unit.attach(domain=2).map(0x6000, 0x30_0000)
    ByRegister(unit).context(SELECTIVE, 1, DEVICE)
    assert unit.reads(0x6000) == 0x30_0000
    assert uses(unit) == []
    assert unit.reads(0x5000) == 0x20_0000
    assert only(unit).owed is Owed.IOTLB_DOMAIN


def test_stale_use_of_a_root_entry(unit: Bench) -> None:
    at = unit.root_entry(0)
    before = unit.peek(at)
    unit.poke(at, 0)
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert (use.level, use.entry) == (TableLevel.ROOT, at)
    assert (use.before, use.after) == (before, 0)
    assert use.owed == GLOBAL_OWED


def test_stale_use_of_the_root_table_pointer(unit: Bench) -> None:
    unit.set_root(0x6000)  # an empty root table, without the invalidations
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert (use.level, use.fresh.fault) == (TableLevel.REGISTER, 0x01)
    assert (use.before, use.after) == (0x1000, 0x6000)  # where the root entry was, and is
    assert use.owed == GLOBAL_OWED


def test_stale_use_of_a_table_that_is_gone(unit: Bench) -> None:
    """The present tables cannot be read any more: the pointer to them is what changed."""
    at = entry(unit, 3)
    unit.poke(at, 1 << 32 | RW)
    assert unit.reads(0x5000) == 0x20_0000
    use = only(unit)
    assert (use.level, use.entry, use.fresh.fault) == (3, at, 0x07)


def test_stale_use_of_the_outermost_change_is_reported(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0x30_0000 | RW)
    unit.poke(entry(unit, 3), unit.peek(entry(unit, 3)) & ~2)
    unit.translate(0x5000, WRITE)
    assert only(unit).level == 3


def test_stale_use_by_another_requester_of_the_domain(unit: Bench) -> None:
    """OTHER shares the domain: its walk starts at a table that DEVICE's walk cached."""
    high = unit.peek(unit.context_entry() + 8)
    unit.set_context(OTHER, unit.peek(unit.context_entry()), high)
    at = entry(unit, 3)
    unit.poke(at, 0)
    assert unit.reads(0x5000, OTHER) == 0x20_0000
    use = only(unit)
    assert (use.request.requester, use.cache) == (OTHER, CacheId.PAGING)
    assert (use.level, use.entry) == (3, at)


@pytest.mark.parametrize("level", [1, 2, TableLevel.CONTEXT])
def test_stale_use_looked_up_by_domain(level: int) -> None:
    bench = watched(lookup=IotlbLookup.BY_DOMAIN)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    at = bench.context_entry() if level == TableLevel.CONTEXT else entry(bench, level)
    bench.poke(at, 0)
    assert bench.reads(0x5000) == 0x20_0000
    use = only(bench)
    assert (use.level, use.entry) == (level, at)
    assert use.owed == (CONTEXT_OWED if level == TableLevel.CONTEXT else Owed.IOTLB_PAGE)


def test_stale_use_of_a_cached_fault() -> None:
    """CM=1: a page became present, and software skipped the invalidation."""
    bench = watched(caching_mode=True)
    table = bench.attach()
    bench.enable()
    assert bench.fault(0x5000) == 6
    assert uses(bench) == []
    at = table.map(0x5000, 0x20_0000)
    assert bench.fault(0x5000) == 6
    use = only(bench)
    assert (use.cached.fault, use.fresh.address) == (6, 0x20_0000)
    assert use.level == 4  # the first of the tables that were made
    assert use.entry == table.entry(0x5000, 4)
    assert use.owed is Owed.IOTLB_PAGE
    assert at == table.entry(0x5000, 1)


# ---- switching it on late -------------------------------------------------------------------


def test_stale_use_of_an_entry_from_before_has_no_level(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    bench.unit.watch(True)
    bench.poke(entry(bench, 1), 0)
    bench.translate(0x5000)
    use = only(bench)
    assert (use.level, use.entry, use.owed) == (TableLevel.UNKNOWN, 0, Owed.IOTLB_DOMAIN)
    assert (use.cached.address, use.fresh.fault) == (0x20_0000, 6)


def test_stale_use_of_an_entry_cached_again_has_its_level(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    bench.unit.watch(True)
    ByRegister(bench).context(GLOBAL)
    ByRegister(bench).iotlb(GLOBAL)
    bench.translate(0x5000)
    bench.poke(entry(bench, 1), 0)
    bench.translate(0x5000)
    assert only(bench).level == 1


def half_known() -> Bench:
    """The context entry was cached before the watch, the tables below it after."""
    bench = Bench()
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.map(0x6000, 0x21_0000)
    bench.enable()
    bench.translate(0x5000)
    bench.unit.watch(True)
    ByRegister(bench).iotlb(GLOBAL)
    bench.translate(0x6000)
    return bench


def test_stale_use_below_an_entry_from_before_has_its_level() -> None:
    bench = half_known()
    bench.poke(entry(bench, 1, 0x6000), 0)
    bench.translate(0x6000)
    assert only(bench).level == 1


def test_stale_use_above_the_entries_that_were_seen_has_no_level() -> None:
    bench = half_known()
    bench.attach(domain=2).map(0x6000, 0x30_0000)
    bench.translate(0x6000)
    use = only(bench)
    assert (use.level, use.entry) == (TableLevel.UNKNOWN, 0)


def test_stale_use_switching_on_twice_keeps_the_reports(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0)
    unit.translate(0x5000)
    unit.unit.watch(True)
    assert only(unit).level == 1


# ---- it changes nothing else ----------------------------------------------------------------


def workload(bench: Bench) -> tuple[list[object], dict[str, int], list[object]]:
    table = bench.attach()
    for page in range(8):
        table.map(page << 12, page << 20, R if page % 2 else RW)
    bench.enable()
    results: list[object] = []
    for step in range(60):
        if step == 30:
            table.map(0x3000, 0x90_0000)
        if step == 40:
            ByRegister(bench).iotlb(DOMAIN, 1)
        access = WRITE if step % 3 == 0 else READ
        results.append(bench.translate((step * 7 % 10) << 12, access))
    return results, bench.unit.counters(), list(bench.records())


@pytest.mark.parametrize("lookup", list(IotlbLookup))
def test_stale_use_watching_changes_no_answer(lookup: IotlbLookup) -> None:
    assert workload(Bench(lookup=lookup)) == workload(watched(lookup=lookup))


def test_stale_use_watching_reports_dma_as_well(unit: Bench) -> None:
    unit.poke(entry(unit, 1), 0)
    assert unit.port().write(0x5000, b"stale").ok
    assert unit.machine.read(0x20_0000, 5) == b"stale"
    assert only(unit).request.access is WRITE


def test_stale_use_second_look_fires_no_armed_store(unit: Bench) -> None:
    """The hit reads no table; what the detector reads is not the unit's access."""
    at = entry(unit, 1)
    unit.machine.arm_store(at, at, 0)
    assert unit.reads(0x5000) == 0x20_0000
    assert unit.peek(at) == 0x20_0000 | RW
    assert uses(unit) == []
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x5000)
    assert unit.reads(0x5000) == 0x20_0000
    assert unit.peek(at) == 0  # it was still armed for the unit's own read


def test_stale_use_second_look_fills_no_cache(unit: Bench) -> None:
    """A hit whose tables are no longer cached leaves them so, though the detector walks them."""
    unit.reads(0x5000)
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x6000)
    assert unit.unit.entries(CacheId.PAGING) == []
    assert unit.reads(0x5000) == 0x20_0000
    assert unit.unit.entries(CacheId.PAGING) == []


# ---- interrupt entries (9.4: IRTE) -------------------------------------------------------------

IRT = 0x4_0000
IRTE = 0x31_0001


@pytest.fixture
def interrupts() -> Bench:
    """Watched; entry 3 of the interrupt remapping table is present, and used once."""
    bench = watched(interrupt_remapping=True)
    bench.poke(IRT + 48, IRTE, 0)
    bench.write("IRTA", IRT | 7)
    bench.command(SIRTP)
    bench.command(IRE)
    assert raise_interrupt(bench) == 0
    return bench


def raise_interrupt(bench: Bench, index: int = 3) -> int:
    fault = bench.port().write(0xFEE0_0010 | index << 5, bytes(4)).fault
    bench.messages()
    return fault


def test_stale_use_of_an_interrupt_entry(interrupts: Bench) -> None:
    assert uses(interrupts) == []
    interrupts.poke(IRT + 48, 0x32_0001)
    interrupts.machine.advance_to(5)
    assert raise_interrupt(interrupts) == 0
    use = only(interrupts)
    assert (use.cache, use.level) == (CacheId.INTERRUPT, TableLevel.INTERRUPT)
    assert (use.entry, use.before, use.after) == (IRT + 48, IRTE, 0x32_0001)
    assert use.owed is Owed.INTERRUPT
    assert (use.request.address, use.request.requester) == (0xFEE0_0070, DEVICE)
    assert (use.time, use.cached.fault, use.fresh.fault) == (5, 0, 0)


def test_stale_use_of_an_interrupt_entry_that_is_gone(interrupts: Bench) -> None:
    interrupts.poke(IRT + 48, 0)
    assert raise_interrupt(interrupts) == 0
    use = only(interrupts)
    assert (use.cached.fault, use.fresh.fault) == (0, 0x22)


def test_stale_use_of_the_upper_half_of_an_interrupt_entry(interrupts: Bench) -> None:
    interrupts.poke(IRT + 56, 1 << 18 | 0x9999)
    assert raise_interrupt(interrupts) == 0
    use = only(interrupts)
    assert (use.entry, use.before, use.after) == (IRT + 56, 0, 1 << 18 | 0x9999)
    assert use.fresh.fault == 0x26


@pytest.mark.parametrize("low", [IRTE, IRTE | 1 << 8, IRTE | 2])
def test_stale_use_of_an_interrupt_entry_needs_a_difference(interrupts: Bench, low: int) -> None:
    interrupts.poke(IRT + 48, low)
    assert raise_interrupt(interrupts) == 0
    assert uses(interrupts) == []


def test_stale_use_of_an_interrupt_entry_after_its_invalidation_is_none(interrupts: Bench) -> None:
    interrupts.poke(IRT + 48, 0x32_0001)
    interrupts.enable_queue()
    interrupts.submit(interrupt_descriptor(1, 3))
    assert raise_interrupt(interrupts) == 0
    assert uses(interrupts) == []


def test_stale_use_of_interrupt_entries_is_watched_without_a_trace(interrupts: Bench) -> None:
    """The second look counts no reads, fills nothing and fires no armed store."""
    before = interrupts.unit.counters()
    interrupts.machine.arm_store(IRT + 48, 0x1_0000, 1)
    assert raise_interrupt(interrupts) == 0
    after = interrupts.unit.counters()
    assert after["iommu_mrds"] == before["iommu_mrds"]
    assert after["int_cache_lookup"] == before["int_cache_lookup"] + 1
    assert len(interrupts.unit.entries(CacheId.INTERRUPT)) == 1
    assert interrupts.peek(0x1_0000) == 0
    interrupts.enable_queue()
    interrupts.submit(interrupt_descriptor())
    assert raise_interrupt(interrupts) == 0
    assert interrupts.peek(0x1_0000) == 1  # it was still armed for the unit's own read


def test_stale_use_switched_off_costs_no_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 hits: the same count whether the detector was never on, or on and off again."""
    program = build(tmp_path, monkeypatch)
    never = instructions(program)
    assert never > 100
    assert instructions(program, "watched") == never
