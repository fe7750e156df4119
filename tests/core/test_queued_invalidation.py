"""The invalidation queue (VT-d 2.12, 7); what descriptors drop is in test_invalidation_scope."""

from __future__ import annotations

import pytest
from core_bench import (
    DEVICE,
    DOMAIN,
    GLOBAL,
    HOLE,
    IM,
    IP,
    IQE,
    QIE,
    QUEUE,
    ROOT_TABLE,
    SELECTIVE,
    TE,
    Bench,
    bits,
    context_descriptor,
    interrupt_descriptor,
    iotlb_descriptor,
    wait_descriptor,
)

from iommu_emu.core import CacheId, InvalidationState, MessageKind, Reset
from iommu_emu.timing import Timing

STATUS = 0x2_0000  # where wait descriptors write
TAIL_ERROR, FETCH_ERROR, TYPE_ERROR, RESERVED_ERROR, WIDTH_ERROR, _, MODE_ERROR = range(1, 8)
NOTHING = wait_descriptor(fence=1)


@pytest.fixture
def queue(bench: Bench) -> Bench:
    """A translation of domain 1 is cached; the queue is on, one page, empty."""
    return ready(bench)


def ready(bench: Bench) -> Bench:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    bench.enable_queue()
    return bench


def cached(bench: Bench) -> tuple[int, int]:
    return tuple(len(bench.unit.entries(c)) for c in (CacheId.CONTEXT, CacheId.IOTLB))


# ---- head and tail (7.1) --------------------------------------------------------------------


def test_queue_runs_to_the_tail(queue: Bench) -> None:
    queue.submit(context_descriptor(GLOBAL), iotlb_descriptor(GLOBAL), NOTHING)
    assert queue.read("IQH") == queue.read("IQT") == 48
    assert cached(queue) == (0, 0)
    assert queue.queue_error is None
    assert queue.counter("descriptors") == 3


def test_queue_waits_for_the_doorbell(queue: Bench) -> None:
    queue.put(context_descriptor(GLOBAL))
    assert queue.read("IQH") == 0
    assert cached(queue) == (1, 1)
    queue.write("IQT", 16)
    assert cached(queue) == (0, 1)


def test_queue_stops_at_the_tail(queue: Bench) -> None:
    queue.put(context_descriptor(GLOBAL), iotlb_descriptor(GLOBAL))
    queue.write("IQT", 16)
    assert (queue.read("IQH"), cached(queue)) == (16, (0, 1))


def test_queue_doorbell_may_be_a_dword(queue: Bench) -> None:
    queue.put(context_descriptor(GLOBAL))
    queue.unit.mmio_write(0x88, 4, 16)
    assert cached(queue) == (0, 1)


@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_queue_wraps_at_its_size(bench: Bench, size: int) -> None:
    bench.enable_queue(size)
    entries = 256 << size
    for round_ in range(2):
        bench.submit(*[NOTHING] * (entries - 1))
        expected = (round_ + 1) * (entries - 1) % entries * 16
        assert bench.read("IQH") == bench.read("IQT") == expected
    bench.submit(wait_descriptor(write=1, address=STATUS, data=1))
    assert bench.peek(STATUS) == 1
    assert bench.counter("descriptors") == 2 * (entries - 1) + 1


def test_queue_fills_all_but_one_entry(queue: Bench) -> None:
    queue.submit(*[NOTHING] * 255)
    assert queue.read("IQH") == 255 * 16
    queue.submit(NOTHING)
    assert queue.read("IQH") == queue.read("IQT") == 0


@pytest.mark.parametrize("enabled", [False, True])
def test_queue_runs_whether_or_not_translation_is_on(bench: Bench, enabled: bool) -> None:
    if enabled:
        bench.enable()
    bench.enable_queue()
    bench.submit(wait_descriptor(write=1, address=STATUS, data=7))
    assert bench.peek(STATUS) == 7


def test_queue_off_does_nothing(bench: Bench) -> None:
    bench.write("IQA", QUEUE)
    bench.submit(wait_descriptor(write=1, address=STATUS, data=7))
    assert bench.peek(STATUS) == 0
    assert bench.read("IQH") == 0


