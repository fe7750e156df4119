"""Transactions in flight: two stages, ordering, drains, backpressure, removal (VT-d 2.4, 7.7)."""

from __future__ import annotations

import pytest
from core_bench import (
    DEVICE,
    DOMAIN,
    GLOBAL,
    IRE,
    OTHER,
    QIE,
    ROOT_TABLE,
    SELECTIVE,
    SIRTP,
    TE,
    Bench,
    ByRegister,
    interrupt_descriptor,
    iotlb_descriptor,
    wait_descriptor,
)

from iommu_emu.core import (
    Access,
    AtomicKind,
    CacheId,
    Completion,
    InvalidationState,
    Port,
    Status,
)
from iommu_emu.timing import Timing

OLD, NEW = 0x20_0000, 0x40_0000
FABRIC, MEMORY = 100, 50


def prepared(**arguments: object) -> Bench:
    bench = Bench(**arguments)
    for requester, domain in ((DEVICE, 1), (OTHER, 2)):
        table = bench.attach(requester, domain=domain)
        for page in range(16):
            table.map(page << 12, OLD + (page << 12))
    bench.enable()
    return bench


@pytest.fixture
def unit() -> Bench:
    """Pages 0 to 15 of domain 1 (DEVICE) and 2 (OTHER) lead to OLD."""
    return prepared()


def slow(bench: Bench, requester: int = DEVICE, fabric: int = FABRIC, memory: int = MEMORY) -> Port:
    port = bench.port(requester)
    port.set_latency(fabric, memory)
    return port


def at(bench: Bench, page: int = 0, base: int = OLD) -> int:
    return bench.machine.read(base + (page << 12), 1)[0]


def remap(bench: Bench, page: int = 0) -> None:
    """Move a page of domain 1 from OLD to NEW, without any invalidation."""
    table = bench.peek(bench.context_entry()) & ~0xFFF
    for _ in range(3):
        table = bench.peek(table) & ~0xFFF
    bench.poke(table + 8 * page, NEW + (page << 12) | 3)


# ---- two stages -----------------------------------------------------------------------------


def test_in_flight_passes_both_stages(unit: Bench) -> None:
    port = slow(unit)
    completion = port.write(0, b"\x01")
    assert (completion.pending, port.in_flight, at(unit)) == (True, (1, 0), 0)
    unit.machine.advance_to(FABRIC)
    assert (port.in_flight, at(unit)) == ((0, 1), 0)
    unit.machine.advance_to(FABRIC + MEMORY)
    assert (port.in_flight, at(unit)) == ((0, 0), 1)
    assert port.poll() == 1
    assert completion.details is not None
    assert (completion.status, completion.details.time) == (Status.DONE, 150)


