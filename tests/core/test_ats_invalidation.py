"""Device-TLB invalidations of VT-d: descriptor, ITags, waits, time-outs (VT-d 6.4, 7)."""

from __future__ import annotations

import pytest
from ats_bench import (
    EVERYTHING,
    MEMORY,
    PAGE,
    STATUS,
    TIMEOUT,
    ats_bench,
    ats_port,
    complete,
    events,
    invalidate,
)
from core_bench import (
    DEVICE,
    DOMAIN,
    GLOBAL,
    ICE,
    IQE,
    ITE,
    OTHER,
    SELECTIVE,
    SMALL,
    TE,
    Bench,
    bits,
    context_descriptor,
    device_descriptor,
    iotlb_descriptor,
    wait_descriptor,
)

from iommu_emu.core import Answer, CacheId, InvalidationState, MessageKind, Status
from iommu_emu.timing import MANUAL, Timing

# ---- descriptor (7.2) ---------------------------------


@pytest.mark.parametrize("bit", bits(*range(4, 9), *range(12, 16), (31, 21), (63, 48), (75, 65)))
def test_descriptor_reserved_bits_are_an_error(bit: int) -> None:
    bench = ats_bench()
    low, high = device_descriptor(DEVICE)
    bench.submit((low | (1 << bit) % (1 << 64), high | 1 << bit >> 64))
    assert bench.queue_error == 4
    assert bench.read("IQH") == 0


def test_descriptor_needs_device_tlbs() -> None:
    bench = ats_bench(device_tlb=False)
    bench.submit(device_descriptor(DEVICE))
    assert bench.queue_error == 3


@pytest.mark.parametrize(
    ("address", "size", "dropped"),
    [
        (0x5000, 0, {0x5000}),
        (0x5000, 1, {0x4000, 0x5000, 0x6000, 0x7000}),  # bit 12 is 1, bit 13 is 0: 16 KiB
        (0x4000, 1, {0x4000, 0x5000}),  # bit 12 is 0: 8 KiB
        (0x7000, 1, set(range(0, 0x10000, 0x1000))),  # bit 15 is the lowest 0: 64 KiB
        (EVERYTHING, 1, set(range(0, 0x12000, 0x1000))),
        (EVERYTHING | 1 << 63, 1, set(range(0, 0x12000, 0x1000))),
        (EVERYTHING, 0, set()),
    ],
)
def test_descriptor_drops_its_range_and_nothing_else(
    address: int, size: int, dropped: set[int]
) -> None:
    bench = ats_bench()
    table = bench.attach(tt=1)
    pages = set(range(0, 0x12000, 0x1000))
    for page in pages:
        table.map(page, MEMORY + page)
    port, tlb = ats_port(bench)
    for page in pages:
        port.read(page, 1)
    invalidate(bench, address, size)
    assert {entry.address for entry in tlb.entries()} == pages - dropped


def test_descriptor_drops_a_large_page_that_overlaps() -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(0x20_0000, 0x40_0000, level=2)
    port, tlb = ats_port(bench)
    port.read(0x20_0000, 1)
    invalidate(bench, 0x3F_F000)
    assert tlb.entries() == []


def test_descriptor_leaves_the_units_caches_and_other_functions_alone() -> None:
    bench = ats_bench()
    bench.attach(OTHER, domain=2, tt=1).map(PAGE, MEMORY)
    port, tlb = ats_port(bench)
    other, other_tlb = ats_port(bench, requester=OTHER)
    port.read(PAGE, 1)
    other.read(PAGE, 1)
    invalidate(bench, EVERYTHING, 1)
    assert (len(tlb.entries()), len(other_tlb.entries())) == (0, 1)
    assert len(bench.unit.entries(CacheId.IOTLB)) == 2


@pytest.mark.parametrize(
    "descriptor",
    [
        iotlb_descriptor(GLOBAL),
        iotlb_descriptor(DOMAIN, 1),
        iotlb_descriptor(SELECTIVE, 1, PAGE),
        context_descriptor(GLOBAL),
        context_descriptor(SELECTIVE, 1, DEVICE),
    ],
)
def test_other_descriptors_leave_device_tlbs_alone(descriptor: tuple[int, int]) -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench)
    port.read(PAGE, 1)
    bench.submit(descriptor, wait_descriptor())
    assert [entry.address for entry in tlb.entries()] == [PAGE]


