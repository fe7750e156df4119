"""Linux's flush queues: which entry is released by which flush, and when (os 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommu_emu import Machine
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.clock import MILLISECOND, SECOND
from iommu_emu.devices import MaliciousDevice
from iommu_emu.driver import Driver
from iommu_emu.linux.flush_queue import (
    GLOBAL_LIST,
    PER_CPU,
    SINGLE,
    FlushQueue,
    QueueEntry,
    QueueKind,
    at_once,
)
from iommu_emu.linux.iova import IovaDomain
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

PAGE = 4096


class Bench:
    """A queue whose flushes take `delay` ns, and a log of what was released, when, by whom."""

    def __init__(self, kind: QueueKind = PER_CPU, cpus: int = 1, delay: int = 0) -> None:
        self.clock = Machine(PAGE).clock
        self.delay = delay
        self.flushes: list[int] = []  # when they began
        self.released: list[tuple[int, int, int]] = []  # IOVA, time, CPU
        self.queue = FlushQueue(self.clock, self.flush, kind, cpus=cpus)

    def flush(self, complete: Callable[[], None]) -> None:
        self.flushes.append(self.clock.now)
        if self.delay:
            self.clock.call_later(self.delay, complete)
        else:
            complete()

    def release(self, entry: QueueEntry, cpu: int) -> None:
        self.released.append((entry.iova, self.clock.now, cpu))

    def put(self, *iovas: int, cpu: int = 0) -> None:
        for iova in iovas:
            self.queue.queue(QueueEntry(iova, PAGE, self.release), cpu)

    @property
    def gone(self) -> list[int]:
        return [iova for iova, _, _ in self.released]


def test_flush_queue_flush_releases_everything_at_once() -> None:
    bench = Bench(cpus=2, delay=100)
    bench.put(1, cpu=1)
    bench.put(2)
    bench.queue.flush()
    assert bench.released == [(2, 100, 0), (1, 100, 0)]


@pytest.mark.parametrize("cpu", [0, 1])
def test_flush_queue_says_which_cpu_began_the_last_flush(cpu: int) -> None:
    bench = Bench(cpus=2)
    bench.put(1, cpu=cpu)
    bench.clock.advance(10 * MILLISECOND)
    assert bench.queue.flushing_cpu == cpu


# ---- the timer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "timeout"),
    [(PER_CPU, 10 * MILLISECOND), (SINGLE, 1 * SECOND), (GLOBAL_LIST, 10 * MILLISECOND)],
    ids=["per-cpu", "single", "global-list"],
)
def test_flush_queue_timer_flushes_after_the_first_entry(kind: QueueKind, timeout: int) -> None:
    bench = Bench(kind)
    bench.clock.advance(5)
    bench.put(1)
    bench.clock.advance(timeout - 1)
    assert (bench.flushes, bench.gone) == ([], [])
    bench.clock.advance(1)
    assert bench.flushes == [timeout + 5]
    assert bench.released == [(1, timeout + 5, 0)]


def test_flush_queue_timer_does_not_wait_longer_for_later_entries() -> None:
    bench = Bench()
    bench.put(1)
    bench.clock.advance(10 * MILLISECOND - 1)
    bench.put(2)
    bench.clock.advance(1)
    assert bench.gone == [1, 2]
    assert bench.queue.statistics.longest == 10 * MILLISECOND


def test_flush_queue_timer_is_not_set_again_before_the_next_entry() -> None:
    bench = Bench()
    bench.put(1)
    bench.clock.advance(1 * SECOND)
    assert bench.clock.next_event is None
    bench.put(2)
    assert bench.clock.next_event == 1010 * MILLISECOND
    bench.clock.advance(10 * MILLISECOND)
    assert bench.flushes == [10 * MILLISECOND, 1010 * MILLISECOND]


def test_flush_queue_timer_releases_every_cpus_ring_on_the_cpu_that_set_it() -> None:
    bench = Bench(cpus=3)
    bench.put(1, cpu=2)
    bench.put(2, cpu=0)
    bench.put(3, cpu=1)
    bench.clock.advance(10 * MILLISECOND)
    assert bench.released == [(iova, 10 * MILLISECOND, 2) for iova in (2, 3, 1)]


# ---- a full ring -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "room"),
    [(PER_CPU, 255), (SINGLE, 32_767), (GLOBAL_LIST, 250)],
    ids=["per-cpu", "single", "global-list"],
)
def test_flush_queue_full_flushes_before_the_next_entry(kind: QueueKind, room: int) -> None:
    bench = Bench(kind)
    bench.put(*range(room))
    assert bench.flushes == []
    bench.put(room)
    assert bench.flushes == [0]
    assert bench.gone == list(range(room))
    assert [entry.iova for entry in bench.queue.entries] == [room]


def test_flush_queue_full_ring_leaves_the_other_cpus_entries_until_they_look() -> None:
    """They are flushed, but released by their own CPU's next entry."""
    bench = Bench(cpus=2)
    bench.put(1000, cpu=1)
    bench.put(*range(256), cpu=0)
    assert 1000 not in bench.gone
    bench.put(1001, cpu=1)
    assert bench.released[-1] == (1000, 0, 1)
    assert len(bench.flushes) == 1