def test_in_flight_untranslated_meets_the_tables_at_arrival(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    remap(unit)
    unit.machine.advance_to(1000)
    assert (at(unit), at(unit, base=NEW)) == (0, 1)


def test_in_flight_translated_lands_where_it_was_translated_to(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.machine.advance_to(FABRIC)
    remap(unit)
    ByRegister(unit).iotlb(GLOBAL)
    unit.machine.advance_to(1000)
    assert (at(unit), at(unit, base=NEW)) == (1, 0)


def test_in_flight_fault_is_reported_when_it_completes(unit: Bench) -> None:
    port = slow(unit)
    completion = port.write(0x2_0000, b"\x01")
    assert unit.records() == []
    unit.machine.advance_to(FABRIC)
    assert len(unit.records()) == 1
    assert port.poll() == 0
    unit.machine.advance_to(FABRIC + MEMORY)
    assert port.poll() == 1
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 5)


@pytest.mark.parametrize(("fabric", "memory"), [(0, 50), (100, 0)])
def test_in_flight_one_stage_may_be_free(unit: Bench, fabric: int, memory: int) -> None:
    port = slow(unit, DEVICE, fabric, memory)
    port.write(0, b"\x01")
    assert port.in_flight == ((1, 0) if fabric else (0, 1))
    unit.machine.advance_to(fabric + memory - 1)
    assert at(unit) == 0
    unit.machine.advance_to(fabric + memory)
    assert at(unit) == 1


@pytest.mark.parametrize("length", [1, 4096, 3 * 4096])
def test_in_flight_read_brings_its_data(unit: Bench, length: int) -> None:
    data = bytes(n * 7 & 0xFF for n in range(length))
    unit.machine.write(OLD, data)
    port = slow(unit)
    completion = port.read(0, length)
    assert completion.data == b""
    unit.machine.advance_to(1000)
    port.poll()
    assert (completion.status, completion.data) == (Status.DONE, data)


def test_in_flight_read_samples_memory_when_it_gets_there(unit: Bench) -> None:
    port = slow(unit)
    completion = port.read(0, 1)
    unit.machine.advance_to(FABRIC + MEMORY - 1)
    unit.machine.write(OLD, b"\x09")
    unit.machine.advance_to(FABRIC + MEMORY)
    port.poll()
    assert completion.data == b"\x09"


def test_in_flight_atomic(unit: Bench) -> None:
    unit.poke(OLD, 41)
    port = slow(unit)
    completion = port.atomic(AtomicKind.FETCH_ADD, 0, 1)
    assert unit.peek(OLD) == 41
    unit.machine.advance_to(1000)
    port.poll()
    assert completion.data == (41).to_bytes(8, "little")
    assert unit.peek(OLD) == 42


def test_in_flight_compare_swap_keeps_both_operands(unit: Bench) -> None:
    unit.poke(OLD, 41)
    port = slow(unit)
    port.atomic(AtomicKind.COMPARE_SWAP, 0, 99, 41)
    unit.machine.advance_to(1000)
    assert unit.peek(OLD) == 99


def test_in_flight_transfer_reports_its_first_failure(unit: Bench) -> None:
    port = slow(unit)
    completion = port.write(0xF000, bytes(3 * 4096))
    unit.machine.advance_to(1000)
    port.poll()
    found = completion.details
    assert found is not None
    assert (found.status, found.address, found.done) == (Status.UNSUPPORTED_REQUEST, 0x1_0000, 4096)
    assert len(unit.records()) == 2  # each page is a request of its own


def test_in_flight_callback_is_called_once(unit: Bench) -> None:
    seen: list[Completion] = []
    port = slow(unit)
    completion = port.write(0, b"\x01", on_done=seen.append)
    unit.machine.advance_to(1000)
    port.poll()
    port.poll()
    assert seen == [completion]


# ---- ordering -------------------------------------------------------------------------------


def test_in_flight_writes_of_one_requester_stay_in_order(unit: Bench) -> None:
    port = slow(unit)
    for value in range(1, 6):
        port.write(0, bytes([value]))
    unit.machine.advance_to(1000)
    assert at(unit) == 5


@pytest.mark.parametrize(("fabric", "memory"), [(0, 0), (10, 0), (0, 10)])
def test_in_flight_order_holds_when_the_latency_drops(
    unit: Bench, fabric: int, memory: int
) -> None:
    """The second write overtakes the first neither before the unit nor behind it."""
    port = slow(unit)
    port.write(0, b"\x01")
    port.set_latency(fabric, memory)
    port.write(0, b"\x02")
    unit.machine.advance_to(FABRIC - 1)
    assert at(unit) == 0
    unit.machine.advance_to(1000)
    assert at(unit) == 2


@pytest.mark.parametrize(("fabric", "memory"), [(0, 0), (10, 0), (0, 10)])
def test_in_flight_order_holds_behind_the_unit(unit: Bench, fabric: int, memory: int) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.machine.advance_to(FABRIC)
    port.set_latency(fabric, memory)
    port.write(0, b"\x02")
    unit.machine.advance_to(FABRIC + MEMORY - 1)
    assert at(unit) == 0
    unit.machine.advance_to(1000)
    assert at(unit) == 2


def test_in_flight_read_pushes_writes(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x07")
    port.set_latency(0, 0)
    completion = port.read(0, 1)
    unit.machine.advance_to(1000)
    port.poll()
    assert completion.data == b"\x07"


def test_in_flight_interrupt_does_not_pass_writes(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.machine.advance_to(FABRIC)
    port.set_latency(0, 0)
    port.write(0xFEE0_0000, bytes(4))
    unit.machine.advance_to(FABRIC + MEMORY - 1)
    assert unit.messages() == []
    unit.machine.advance_to(FABRIC + MEMORY)
    assert at(unit) == 1
    assert len(unit.messages()) == 1


def test_in_flight_each_write_takes_its_own_time(unit: Bench) -> None:
    port = slow(unit)
    for page in range(3):
        port.write(page << 12, b"\x01")
        unit.machine.advance_to(10 * (page + 1))
    landed = []
    for time in range(FABRIC + MEMORY - 1, FABRIC + MEMORY + 31):
        unit.machine.advance_to(time)
        landed.append(sum(at(unit, page) for page in range(3)))
    assert landed == [0] + [1] * 10 + [2] * 10 + [3] * 11


def test_in_flight_two_requesters_are_independent(unit: Bench) -> None:
    slow(unit).write(0, b"\x01")
    slow(unit, OTHER, 10, 10).write(0x1000, b"\x02")
    unit.machine.advance_to(20)
    assert (at(unit, 0), at(unit, 1)) == (0, 2)


def test_in_flight_requester_is_that_of_sending(unit: Bench) -> None:
    port = slow(unit)
    port.write(0x2_0000, b"\x01")
    port.set_requester(OTHER)
    unit.machine.advance_to(1000)
    assert unit.record(0).requester == DEVICE


# ---- drains ---------------------------------------------------------------------------------


def translated_writes(bench: Bench, *pages: int, requester: int = DEVICE) -> Port:
    """Send one write to each page; all are past the unit, none is in memory."""
    port = slow(bench, requester, 0, MEMORY)
    for page in pages:
        port.write(page << 12, b"\x01")
    assert port.in_flight == (0, len(pages))
    return port


@pytest.mark.parametrize("dw", [0, 1])
@pytest.mark.parametrize("dwd", [True, False])
@pytest.mark.parametrize("major", [1, 2])
def test_in_flight_write_drain(way: type[ByRegister], major: int, dwd: bool, dw: int) -> None:
    """As asked and supported; always from version 2 on, where DW is ignored."""
    bench = prepared(major=major, drain_writes=dwd)
    port = translated_writes(bench, 0)
    way(bench).iotlb(GLOBAL, dw=dw)
    drained = bool(major >= 2 or (dwd and dw))
    assert at(bench) == int(drained)
    assert port.in_flight == (0, int(not drained))


@pytest.mark.parametrize("dr", [0, 1])
@pytest.mark.parametrize("drd", [True, False])
@pytest.mark.parametrize("major", [1, 2])
def test_in_flight_read_drain(way: type[ByRegister], major: int, drd: bool, dr: int) -> None:
    bench = prepared(major=major, drain_reads=drd)
    port = slow(bench, DEVICE, 0, MEMORY)
    port.read(0, 4)
    way(bench).iotlb(GLOBAL, dr=dr)
    assert port.in_flight == (0, 0 if major >= 2 or (drd and dr) else 1)


@pytest.mark.parametrize(("dw", "dr"), [(1, 0), (0, 1)])
def test_in_flight_drain_is_of_the_kind_asked_for(unit: Bench, dw: int, dr: int) -> None:
    writer = translated_writes(unit, 0)
    reader = slow(unit, DEVICE, 0, MEMORY)
    reader.read(0, 4)
    ByRegister(unit).iotlb(GLOBAL, dw=dw, dr=dr)
    assert (writer.in_flight[1], reader.in_flight[1]) == (1 - dw, 1 - dr)


def test_in_flight_atomics_drain_with_writes(unit: Bench) -> None:
    port = slow(unit, DEVICE, 0, MEMORY)
    port.atomic(AtomicKind.FETCH_ADD, 0, 1)
    ByRegister(unit).iotlb(GLOBAL, dw=1)
    assert port.in_flight == (0, 0)


@pytest.mark.parametrize(
    ("g", "did", "address", "am", "drained"),
    [
        (GLOBAL, 0, 0, 0, {(DEVICE, 2), (OTHER, 2)}),
        (DOMAIN, 1, 0, 0, {(DEVICE, 2)}),
        (DOMAIN, 2, 0, 0, {(OTHER, 2)}),
        (DOMAIN, 3, 0, 0, set()),
        (SELECTIVE, 1, 0x2000, 0, {(DEVICE, 2)}),
        (SELECTIVE, 1, 0x1000, 0, set()),
        (SELECTIVE, 1, 0x3000, 0, set()),
        (SELECTIVE, 1, 0x3000, 1, {(DEVICE, 2)}),
        (SELECTIVE, 2, 0x2000, 0, {(OTHER, 2)}),
    ],
)
def test_in_flight_drain_scope(
    unit: Bench, way: type[ByRegister], g: int, did: int, address: int, am: int, drained: set[int]
) -> None:
    ports = {(requester, 2): slow(unit, requester, 0, MEMORY) for requester in (DEVICE, OTHER)}
    for port in ports.values():
        port.write(0x2000, b"\x01")
    way(unit).iotlb(g, did, address, am, dw=1)
    assert {key for key, port in ports.items() if port.in_flight == (0, 0)} == drained


@pytest.mark.parametrize(("length", "drained"), [(4, False), (8, True)])
def test_in_flight_drain_looks_at_the_range_of_a_request(
    unit: Bench, length: int, drained: bool
) -> None:
    """A transfer over two pages is two requests, each of one page."""
    port = slow(unit, DEVICE, 0, MEMORY)
    port.write(0x1FFC, bytes(length))
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x2000, dw=1)
    assert (port.in_flight == (0, 0)) is drained


def test_in_flight_drain_pushes_what_came_before(unit: Bench) -> None:
    """A requester's transactions stay in order: the first lands with the second."""
    port = translated_writes(unit, 0, 1, 2)
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x1000, dw=1)
    assert [at(unit, page) for page in range(3)] == [1, 1, 0]
    assert port.in_flight == (0, 1)
    unit.machine.advance_to(1000)
    assert at(unit, 2) == 1


def test_in_flight_drained_transactions_land_once(unit: Bench) -> None:
    port = translated_writes(unit, 0)
    ByRegister(unit).iotlb(GLOBAL, dw=1)
    unit.machine.write(OLD, b"\x09")
    unit.machine.advance_to(1000)
    assert at(unit) == 9
    assert port.poll() == 1


def test_in_flight_drain_does_not_reach_the_fabric(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    ByRegister(unit).iotlb(GLOBAL, dw=1, dr=1)
    assert port.in_flight == (1, 0)


def test_in_flight_drain_is_over_before_the_wait_completes(unit: Bench) -> None:
    translated_writes(unit, 0)
    unit.enable_queue()
    unit.submit(
        iotlb_descriptor(DOMAIN, 1, dw=1), wait_descriptor(write=1, address=0x2_0000, data=1)
    )
    assert (at(unit), unit.peek(0x2_0000)) == (1, 1)


def test_in_flight_drain_comes_with_the_effect() -> None:
    bench = prepared(timing=Timing(invalidation=10))
    translated_writes(bench, 0)
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1))
    bench.machine.advance_to(9)
    assert at(bench) == 0
    bench.machine.advance_to(10)
    assert at(bench) == 1


