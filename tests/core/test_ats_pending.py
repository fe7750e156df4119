"""What happens to a VT-d unit while device-TLB invalidations are pending (VT-d 2.4, 6.4, 7.6)."""

from __future__ import annotations

import pytest
from ats_bench import STATUS, TIMEOUT, ats_bench, ats_port, complete, events, invalidate
from core_bench import DEVICE, ICE, IM, IP, ITE, QIE, TE, device_descriptor, wait_descriptor

from iommu_emu.core import Answer, InvalidationState

STORES = wait_descriptor(write=1, address=STATUS, data=1)
STORES_2 = wait_descriptor(write=1, address=STATUS + 4, data=2)

# ---- several at once -----------------------------------------------------------------------


def test_pending_without_a_wait_is_in_progress() -> None:
    bench = ats_bench()
    ats_port(bench, delay=1000)
    bench.submit(device_descriptor(DEVICE))
    assert bench.unit.invalidation_state is InvalidationState.IN_PROGRESS
    bench.machine.advance_to(1000)
    assert bench.unit.invalidation_state is InvalidationState.IDLE


def test_pending_requests_time_out_each_in_its_time_whatever_the_tag() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.ASK)
    bench.submit(device_descriptor(DEVICE), device_descriptor(DEVICE))
    port.complete_invalidation(1)
    bench.machine.advance_to(10)
    bench.submit(device_descriptor(DEVICE))  # has tag 0 again, and more time than tag 1
    bench.machine.advance_to(TIMEOUT - 1)
    assert bench.read("FSTS") == 0
    bench.machine.advance_to(TIMEOUT)
    assert bench.read("FSTS") == ITE


def test_pending_request_that_waits_for_the_limit_is_sent_after_the_error() -> None:
    bench = ats_bench()
    ats_port(bench, Answer.NEVER)
    bench.submit(*[device_descriptor(DEVICE, mip=1)] * 2, STORES)
    bench.machine.advance_to(TIMEOUT)
    assert (bench.read("IQH"), bench.read("FSTS")) == (16, ITE)
    bench.write("FSTS", ITE)
    assert bench.read("IQH") == 32
    bench.machine.advance_to(2 * TIMEOUT)
    assert (bench.read("FSTS"), complete(bench)) == (ITE, False)


def test_pending_requests_are_32_in_the_function() -> None:
    bench = ats_bench()
    _, tlb = ats_port(bench, delay=10 * TIMEOUT)
    bench.submit(*[device_descriptor(DEVICE)] * 32)
    bench.machine.advance_to(TIMEOUT)
    bench.write("FSTS", ITE)
    bench.submit(device_descriptor(DEVICE))  # one more than it can hold: lost
    bench.machine.advance_to(20 * TIMEOUT)
    counters = tlb.counters()
    assert (counters["invalidation_requests"], counters["invalidation_answers"]) == (33, 32)


# ---- errors --------------------------------------------------------------------------------


def test_pending_wait_is_aborted_and_those_behind_it_are_not() -> None:
    bench = ats_bench()
    ats_port(bench, Answer.NEVER)
    bench.submit(device_descriptor(DEVICE), STORES, STORES_2)
    bench.machine.advance_to(TIMEOUT)
    assert (bench.read("IQH"), bench.peek(STATUS)) == (16, 0)
    bench.write("FSTS", ITE)
    assert (bench.read("IQH"), bench.peek(STATUS)) == (48, 2 << 32)


def test_pending_error_that_is_cleared_while_masked_sends_nothing() -> None:
    bench = ats_bench()
    ats_port(bench, Answer.NEVER)
    bench.write("FECTL", IM)
    invalidate(bench)
    bench.machine.advance_to(TIMEOUT)
    assert bench.read("FECTL") == IM | IP
    bench.write("FSTS", ITE)
    bench.write("FECTL", 0)
    assert events(bench) == 0


def test_pending_answer_beside_a_timeout_is_no_second_event() -> None:
    bench = ats_bench()
    port, _ = ats_port(bench, Answer.NEVER)
    invalidate(bench)
    bench.machine.advance_to(TIMEOUT)
    port.complete_invalidation(1)
    assert (bench.read("FSTS"), events(bench)) == (ITE | ICE, 1)
    bench.write("FSTS", ITE)
    assert bench.read("FSTS") == ICE


# ---- switched off meanwhile ----------------------------------------------------------------


def test_pending_wait_holds_the_queue_open() -> None:
    bench = ats_bench()
    ats_port(bench, delay=1000)
    invalidate(bench)
    bench.command(QIE, False)
    assert bench.status(QIE)
    bench.machine.advance_to(1000)
    assert (bench.status(QIE), complete(bench)) == (False, True)


def test_pending_request_alone_does_not_hold_the_queue_open() -> None:
    bench = ats_bench()
    ats_port(bench, delay=1000)
    bench.submit(device_descriptor(DEVICE))
    bench.command(QIE, False)
    assert not bench.status(QIE)
    bench.enable_queue()
    bench.submit(STORES)
    assert not complete(bench)
    bench.machine.advance_to(1000)
    assert complete(bench)


@pytest.mark.parametrize("before", [False, True])
def test_pending_wait_that_was_aborted_is_forgotten_with_the_queue(before: bool) -> None:
    bench = ats_bench()
    ats_port(bench, Answer.NEVER)
    invalidate(bench)
    if before:
        bench.command(QIE, False)
    bench.machine.advance_to(TIMEOUT)
    if not before:
        bench.command(QIE, False)
    assert (bench.status(QIE), bench.read("FSTS")) == (False, ITE)
    bench.enable_queue()
    bench.submit(STORES)
    assert (bench.read("IQH"), complete(bench)) == (0, False)
    bench.write("FSTS", ITE)
    assert (bench.read("IQH"), complete(bench)) == (16, True)


def test_pending_answer_is_lost_while_translation_is_off() -> None:
    bench = ats_bench()
    ats_port(bench, delay=1000)
    invalidate(bench)
    bench.command(TE, False)
    bench.machine.advance_to(TIMEOUT)
    assert (bench.read("FSTS"), complete(bench)) == (ITE, False)
