"""Virtual CPUs: local time, locks, the unit's invalidation machine, timers in between."""

import re

import pytest

from iommu_emu import Machine
from iommu_emu.meter import Work
from iommu_emu.timing_model import Number, TimingModel
from iommu_emu.virtual_cpus import LockStatistics, VirtualCpus

# Prices of which every sum tells what it is made of.
MODEL = TimingModel(
    name="test",
    title="",
    numbers={
        "map_call": Number(1000),
        "iova_search": Number(100),
        "submit": Number(10),
        "invalidate_page": Number(500),
        "wait": Number(5),
        "copy": Number(0.5),
    },
)


@pytest.fixture
def clock():
    return Machine(1 << 20).clock


@pytest.fixture
def cpus(clock):
    return VirtualCpus(clock, 4, MODEL)


def search(cpus, cpu, times=1):
    with cpus.lock(cpu, "iova"):
        cpus.spend(cpu, Work.IOVA_SEARCH, times)


def searching(cpus, cpu, times=1):
    search(cpus, cpu, times)
    yield


def invalidate(cpus, cpu, queue="queue:unit 0"):
    with cpus.lock(cpu, queue):
        cpus.spend(cpu, Work.SUBMIT)
        cpus.spend(cpu, Work.INVALIDATE_PAGE)
        cpus.spend(cpu, Work.WAIT)


def invalidating(cpus, cpu, queue="queue:unit 0"):
    invalidate(cpus, cpu, queue)
    yield


# ---- outside run -----------------------------------------------------------------------------


def test_work_takes_its_price(cpus):
    cpus.spend(0, Work.MAP_CALL)
    assert cpus.time(0) == 1000


def test_work_done_often_takes_as_often(cpus):
    cpus.spend(0, Work.COPY, 1500)
    assert cpus.time(0) == 750


def test_work_of_one_cpu_is_not_anothers(cpus):
    cpus.spend(1, Work.MAP_CALL)
    assert cpus.time(0) == 0


def test_idle_cpu_goes_on_from_the_machines_time(cpus, clock):
    clock.advance(50)
    cpus.spend(0, Work.MAP_CALL)
    assert cpus.time(0) == 1050


def test_machines_time_stays_until_it_catches_up(cpus, clock):
    cpus.spend(2, Work.MAP_CALL)
    assert clock.now == 0
    cpus.catch_up()
    assert clock.now == 1000


def test_invalidation_takes_descriptors_unit_and_wait(cpus):
    invalidate(cpus, 0)
    assert cpus.time(0) == 10 + 500 + 5


def test_cpu_does_not_wait_for_an_invalidation_without_a_wait(cpus):
    cpus.spend(0, Work.SUBMIT)
    cpus.spend(0, Work.INVALIDATE_PAGE)
    assert cpus.time(0) == 10


def test_unknown_cpu_is_refused(cpus):
    with pytest.raises(ValueError, match=r"cpu must be in 0\.\.3, not 4"):
        cpus.spend(4, Work.WAIT)


def test_negative_times_are_refused(cpus):
    with pytest.raises(ValueError, match=r"times must be in 0..1000000000000000, not -1"):
        cpus.spend(0, Work.COPY, -1)


@pytest.mark.parametrize("count", [0, 1025])
def test_count_outside_its_range_is_refused(clock, count):
    with pytest.raises(ValueError, match=f"count must be in 1..1024, not {count}"):
        VirtualCpus(clock, count, MODEL)


# ---- locks -----------------------------------------------------------------------------------


def test_who_comes_later_waits_for_the_lock(cpus):
    cpus.run({0: searching(cpus, 0), 1: searching(cpus, 1)})
    assert (cpus.time(0), cpus.time(1)) == (100, 200)
    assert cpus.locks["iova"] == LockStatistics(taken=2, waited=1, wait_ns=100)


