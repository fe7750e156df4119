"""Virtual CPUs: what software's work takes, with locks and the IOMMU shared between them.

Software runs in tasks, one a CPU: generators that yield between two steps. A step does its work
at once and tells it to the CPUs, which are its `Meter`; then, CPU after CPU in order of time, the
work is given the time that a model says. A CPU that finds a lock taken waits for its turn, and so
do invalidations for the unit, which does one after the other. Timers of the machine fire in
between, in order. Everything is deterministic.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from math import ceil
from typing import NamedTuple, TypeAlias

from iommu_emu.clock import Clock
from iommu_emu.meter import Work
from iommu_emu.timing_model import TimingModel

QUEUE = "queue:"  # how the names of locks of invalidation queues begin
MAX_CPUS = 1024
LONGEST = 10**15  # ns of one piece of work: eleven days

# The unit's work, which the CPU does not wait for; WAIT is the one that it waits for.
_UNIT_WORK = frozenset(
    (
        Work.INVALIDATE_PAGE,
        Work.INVALIDATE_DOMAIN,
        Work.INVALIDATE_CONTEXT,
        Work.INVALIDATE_DEVICE_TLB,
    )
)

Task: TypeAlias = "Generator[float | None, None, None]"
"""Work of one CPU. Yielding ends a step; a yielded number is ns for which the CPU is idle then."""

__all__ = ["LockStatistics", "Task", "VirtualCpus"]


@dataclass
class LockStatistics:
    """What happened at a lock.

    Attributes:
        taken: how often it was taken.
        waited: how often it was taken only after a wait.
        wait_ns: virtual time that CPUs waited for it, all together.
        unit_wait_ns: the same for the unit, of an invalidation queue: until it was through with
            the invalidations of others before.
    """

    taken: int = 0
    waited: int = 0
    wait_ns: float = 0.0
    unit_wait_ns: float = 0.0


class _Kind(Enum):
    SPEND = auto()  # the CPU works
    IDLE = auto()  # the CPU does nothing
    UNIT = auto()  # the unit gets work
    WAIT = auto()  # the CPU waits for the unit
    LOCK = auto()
    UNLOCK = auto()


class _Event(NamedTuple):
    kind: _Kind
    ns: float
    name: str


class _Lock:
    """A lock: who holds it, and who waits since when."""

    def __init__(self) -> None:
        self.holder: int | None = None
        self.waiting: deque[_Cpu] = deque()
        self.statistics = LockStatistics()


class _UnitWork:
    """What a unit has to do."""

    def __init__(self) -> None:
        self.done = 0.0  # when it is through
        self.last: _Cpu | None = None  # whose the last piece is


class _Cpu:
    """One CPU: its time, and the work that has no time yet."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.time = 0.0
        self.busy = 0.0
        self.events: deque[_Event] = deque()
        self.held: list[str] = []  # locks, as the code that runs sees them
        self.task: Task | None = None
        self.behind = 0.0  # ns of others' work that the unit had before its own
        self.queued = False  # has an entry in the heap
        self.blocked = False  # waits for a lock