@pytest.mark.parametrize("on", [True, False])
def test_in_flight_te_drains_either_way(on: bool) -> None:
    bench = prepared()
    bench.command(TE, not on)
    writer = slow(bench, DEVICE, 0, MEMORY)
    writer.write(OLD if on else 0, b"\x01")
    reader = slow(bench, OTHER, 0, MEMORY)
    reader.read(OLD if on else 0, 4)
    bench.command(TE, on)
    assert at(bench) == 1
    assert (writer.in_flight, reader.in_flight) == ((0, 0), (0, 0))


def test_in_flight_te_does_not_reach_the_fabric(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.command(TE, on=False)
    assert port.in_flight == (1, 0)
    unit.machine.advance_to(1000)
    assert unit.machine.read(0, 1) == b"\x01"  # untranslated by now


@pytest.mark.parametrize("bit", [QIE])
def test_in_flight_other_commands_drain_nothing(unit: Bench, bit: int) -> None:
    port = translated_writes(unit, 0)
    unit.command(bit)
    unit.set_root(ROOT_TABLE)
    ByRegister(unit).context(GLOBAL)
    assert port.in_flight == (0, 1)


def test_in_flight_drain_is_of_one_unit(unit: Bench) -> None:
    config = unit.config["unit"] | {"base": 0x1_0000_0000}
    second = unit.machine.create_vtd(unit.config | {"unit": config})
    unit.machine.route(0, OTHER, OTHER, second)
    mine = translated_writes(unit, 0)
    other = slow(unit, OTHER, 0, MEMORY)
    other.write(OLD + 0x1000, b"\x01")
    ByRegister(unit).iotlb(GLOBAL, dw=1)
    assert (mine.in_flight, other.in_flight) == ((0, 0), (0, 1))


def interrupting() -> Bench:
    bench = prepared(interrupt_remapping=True)
    bench.poke(0x4_0000, 0x31_0001, 0)
    bench.write("IRTA", 0x4_0000)
    bench.command(SIRTP)
    return bench


def test_in_flight_ire_drains_interrupts() -> None:
    bench = interrupting()
    port = slow(bench, DEVICE, 0, MEMORY)
    port.write(0xFEE0_1000, bytes(4))
    bench.command(IRE)
    assert port.in_flight == (0, 0)
    assert [m.address for m in bench.messages()] == [0xFEE0_1000]


@pytest.mark.parametrize("g", [0, 1])
def test_in_flight_interrupt_entry_invalidation_drains_interrupts(g: int) -> None:
    bench = interrupting()
    bench.command(IRE)
    bench.enable_queue()
    port = slow(bench, DEVICE, 0, MEMORY)
    port.write(0xFEE0_0010, bytes(4))
    bench.submit(interrupt_descriptor(g), wait_descriptor(write=1, address=0x2_0000, data=1))
    assert bench.peek(0x2_0000) == 1
    assert len(bench.messages()) == 1


# ---- drains that have to wait for room in the outbox ------------------------------------------


def held_back(**arguments: object) -> tuple[Bench, Port]:
    """The outbox is full: an interrupt and a write behind it are past the unit, and stuck."""
    bench = prepared(messages=64, **arguments)
    filler = bench.port(OTHER)
    for _ in range(64):
        assert filler.write(0xFEE0_0000, bytes(4)).ok
    port = bench.port()
    port.write(0xFEE0_0000, bytes(4))
    port.write(0, b"\x01")
    assert (port.in_flight, at(bench)) == ((0, 2), 0)
    return bench, port


def test_in_flight_register_drain_waits_for_the_outbox() -> None:
    bench, port = held_back()
    bench.translate(0x1000)
    ByRegister(bench).iotlb(DOMAIN, 1, dw=1)
    assert bench.read("IOTLB") >> 63 == 1
    assert len(bench.unit.entries(CacheId.IOTLB)) == 2  # nothing has happened yet
    assert not bench.unit.step()
    bench.messages()
    assert bench.read("IOTLB") >> 63 == 0
    assert (port.in_flight, at(bench)) == ((0, 0), 1)
    assert bench.unit.entries(CacheId.IOTLB) == []


def test_in_flight_queued_drain_waits_for_the_outbox() -> None:
    bench, _ = held_back()
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1), wait_descriptor(write=1, address=0x2_0000, data=1))
    assert (bench.read("IQH"), bench.peek(0x2_0000)) == (0, 0)
    assert bench.unit.invalidation_state is InvalidationState.IN_PROGRESS
    bench.messages()
    assert (bench.read("IQH"), bench.peek(0x2_0000), at(bench)) == (32, 1, 1)