def test_locks_of_other_names_are_others(cpus):
    def task(cpu):
        with cpus.lock(cpu, f"flush queue:1:{cpu}"):
            cpus.spend(cpu, Work.IOVA_SEARCH)
        yield

    cpus.run({cpu: task(cpu) for cpu in range(4)})
    assert cpus.lock_wait_ns == 0
    assert cpus.time(3) == 100


def test_lock_is_handed_over_in_order_of_time_not_of_cpus(cpus):
    def late(cpu, delay):
        yield delay
        search(cpus, cpu)

    cpus.run({0: late(0, 30), 1: late(1, 20), 2: searching(cpus, 2)})
    assert [cpus.time(cpu) for cpu in range(3)] == [300, 200, 100]


def test_step_that_began_first_does_not_get_the_lock_before_its_time(cpus):
    def slow(cpu):
        cpus.spend(cpu, Work.MAP_CALL)
        search(cpus, cpu)
        yield

    def quick(cpu):
        yield 1
        search(cpus, cpu)

    cpus.run({0: slow(0), 1: quick(1)})
    assert (cpus.time(0), cpus.time(1)) == (1100, 101)
    assert cpus.lock_wait_ns == 0


def test_lock_that_is_held_already_is_held_on(cpus):
    with cpus.lock(0, "iova"):
        search(cpus, 0)
        cpus.spend(0, Work.MAP_CALL)
    assert cpus.time(0) == 1100
    assert cpus.locks["iova"].taken == 1


def test_cpus_that_wait_for_each_other_are_an_error(cpus):
    def task(cpu, first, second):
        with cpus.lock(cpu, first):
            cpus.spend(cpu, Work.SUBMIT)
            with cpus.lock(cpu, second):
                pass
        yield

    with pytest.raises(RuntimeError, match="CPU 0 for 'b', CPU 1 for 'a'"):
        cpus.run({0: task(0, "a", "b"), 1: task(1, "b", "a")})
    cpus.run({0: searching(cpus, 0)})  # and nothing of it is left
    assert cpus.time(0) == 110


# ---- the unit --------------------------------------------------------------------------------


def test_unit_does_one_invalidation_after_the_other(cpus):
    cpus.run({cpu: invalidating(cpus, cpu) for cpu in range(3)})
    # Descriptors are written while the unit works: the others' 10 ns do not add up.
    assert [cpus.time(cpu) for cpu in range(3)] == [515, 515 + 505, 515 + 505 + 505]


def test_wait_for_the_invalidations_of_others_is_counted(cpus):
    cpus.run({cpu: invalidating(cpus, cpu) for cpu in range(3)})
    # The unit has 505 ns of work for each; the others write their descriptors meanwhile.
    assert cpus.locks["queue:unit 0"].unit_wait_ns == (505 - 10) + (2 * 505 - 20)


def test_wait_for_ones_own_invalidations_is_not(cpus):
    with cpus.lock(0, "queue:unit 0"):
        cpus.spend(0, Work.INVALIDATE_PAGE, 3)
        cpus.spend(0, Work.WAIT)
    assert cpus.locks["queue:unit 0"].unit_wait_ns == 0
    assert cpus.time(0) == 1505


def test_queue_lock_is_free_while_its_holder_spins(cpus):
    cpus.run({cpu: invalidating(cpus, cpu) for cpu in range(2)})
    assert cpus.locks["queue:unit 0"].wait_ns == 10  # the first one's SUBMIT


def test_other_locks_are_held_while_the_cpu_spins(cpus):
    def flush(cpu):
        with cpus.lock(cpu, "flush list"):
            invalidate(cpus, cpu)
        yield

    cpus.run({cpu: flush(cpu) for cpu in range(2)})
    assert cpus.locks["flush list"].wait_ns == 515
    assert cpus.time(1) == 2 * 515


def test_units_do_not_wait_for_each_other(cpus):
    cpus.run({cpu: invalidating(cpus, cpu, f"queue:unit {cpu}") for cpu in range(2)})
    assert cpus.time(1) == 515