def test_queue_switched_on_with_a_tail_runs_at_once(bench: Bench) -> None:
    bench.write("IQA", QUEUE)
    bench.put(wait_descriptor(write=1, address=STATUS, data=7))
    bench.write("IQT", 16)
    bench.command(QIE)
    assert bench.peek(STATUS) == 7


def test_queue_head_is_read_only(queue: Bench) -> None:
    queue.submit(NOTHING)
    queue.write("IQH", 0)
    assert queue.read("IQH") == 16


def test_queue_switched_off_when_drained(queue: Bench) -> None:
    queue.submit(NOTHING)
    queue.command(QIE, on=False)
    assert not queue.status(QIE)
    assert queue.read("IQH") == 0


def test_queue_switched_off_with_work_left_finishes_first() -> None:
    bench = Bench(timing=Timing(manual=True))
    bench.enable_queue()
    bench.submit(NOTHING, wait_descriptor(write=1, address=STATUS, data=7))
    bench.command(QIE, on=False)
    assert bench.status(QIE)
    while bench.unit.step():
        pass
    assert bench.peek(STATUS) == 7
    assert not bench.status(QIE)
    assert bench.read("IQH") == 0


def test_queue_switched_on_again_before_it_was_off_stays_on() -> None:
    bench = Bench(timing=Timing(manual=True))
    bench.enable_queue()
    bench.submit(NOTHING)
    bench.command(QIE, on=False)
    bench.command(QIE)
    while bench.unit.step():
        pass
    assert bench.status(QIE)
    assert bench.read("IQH") == 16


def test_queue_switched_off_and_on_starts_at_0(queue: Bench) -> None:
    queue.submit(NOTHING, NOTHING)
    queue.command(QIE, on=False)
    queue.enable_queue()
    queue.submit(wait_descriptor(write=1, address=STATUS, data=7))
    assert queue.peek(STATUS) == 7
    assert queue.read("IQH") == 16


def test_queue_address_reads_as_written(queue: Bench) -> None:
    queue.write("IQA", 0x12_3456_7000 | 5)
    assert queue.read("IQA") == 0x12_3456_7005


def test_queue_on_resets_with_the_unit(queue: Bench) -> None:
    queue.submit(NOTHING)
    queue.unit.reset(Reset.WARM)
    assert (queue.read("IQH"), queue.read("IQT"), queue.status(QIE)) == (0, 0, False)


# ---- wait (7.2, 7.5) ------------------------------------------------------------------------


@pytest.mark.parametrize("fence", [0, 1])
@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize("interrupt", [0, 1])
def test_queue_wait(queue: Bench, interrupt: int, write: int, fence: int) -> None:
    """IF=SW=FN=0 is legal as well (VT-d 14: Q raises IQE, the specification does not)."""
    queue.submit(
        wait_descriptor(
            interrupt=interrupt, write=write, fence=fence, address=STATUS, data=0xDEAD_BEEF
        )
    )
    assert queue.peek(STATUS) == (0xDEAD_BEEF if write else 0)
    assert queue.read("ICS") == interrupt
    assert queue.read("IQH") == 16
    assert queue.queue_error is None


def test_queue_wait_writes_four_bytes(queue: Bench) -> None:
    queue.poke(STATUS, 0x1111_1111_1111_1111)
    queue.submit(wait_descriptor(write=1, address=STATUS + 4, data=0x2222_2222))
    assert queue.peek(STATUS) == 0x2222_2222_1111_1111


def test_queue_wait_ignores_address_bits_above_the_host_address_width(queue: Bench) -> None:
    queue.submit(wait_descriptor(write=1, address=STATUS | 1 << 39 | 1 << 63, data=7))
    assert queue.peek(STATUS) == 7


def test_queue_wait_that_cannot_be_written_does_no_harm(queue: Bench) -> None:
    queue.submit(wait_descriptor(write=1, address=HOLE, data=7), NOTHING)
    assert queue.read("IQH") == 32


def test_queue_wait_sees_earlier_invalidations_done(queue: Bench) -> None:
    queue.submit(iotlb_descriptor(GLOBAL), wait_descriptor(write=1, address=STATUS, data=1))
    assert (queue.peek(STATUS), cached(queue)) == (1, (1, 0))


# ---- completion event (2.9) -----------------------------------------------------------------


def unmasked(bench: Bench) -> None:
    bench.write("IEDATA", 0x41)
    bench.write("IEADDR", 0xFEE0_1000)
    bench.write("IECTL", 0)