class VirtualCpus:
    """CPUs with a time of their own each; a `Meter`.

    Outside `run`, work takes its time at once: the CPU's time goes on from the machine's, and the
    machine's follows with `catch_up`.

    A lock whose name begins with "queue:" belongs to a unit's invalidation queue. Work of the
    unit is done by that unit, in order, while the CPU goes on; WAIT ends when the unit is through
    with it, and while the CPU spins others may have the lock (os 4.7). Handing it around costs
    nothing.

    Args:
        clock: the machine's.
        count: number of CPUs, 1..1024.
        model: what work takes.

    Attributes:
        model: as given.

    Raises:
        ValueError: if the count is outside its range.
    """

    def __init__(self, clock: Clock, count: int, model: TimingModel) -> None:
        if not 1 <= count <= MAX_CPUS:
            raise ValueError(f"count must be in 1..{MAX_CPUS}, not {count}")
        self.model = model
        self._clock = clock
        self._cpus = [_Cpu(number) for number in range(count)]
        self._locks: dict[str, _Lock] = {}
        self._units: dict[str, _UnitWork] = {}  # by the lock of its queue
        self._heap: list[tuple[float, int]] = []
        self._running = False

    def __repr__(self) -> str:
        return f"<VirtualCpus: {len(self._cpus)}, {self.model.name}>"

    def __len__(self) -> int:
        return len(self._cpus)

    # ---- what happened -----------------------------------------------------------------------

    def time(self, cpu: int) -> float:
        """Return a CPU's time, ns; it may be ahead of the machine's."""
        return self._cpu(cpu).time

    def busy(self, cpu: int) -> float:
        """Return for how long a CPU worked or spun so far, ns."""
        return self._cpu(cpu).busy

    @property
    def locks(self) -> Mapping[str, LockStatistics]:
        """What happened at each lock so far, by name."""
        return {name: lock.statistics for name, lock in sorted(self._locks.items())}

    @property
    def lock_wait_ns(self) -> float:
        """Virtual time that CPUs waited for locks, or for units busy with others, all together."""
        statistics = [lock.statistics for lock in self._locks.values()]
        return sum(each.wait_ns + each.unit_wait_ns for each in statistics)

    # ---- Meter -------------------------------------------------------------------------------

    def spend(self, cpu: int, work: Work, times: int = 1) -> None:
        """Charge a CPU, or the unit that it commands, for work.

        Args:
            cpu: number of the virtual CPU.
            work: what it does.
            times: how often (for COPY and ZERO: bytes).

        Raises:
            ValueError: if there is no such CPU, `times` is negative, or it takes longer than
                10**15 ns.
        """
        if not 0 <= times <= LONGEST:
            raise ValueError(f"times must be in 0..{LONGEST}, not {times}")
        ns = _checked("work", self.model.price(work) * times)
        if work is Work.WAIT:
            self._add(cpu, _Event(_Kind.WAIT, ns, self._queue_of(cpu)))
        elif work in _UNIT_WORK:
            self._add(cpu, _Event(_Kind.UNIT, ns, self._queue_of(cpu)))
        else:
            self._add(cpu, _Event(_Kind.SPEND, ns, ""))

    def work(self, cpu: int, ns: float) -> None:
        """Charge a CPU for anything else.

        Raises:
            ValueError: if there is no such CPU, or the time is outside 0..10**15.
        """
        self._add(cpu, _Event(_Kind.SPEND, _checked("work", ns), ""))

    def lock(self, cpu: int, name: str) -> AbstractContextManager[None]:
        """Hold a lock while the CPU does what is in the `with` block, after its turn comes.

        A lock that the CPU holds already is held on: a timer may want it that fires meanwhile.

        Raises:
            ValueError: if there is no such CPU.
        """
        return self._holding(self._cpu(cpu), name)

    @contextmanager
    def _holding(self, cpu: _Cpu, name: str) -> Iterator[None]:
        again = name in cpu.held
        if not again:
            self._add(cpu.number, _Event(_Kind.LOCK, 0.0, name))
        cpu.held.append(name)
        try:
            yield
        finally:
            cpu.held.pop()
            if not again:
                self._add(cpu.number, _Event(_Kind.UNLOCK, 0.0, name))

    def _queue_of(self, cpu: int) -> str:
        """Return the lock of the invalidation queue that a CPU holds; one without a lock is ""."""
        held = self._cpu(cpu).held
        return next((name for name in reversed(held) if name.startswith(QUEUE)), "")

    def _cpu(self, number: int) -> _Cpu:
        if not 0 <= number < len(self._cpus):
            raise ValueError(f"cpu must be in 0..{len(self._cpus) - 1}, not {number}")
        return self._cpus[number]

    def _add(self, number: int, event: _Event) -> None:
        cpu = self._cpu(number)
        idle = not cpu.events and cpu.task is None and not cpu.blocked
        if idle:
            cpu.time = max(cpu.time, float(self._clock.now))
        cpu.events.append(event)
        self._enqueue(cpu)
        if not self._running:
            while self._heap:
                self._give_time(self._next())

    # ---- running -----------------------------------------------------------------------------

    def run(self, tasks: Mapping[int, Task]) -> None:
        """Run tasks to their ends, all at the same time.

        The CPUs begin at the machine's time, which follows the CPU that is behind the others, so
        that timers fire between the steps where they belong. It ends at the last CPU's time.

        Args:
            tasks: by number of the CPU.

        Raises:
            ValueError: if there is no such CPU.
            RuntimeError: if this is called from a task or timer, or CPUs wait for each other's
                locks for ever.
            Exception: whatever a task or timer raises; the others are closed then.
        """
        if self._running:
            raise RuntimeError("tasks run already")
        for number in tasks:
            self._cpu(number)
        self._running = True
        try:
            for number, task in sorted(tasks.items()):
                cpu = self._cpus[number]
                cpu.time = max(cpu.time, float(self._clock.now))
                cpu.task = task
                self._enqueue(cpu)
            self._run()
        finally:
            self._end()
        self.catch_up()

    def _run(self) -> None:
        while self._heap:
            cpu = self._next()
            if not cpu.events and cpu.task is not None:
                self._reach(cpu.time)  # a timer may have work for this CPU, or one behind it
                if cpu.events or (self._heap and self._heap[0] < (cpu.time, cpu.number)):
                    self._enqueue(cpu)
                    continue
                self._step(cpu, cpu.task)
            else:
                self._give_time(cpu)
        stuck = [cpu for cpu in self._cpus if cpu.blocked]
        if stuck:
            waits = ", ".join(f"CPU {cpu.number} for {cpu.events[0].name!r}" for cpu in stuck)
            raise RuntimeError(f"CPUs wait for ever: {waits}")

    def _step(self, cpu: _Cpu, task: Task) -> None:
        try:
            idle = next(task)
        except StopIteration:
            cpu.task = None
        else:
            if idle is not None:
                cpu.events.append(_Event(_Kind.IDLE, _checked("a task's pause", idle), ""))
        self._enqueue(cpu)

    def _end(self) -> None:
        """Leave nothing half-done, whatever happened."""
        try:
            for cpu in self._cpus:
                task, cpu.task = cpu.task, None
                if task is not None:
                    task.close()
        finally:
            for cpu in self._cpus:
                cpu.events.clear()
                cpu.queued = cpu.blocked = False
            self._heap.clear()
            for lock in self._locks.values():
                lock.holder = None
                lock.waiting.clear()
            self._running = False

    def catch_up(self) -> None:
        """Move the machine's clock on to the time of the last CPU.

        Raises:
            RuntimeError: from inside a timer or a device model's call.
        """
        self._reach(ceil(max(cpu.time for cpu in self._cpus)))

    def _reach(self, time: float) -> None:
        if time > self._clock.now:
            self._clock.advance_to(int(time))

    # ---- time --------------------------------------------------------------------------------

    def _enqueue(self, cpu: _Cpu) -> None:
        if not cpu.queued and not cpu.blocked and (cpu.events or cpu.task is not None):
            cpu.queued = True
            heapq.heappush(self._heap, (cpu.time, cpu.number))

    def _next(self) -> _Cpu:
        cpu = self._cpus[heapq.heappop(self._heap)[1]]
        cpu.queued = False
        return cpu

    def _give_time(self, cpu: _Cpu) -> None:
        """Let the CPU that is behind all others do its next piece of work."""
        event = cpu.events[0]
        if event.kind is _Kind.LOCK and not self._take(cpu, event.name):
            return
        cpu.events.popleft()
        if event.kind is _Kind.SPEND:
            self._work(cpu, event.ns)
        elif event.kind is _Kind.IDLE:
            cpu.time += event.ns
        elif event.kind is _Kind.UNIT:
            self._occupy(cpu, event)
        elif event.kind is _Kind.UNLOCK:
            self._give(cpu, event.name)
        elif event.kind is _Kind.WAIT:
            self._wait(cpu, event)
        self._enqueue(cpu)

    def _work(self, cpu: _Cpu, ns: float) -> None:
        cpu.busy += ns
        cpu.time += ns

    def _occupy(self, cpu: _Cpu, event: _Event) -> float:
        """Give the unit work to do after what it has; return when it is done."""
        unit = self._units.setdefault(event.name, _UnitWork())
        if unit.last is not cpu:
            cpu.behind += max(0.0, unit.done - cpu.time)
        unit.last = cpu
        unit.done = max(unit.done, cpu.time) + event.ns
        return unit.done

    def _wait(self, cpu: _Cpu, event: _Event) -> None:
        """Spin until the unit is through; who spins on a queue lets others have its lock."""
        done = self._occupy(cpu, event)
        behind, cpu.behind = cpu.behind, 0.0
        if event.name:
            self._lock(event.name).statistics.unit_wait_ns += behind
            self._give(cpu, event.name)
            cpu.events.appendleft(_Event(_Kind.LOCK, 0.0, event.name))
        self._work(cpu, done - cpu.time)

    def _lock(self, name: str) -> _Lock:
        return self._locks.setdefault(name, _Lock())

    def _take(self, cpu: _Cpu, name: str) -> bool:
        """Take a lock; or wait for it, and take it when it is handed over."""
        lock = self._lock(name)
        if lock.holder is None:
            lock.holder = cpu.number
            lock.statistics.taken += 1
            return True
        lock.waiting.append(cpu)
        cpu.blocked = True
        return False

    def _give(self, cpu: _Cpu, name: str) -> None:
        """Give a lock up; it goes to who has waited longest."""
        lock = self._locks[name]
        lock.holder = None
        if not lock.waiting:
            return
        heir = lock.waiting.popleft()
        waited = cpu.time - heir.time
        lock.holder = heir.number
        lock.statistics.taken += 1
        lock.statistics.waited += waited > 0
        lock.statistics.wait_ns += waited
        self._work(heir, waited)
        heir.events.popleft()  # its LOCK
        heir.blocked = False
        self._enqueue(heir)


def _checked(what: str, ns: float) -> float:
    """Return a time.

    Raises:
        ValueError: if it is outside 0..10**15 ns, or not a number.
    """
    if not 0 <= ns <= LONGEST:
        raise ValueError(f"{what} must take 0..{LONGEST} ns, not {ns}")
    return ns