def test_in_flight_queued_drain_of_another_domain_does_not_wait() -> None:
    bench, port = held_back()
    bench.enable_queue()
    bench.submit(iotlb_descriptor(DOMAIN, 2, dw=1))
    assert bench.read("IQH") == 16
    assert port.in_flight == (0, 2)


def test_in_flight_timed_drain_goes_on_when_there_is_room() -> None:
    bench, _ = held_back(timing=Timing(invalidation=100))
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1), iotlb_descriptor(GLOBAL))
    bench.machine.advance_to(1000)
    assert bench.read("IQH") == 0
    bench.messages()
    assert bench.read("IQH") == 16
    bench.machine.advance_to(1099)
    assert bench.read("IQH") == 16
    bench.machine.advance_to(1100)
    assert bench.read("IQH") == 32


def test_in_flight_drain_that_waits_is_forgotten_by_reset() -> None:
    bench, _ = held_back(timing=Timing(invalidation=100))
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1))
    bench.machine.advance_to(100)
    bench.unit.reset()
    bench.messages()
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL))
    bench.machine.advance_to(199)
    assert bench.read("IQH") == 0
    bench.machine.advance_to(200)
    assert bench.read("IQH") == 16


def test_in_flight_te_waits_for_its_drain() -> None:
    bench, _ = held_back()
    bench.command(TE, on=False)
    assert bench.status(TE)
    bench.messages()
    assert not bench.status(TE)
    assert at(bench) == 1


