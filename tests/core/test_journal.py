"""The journal: which calls and effects it tells, in which order, and which it need not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from amdvi_core_bench import Amdvi
from core_bench import (
    BASE,
    GLOBAL,
    WRITE,
    Bench,
    iotlb_descriptor,
    wait_descriptor,
)
from hit_cost import build, instructions
from journal_bench import rows, started

from iommu_emu.core import (
    AddressType,
    Answer,
    ConfigValue,
    CoreMachine,
    Journal,
    JournalEnd,
    PortRule,
    RecordKind,
    Reset,
    StateError,
    Verdict,
)
from iommu_emu.geometry import CacheGeometry
from iommu_emu.timing import IMMEDIATE, Timing

BAR = 0xE000_0000
MSI = 0xFEE0_1000


@pytest.fixture
def bench() -> Bench:
    """A page at 5000h of domain 1; translation is off and nothing was used yet."""
    bench = Bench()
    bench.attach().map(0x5000, 0x20_0000)
    return bench


# ---- how the machine is built ---------------------------------------------------------------


def test_journal_begins_with_the_machine() -> None:
    journal = Journal(CoreMachine(transactions=17, messages=99))
    assert rows(journal) == [(RecordKind.MACHINE, 0, 0, 0, 17, 99)]


def test_journal_tells_memory_that_is_there(bench: Bench) -> None:
    bench.machine.map_bar(BAR, 0x2000, 7)
    told = rows(Journal(bench.machine), RecordKind.RAM, RecordKind.BAR)
    assert told == [(RecordKind.RAM, 0, 0, 0, 0, 64 << 20), (RecordKind.BAR, 0, 0, 7, BAR, 0x2000)]


def test_journal_tells_the_configuration_of_a_unit_that_is_there(bench: Bench) -> None:
    told = rows(Journal(bench.machine), RecordKind.CONFIG, RecordKind.UNIT)
    values = {(r[2], r[3]): r[4] for r in told[:-1]}
    assert told[-1] == (RecordKind.UNIT, 0, 0, 0)
    assert values[ConfigValue.BASE, 0] == BASE
    assert values[ConfigValue.CAP, 0] == bench.config["cap"]
    assert values[ConfigValue.ECAP, 0] == bench.config["ecap"]
    assert values[ConfigValue.FETCH_GRANULE, 0] == bench.config["unit"]["fetch_granule"]
    geometry = bench.config["unit"]["geometry"]
    assert [values[ConfigValue.WAYS, cache] for cache in range(4)] == [g["ways"] for g in geometry]


def test_journal_tells_the_timing_that_is_set_by_then(bench: Bench) -> None:
    bench.unit.set_timing(Timing(command=11, wait=13).parameters())
    told = rows(Journal(bench.machine), RecordKind.CONFIG)
    timing = {r[2]: r[4] for r in told if r[2] in range(10, 14)}
    assert timing == {ConfigValue.TIMING_COMMAND: 11, ConfigValue.TIMING_WAIT: 13}


def test_journal_tells_an_amdvi_unit() -> None:
    machine, config = CoreMachine(), Amdvi().config
    machine.create_amdvi(config)
    told = rows(Journal(machine), RecordKind.CONFIG, RecordKind.UNIT)
    assert told[-1] == (RecordKind.UNIT, 1, 0, 0)
    assert config["efr"] in [r[4] for r in told if r[2] == ConfigValue.EFR]


def test_journal_tells_routes_as_ranges(bench: Bench) -> None:
    bench.machine.route(0, 0x100, 0x1FF, None)
    bench.machine.route(3, 7, 7, bench.unit)
    assert rows(Journal(bench.machine), RecordKind.ROUTE) == [
        (RecordKind.ROUTE, 1, 0, 0, 0, 0xFF),
        (RecordKind.ROUTE, 1, 0, 0, 0x200, 0xFFFF),
        (RecordKind.ROUTE, 1, 3, 0, 7, 7),
    ]


def test_journal_numbers_the_ports_that_are_left(bench: Bench) -> None:
    gone, first, second = (bench.port(requester) for requester in (1, 2, 3))
    gone.destroy()
    second.set_latency(5, 6)
    second.set_rules([PortRule(Verdict.PEER, frozenset(AddressType), 7, 8, (9, 10))])
    first.remove()
    told = rows(Journal(bench.machine))
    assert told[-5:] == [
        (RecordKind.PORT, 0, 2, 0),
        (RecordKind.PORT_REMOVE, 0, 0, 0),
        (RecordKind.PORT, 0, 3, 1),
        (RecordKind.LATENCY, 0, 0, 1, 5, 6),
        (RecordKind.RULE, Verdict.PEER, 0b1111, 1, 7, 8, 9, 10),
    ]


@pytest.mark.parametrize("on", [False, True])
def test_journal_tells_a_device_tlb_and_whether_it_is_on(bench: Bench, on: bool) -> None:
    tlb = bench.port().add_device_tlb(CacheGeometry(4, 2).parameters(), Answer.NEVER, 9, 3)
    tlb.enable(on)
    told = rows(Journal(bench.machine), RecordKind.ATS, RecordKind.ATS_ENABLE)
    made = (RecordKind.ATS, Answer.NEVER, 0, 0, 9, 3, 4 | 2 << 32, 1 << 32)  # seed 1
    assert told == [made, (RecordKind.ATS_ENABLE, 1, 0, 0)][: 1 + on]


def test_journal_tells_the_time_it_starts_at(bench: Bench) -> None:
    bench.machine.advance_to(77)
    told = rows(Journal(bench.machine))
    assert told[0][0] is RecordKind.MACHINE
    assert told[1] == (RecordKind.ADVANCE, 0, 0, 0, 77)


# ---- it must come first -----------------------------------------------------------------------


def use_register(bench: Bench) -> None:
    bench.set_root()


def use_cache(bench: Bench) -> None:
    bench.enable()
    bench.translate(0x5000)
    bench.command(1 << 31, False)


def use_fabric(bench: Bench) -> None:
    port = bench.port()
    port.set_latency(10, 0)
    port.write(0x5000, b"x")


def use_landed(bench: Bench) -> None:
    use_fabric(bench)
    bench.machine.advance_to(100)


def use_outbox(bench: Bench) -> None:
    bench.port().write(MSI, bytes(4))


@pytest.mark.parametrize("use", [use_register, use_cache, use_fabric, use_landed, use_outbox])
def test_journal_of_a_used_machine_is_refused(bench: Bench, use: Callable[[Bench], None]) -> None:
    use(bench)
    with pytest.raises(StateError, match="before the machine is used"):
        Journal(bench.machine)


def test_journal_reading_registers_is_no_use(bench: Bench) -> None:
    bench.read("CAP")
    Journal(bench.machine).stop()


def test_journal_of_a_unit_that_was_reset_unused(bench: Bench) -> None:
    bench.unit.reset(Reset.POWER_ON)
    Journal(bench.machine).stop()


def test_journal_there_is_one_of_a_machine(bench: Bench) -> None:
    journal = Journal(bench.machine)
    with pytest.raises(StateError):
        Journal(bench.machine)
    journal.stop()
    Journal(bench.machine).stop()


def test_journal_capacity_is_checked(bench: Bench) -> None:
    with pytest.raises(ValueError, match="capacity"):
        Journal(bench.machine, capacity=1023)


# ---- its end -------------------------------------------------------------------------------


def test_journal_limit_ends_it_in_front_of_a_call(bench: Bench) -> None:
    built = len(Journal(bench.machine, limit=10_000).take())
    second = Bench()
    second.attach().map(0x5000, 0x20_0000)
    journal = Journal(second.machine, limit=built + 5)
    second.set_root()  # 3 accesses
    second.command(1 << 31)  # 2 more
    second.translate(0x5000)
    told = rows(journal)
    assert len(told) == built + 5
    assert journal.end is JournalEnd.LIMIT


def test_journal_limit_inside_a_call_leaves_it_out(bench: Bench) -> None:
    built = len(Journal(bench.machine).take())
    second = Bench()
    second.attach().map(0x5000, 0x20_0000)
    journal = Journal(second.machine, limit=built + 5 + 3)
    second.enable()
    second.translate(0x5000)  # 8 records
    told = rows(journal)
    assert len(told) == built + 5
    assert told[-1][0] is RecordKind.MMIO_WRITE


def test_journal_ends_at_a_time(bench: Bench) -> None:
    journal = Journal(bench.machine, until=100)
    journal.take()
    bench.machine.advance_to(99)
    bench.read("VER")
    bench.machine.advance_to(100)
    bench.read("VER")
    assert [r[0] for r in rows(journal)] == [RecordKind.ADVANCE, RecordKind.MMIO_READ]
    assert journal.end is JournalEnd.TIME


def test_journal_that_nobody_takes_ends_full(bench: Bench) -> None:
    journal = Journal(bench.machine, capacity=1024)
    for _ in range(2000):
        bench.read("VER")
    assert len(journal.take()) == 1024
    assert journal.end is JournalEnd.FULL
    bench.read("VER")
    assert len(journal.take()) == 0


def test_journal_that_is_taken_goes_on(bench: Bench) -> None:
    journal = Journal(bench.machine, capacity=1024)
    taken = 0
    for _ in range(3000):
        bench.read("VER")
        if len(journal) > 1000:
            taken += len(journal.take())
    assert taken + len(journal) > 3000
    assert journal.end is JournalEnd.OPEN


def test_journal_stopped_tells_nothing_more(bench: Bench) -> None:
    journal = started(bench)
    journal.stop()
    bench.enable()
    assert bench.reads(0x5000) == 0x20_0000
    assert len(journal.take()) == 0


# ---- it changes nothing else ---------------------------------------------------------------------


def workload(bench: Bench) -> list[Any]:
    table = bench.attach()
    for page in range(8):
        table.map(page << 12, page << 20)
    bench.enable()
    bench.enable_queue()
    port = bench.port()
    port.set_latency(30, 7)
    results: list[Any] = []
    for step in range(40):
        results.append(bench.translate((step * 7 % 10) << 12, WRITE))
        port.write(step % 10 << 12, b"x")
        bench.machine.advance_to(20 * step)
        if step % 7 == 0:
            bench.submit(iotlb_descriptor(GLOBAL, dw=1), wait_descriptor(interrupt=1))
    bench.unit.set_timing(IMMEDIATE.parameters())
    bench.machine.advance_to(10_000)
    return [results, bench.unit.counters(), list(bench.records()), bench.messages()]


@pytest.mark.parametrize("lookup", [0, 1])
def test_journal_changes_no_answer(lookup: int) -> None:
    recorded = Bench(lookup=lookup)
    Journal(recorded.machine)
    assert workload(recorded) == workload(Bench(lookup=lookup))


def test_journal_beside_trace_and_detector(bench: Bench) -> None:
    second = Bench(trace_events=256)
    second.attach().map(0x5000, 0x20_0000)
    journal = started(second)
    second.machine.trace(True)
    second.unit.watch(True)
    second.enable()
    second.translate(0x5000)
    second.poke(second.context_entry(), 0)
    second.translate(0x5000)
    assert len(rows(journal, RecordKind.TRANSLATED)) == 2
    assert len(second.unit.stale_uses()[0]) == 1
    assert sum(second.machine.trace_read()["kind"] == 1) == 2


def test_journal_switched_off_costs_a_hit_no_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 hits: the same count whether there never was a journal, or there was one."""
    program = build(tmp_path, monkeypatch)
    never = instructions(program)
    assert never > 100
    assert instructions(program, "recorded") == never
