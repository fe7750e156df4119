"""A port's device-TLB: what goes through it, when it is filled and emptied."""

from __future__ import annotations

import pytest
from ats_bench import MEMORY, PAGE, TIMEOUT, ats_bench, ats_port, invalidate, translation
from core_bench import (
    DEVICE,
    OTHER,
    READ,
    RW,
    TE,
    WRITE,
    Bench,
    R,
    W,
    device_descriptor,
    iotlb_descriptor,
)

from iommu_emu.core import (
    AddressType,
    Answer,
    AtomicKind,
    CacheId,
    InvalidationState,
    MessageKind,
    Owed,
    PortRule,
    RequestFlag,
    StateError,
    Status,
    TableLevel,
    Verdict,
)
from iommu_emu.geometry import CacheGeometry

TRANSLATED = AddressType.TRANSLATED


def counts(bench: Bench) -> tuple[int, int]:
    """Lookups of the context cache and of the IOTLB: who asked the unit."""
    return bench.counter("ctxt_cache_lookup"), bench.counter("iotlb_lookup")


# ---- transfers ---------------------------------


def test_transfer_is_translated_once_then_hits() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    assert port.write(PAGE + 8, b"first").ok
    assert port.read(PAGE + 8, 5).data == b"first"
    assert bench.machine.read(MEMORY + 8, 5) == b"first"
    (entry,) = tlb.entries()
    assert (entry.cache, entry.address, entry.output) == (CacheId.DEVICE_TLB, PAGE, MEMORY)
    assert (entry.requester, entry.page_shift, entry.permissions) == (DEVICE, 12, RW)
    counters = tlb.counters()
    assert (counters["device_tlb_lookup"], counters["device_tlb_hit"]) == (2, 1)
    assert counters["translation_requests"] == 1


def test_transfer_of_several_pages_asks_for_each() -> None:
    bench = ats_bench()
    table = bench.attach(tt=1)
    for page in range(4):
        table.map(PAGE + (page << 12), MEMORY + (page << 12))
    port, tlb = ats_port(bench)
    data = bytes(range(256)) * 48
    assert port.write(PAGE + 0x800, data).ok
    assert bench.machine.read(MEMORY + 0x800, len(data)) == data
    assert tlb.counters()["translation_requests"] == 4


def test_transfer_of_a_large_page_asks_once() -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(0x20_0000, 0x40_0000, level=2)
    port, tlb = ats_port(bench)
    assert port.write(0x20_0000, bytes(0x4000)).ok
    assert tlb.counters()["translation_requests"] == 1


@pytest.mark.parametrize(
    ("bits", "access", "status"),
    [
        (R, WRITE, Status.NOT_TRANSLATED),
        (W, READ, Status.NOT_TRANSLATED),
        (0, READ, Status.NOT_TRANSLATED),
        (R, READ, Status.DONE),
        (W, WRITE, Status.DONE),
    ],
)
def test_transfer_without_permission_is_not_sent(bits: int, access: int, status: Status) -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(PAGE, MEMORY, bits)
    port, _ = ats_port(bench)
    completion = port.write(PAGE, b"x") if access == WRITE else port.read(PAGE, 1)
    assert (completion.status, completion.fault) == (status, 0)
    assert bench.records() == []


def test_transfer_asks_again_where_an_entry_lacks_the_permission() -> None:
    bench = ats_bench()
    table = bench.attach(tt=1)
    table.map(PAGE, MEMORY, R)
    port, tlb = ats_port(bench)
    assert port.read(PAGE, 1).ok
    table.map(PAGE, MEMORY, RW)
    bench.command(TE, on=False)  # the IOTLB would hide it
    bench.unit.reset()
    bench.enable()
    assert port.write(PAGE, b"x").ok
    assert tlb.entries()[0].permissions == RW


def test_transfer_whose_translation_is_refused_fails_as_that_did() -> None:
    bench = ats_bench()
    bench.attach(tt=0)
    port, tlb = ats_port(bench)
    completion = port.read(PAGE, 1)
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 0x0D)
    assert tlb.entries() == []


def test_transfer_after_the_context_refuses_fails_in_spite_of_the_entry() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    port.read(PAGE, 1)
    bench.attach(tt=0)
    invalidate(bench)
    bench.submit((1 | 1 << 4, 0))  # context cache, global
    completion = port.read(PAGE, 1)
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 0x0D)


