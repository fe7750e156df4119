"""Replay: everything comes out again without memory, and what does not is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from core_bench import (
    DEVICE,
    GLOBAL,
    ICE,
    IRE,
    ITE,
    OTHER,
    SIRTP,
    WRITE,
    Bench,
    device_descriptor,
    iotlb_descriptor,
    wait_descriptor,
)

from iommu_emu.core import (
    AddressType,
    Answer,
    CacheId,
    CoreMachine,
    Journal,
    MessageKind,
    NotRamError,
    Played,
    Port,
    PortRule,
    RecordKind,
    ReplayOutcome,
    Vendor,
    Verdict,
    play,
)
from iommu_emu.geometry import CacheGeometry
from iommu_emu.timing import Timing

Records = np.ndarray[Any, Any]
BAR = 0xE000_0000
MSI = 0xFEE0_1000


def everything(bench: Bench) -> None:
    """Do something of each kind, in flight and at once, right and wrong."""
    machine = bench.machine
    table = bench.attach(tt=1)
    table.map(0x5000, 0x20_0000)
    table.map(0x8000, BAR)
    bench.write("FECTL", 0)
    bench.write("FEADDR", MSI)
    bench.enable()
    bench.enable_queue()
    machine.map_bar(BAR, 0x1000, 7)
    machine.route(0, OTHER, OTHER, None)
    port, other = bench.port(), bench.port(OTHER)
    bench.translate(0x5000, WRITE)
    bench.translate(0x6000)
    port.write(0x5FF0, bytes(32))
    port.write(0x8000, bytes(range(100)))
    pending = port.read(0x8000, 80)
    for message in bench.messages(MessageKind.BAR_READ):
        machine.answer(message.token, bytes(message.size))
    port.poll()
    assert pending.ok
    other.write(MSI, b"\x31\0\0\0")
    port.set_latency(100, 50)
    port.write(0x5000, b"late")
    machine.advance_to(120)
    bench.submit(iotlb_descriptor(GLOBAL, dw=1, dr=1), wait_descriptor(write=1, address=0x7000))
    machine.advance_to(500)
    port.poll()
    bench.messages()
    bench.unit.set_timing(Timing(command=5, invalidation=3).parameters())
    bench.submit(wait_descriptor(interrupt=1))
    machine.advance_to(1000)
    bench.unit.set_timing(Timing(manual=True).parameters())
    bench.submit(wait_descriptor(interrupt=1))
    bench.unit.step()
    use_device_tlb(bench, bench.port())
    other.set_requester(DEVICE)
    other.set_rules([PortRule(Verdict.REFUSE, frozenset(AddressType), 0x1000, 0x1FFF)])
    other.write(0x1000, b"refused")
    other.remove()
    other.destroy()
    with pytest.raises(ValueError, match="overlaps"):
        machine.map_bar(BAR, 0x1000, 8)
    machine.unmap(BAR)
    bench.unit.reset()
    bench.read("GSTS")


def use_device_tlb(bench: Bench, port: Port) -> None:
    tlb = port.add_device_tlb(CacheGeometry(4, 4).parameters(), Answer.ASK, owner=3)
    tlb.enable()
    port.write(0x5000, b"translated")
    port.translation_request(0x5000)
    bench.unit.set_timing(Timing().parameters())
    bench.submit(device_descriptor(DEVICE))
    tlb.drop()
    port.complete_invalidation(1)
    tlb.set_answer(Answer.WRONG_TAG, delay=10)
    bench.submit(device_descriptor(DEVICE), wait_descriptor(interrupt=1))
    bench.machine.advance_to(bench.machine.now + 1000)
    bench.write("FSTS", ITE | ICE)


def journal_of(run: Callable[[Bench], None], **arguments: Any) -> Records:
    bench = Bench(**({"device_tlb": True, "timeout": 500} | arguments))
    journal = Journal(bench.machine)
    run(bench)
    records = journal.take()
    journal.stop()
    return records


@pytest.fixture(scope="module")
def whole() -> Records:
    return journal_of(everything)


@pytest.fixture
def records(whole: Records) -> Records:
    """Everything, to be changed."""
    return whole.copy()


def machine_of(records: Records, trace_events: int = 0) -> CoreMachine:
    transactions, messages = records["value"][0][:2].tolist()
    return CoreMachine(transactions, messages, trace_events)


def played(records: Records) -> Played:
    return play(machine_of(records), records)


def first(records: Records, kind: RecordKind, nth: int = 0) -> int:
    return int(np.flatnonzero(records["kind"] == kind)[nth])


def test_replay_of_everything_is_the_same(records: Records) -> None:
    result = played(records)
    assert (result.outcome, result.position) == (ReplayOutcome.SAME, len(records))
    kinds = set(records["kind"].tolist())
    assert set(RecordKind) - kinds == set()


@pytest.mark.parametrize("lookup", [0, 1])
@pytest.mark.parametrize("granule", [64, 128, 256])
def test_replay_of_other_configurations(lookup: int, granule: int) -> None:
    bench = journal_of(everything, lookup=lookup, granule=granule)
    assert played(bench).outcome is ReplayOutcome.SAME


def test_replay_of_remapped_interrupts() -> None:
    """What the messages carry and the table says decides where they go (VT-d 10)."""

    def run(bench: Bench) -> None:
        bench.poke(0x4_0030, 0x31_0001, 0)
        bench.write("IRTA", 0x4_0007)
        bench.command(SIRTP)
        bench.command(IRE)
        port = bench.port()
        port.write(0xFEE0_0018, b"\x03\0\0\0")  # SHV: index 0 + 3
        port.write(0xFEE0_0018, b"\x04\0\0\0")  # not present
        bench.messages()

    records = journal_of(run, interrupt_remapping=True)
    assert played(records).outcome is ReplayOutcome.SAME
    payload = first(records, RecordKind.PAYLOAD)
    records["value"][payload, 0] = 4
    assert played(records).outcome is ReplayOutcome.DIVERGED
    faulted = records["kind"] == RecordKind.TRANSLATED
    assert 0x22 in records["value"][faulted, 3]


def test_replay_twice_gives_the_same_trace(records: Records) -> None:
    traces = []
    for _ in range(2):
        machine = machine_of(records, trace_events=4096)
        machine.trace(True)
        assert play(machine, records).outcome is ReplayOutcome.SAME
        traces.append(machine.trace_read())
    assert len(traces[0]) > 40
    assert np.array_equal(*traces)


def test_replay_leaves_units_to_look_at() -> None:
    def run(bench: Bench) -> None:
        bench.attach().map(0x5000, 0x20_0000)
        bench.enable()
        bench.translate(0x5678)

    records = journal_of(run)
    machine = machine_of(records)
    play(machine, records)
    (unit,) = machine.units
    assert unit.vendor is Vendor.VTD
    (entry,) = unit.entries(CacheId.IOTLB)
    assert (entry.address, entry.output) == (0x5000, 0x20_0000)


def test_replay_memory_is_hollow(records: Records) -> None:
    machine = machine_of(records)
    play(machine, records)
    with pytest.raises(NotRamError):
        machine.read(0x1000, 8)


OUTPUTS = [
    (RecordKind.MMIO_READ, "value", 1),
    (RecordKind.FETCH, "value", 0),
    (RecordKind.STORE, "value", 0),
    (RecordKind.STORE, "value", 1),
    (RecordKind.MESSAGE, "value", 0),
    (RecordKind.MESSAGE, "value", 1),
    (RecordKind.MESSAGE, "size", None),
    (RecordKind.TRANSLATED, "value", 1),
    (RecordKind.TRANSLATED, "value", 2),
    (RecordKind.TRANSLATED, "number", None),
    (RecordKind.COMPLETION, "value", 0),
    (RecordKind.TIME, "value", 0),
    (RecordKind.RETURN, "value", 0),
]


@pytest.mark.parametrize(("kind", "column", "index"), OUTPUTS)
def test_replay_diverges_at_a_changed_output(
    records: Records, kind: RecordKind, column: str, index: int | None
) -> None:
    at = first(records, kind)
    original = records[at : at + 1].copy()
    if index is None:
        records[column][at] ^= 1
    else:
        records[column][at, index] ^= np.uint64(1)
    result = played(records)
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, at)
    assert result.got.tobytes() == original.tobytes()


def test_replay_of_another_table_entry_diverges_at_what_comes_of_it(records: Records) -> None:
    at = first(records, RecordKind.TRANSLATED)
    leaf = at - 1
    assert records["kind"][leaf] == RecordKind.FETCH
    records["value"][leaf, 1] ^= np.uint64(1 << 20)
    result = played(records)
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, at)


def test_replay_of_another_payload_diverges_at_its_message(records: Records) -> None:
    at = first(records, RecordKind.PAYLOAD)
    records["value"][at, 0] ^= np.uint64(1)
    result = played(records)
    assert result.outcome is ReplayOutcome.DIVERGED
    assert records["kind"][result.position] == RecordKind.MESSAGE


def test_replay_misses_an_effect_that_did_not_come(records: Records) -> None:
    at = first(records, RecordKind.TRANSLATED)
    records = np.insert(records, at + 1, records[at])
    result = played(records)
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, at + 1)
    assert result.got["kind"][0] == 0


def test_replay_finds_an_effect_that_was_not_recorded(records: Records) -> None:
    at = first(records, RecordKind.STORE)
    lost = records[at : at + 1]
    result = played(np.delete(records, at))
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, at)
    assert result.got.tobytes() == lost.tobytes()


def test_replay_cut_off_inside_a_call_diverges_at_its_end(records: Records) -> None:
    at = first(records, RecordKind.TRANSLATED)
    result = played(records[:at])
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, at)


def test_replay_of_an_earlier_end_is_the_same(records: Records) -> None:
    for at in np.flatnonzero(records["kind"] == RecordKind.MMIO_WRITE):
        assert played(records[:at]).outcome is ReplayOutcome.SAME


def test_replay_on_another_machine_diverges_at_once(records: Records) -> None:
    result = play(CoreMachine(transactions=3), records)
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, 0)


def test_replay_on_a_used_machine_is_refused(records: Records) -> None:
    bench = Bench()
    bench.enable()
    assert play(bench.machine, records).outcome is ReplayOutcome.MALFORMED


MALFORMED = [
    (RecordKind.MMIO_WRITE, {"number": 1}),
    (RecordKind.MMIO_READ, {"number": 64}),
    (RecordKind.RESET, {"number": 1 << 31}),
    (RecordKind.DMA, {"number": 2}),
    (RecordKind.DMA_TAKE, {"number": (1 << 32) - 1}),
    (RecordKind.PORT_REMOVE, {"number": 9}),
    (RecordKind.TAKE, {"number": 1 << 30}),
    (RecordKind.MMIO_WRITE, {"kind": 0}),
    (RecordKind.MMIO_WRITE, {"kind": 24}),
    (RecordKind.PORT, {"value": [1 << 16, 0, 0, 0, 0]}),
    (RecordKind.ROUTE, {"number": 5, "size": 1}),
    (RecordKind.ROUTE, {"value": [0, 1 << 16, 0, 0, 0]}),
    (RecordKind.UNIT, {"size": 2}),
]


@pytest.mark.parametrize(("kind", "change"), MALFORMED)
def test_replay_refuses_what_cannot_be_played(
    records: Records, kind: RecordKind, change: dict[str, Any]
) -> None:
    at = first(records, kind)
    for column, value in change.items():
        records[column][at] = value
    result = played(records)
    assert result.outcome is ReplayOutcome.MALFORMED
    if kind is not RecordKind.UNIT:  # found where its configuration begins
        assert result.position == at


def config(records: Records, value: int, changed: int) -> Records:
    """Return the records with a value of the unit's configuration changed."""
    chosen = (records["kind"] == RecordKind.CONFIG) & (records["id"] == value)
    records["value"][chosen, 0] = changed
    return records