def test_queue_event_is_a_message(queue: Bench) -> None:
    unmasked(queue)
    queue.submit(wait_descriptor(interrupt=1))
    (message,) = queue.messages()
    assert message.kind is MessageKind.UNIT
    assert (message.address, message.data) == (0xFEE0_1000, b"\x41\0\0\0")
    assert (message.owner, message.requester) == (queue.unit.number, 0)
    assert queue.read("IECTL") == 0


@pytest.mark.parametrize("eim", [False, True])
def test_queue_event_upper_address_needs_extended_interrupts(eim: bool) -> None:
    bench = ready(Bench(interrupt_remapping=True, extended_interrupts=eim))
    unmasked(bench)
    bench.write("IEUADDR", 0x1234_5600)
    bench.submit(wait_descriptor(interrupt=1))
    (message,) = bench.messages()
    assert message.address == (0x1234_5600 << 32 if eim else 0) | 0xFEE0_1000


def test_queue_event_is_not_repeated_while_unacknowledged(queue: Bench) -> None:
    unmasked(queue)
    queue.submit(wait_descriptor(interrupt=1), wait_descriptor(interrupt=1))
    assert len(queue.messages()) == 1
    queue.submit(wait_descriptor(interrupt=1))
    assert queue.messages() == []
    queue.write("ICS", 1)
    assert queue.read("ICS") == 0
    queue.submit(wait_descriptor(interrupt=1))
    assert len(queue.messages()) == 1


def test_queue_event_masked_is_pending(queue: Bench) -> None:
    unmasked(queue)
    queue.write("IECTL", IM)
    queue.submit(wait_descriptor(interrupt=1))
    assert queue.messages() == []
    assert queue.read("IECTL") == IM | IP
    queue.write("IECTL", 0)
    assert queue.read("IECTL") == 0
    assert len(queue.messages()) == 1
    queue.write("IECTL", IM)
    queue.write("IECTL", 0)
    assert queue.messages() == []


def test_queue_event_pending_is_withdrawn_by_acknowledging(queue: Bench) -> None:
    queue.submit(wait_descriptor(interrupt=1))
    assert queue.read("IECTL") == IM | IP
    queue.write("ICS", 0)  # not an acknowledgement
    assert queue.read("IECTL") == IM | IP
    queue.write("ICS", 1)
    assert queue.read("IECTL") == IM
    queue.write("IECTL", 0)
    assert queue.messages() == []


def test_queue_event_pending_bit_is_read_only(queue: Bench) -> None:
    queue.write("IECTL", IP)
    assert queue.read("IECTL") == 0
    assert queue.messages() == []


def test_queue_event_comes_after_the_status_write(queue: Bench) -> None:
    unmasked(queue)
    queue.submit(wait_descriptor(interrupt=1, write=1, address=STATUS, data=1))
    assert queue.peek(STATUS) == 1
    assert len(queue.messages()) == 1


def test_queue_error_is_a_fault_event(queue: Bench) -> None:
    queue.write("FEADDR", 0xFEE0_2000)
    queue.write("FEDATA", 0x42)
    queue.write("FECTL", 0)
    queue.submit((0, 0))
    (message,) = queue.messages()
    assert (message.address, message.data[0]) == (0xFEE0_2000, 0x42)


# ---- errors (7.6) ---------------------------------------------------------------------------

INDEX = interrupt_descriptor(1, 5, 0)

RESERVED = [
    (context_descriptor(GLOBAL), bits((8, 6), (15, 12), (63, 50), (127, 64))),
    (iotlb_descriptor(SELECTIVE, 1, 0x5000), bits(8, (15, 12), (63, 32), (75, 71))),
    (iotlb_descriptor(GLOBAL), bits(8, (15, 12), (63, 32), (75, 71))),
    (interrupt_descriptor(), bits((8, 5), (26, 12), (63, 48), (127, 64))),
    (INDEX, bits((8, 5), (26, 12), (63, 48), (127, 64))),
    (wait_descriptor(fence=1), bits((8, 7), (31, 12), (65, 64))),
]


@pytest.fixture(scope="module")
def reusable() -> Bench:
    """One unit for the many descriptors that must be refused, all of which leave it as it was."""
    return ready(Bench(interrupt_remapping=True, max_handle_mask=15))