def test_transfer_reports_the_page_that_failed() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    completion = port.read(PAGE, 0x1800)
    assert completion.details is not None
    assert (completion.status, completion.details.address) == (Status.NOT_TRANSLATED, PAGE + 0x1000)
    assert completion.details.done == 0x1000


def test_transfer_atomic_needs_both() -> None:
    bench = ats_bench()
    bench.machine.write(MEMORY, (40).to_bytes(8, "little"))
    port, _ = ats_port(bench)
    assert port.atomic(AtomicKind.FETCH_ADD, PAGE, 2).data == (40).to_bytes(8, "little")
    assert bench.peek(MEMORY) == 42


@pytest.mark.parametrize("known", [False, True])
def test_transfer_atomic_to_a_page_to_be_read_is_not_sent(known: bool) -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(PAGE, MEMORY, R)
    port, _ = ats_port(bench)
    if known:
        port.read(PAGE, 1)
    assert port.atomic(AtomicKind.FETCH_ADD, PAGE, 2).status is Status.NOT_TRANSLATED


def test_transfer_past_the_device_tlb_is_untranslated() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    assert port.transfer(READ, PAGE, 1, flags=RequestFlag.PAST_DEVICE_TLB).ok
    assert (tlb.entries(), tlb.counters()["device_tlb_lookup"]) == ([], 0)


def test_transfer_of_its_own_address_type_goes_straight() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    assert port.transfer(READ, MEMORY, 1, at=TRANSLATED).ok
    assert tlb.counters()["device_tlb_lookup"] == 0


def test_transfer_with_pasid_does_not_use_what_came_without() -> None:
    bench = ats_bench(pasid=True)
    port, _ = ats_port(bench)
    port.read(PAGE, 1)
    assert port.transfer(READ, PAGE, 1, pasid=5).fault == 0x31  # RTA.2
    (record,) = bench.records()
    assert record.at == AddressType.TRANSLATION_REQUEST


def test_transfer_with_ats_disabled_is_untranslated() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench, on=False)
    assert port.read(PAGE, 1).ok
    assert (tlb.entries(), tlb.counters()["translation_requests"]) == ([], 0)


def test_interrupt_message_is_untranslated() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    assert port.write(0xFEE0_0000, b"\x41\0\0\0").ok
    assert [message.kind for message in bench.messages()] == [MessageKind.INTERRUPT]
    assert tlb.counters()["device_tlb_lookup"] == 0


def test_data_for_the_interrupt_range_is_untranslated_too() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    completion = port.write(0xFEE0_0000, bytes(8))
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 0x29)
    assert port.read(0xFEE0_0000, 4).status is Status.NOT_TRANSLATED  # R=0
    assert len(tlb.entries()) == 1


def test_bar_is_reached_by_translated_requests() -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(PAGE, 0x8000_0000)
    bench.machine.map_bar(0x8000_0000, 0x1000, 7)
    port, _ = ats_port(bench)
    completion = port.read(PAGE + 4, 4)
    (message,) = bench.messages()
    assert (message.kind, message.address) == (MessageKind.BAR_READ, 0x8000_0004)
    bench.machine.answer(message.token, b"BAR!")
    port.poll()
    assert completion.data == b"BAR!"


def test_rules_of_the_fabric_meet_translation_requests() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    refused = frozenset({AddressType.TRANSLATION_REQUEST})
    port.set_rules([PortRule(Verdict.REFUSE, refused)])
    assert port.read(PAGE, 1).status is Status.UNSUPPORTED_REQUEST
    assert counts(bench) == (0, 0)


# ---- filling, emptying ---------------------------------


def test_translation_request_of_the_port_fills() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    assert port.translation_request(PAGE).ok
    assert [entry.address for entry in tlb.entries()] == [PAGE]
    tlb.drop()
    flags = RequestFlag.PAST_DEVICE_TLB
    assert port.transfer(READ, PAGE, 8, at=AddressType.TRANSLATION_REQUEST, flags=flags).ok
    assert tlb.entries() == []


@pytest.mark.parametrize("address", [PAGE + 8, PAGE + 0xFFD, PAGE + 0xFFF])
def test_translation_request_asks_for_the_page_of_its_address(address: int) -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    assert translation(port, address) == translation(port, PAGE)
    assert [entry.address for entry in tlb.entries()] == [PAGE]


@pytest.mark.parametrize("length", [0, 4, 7, 12, 16, 0x10000])
def test_translation_request_of_another_length_is_malformed(length: int) -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    with pytest.raises(ValueError, match="transfer of range"):
        port.transfer(READ, PAGE, length, at=AddressType.TRANSLATION_REQUEST)
    assert counts(bench) == (0, 0)


