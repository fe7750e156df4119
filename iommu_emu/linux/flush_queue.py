"""Deferred invalidation as in Linux: IOVAs wait in a queue until one flush serves many of them.

An unmap clears the page-table entry at once. What waits is the invalidation of the IOTLB, and with
it the reuse of the IOVA and of the page-table pages that went away (os 4.1). Until then a device
reaches what was unmapped through entries that are cached already.

Three queues are told apart by data alone: `PER_CPU`, `SINGLE`, and the historical
`GLOBAL_LIST`, which came with Linux 2.6.26.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from iommu_emu.clock import MILLISECOND, SECOND, Clock, Timer

__all__ = [
    "GLOBAL_LIST",
    "PER_CPU",
    "SINGLE",
    "Flush",
    "FlushQueue",
    "FlushStatistics",
    "QueueEntry",
    "QueueKind",
    "at_once",
]

Flush = Callable[[Callable[[], None]], None]
"""Begins to flush the IOTLB of the whole domain; calls its argument once that is complete."""


def at_once(flush: Callable[[], None]) -> Flush:
    """Return the `Flush` that a function stands for which returns when the flush is complete."""

    def begin(complete: Callable[[], None]) -> None:
        flush()
        complete()

    return begin


@dataclass(frozen=True)
class QueueKind:
    """The shape of a flush queue.

    Attributes:
        name: for people.
        capacity: entries that wait at most, in each ring; one more makes room by a flush.
        timeout: ns from the first entry to the timer's flush.
        per_cpu: a ring for each CPU.
        locked: one lock is held during a flush: nobody queues then, and after one for want of
            room the time-out begins anew.

    Raises:
        ValueError: if capacity or time-out are not positive.
    """

    name: str
    capacity: int
    timeout: int
    per_cpu: bool
    locked: bool = False

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.timeout < 1:
            raise ValueError(
                "capacity and timeout must be at least 1 entry and 1 ns, "
                f"not {self.capacity} and {self.timeout}"
            )


# A ring is full when its tail is right behind its head, so one slot is never used (os 4.1).
PER_CPU = QueueKind("per-cpu", 256 - 1, 10 * MILLISECOND, per_cpu=True)
SINGLE = QueueKind("single", 32_768 - 1, 1 * SECOND, per_cpu=False)
# A list for all domains and units together, of which every slot is used (field 3.1).
GLOBAL_LIST = QueueKind("global-list", 250, 10 * MILLISECOND, per_cpu=False, locked=True)


@dataclass(eq=False)
class QueueEntry:
    """What an unmap left to be done after the next flush.

    Attributes:
        iova: first input address.
        size: bytes.
        release: gives back page tables and IOVA; called with the entry and the CPU that does it.
        tables: page-table frames that caches may still point to.
        queued: ns; when it was queued.
        stamp: flushes that had begun by then: the next one is the first to cover it.
    """

    iova: int
    size: int
    release: Callable[[QueueEntry, int], None] = field(repr=False)
    tables: Sequence[int] = ()
    queued: int = field(default=0, init=False)
    stamp: int = field(default=0, init=False)


@dataclass
class FlushStatistics:
    """What a queue did.

    Attributes:
        queued: entries that came.
        released: entries that were given back.
        full: flushes that began because a ring was full.
        timer: flushes that the timer began.
        longest: ns that a released entry had waited at most.
    """

    queued: int = 0
    released: int = 0
    full: int = 0
    timer: int = 0
    longest: int = 0

    @property
    def flushes(self) -> int:
        """Flushes that began, whatever the reason."""
        return self.full + self.timer


class FlushQueue:
    """A queue of entries that wait for a flush of their domain's IOTLB (os 4.1).

    An entry is released after a flush that *began* after it was queued, and is complete. That is
    looked at when its CPU queues the next one, and after the timer's flush, on every ring.

    Args:
        clock: the machine's.
        flush: begins the flush; it may complete later, by the clock.
        kind: `PER_CPU`, `SINGLE` or `GLOBAL_LIST`, or a what-if of your own.
        cpus: number of CPUs, at least 1.

    Attributes:
        kind: its shape.
        statistics: what it did.
        flushing_cpu: the CPU that began the last flush.

    Raises:
        ValueError: if there is no CPU.
    """

    def __init__(
        self, clock: Clock, flush: Flush, kind: QueueKind = PER_CPU, *, cpus: int = 1
    ) -> None:
        if cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {cpus}")
        self.kind = kind
        self.statistics = FlushStatistics()
        self.flushing_cpu = 0
        self._clock = clock
        self._flush = flush
        self._cpus = cpus
        self._rings: list[deque[QueueEntry]] = [deque() for _ in range(cpus if kind.per_cpu else 1)]
        self._begun = 0  # flushes
        self._complete = 0  # number of the last flush that is complete
        self._under_way: set[int] = set()
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<FlushQueue {self.kind.name}: {self.waiting} entries wait>"

    @property
    def waiting(self) -> int:
        """Number of entries that are not released."""
        return sum(map(len, self._rings))

    @property
    def entries(self) -> tuple[QueueEntry, ...]:
        """What waits, oldest first, ring by ring: the stale window as it is now."""
        return tuple(entry for ring in self._rings for entry in ring)

    def queue(self, entry: QueueEntry, cpu: int = 0) -> None:
        """Let an entry wait for the next flush; make room by a flush if the ring is full.

        Virtual time passes until that flush is complete. Whatever is raised, also by the flush
        itself, the entry is not queued then.

        Args:
            entry: the page-table entries of its range are cleared already.
            cpu: whose ring it goes to, and who releases what it finds flushed.

        Raises:
            ValueError: if there is no such CPU.
            TimeoutError: if a flush is awaited, and nothing is left that could complete it.
            RuntimeError: if a flush is awaited from inside a timer.
        """
        if not 0 <= cpu < self._cpus:
            raise ValueError(f"cpu must be in 0..{self._cpus - 1}, not {cpu}")
        if self.kind.locked:
            self._wait(set(self._under_way))
        ring = self._rings[cpu if self.kind.per_cpu else 0]
        self._release_flushed(ring, cpu)
        while len(ring) >= self.kind.capacity:
            self.statistics.full += 1
            self._wait({self._begin(cpu)})
            self._release_flushed(ring, cpu)
            if self.kind.locked:
                self._disarm()
        entry.queued = self._clock.now
        entry.stamp = self._begun
        ring.append(entry)
        self.statistics.queued += 1
        if self._timer is None or not self._timer.pending:
            self._timer = self._clock.call_later(self.kind.timeout, partial(self._expire, cpu))

    def flush(self) -> None:
        """Flush now, on CPU 0, and release every entry; virtual time passes.

        Raises:
            TimeoutError, RuntimeError: as `queue`.
        """
        self._wait({self._begin(0)})
        for ring in self._rings:
            self._release_flushed(ring, 0)

    def close(self) -> None:
        """Stop the timer, and release every entry without a flush, on CPU 0.

        For the end of a domain: its devices are detached and its cached entries invalidated.
        """
        self._disarm()
        for ring in self._rings:
            while ring:
                self._release(ring.popleft(), 0)

    # ---- inside ------------------------------------------------------------------------------

    def _begin(self, cpu: int, then: Callable[[], None] = lambda: None) -> int:
        """Begin a flush; return its number."""
        self.flushing_cpu = cpu
        self._begun += 1
        number = self._begun

        def complete() -> None:
            self._under_way.discard(number)
            self._complete = max(self._complete, number)
            then()

        self._under_way.add(number)
        try:
            self._flush(complete)
        except BaseException:
            self._under_way.discard(number)  # it covers nothing; the next one will
            raise
        return number

    def _expire(self, cpu: int) -> None:
        """Flush by the timer, which is not set again before the next entry comes."""
        self.statistics.timer += 1

        def release_all() -> None:
            for ring in self._rings:
                self._release_flushed(ring, cpu)

        self._begin(cpu, release_all)

    def _release_flushed(self, ring: deque[QueueEntry], cpu: int) -> None:
        while ring and ring[0].stamp < self._complete:
            self._release(ring.popleft(), cpu)

    def _release(self, entry: QueueEntry, cpu: int) -> None:
        self.statistics.released += 1
        self.statistics.longest = max(self.statistics.longest, self._clock.now - entry.queued)
        entry.release(entry, cpu)

    def _wait(self, flushes: set[int]) -> None:
        """Let virtual time pass until some flushes are complete."""
        while self._under_way & flushes:
            if not self._clock.run_to_next_event():
                raise TimeoutError("a flush of the IOTLB does not complete: no event is due")

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