@pytest.mark.parametrize(
    ("descriptor", "bit"),
    [(descriptor, bit) for descriptor, found in RESERVED for bit in found],
    ids=lambda value: f"{value[0] & 0x3F:x}" if isinstance(value, tuple) else str(value),
)
def test_queue_error_reserved_bit(reusable: Bench, descriptor: tuple[int, int], bit: int) -> None:
    low, high = descriptor
    value = high << 64 | low | 1 << bit
    assert refused(reusable, (value & (1 << 64) - 1, value >> 64)) == RESERVED_ERROR


def refused(bench: Bench, descriptor: tuple[int, int]) -> int | None:
    """Submit one descriptor; return IQEI if it is refused, and repair the queue."""
    at, before = bench.tail, cached(bench)
    bench.submit(descriptor)
    error = bench.queue_error
    if error is not None:
        assert bench.read("IQH") == at
        assert cached(bench) == before
        bench.poke(QUEUE + at, *NOTHING)
        bench.write("FSTS", IQE)
    assert bench.read("IQH") == bench.tail
    return error


@pytest.mark.parametrize("kind", range(16))
@pytest.mark.parametrize("high", range(8))
def test_queue_error_unknown_type(reusable: Bench, kind: int, high: int) -> None:
    known = not high and kind in (1, 2, 4, 5)
    g = 0 if kind == 4 else GLOBAL
    low = kind | high << 9 | g << 4
    assert refused(reusable, (low, 0)) == (None if known else TYPE_ERROR)


def test_queue_error_interrupt_entries_without_remapping(queue: Bench) -> None:
    assert refused(queue, interrupt_descriptor()) == TYPE_ERROR


@pytest.mark.parametrize("kind", [1, 2])
def test_queue_error_reserved_granularity(queue: Bench, kind: int) -> None:
    assert refused(queue, (kind, 0)) == RESERVED_ERROR


@pytest.mark.parametrize("g", [GLOBAL, DOMAIN, SELECTIVE])
def test_queue_error_mask_above_mamv(g: int) -> None:
    bench = ready(Bench(max_address_mask=9))
    assert refused(bench, iotlb_descriptor(SELECTIVE, 1, 0x5000, am=9)) is None
    expected = RESERVED_ERROR if g == SELECTIVE else None
    assert refused(bench, iotlb_descriptor(g, 1, 0x5000, am=10)) == expected


@pytest.mark.parametrize("g", [GLOBAL, DOMAIN, SELECTIVE])
def test_queue_error_page_selective_without_psi(g: int) -> None:
    bench = ready(Bench(page_selective=False))
    expected = RESERVED_ERROR if g == SELECTIVE else None
    assert refused(bench, iotlb_descriptor(g, 1, 0x5000)) == expected


@pytest.mark.parametrize("mhmv", [0, 7, 15])
def test_queue_error_interrupt_mask_above_mhmv(mhmv: int) -> None:
    bench = ready(Bench(interrupt_remapping=True, max_handle_mask=mhmv))
    assert refused(bench, interrupt_descriptor(1, 0, mhmv)) is None
    assert refused(bench, interrupt_descriptor(1, 0, mhmv + 1)) == RESERVED_ERROR
    assert refused(bench, interrupt_descriptor(0, 0, mhmv + 1)) is None  # unused when global


@pytest.mark.parametrize("size", [0, 1, 6])
def test_queue_error_tail_beyond_the_queue(bench: Bench, size: int) -> None:
    bench.enable_queue(size)
    bench.write("IQT", 0x1000 << size)
    assert bench.queue_error == TAIL_ERROR
    assert bench.read("IQH") == 0


def test_queue_tail_at_the_last_entry_is_legal(queue: Bench) -> None:
    queue.put(*[NOTHING] * 255)
    queue.write("IQT", 0xFF0)
    assert queue.queue_error is None


def test_queue_error_fetch(bench: Bench) -> None:
    bench.write("IQA", HOLE)
    bench.command(QIE)
    bench.write("IQT", 16)
    assert bench.queue_error == FETCH_ERROR
    assert bench.read("IQH") == 0