def test_descriptor_asks_no_function_that_the_unit_does_not_serve() -> None:
    bench = ats_bench()
    tlb = bench.port(segment=1).add_device_tlb(SMALL.parameters())
    invalidate(bench)
    assert tlb.counters()["invalidation_requests"] == 0
    bench.machine.advance_to(TIMEOUT)
    assert bench.read("FSTS") & ITE


# ---- answers and waits (6.4, 7.5) ---------------------------------


@pytest.mark.parametrize("on", [True, False])
def test_wait_is_complete_at_once_when_the_function_answers_at_once(on: bool) -> None:
    bench = ats_bench()
    _, tlb = ats_port(bench, on=on)  # a function whose ATS is off answers as well (pci 3.1)
    invalidate(bench, PAGE)
    assert complete(bench)
    assert (bench.read("IQH"), bench.read("FSTS")) == (32, 0)
    assert tlb.counters()["invalidation_answers"] == 1


def test_wait_is_pending_until_the_function_answers() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench, delay=1000)
    port.read(PAGE, 1)
    invalidate(bench, PAGE)
    bench.machine.advance_to(999)
    assert not complete(bench)
    assert bench.unit.invalidation_state is InvalidationState.IN_PROGRESS
    assert len(tlb.entries()) == 1  # used until then
    bench.machine.advance_to(1000)
    assert complete(bench)
    assert bench.unit.invalidation_state is InvalidationState.IDLE
    assert tlb.entries() == []


def test_wait_holds_for_every_function() -> None:
    bench = ats_bench()
    ats_port(bench, delay=1000)
    ats_port(bench, delay=3000, requester=OTHER)
    invalidate(bench, PAGE, sid=OTHER)
    bench.submit(device_descriptor(DEVICE))
    bench.machine.advance_to(2999)
    assert not complete(bench)
    bench.machine.advance_to(3000)
    assert complete(bench)


@pytest.mark.parametrize("timing", [Timing(100, 200, 300), MANUAL])
def test_wait_with_latencies_holds_too(timing: Timing) -> None:
    bench = ats_bench(timing=timing)
    ats_port(bench, delay=5000)
    invalidate(bench, PAGE)
    while timing.manual and bench.unit.step():
        pass
    bench.machine.advance_to(4999)
    assert not complete(bench)
    bench.machine.advance_to(6000)
    while timing.manual and bench.unit.step():
        pass
    assert complete(bench)


def test_answer_lands_what_went_out_translated() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench)
    port.set_latency(0, 500)
    write = port.write(PAGE, b"late")
    invalidate(bench, PAGE)
    assert complete(bench)
    assert bench.machine.read(MEMORY, 4) == b"late"
    port.poll()
    assert write.ok


def test_answer_waits_for_room_in_the_outbox() -> None:
    bench = ats_bench(messages=64)
    ats_port(bench, Answer.ASK)
    bench.machine.map_bar(0x8000_0000, 0x1000, 1)
    untranslated = bench.port(segment=1)
    for _ in range(64):
        untranslated.write(0x8000_0000, b"full")
    invalidate(bench, PAGE)
    assert [m.kind for m in bench.machine.take_messages()] == [MessageKind.BAR_WRITE] * 64
    assert [m.kind for m in bench.machine.take_messages()] == [MessageKind.INVALIDATE]


def test_answer_is_left_to_python() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench, Answer.ASK, owner=7)
    port.read(PAGE, 1)
    invalidate(bench, 0x4000, 1)
    (message,) = bench.messages()
    assert (message.kind, message.owner, message.token) == (MessageKind.INVALIDATE, 7, 0)
    assert (message.address, message.data) == (0x4000, (0x5FFF).to_bytes(8, "little"))
    assert (message.segment, message.requester) == (0, DEVICE)
    assert len(tlb.entries()) == 1
    tlb.drop(message.address, 0x5FFF)
    assert not complete(bench)
    assert port.complete_invalidation(1 << message.token) is Status.DONE
    assert complete(bench)


def test_answer_counts_its_messages() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    invalidate(bench, PAGE)
    for _ in range(2):
        port.complete_invalidation(1, count=3)
    assert not complete(bench)
    port.complete_invalidation(1, count=3)
    assert complete(bench)
    assert bench.read("FSTS") == 0