def test_flush_queue_cpus_share_a_single_ring() -> None:
    bench = Bench(QueueKind("two", 2, MILLISECOND, per_cpu=False), cpus=2)
    bench.put(1, cpu=0)
    bench.put(2, cpu=1)
    bench.put(3, cpu=1)
    assert bench.released == [(1, 0, 1), (2, 0, 1)]


@pytest.mark.parametrize(
    ("kind", "at"),
    [(PER_CPU, 10 * MILLISECOND), (GLOBAL_LIST, 14 * MILLISECOND)],
    ids=["per-cpu", "global-list"],
)
def test_flush_queue_full_moves_the_timer_of_the_global_list_alone(
    kind: QueueKind, at: int
) -> None:
    bench = Bench(kind)
    bench.put(*range(kind.capacity))
    bench.clock.advance(4 * MILLISECOND)
    bench.put(1000)
    assert bench.flushes == [4 * MILLISECOND]
    assert bench.clock.next_event == at


# ---- a flush takes time ------------------------------------------------------------------------


def test_flush_queue_entry_waits_for_the_end_of_the_flush() -> None:
    bench = Bench(delay=700)
    bench.put(1)
    bench.clock.advance(10 * MILLISECOND + 699)
    assert bench.gone == []
    bench.clock.advance(1)
    assert bench.released == [(1, 10 * MILLISECOND + 700, 0)]
    assert bench.queue.statistics.longest == 10 * MILLISECOND + 700


def test_flush_queue_entry_queued_during_a_flush_survives_it() -> None:
    bench = Bench(delay=700)
    bench.put(1)
    bench.clock.advance(10 * MILLISECOND + 1)
    bench.put(2)
    bench.clock.advance(699)
    assert bench.gone == [1]
    bench.clock.advance(20 * MILLISECOND)
    assert bench.released[1:] == [(2, 20 * MILLISECOND + 701, 0)]


def test_flush_queue_full_waits_for_its_flush_in_virtual_time() -> None:
    bench = Bench(QueueKind("two", 2, MILLISECOND, per_cpu=True), delay=700)
    bench.put(1, 2, 3)
    assert bench.released == [(1, 700, 0), (2, 700, 0)]
    assert bench.queue.entries[0].queued == 700


def test_flush_queue_full_of_entries_of_a_running_flush_begins_its_own() -> None:
    bench = Bench(QueueKind("two", 2, 1000, per_cpu=True), delay=700)
    bench.put(1)
    bench.clock.advance(1001)
    bench.put(2, 3)
    assert bench.flushes == [1000, 1001]
    assert bench.released == [(1, 1700, 0), (2, 1701, 0)]


def test_flush_queue_global_list_is_locked_during_a_flush() -> None:
    bench = Bench(GLOBAL_LIST, delay=700)
    bench.put(1)
    bench.clock.advance(10 * MILLISECOND + 1)
    bench.put(2)
    assert bench.clock.now == 10 * MILLISECOND + 700
    assert bench.gone == [1]