def test_in_flight_ire_waits_for_its_drain() -> None:
    bench, _ = held_back(interrupt_remapping=True)
    bench.command(IRE)
    assert not bench.status(IRE)
    bench.messages()
    assert bench.status(IRE)


def test_in_flight_command_that_waits_is_forgotten_by_reset() -> None:
    bench, _ = held_back(interrupt_remapping=True)
    bench.command(IRE)
    bench.unit.reset()
    bench.messages()
    assert bench.read("GSTS") == 0


def test_in_flight_interrupt_entry_invalidation_waits_for_its_drain() -> None:
    bench, _ = held_back(interrupt_remapping=True)
    bench.enable_queue()
    bench.submit(interrupt_descriptor())
    assert bench.read("IQH") == 0
    bench.messages()
    assert bench.read("IQH") == 16


# ---- backpressure ---------------------------------------------------------------------------


def test_in_flight_pool_is_finite() -> None:
    bench = prepared(transactions=4)
    port = slow(bench)
    for _ in range(4):
        assert port.write(0, b"\x01").pending
    assert port.write(0, b"\x02").status is Status.BUSY
    assert slow(bench, OTHER).write(0, b"\x02").status is Status.BUSY
    bench.machine.advance_to(1000)
    assert at(bench) == 1
    port.poll()
    assert port.write(0, b"\x03").pending