def test_answer_names_several_tags() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    bench.submit(*[device_descriptor(DEVICE)] * 4)
    invalidate(bench)
    assert [message.token for message in bench.messages()] == [0, 1, 2, 3, 4]
    port.complete_invalidation(0b11111)
    assert complete(bench)


def test_tags_are_32() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    bench.submit(*[device_descriptor(DEVICE)] * 33)
    assert bench.read("IQH") == 32 * 16
    assert [message.token for message in bench.messages()] == list(range(32))
    port.complete_invalidation(1 << 9)
    assert bench.read("IQH") == 33 * 16
    assert [message.token for message in bench.messages()] == [9]


def test_tags_of_a_function_are_limited() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    bench.submit(*[device_descriptor(DEVICE, mip=2)] * 3)
    assert bench.read("IQH") == 2 * 16
    port.complete_invalidation(1)
    assert bench.read("IQH") == 3 * 16


# ---- wrong answers (6.4 step 4) ---------------------------------


def test_wrong_tag_is_an_error_and_the_queue_goes_on() -> None:
    bench = ats_bench()
    ats_port(bench, Answer.WRONG_TAG)
    invalidate(bench, PAGE)
    assert bench.read("FSTS") == ICE
    assert bench.read("IQERCD") == DEVICE << 48
    assert events(bench) == 1
    assert not complete(bench)
    bench.submit(device_descriptor(OTHER))
    assert bench.read("FSTS") == ICE


@pytest.mark.parametrize(("answer", "left"), [(Answer.WRONG_TAG, 0), (Answer.NEVER, 1)])
def test_wrong_tag_has_dropped_and_silence_has_not(answer: Answer, left: int) -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench, answer)
    port.read(PAGE, 1)
    invalidate(bench, PAGE)
    assert len(tlb.entries()) == left


def test_answer_of_another_function_is_an_error() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    invalidate(bench, PAGE)
    assert bench.port(OTHER).complete_invalidation(1) is Status.DONE
    assert (bench.read("FSTS"), bench.read("IQERCD") >> 48) == (ICE, OTHER)
    port.complete_invalidation(0b11)  # tag 1 is wrong as well, tag 0 counts all the same
    assert complete(bench)
    assert bench.read("IQERCD") >> 48 == OTHER  # latched while ICE is set
    bench.write("FSTS", ICE)
    port.complete_invalidation(1)
    assert (bench.read("FSTS"), bench.read("IQERCD") >> 48) == (ICE, DEVICE)


def test_answer_is_unsupported_while_translation_is_off() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    invalidate(bench, PAGE)
    bench.command(TE, on=False)
    assert port.complete_invalidation(1) is Status.UNSUPPORTED_REQUEST
    assert bench.read("FSTS") == 0
    bench.command(TE)
    assert port.complete_invalidation(1) is Status.DONE
    assert complete(bench)


def test_answer_without_a_unit_is_unsupported() -> None:
    bench = ats_bench()
    assert bench.port(segment=1).complete_invalidation(1) is Status.UNSUPPORTED_REQUEST


# ---- time-out (7.6) ---------------------------------


def timed_out(answer: Answer = Answer.NEVER) -> Bench:
    bench = ats_bench()
    ats_port(bench, answer)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    return bench


def test_timeout_is_exact_and_tells_the_function() -> None:
    bench = ats_bench()
    ats_port(bench, Answer.NEVER)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT - 1)
    assert (bench.read("FSTS"), events(bench)) == (0, 0)
    bench.machine.advance_to(TIMEOUT)
    assert (bench.read("FSTS"), bench.read("IQERCD")) == (ITE, DEVICE << 32)
    assert events(bench) == 1
    assert bench.unit.counters()["device_tlb_timeouts"] == 1


def test_timeout_keeps_what_the_function_never_dropped() -> None:
    bench = ats_bench()
    port, tlb = ats_port(bench, Answer.NEVER)
    port.read(PAGE, 1)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    assert len(tlb.entries()) == 1