# ---- tasks -----------------------------------------------------------------------------------


def test_steps_run_in_order_of_time(cpus):
    order = []

    def task(cpu, ns):
        for _ in range(3):
            order.append((cpu, cpus.time(cpu)))
            cpus.work(cpu, ns)
            yield

    cpus.run({0: task(0, 70), 1: task(1, 30)})
    assert order == [(0, 0), (1, 0), (1, 30), (1, 60), (0, 70), (0, 140)]


def test_what_was_yielded_is_not_work(cpus):
    def task():
        cpus.work(0, 30)
        yield 70

    cpus.run({0: task()})
    assert cpus.time(0) == 100
    assert cpus.busy(0) == 30


def test_waiting_for_a_lock_is_work(cpus):
    cpus.run({0: searching(cpus, 0), 1: searching(cpus, 1)})
    assert cpus.busy(1) == 200


def test_run_ends_at_the_last_cpus_time(cpus, clock):
    clock.advance(7)
    cpus.run({0: searching(cpus, 0), 1: searching(cpus, 1)})
    assert clock.now == 207


def test_timer_fires_between_the_steps_where_it_belongs(cpus, clock):
    order = []
    clock.call_later(150, lambda: order.append("timer"))

    def task():
        for number in range(3):
            order.append(number)
            cpus.work(0, 100)
            yield

    cpus.run({0: task()})
    assert order == [0, 1, "timer", 2]


def test_timers_work_comes_before_the_cpus_next_step(cpus, clock):
    clock.call_later(150, lambda: cpus.work(0, 1000))
    times = []

    def task():
        for _ in range(3):
            times.append(cpus.time(0))
            cpus.work(0, 100)
            yield

    cpus.run({0: task()})
    assert times == [0, 100, 1200]


def test_timers_work_on_an_idle_cpu_begins_when_it_fires(cpus, clock):
    clock.call_later(150, lambda: cpus.work(3, 1000))
    cpus.run({0: searching(cpus, 0, 2)})
    assert cpus.time(3) == 1150


def test_error_of_a_task_closes_the_others(cpus):
    closed = []

    def other():
        try:
            while True:
                cpus.work(0, 1)
                yield
        finally:
            closed.append(True)

    def wrong():
        with cpus.lock(1, "iova"):
            raise LookupError("task")
        yield

    with pytest.raises(LookupError):
        cpus.run({0: other(), 1: wrong()})
    assert closed == [True]
    search(cpus, 2)
    assert cpus.locks["iova"].waited == 0


def test_run_inside_a_task_is_refused(cpus):
    def task():
        cpus.run({})
        yield

    with pytest.raises(RuntimeError, match="tasks run already"):
        cpus.run({0: task()})


@pytest.mark.parametrize("ns", [-1, float("nan"), float("inf"), 1e16])
def test_absurd_idle_time_is_refused_and_leaves_time_as_it_was(cpus, ns):
    def task():
        yield ns

    with pytest.raises(ValueError, match=rf"pause must take 0..* ns, not {re.escape(str(ns))}"):
        cpus.run({0: task()})
    assert cpus.time(0) == 0


@pytest.mark.parametrize("ns", [-1, float("nan"), float("inf")])
def test_absurd_work_is_refused(cpus, ns):
    with pytest.raises(ValueError, match=rf"work must take 0..* ns, not {ns}"):
        cpus.work(0, ns)


def test_same_tasks_same_times(clock):
    def times():
        cpus = VirtualCpus(clock, 16, MODEL)

        def task(cpu):
            for number in range(20):
                search(cpus, cpu, 1 + (cpu * number) % 3)
                yield cpu % 5
                invalidate(cpus, cpu)
                yield

        began = clock.now
        cpus.run({cpu: task(cpu) for cpu in range(16)})
        return [cpus.time(cpu) - began for cpu in range(16)], cpus.lock_wait_ns

    assert times() == times()