@pytest.mark.parametrize(
    ("first", "last", "left"), [(PAGE + 0xFFF, PAGE + 0xFFF, 0), (PAGE + 0x1000, 1 << 63, 1)]
)
def test_drop_takes_what_shares_a_byte(first: int, last: int, left: int) -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    port.read(PAGE, 1)
    tlb.drop(first, last)
    assert len(tlb.entries()) == left


def test_disabling_empties() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    port.read(PAGE, 1)
    tlb.enable(False)
    tlb.enable()
    assert tlb.entries() == []


def test_another_requester_id_empties() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    port.read(PAGE, 1)
    port.set_requester(OTHER)
    assert tlb.entries() == []


def test_full_set_evicts() -> None:
    bench = ats_bench()
    table = bench.attach(tt=1)
    port = bench.port()
    tlb = port.add_device_tlb(CacheGeometry(1, 2).parameters())
    tlb.enable()
    for page in range(3):
        table.map(page << 12, MEMORY + (page << 12))
        port.read(page << 12, 1)
    assert [entry.address for entry in tlb.entries()] == [0x2000, 0x1000]
    assert tlb.counters()["device_tlb_eviction"] == 1


def test_port_has_one_device_tlb() -> None:
    port, _ = ats_port(ats_bench())
    with pytest.raises(StateError, match="device-TLB"):
        port.add_device_tlb(CacheGeometry(1, 1).parameters())


@pytest.mark.parametrize(("name", "value"), [("sets", 3), ("ways", 0), ("replacement", 3)])
def test_geometry_is_checked(name: str, value: int) -> None:
    shape = CacheGeometry(4, 4).parameters() | {name: value}
    with pytest.raises(ValueError, match="device-TLB"):
        ats_bench().port().add_device_tlb(shape)


# ---- latencies ---------------------------------


def test_latency_of_a_miss_has_the_way_to_the_iommu_and_back() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    port.set_latency(100, 50)
    first = port.read(PAGE, 1)
    bench.machine.advance_to(299)
    port.poll()
    assert first.pending
    bench.machine.advance_to(300)  # 100 there, 150 for the translation, 50 to memory
    port.poll()
    assert first.ok
    second = port.read(PAGE, 1)
    bench.machine.advance_to(450)
    port.poll()
    assert second.ok


def test_latency_keeps_writes_in_order() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    port.set_latency(100, 50)
    port.write(PAGE, b"A")
    port.write(0xFEE0_0000, bytes(4))
    bench.machine.advance_to(299)
    assert bench.messages(MessageKind.INTERRUPT) == []
    bench.machine.advance_to(300)
    assert len(bench.messages(MessageKind.INTERRUPT)) == 1
    assert bench.machine.read(MEMORY, 1) == b"A"


def test_latency_of_a_translation_request() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    port.set_latency(100, 50)
    completion = port.translation_request(PAGE)
    bench.machine.advance_to(150)
    port.poll()
    assert completion.data == (MEMORY | RW).to_bytes(8, "little")
    assert len(tlb.entries()) == 1


# ---- stale use ---------------------------------


def watched(**arguments: object) -> Bench:
    bench = ats_bench(**arguments)
    bench.unit.watch(True)
    return bench


def test_stale_use_of_a_page_that_is_gone() -> None:
    bench = watched()
    table = bench.attach(tt=1)
    entry = table.map(PAGE, MEMORY)
    port, _ = ats_port(bench)
    port.read(PAGE + 4, 4)
    bench.poke(entry, 0)
    assert port.write(PAGE + 4, b"late").ok
    (use,), lost = bench.unit.stale_uses()
    assert (use.cache, use.level, use.owed) == (CacheId.DEVICE_TLB, 1, Owed.DEVICE_TLB_PAGE)
    assert (use.request.address, use.request.access) == (PAGE + 4, WRITE)
    assert (use.cached.address, use.fresh.permissions) == (MEMORY + 4, 0)
    assert (use.entry, use.before, use.after) == (entry, MEMORY | RW, 0)
    assert (use.invalidation, lost) == (InvalidationState.IDLE, 0)


@pytest.mark.parametrize("now", [MEMORY | R, 0x30_0000 | RW])
def test_stale_use_of_a_page_that_changed(now: int) -> None:
    bench = watched()
    entry = bench.attach(tt=1).map(PAGE, MEMORY)
    port, _ = ats_port(bench)
    port.write(PAGE, b"x")
    bench.poke(entry, now)
    port.write(PAGE, b"x")
    (use,), _ = bench.unit.stale_uses()
    assert (use.owed, use.after) == (Owed.DEVICE_TLB_PAGE, now)