def test_in_flight_untaken_completions_hold_their_transactions() -> None:
    bench = prepared(transactions=1)
    port = slow(bench)
    port.write(0, b"\x01")
    bench.machine.advance_to(1000)
    assert port.write(0, b"\x02").status is Status.BUSY
    assert port.poll() == 1
    assert port.write(0, b"\x02").pending


def test_in_flight_posted_writes_free_themselves() -> None:
    bench = prepared(transactions=1)
    port = slow(bench)
    for value in (1, 2, 3):
        assert port.transfer(Access.WRITE, 0, bytes([value]), posted=True).ok
        bench.machine.advance_to(bench.machine.now + 1000)
        assert at(bench) == value
    assert port.poll() == 0


@pytest.mark.parametrize(("pages", "status"), [(3, Status.PENDING), (4, Status.BUSY)])
def test_in_flight_transfer_is_sent_whole_or_not_at_all(pages: int, status: Status) -> None:
    bench = prepared(transactions=4)
    slow(bench).write(0xF000, b"\xff")
    port = slow(bench)
    assert port.write(0, b"\x01" * 4096 * pages).status is status
    assert port.in_flight[0] == (3 if status is Status.PENDING else 0)
    bench.machine.advance_to(1000)
    assert at(bench) == (1 if status is Status.PENDING else 0)