@pytest.mark.parametrize("ttm", [1, 2, 3])
def test_queue_error_translation_table_mode(queue: Bench, ttm: int) -> None:
    queue.set_root(ROOT_TABLE | ttm << 10)
    queue.submit(NOTHING)
    assert queue.queue_error == MODE_ERROR
    queue.set_root(ROOT_TABLE)
    queue.write("FSTS", IQE)
    assert queue.read("IQH") == 16


def test_queue_error_wide_descriptors_are_not_supported(bench: Bench) -> None:
    bench.write("IQA", QUEUE | 1 << 11)
    bench.command(QIE)
    bench.write("IQT", 32)
    assert bench.queue_error == WIDTH_ERROR


def test_queue_error_leaves_earlier_descriptors_done(queue: Bench) -> None:
    queue.submit(context_descriptor(GLOBAL), (0, 0), iotlb_descriptor(GLOBAL))
    assert queue.queue_error == TYPE_ERROR
    assert queue.read("IQH") == 16
    assert cached(queue) == (0, 1)


def test_queue_error_stops_the_queue_until_it_is_cleared(queue: Bench) -> None:
    queue.submit((0, 0), iotlb_descriptor(GLOBAL))
    queue.poke(QUEUE, *NOTHING)
    queue.submit(context_descriptor(GLOBAL))  # the doorbell alone does not restart it
    assert (queue.read("IQH"), cached(queue)) == (0, (1, 1))
    queue.write("FSTS", IQE)
    assert queue.read("IQH") == 48
    assert cached(queue) == (0, 0)
    assert queue.queue_error is None


def test_queue_error_not_repaired_comes_back(queue: Bench) -> None:
    queue.submit((0, 0))
    queue.write("FSTS", IQE)
    assert queue.queue_error == TYPE_ERROR
    assert queue.read("IQH") == 0


def test_queue_error_record_tells_the_latest_cause(queue: Bench) -> None:
    queue.submit((0, 0))
    queue.poke(QUEUE, *context_descriptor(0))
    queue.write("FSTS", IQE)
    assert queue.queue_error == RESERVED_ERROR


@pytest.mark.parametrize(("kind", "kept"), [(Reset.WARM, True), (Reset.POWER_ON, False)])
def test_queue_error_record_is_sticky(queue: Bench, kind: Reset, kept: bool) -> None:
    queue.submit(wait_descriptor(interrupt=1), (0, 0))
    queue.unit.reset(kind)
    assert queue.read("IQERCD") == (TYPE_ERROR if kept else 0)
    assert queue.read("FSTS") == (IQE if kept else 0)
    assert queue.read("ICS") == int(kept)


def test_queue_switched_off_in_an_error_is_off(queue: Bench) -> None:
    """Software error (2.4): what is left can never be done, so there is nothing to wait for."""
    queue.submit((0, 0), iotlb_descriptor(GLOBAL))
    queue.command(QIE, on=False)
    assert not queue.status(QIE)
    assert queue.read("IQH") == 0
    assert queue.queue_error == TYPE_ERROR
    queue.poke(QUEUE, *NOTHING)
    queue.write("FSTS", IQE)
    assert cached(queue) == (1, 1)


# ---- submitted, in progress, complete -------------------------------------------------------


def test_queue_by_hand() -> None:
    bench = ready(Bench(timing=Timing(manual=True)))
    bench.submit(context_descriptor(GLOBAL), iotlb_descriptor(GLOBAL))
    seen = []
    while True:
        seen.append((bench.unit.invalidation_state, bench.read("IQH"), cached(bench)))
        if not bench.unit.step():
            break
    submitted, in_progress = InvalidationState.SUBMITTED, InvalidationState.IN_PROGRESS
    assert seen == [
        (submitted, 0, (1, 1)),
        (in_progress, 0, (1, 1)),
        (submitted, 16, (0, 1)),
        (in_progress, 16, (0, 1)),
        (InvalidationState.IDLE, 32, (0, 0)),
    ]