def test_timeout_aborts_the_pending_wait_for_good() -> None:
    bench = timed_out()
    assert bench.read("IQH") == 16  # at the wait while ITE is set
    bench.write("FSTS", ITE)
    assert bench.read("IQH") == 32
    bench.machine.advance_to(3 * TIMEOUT)
    assert not complete(bench)
    assert bench.unit.invalidation_state is InvalidationState.IDLE


def test_timeout_stops_the_fetch_until_it_is_cleared() -> None:
    bench = timed_out()
    bench.submit(wait_descriptor(write=1, address=STATUS, data=1))
    assert (bench.read("IQH"), complete(bench)) == (16, False)
    bench.write("FSTS", ITE)
    assert (bench.read("IQH"), complete(bench)) == (48, True)


def test_timeout_latches_the_first_function() -> None:
    bench = ats_bench()
    bench.submit(device_descriptor(OTHER))
    bench.machine.advance_to(10)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    assert bench.read("IQERCD") >> 32 == OTHER
    bench.machine.advance_to(TIMEOUT + 10)
    assert bench.read("IQERCD") >> 32 == OTHER
    assert events(bench) == 1


def test_timeout_frees_the_tag_alone() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    bench.submit(device_descriptor(OTHER))
    bench.machine.advance_to(TIMEOUT // 2)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    bench.write("FSTS", ITE)
    bench.submit(wait_descriptor(write=1, address=STATUS, data=1))
    assert not complete(bench)  # behind the one that is outstanding still
    port.complete_invalidation(0b10)
    assert complete(bench)
    assert bench.read("FSTS") == 0


def test_timeout_lets_answers_in() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    bench.submit(device_descriptor(OTHER))
    bench.machine.advance_to(1)
    bench.submit(device_descriptor(DEVICE))
    bench.machine.advance_to(TIMEOUT)
    port.complete_invalidation(0b10)
    assert bench.read("FSTS") == ITE
    assert bench.unit.invalidation_state is InvalidationState.IDLE


def test_answer_after_the_timeout_is_wrong() -> None:
    bench = ats_bench()
    ats_port(bench, delay=TIMEOUT + 1)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    assert bench.read("FSTS") == ITE
    bench.machine.advance_to(TIMEOUT + 1)
    assert (bench.read("FSTS"), bench.read("IQERCD")) == (
        ITE | ICE,
        DEVICE << 48 | DEVICE << 32,
    )


@pytest.mark.parametrize("gone", ["never there", "no device-TLB", "removed", "removed later"])
def test_timeout_is_what_an_absent_function_gets(gone: str) -> None:
    bench = ats_bench()
    if gone == "no device-TLB":
        bench.port()
    elif gone == "removed":
        ats_port(bench)[0].remove()
    elif gone == "removed later":
        port, _ = ats_port(bench, delay=TIMEOUT // 2)
        invalidate(bench, PAGE)
        port.destroy()
    if gone != "removed later":
        invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    assert (bench.read("FSTS"), complete(bench)) == (ITE, False)


def test_timeout_of_zero_never_comes() -> None:
    bench = ats_bench(timeout=0)
    ats_port(bench, Answer.NEVER)
    invalidate(bench, PAGE)
    bench.machine.advance_to(1 << 62)
    assert (bench.read("FSTS"), complete(bench)) == (0, False)


def test_timeout_behind_a_pending_fault_is_no_second_event() -> None:
    bench = ats_bench()
    bench.translate(0x1_0000)
    invalidate(bench, PAGE)
    bench.machine.advance_to(TIMEOUT)
    assert bench.read("FSTS") & ITE
    assert events(bench) == 1


def test_queue_error_leaves_the_wait_before_it_alone() -> None:
    bench = ats_bench()
    ats_port(bench, delay=1000)
    invalidate(bench, PAGE)
    bench.submit((0xF, 0))
    assert bench.read("FSTS") == 0  # not fetched yet
    bench.machine.advance_to(1000)
    assert (complete(bench), bench.read("FSTS")) == (True, IQE)


def test_reset_forgets_what_is_outstanding() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, delay=1000)
    invalidate(bench, PAGE)
    bench.unit.reset()
    assert bench.unit.invalidation_state is InvalidationState.IDLE
    bench.machine.advance_to(2 * TIMEOUT)
    assert bench.read("FSTS") == 0
    assert port.device_tlb is not None
    assert port.device_tlb.counters()["invalidation_answers"] == 1
