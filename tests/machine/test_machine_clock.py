import itertools

import pytest

from iommu_emu import Machine
from iommu_emu.clock import Clock


def test_clock_starts_at_0_and_advances(machine):
    machine.advance(25)
    assert machine.clock.now == 25


def test_clock_never_goes_back(machine):
    machine.advance(10)
    with pytest.raises(ValueError, match=r"^time must be at least 10 ns, not 9$"):
        machine.clock.advance_to(9)


def test_clock_timers_fire_in_time_order(machine):
    fired = []
    for delay in (30, 10, 20):
        machine.clock.call_later(delay, lambda delay=delay: fired.append(delay))
    machine.advance(25)
    assert fired == [10, 20]


def test_clock_timers_of_one_time_fire_in_the_order_they_were_set(machine):
    fired = []
    for name in "abc":
        machine.clock.call_at(5, lambda name=name: fired.append(name))
    machine.advance(5)
    assert fired == ["a", "b", "c"]


def test_clock_timer_sees_its_own_time(machine):
    seen = []
    machine.clock.call_later(7, lambda: seen.append(machine.clock.now))
    machine.advance(100)
    assert seen == [7]


def test_clock_cancelled_timer_does_not_fire(machine):
    fired = []
    machine.clock.call_later(7, lambda: fired.append(1)).cancel()
    machine.advance(100)
    assert fired == []


def test_clock_timer_set_for_now_by_a_timer_fires_1_ns_later(machine):
    seen = []

    def again():
        seen.append(machine.clock.now)
        machine.clock.call_later(0, again)

    machine.clock.call_later(10, again)
    machine.advance(12)
    assert seen == [10, 11, 12]


def test_clock_runs_to_the_next_event(machine):
    machine.clock.call_later(40, lambda: None)
    assert machine.clock.run_to_next_event()
    assert machine.clock.now == 40


def test_clock_without_events_has_nothing_to_run_to(machine):
    assert not machine.clock.run_to_next_event()


def test_clock_refuses_to_wait_inside_a_timer(machine):
    machine.clock.call_later(1, lambda: machine.advance(1))
    with pytest.raises(RuntimeError, match="use call_later"):
        machine.advance(5)


def test_clock_can_advance_after_a_timer_failed(machine):
    machine.clock.call_later(1, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        machine.advance(5)
    machine.advance(5)
    assert machine.clock.now == 6


def test_clock_refuses_a_negative_delay(machine):
    with pytest.raises(ValueError, match=r"^delay must be at least 0 ns, not -1$"):
        machine.clock.call_later(-1, lambda: None)


def test_clock_follows_its_source():
    readings = iter([100, 90, 250])
    machine = Machine(4096, clock_source=lambda: next(readings))
    assert [machine.clock.follow() for _ in range(3)] == [100, 100, 250]


def test_clock_lags_behind_its_source_where_there_is_too_much_to_do(monkeypatch):
    clock = Clock(Machine(4096).core, source=lambda: 1_000_000)

    def again():
        clock.call_later(1, again)

    again()
    milliseconds = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(milliseconds) / 1000)
    assert [clock.follow() for _ in range(2)] == [2, 4]


def test_clock_stepped_has_no_source_to_follow(machine):
    with pytest.raises(RuntimeError, match="no source"):
        machine.clock.follow()


def test_clock_services_before_timers(machine):
    order = []
    clock = Clock(machine.core, service=lambda: order.append("service"))
    clock.call_later(3, lambda: order.append("timer"))
    clock.advance(3)
    assert order[:2] == ["service", "timer"]