@pytest.mark.parametrize(
    ("value", "changed"),
    [(3, 256), (5, 1 << 16), (2, 1 << 32), (6, 1 << 23), (19, 300)],
    ids=["width", "granule", "window", "sets", "protected"],
)
def test_replay_refuses_a_configuration_that_does_not_fit(
    records: Records, value: int, changed: int
) -> None:
    result = played(config(records, value, changed))
    assert result.outcome is ReplayOutcome.MALFORMED
    assert result.position == first(records, RecordKind.CONFIG)


def test_replay_refuses_a_configuration_value_that_there_is_not(records: Records) -> None:
    records["id"][first(records, RecordKind.CONFIG)] = 999
    assert played(records).outcome is ReplayOutcome.MALFORMED


def test_replay_refuses_a_flag_that_is_none(records: Records) -> None:
    at = first(records, RecordKind.CONFIG)
    records["id"][at], records["value"][at, 0] = 13, 2
    assert played(records).outcome is ReplayOutcome.MALFORMED


def test_replay_of_a_unit_that_could_not_be_made(records: Records) -> None:
    """The values fit, the unit refuses them: it returns so, where the recording went on."""
    result = played(config(records, 5, 100))
    assert result.outcome is ReplayOutcome.DIVERGED
    assert result.got["kind"][0] == RecordKind.RETURN