def test_queue_takes_its_time() -> None:
    bench = ready(Bench(timing=Timing(command=10, invalidation=100, wait=1000)))
    bench.submit(iotlb_descriptor(GLOBAL), wait_descriptor(write=1, address=STATUS, data=1))
    seen = []
    for time in (9, 10, 109, 110, 119, 120, 1119, 1120):
        bench.machine.advance_to(time)
        seen.append((bench.unit.invalidation_state, bench.read("IQH"), bench.peek(STATUS)))
    submitted, in_progress = InvalidationState.SUBMITTED, InvalidationState.IN_PROGRESS
    assert seen == [
        (submitted, 0, 0),
        (in_progress, 0, 0),
        (in_progress, 0, 0),
        (submitted, 16, 0),
        (submitted, 16, 0),
        (in_progress, 16, 0),
        (in_progress, 16, 0),
        (InvalidationState.IDLE, 32, 1),
    ]
    assert bench.machine.next_event is None


def test_queue_effect_comes_with_completion_not_before() -> None:
    bench = ready(Bench(timing=Timing(invalidation=100)))
    bench.submit(iotlb_descriptor(GLOBAL))
    bench.machine.advance_to(99)
    assert bench.counter("iotlb_hit") == 0
    bench.translate(0x5000)
    assert bench.counter("iotlb_hit") == 1
    bench.machine.advance_to(100)
    bench.translate(0x5000)
    assert bench.counter("iotlb_hit") == 1


def test_queue_descriptor_is_read_when_it_is_fetched() -> None:
    bench = ready(Bench(timing=Timing(command=10, invalidation=100)))
    bench.submit(context_descriptor(GLOBAL))
    bench.machine.advance_to(50)
    bench.poke(QUEUE, *iotlb_descriptor(GLOBAL))  # too late: in progress
    bench.machine.advance_to(200)
    assert cached(bench) == (0, 1)


def test_queue_tail_may_move_while_it_runs() -> None:
    bench = ready(Bench(timing=Timing(invalidation=100)))
    bench.submit(context_descriptor(GLOBAL))
    bench.machine.advance_to(50)
    bench.submit(iotlb_descriptor(GLOBAL))
    bench.machine.advance_to(100)
    assert cached(bench) == (0, 1)
    bench.machine.advance_to(200)
    assert cached(bench) == (0, 0)


def test_queue_stepped_in_a_timed_unit_goes_on() -> None:
    bench = ready(Bench(timing=Timing(command=10, invalidation=100)))
    bench.submit(context_descriptor(GLOBAL))
    assert bench.unit.step()
    assert bench.unit.invalidation_state is InvalidationState.IN_PROGRESS
    bench.machine.advance_to(99)
    assert cached(bench) == (1, 1)
    bench.machine.advance_to(100)
    assert cached(bench) == (0, 1)


def test_queue_goes_on_when_manual_timing_ends() -> None:
    bench = ready(Bench(timing=Timing(manual=True)))
    bench.submit(context_descriptor(GLOBAL), iotlb_descriptor(GLOBAL))
    bench.unit.step()
    bench.unit.set_timing(Timing().parameters())
    assert cached(bench) == (0, 0)


def test_queue_stands_still_when_timing_becomes_manual() -> None:
    bench = ready(Bench(timing=Timing(command=10)))
    bench.submit(context_descriptor(GLOBAL))
    bench.unit.set_timing(Timing(manual=True).parameters())
    bench.machine.advance_to(1000)
    assert bench.unit.invalidation_state is InvalidationState.SUBMITTED
    assert bench.unit.step()
    assert bench.unit.step()
    assert cached(bench) == (0, 1)


def test_queue_pending_is_forgotten_by_reset() -> None:
    bench = ready(Bench(timing=Timing(command=10)))
    bench.submit(context_descriptor(GLOBAL))
    bench.unit.reset()
    assert bench.machine.next_event is None
    assert bench.unit.invalidation_state is InvalidationState.IDLE


def test_queue_error_has_no_state(queue: Bench) -> None:
    queue.submit((0, 0))
    assert queue.unit.invalidation_state is InvalidationState.IDLE
    assert not queue.unit.step()


def test_queue_device_selective_needs_its_source(queue: Bench) -> None:
    queue.submit(context_descriptor(SELECTIVE, 1, DEVICE ^ 1))
    assert cached(queue) == (1, 1)
    queue.submit(context_descriptor(SELECTIVE, 1, DEVICE))
    assert cached(queue) == (0, 1)


def test_queue_keeps_running_when_translation_is_switched_off(queue: Bench) -> None:
    queue.command(TE, on=False)
    queue.submit(iotlb_descriptor(DOMAIN, 1))
    assert cached(queue) == (1, 0)