def test_flush_queue_later_flush_that_is_complete_first_covers_earlier_entries() -> None:
    clock = Machine(PAGE).clock
    running: list[Callable[[], None]] = []
    queue = FlushQueue(clock, running.append, QueueKind("long", 9, 10, per_cpu=True))
    gone: list[int] = []
    for iova in (1, 2):
        queue.queue(QueueEntry(iova, PAGE, lambda entry, cpu: gone.append(entry.iova)))
        clock.advance(10)
    running[1]()
    assert gone == [1, 2]


def test_flush_queue_earlier_flush_that_ends_last_takes_nothing_back() -> None:
    """Entry 2 is covered by the full ring's flush, though its CPU sees that late."""
    bench = Bench(QueueKind("two", 2, 1000, per_cpu=True), cpus=2, delay=700)
    bench.put(1, cpu=1)
    bench.clock.advance(1000)
    bench.put(2, cpu=1)
    bench.delay = 0
    bench.put(3, 4, 5, cpu=0)
    assert bench.released == [(3, 1000, 0), (4, 1000, 0)]
    bench.clock.advance(700)
    assert bench.released[2:] == [(1, 1700, 1), (2, 1700, 1)]


@given(
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=60),
    delay=st.integers(0, 30),
    kind=st.sampled_from(
        [
            QueueKind("per-cpu", 3, 25, per_cpu=True),
            QueueKind("single", 5, 25, per_cpu=False),
            QueueKind("locked", 5, 25, per_cpu=False, locked=True),
        ]
    ),
)
@settings(max_examples=60, deadline=None)
def test_flush_queue_releases_each_entry_once_after_a_flush_begun_after_it(
    steps: list[tuple[int, int]], delay: int, kind: QueueKind
) -> None:
    bench = Bench(kind, cpus=3, delay=delay)
    queued: list[int] = []  # by IOVA: flushes begun by then
    times: list[int] = []
    for iova, (cpu, pause) in enumerate(steps):
        bench.put(iova, cpu=cpu)
        assert bench.queue.waiting <= kind.capacity * (3 if kind.per_cpu else 1)
        queued.append(len(bench.flushes))
        times.append(bench.clock.now)
        bench.clock.advance(pause)
    bench.clock.advance(1000)
    assert sorted(bench.gone) == list(range(len(steps)))
    for iova, time, _ in bench.released:
        assert time >= bench.flushes[queued[iova]] + delay
        assert time - times[iova] <= kind.timeout + 2 * delay


# ---- statistics, errors, end -------------------------------------------------------------------


def test_flush_queue_counts_flushes_by_reason() -> None:
    bench = Bench()
    bench.put(*range(256))
    bench.clock.advance(10 * MILLISECOND)
    statistics = bench.queue.statistics
    assert (statistics.full, statistics.timer, statistics.flushes) == (1, 1, 2)
    assert (statistics.queued, statistics.released) == (256, 256)


def test_flush_queue_entry_is_not_queued_when_the_flush_raises() -> None:
    def fail() -> None:
        raise RuntimeError("no answer")

    queue = FlushQueue(Machine(PAGE).clock, at_once(fail), QueueKind("one", 1, 10, per_cpu=True))
    gone: list[int] = []
    queue.queue(QueueEntry(1, PAGE, lambda entry, cpu: gone.append(entry.iova)))
    with pytest.raises(RuntimeError, match="no answer"):
        queue.queue(QueueEntry(2, PAGE, lambda entry, cpu: gone.append(entry.iova)))
    assert [entry.iova for entry in queue.entries] == [1]
    assert gone == []


@pytest.mark.parametrize("kind", [PER_CPU, GLOBAL_LIST], ids=["per-cpu", "global-list"])
def test_flush_queue_flush_that_raised_is_made_up_for_by_the_next(kind: QueueKind) -> None:
    errors = [RuntimeError("no answer")]

    def fail_once() -> None:
        if errors:
            raise errors.pop()

    clock = Machine(PAGE).clock
    queue = FlushQueue(clock, at_once(fail_once), kind)
    gone: list[int] = []
    queue.queue(QueueEntry(1, PAGE, lambda entry, cpu: gone.append(entry.iova)))
    with pytest.raises(RuntimeError, match="no answer"):
        clock.advance(10 * MILLISECOND)
    queue.queue(QueueEntry(2, PAGE, lambda entry, cpu: gone.append(entry.iova)))
    assert gone == []
    clock.advance(10 * MILLISECOND)
    assert gone == [1, 2]