def test_replay_of_a_port_that_is_gone_is_refused(records: Records) -> None:
    destroyed = first(records, RecordKind.PORT_DESTROY)
    again = records[first(records, RecordKind.PORT_REMOVE)]
    result = played(np.insert(records, destroyed + 1, again))
    assert (result.outcome, result.position) == (ReplayOutcome.MALFORMED, destroyed + 1)


def test_replay_reads_nothing_without_records() -> None:
    empty = np.empty(0, dtype=journal_of(lambda bench: None).dtype)
    result = play(CoreMachine(), empty)
    assert (result.outcome, result.position) == (ReplayOutcome.DIVERGED, 0)


def test_replay_wants_records_of_its_kind() -> None:
    with pytest.raises(ValueError, match="records"):
        play(CoreMachine(), np.zeros(3, dtype=np.uint64))


def test_replay_seeded_random_damage_is_survived(records: Records) -> None:
    """Whatever the file says: an outcome, and no other."""
    random = np.random.default_rng(7)
    for _ in range(300):
        damaged = records.copy()
        raw = damaged.view(np.uint8)
        for at in random.integers(0, len(raw), size=3):
            raw[at] ^= np.uint8(1 << random.integers(8))
        machine = machine_of(records)
        assert play(machine, damaged).outcome in set(ReplayOutcome)