def test_stale_use_of_a_domain_that_changed() -> None:
    bench = watched()
    port, _ = ats_port(bench)
    port.read(PAGE, 1)
    bench.attach(tt=1, domain=2).map(PAGE, 0x30_0000)
    bench.submit((1 | 1 << 4, 0), (2 | 1 << 4, 0))  # context cache and IOTLB, global
    port.read(PAGE, 1)
    (use,), _ = bench.unit.stale_uses()
    assert (use.cache, use.level) == (CacheId.DEVICE_TLB, TableLevel.CONTEXT)
    assert use.owed is Owed.DEVICE_TLB_ALL


def test_stale_use_during_an_invalidation_says_so() -> None:
    bench = watched()
    entry = bench.attach(tt=1).map(PAGE, MEMORY)
    port, _ = ats_port(bench, delay=1000)
    port.read(PAGE, 1)
    bench.poke(entry, 0)
    bench.submit((2 | 1 << 4, 0))
    invalidate(bench, PAGE)
    port.read(PAGE, 1)
    (use,), _ = bench.unit.stale_uses()
    assert use.invalidation is InvalidationState.IN_PROGRESS
    bench.machine.advance_to(1000)
    assert port.read(PAGE, 1).status is Status.NOT_TRANSLATED
    assert bench.unit.stale_uses() == ([], 0)


def test_stale_use_of_what_was_filled_before_the_watch() -> None:
    bench = ats_bench()
    entry = bench.attach(tt=1).map(PAGE, MEMORY)
    port, _ = ats_port(bench)
    port.read(PAGE, 1)
    bench.unit.watch(True)
    bench.poke(entry, 0)
    port.read(PAGE, 1)
    (use,), _ = bench.unit.stale_uses()
    assert (use.level, use.owed) == (TableLevel.UNKNOWN, Owed.DEVICE_TLB_ALL)


def test_no_stale_use_where_the_tables_still_say_so() -> None:
    bench = watched()
    port, _ = ats_port(bench)
    for _ in range(3):
        port.read(PAGE, 1)
        port.write(0xFEE0_0000, bytes(4))
    assert bench.unit.stale_uses() == ([], 0)


# ---- removal ---------------------------------


def test_removed_function_does_not_answer_any_more() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench, delay=100)
    invalidate(bench, PAGE)
    port.remove()
    bench.machine.advance_to(TIMEOUT // 2)
    assert tlb.counters()["invalidation_answers"] == 0
    assert port.complete_invalidation(1) is Status.REMOVED


@pytest.mark.parametrize("known", [True, False])
def test_removed_function_leaves_only_what_was_translated_on_its_way(known: bool) -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    if known:
        port.read(PAGE, 1)
    port.set_latency(100, 50)
    port.write(PAGE, b"late")
    port.remove()
    bench.machine.advance_to(1000)
    assert bench.machine.read(MEMORY, 4) == (b"late" if known else bytes(4))


def test_answer_that_waited_may_free_what_is_behind_it() -> None:
    bench = ats_bench(messages=64)
    bench.attach(tt=1).map(PAGE, 0x8000_0000)
    bench.attach(OTHER, tt=1, domain=2).map(PAGE, 0x8000_0000)
    bench.machine.map_bar(0x8000_0000, 0x1000, 7)
    gone = bench.port(OTHER)
    port, _ = ats_port(bench)
    untranslated = bench.port(segment=1)
    for _ in range(64):
        untranslated.write(0x8000_0000, b"full")
    for each in (port, gone):
        each.write(PAGE, b"waits for room")
    gone.destroy()
    bench.submit(device_descriptor(DEVICE), iotlb_descriptor(1, dw=1))
    assert bench.read("IQH") == 16
    assert len(bench.machine.take_messages(64)) == 64
    assert len(bench.messages(MessageKind.BAR_WRITE)) == 2
    assert (bench.read("IQH"), bench.read("FSTS")) == (32, 0)


def test_many_functions_come_and_go() -> None:
    bench = ats_bench()
    for _ in range(100):
        port, _ = ats_port(bench, Answer.AFTER, delay=10)
        port.read(PAGE, 1)
        invalidate(bench, PAGE)
        port.destroy()
    bench.machine.advance_to(TIMEOUT)
    assert port.complete_invalidation(1) is Status.REMOVED