def test_flush_queue_flush_that_never_ends_is_an_error() -> None:
    kind = QueueKind("one", 1, 10, per_cpu=True)
    queue = FlushQueue(Machine(PAGE).clock, lambda complete: None, kind)
    queue.queue(QueueEntry(1, PAGE, lambda entry, cpu: None))
    with pytest.raises(TimeoutError, match="does not complete"):
        queue.queue(QueueEntry(2, PAGE, lambda entry, cpu: None))
    assert queue.waiting == 1


def test_flush_queue_close_releases_everything_without_a_flush() -> None:
    bench = Bench(cpus=2)
    bench.put(1, cpu=1)
    bench.put(2, cpu=0)
    bench.queue.close()
    assert sorted(bench.gone) == [1, 2]
    assert bench.flushes == []
    assert bench.clock.next_event is None


@pytest.mark.parametrize("cpu", [-1, 2])
def test_flush_queue_unknown_cpu_is_refused(cpu: int) -> None:
    bench = Bench(cpus=2)
    with pytest.raises(ValueError, match=r"cpu must be in 0\.\.1"):
        bench.put(1, cpu=cpu)
    assert bench.queue.waiting == 0


def test_flush_queue_needs_a_cpu() -> None:
    with pytest.raises(ValueError, match="cpus must be at least 1"):
        Bench(cpus=0)


@pytest.mark.parametrize(("capacity", "timeout"), [(0, 1), (1, 0)])
def test_flush_queue_kind_needs_room_and_time(capacity: int, timeout: int) -> None:
    with pytest.raises(ValueError, match="at least 1 entry and 1 ns"):
        QueueKind("none", capacity, timeout, per_cpu=True)


# ---- with the allocator ------------------------------------------------------------------------


def test_flush_queue_holds_iovas_back_from_reuse() -> None:
    clock = Machine(PAGE).clock
    iovas = IovaDomain(clock, cpus=2)
    queue = FlushQueue(clock, at_once(lambda: None), cpus=2)
    first = iovas.allocate(PAGE, 0xFFFF_FFFF, cpu=1)
    assert first == 0xFFFF_F000
    queue.queue(QueueEntry(first, PAGE, lambda entry, cpu: iovas.free(entry.iova, cpu)), cpu=1)
    assert iovas.allocate(PAGE, 0xFFFF_FFFF, cpu=1) == 0xFFFF_E000
    clock.advance(10 * MILLISECOND)
    assert iovas.allocate(PAGE, 0xFFFF_FFFF, cpu=1) == first


# ---- on a unit of each vendor ------------------------------------------------------------------

FRAMES = range(0x10_0000, 0x20_0000)


def driver_of(vendor: str, machine: Machine) -> Driver[Any]:
    if vendor == "vtd":
        return VtdDriver(machine, VtdUnit(machine, VtdConfig(base=0xFED9_0000)), FRAMES)
    unit = AmdviUnit(machine, AmdviConfig(base=0xFED9_0000))
    return AmdviDriver(machine, unit, FRAMES, buses=2)


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
def test_flush_queue_unmapped_page_is_reachable_until_the_flush(vendor: str) -> None:
    machine = Machine(FRAMES.stop)
    device = machine.attach(MaliciousDevice(), "00:01.0")
    driver = driver_of(vendor, machine)
    driver.start()
    domain = driver.create_domain()
    driver.attach(domain, 0x0008)
    free_frames = driver.frames.available
    domain.map(0xFFFF_F000, 0x8_0000, PAGE)
    assert device.read(0xFFFF_F000, 4).ok  # now it is cached
    queue = FlushQueue(machine.clock, at_once(lambda: driver.invalidate_domain(domain)))
    tables = domain.table.unmap(0xFFFF_F000, PAGE)
    entry = QueueEntry(
        0xFFFF_F000, PAGE, lambda entry, cpu: driver.frames.release(entry.tables), tables
    )
    queue.queue(entry)
    machine.clock.advance(10 * MILLISECOND - 1)
    assert device.read(0xFFFF_F000, 4).ok
    assert driver.frames.available < free_frames
    machine.clock.advance(1)
    assert not device.read(0xFFFF_F000, 4).ok
    assert driver.frames.available == free_frames