def test_in_flight_transfer_that_never_fits_is_refused() -> None:
    bench = prepared(transactions=2)
    with pytest.raises(ValueError, match="0x0"):
        slow(bench).write(0, bytes(3 * 4096))


def test_in_flight_unaligned_transfer_needs_one_more() -> None:
    bench = prepared(transactions=3)
    slow(bench).write(0, b"\x01")
    assert slow(bench).write(0xFFF, bytes(4098)).status is Status.BUSY
    assert slow(bench).write(0xFFF, bytes(4097)).pending


def test_in_flight_every_transaction_returns_to_the_pool() -> None:
    bench = prepared(transactions=8)
    port = slow(bench)
    for round_ in range(20):
        completion = port.write(0, bytes(4096 * 8))
        assert completion.pending
        bench.machine.advance_to(bench.machine.now + 1000)
        assert port.poll() == 1
        assert port.read(0x2_0000 if round_ % 2 else 0, 4).pending
        bench.machine.advance_to(bench.machine.now + 1000)
        assert port.poll() == 1


# ---- removal (pci 8) ------------------------------------------------------------------------


def test_in_flight_at_removal_still_arrives(unit: Bench) -> None:
    port = slow(unit)
    seen: list[Completion] = []
    completion = port.write(0, b"\x01", on_done=seen.append)
    port.remove()
    assert completion.status is Status.REMOVED
    remap(unit)
    unit.machine.advance_to(1000)
    assert (at(unit), at(unit, base=NEW)) == (0, 1)
    assert seen == []


def test_in_flight_at_removal_still_faults(unit: Bench) -> None:
    port = slow(unit)
    port.write(0x2_0000, b"\x01")
    port.remove()
    unit.machine.advance_to(1000)
    assert unit.record(0).code == 5


@pytest.mark.parametrize("destroy", [False, True])
@pytest.mark.parametrize("moment", [0, FABRIC, FABRIC + MEMORY])
def test_in_flight_removal_gives_everything_back(moment: int, destroy: bool) -> None:
    bench = prepared(transactions=4)
    port = slow(bench)
    port.write(0, bytes(4 * 4096))
    bench.machine.advance_to(moment)
    (port.destroy if destroy else port.remove)()
    bench.machine.advance_to(1000)
    again = slow(bench)
    assert again.write(0, bytes(4 * 4096)).pending


def test_in_flight_removal_frees_nothing_twice() -> None:
    bench = prepared(transactions=2)
    gone = slow(bench)
    gone.write(0, b"\x01")
    bench.machine.advance_to(1000)
    assert gone.poll() == 1
    gone.remove()
    assert slow(bench).write(0, b"\x02" * 8192).pending
    assert slow(bench).write(0xF000, b"\x03").status is Status.BUSY


def test_in_flight_removal_leaves_other_ports_alone(unit: Bench) -> None:
    first, second = slow(unit), slow(unit, OTHER)
    first.write(0, b"\x01")
    completion = second.write(0x1000, b"\x02")
    first.destroy()
    unit.machine.advance_to(1000)
    assert second.poll() == 1
    assert completion.ok
    assert (at(unit, 0), at(unit, 1)) == (1, 2)


def test_in_flight_bar_read_of_a_removed_port_may_be_answered(unit: Bench) -> None:
    unit.command(TE, on=False)
    unit.machine.map_bar(0x1000_0000, 4096, 1)
    port = unit.port()
    port.read(0x1000_0000, 4)
    (message,) = unit.messages()
    port.destroy()
    unit.machine.answer(message.token, b"late")
    with pytest.raises(ValueError, match="token"):
        unit.machine.answer(message.token, b"late")
