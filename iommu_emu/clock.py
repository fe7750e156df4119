"""Virtual time: the only time there is inside the emulation."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from itertools import count, takewhile

from iommu_emu.core import CoreMachine

__all__ = ["MICROSECOND", "MILLISECOND", "SECOND", "Clock", "Timer", "monotonic_source"]

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
TURN = 0.002  # s of the host's time that following a live clock, or serving it, may take at once


class Timer:
    """One call at a time of the clock; made by `Clock.call_at`."""

    __slots__ = ("action", "time")

    def __init__(self, time: int, action: Callable[[], None]) -> None:
        self.time = time
        self.action: Callable[[], None] | None = action

    @property
    def pending(self) -> bool:
        """Whether the call is still to come."""
        return self.action is not None

    def cancel(self) -> None:
        """Call nothing; without effect after the call."""
        self.action = None


def monotonic_source() -> Callable[[], int]:
    """Return a source that reads the host's monotonic clock, in ns from now; for live guests.

    A recording wraps the source, so that its readings are part of what is replayed.
    """
    start = time.monotonic_ns()
    return lambda: time.monotonic_ns() - start


class Clock:
    """Virtual time in ns, with the core's events and Python's timers in one order.

    Stepped by default: it moves when it is told to. With a `source` it moves when `follow` is
    called, to the source's reading. QEMU's qtest clock_step is `advance`.

    At one time the core's events come first, then `service`, then timers in the order in which
    they were set. A timer that is set for now from inside a timer or `service` fires 1 ns later
    at the earliest, so that every advance ends.

    Args:
        core: the machine's handle on the C core.
        service: called after every step, before the timers that are due.
        source: returns the time in ns; None: stepped.
    """

    def __init__(
        self,
        core: CoreMachine,
        service: Callable[[], None] = lambda: None,
        source: Callable[[], int] | None = None,
    ) -> None:
        self._core = core
        self._service = service
        self.source = source
        self._timers: list[tuple[int, int, Timer]] = []
        self._order = count()
        self._advancing = False

    def __repr__(self) -> str:
        return f"<Clock {self.now} ns>"

    @property
    def now(self) -> int:
        """Virtual time in ns."""
        return self._core.now

    @property
    def next_event(self) -> int | None:
        """Time in ns of the next event of the core or timer; None if there is none."""
        while self._timers and not self._timers[0][2].pending:
            heapq.heappop(self._timers)
        times = [self._timers[0][0]] if self._timers else []
        core_time = self._core.next_event
        if core_time is not None:
            times.append(core_time)
        return min(times, default=None)

    def call_at(self, time: int, action: Callable[[], None]) -> Timer:
        """Call `action` at a time in ns.

        Raises:
            ValueError: if the time is past.
        """
        if time < self.now:
            raise ValueError(f"time must be at least {self.now} ns, not {time}")
        if self._advancing:
            time = max(time, self.now + 1)
        timer = Timer(time, action)
        heapq.heappush(self._timers, (time, next(self._order), timer))
        return timer

    def call_later(self, delay: int, action: Callable[[], None]) -> Timer:
        """Call `action` in `delay` ns.

        Raises:
            ValueError: if the delay is negative.
        """
        if delay < 0:
            raise ValueError(f"delay must be at least 0 ns, not {delay}")
        return self.call_at(self.now + delay, action)

    def advance(self, duration: int) -> None:
        """Move on by `duration` ns, through every event on the way.

        Raises:
            ValueError: if the duration is negative.
            RuntimeError: from inside a timer or a device model's call.
        """
        if duration < 0:
            raise ValueError(f"duration must be at least 0 ns, not {duration}")
        self.advance_to(self.now + duration)

    def advance_to(self, time: int) -> None:
        """Move on to a time in ns, through every event on the way.

        Raises:
            ValueError: if the time is past.
            RuntimeError: from inside a timer or a device model's call.
        """
        self._advance_to(time, count())

    def _advance_to(self, time: int, steps: Iterable[int]) -> None:
        if time < self.now:
            raise ValueError(f"time must be at least {self.now} ns, not {time}")
        if self._advancing:
            raise RuntimeError("the clock is advancing: use call_later instead of waiting")
        self._advancing = True
        try:
            for _ in steps:
                event = self.next_event
                if event is None or event > time:
                    self._step(time)
                    break
                self._step(event)
        finally:
            self._advancing = False

    def _step(self, time: int) -> None:
        self._core.advance_to(max(time, self.now))
        self._service()
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action()
                self._service()

    def run_to_next_event(self) -> bool:
        """Move on to the next event; False if there is none."""
        event = self.next_event
        if event is None:
            return False
        self.advance_to(max(event, self.now))
        return True

    def follow(self) -> int:
        """Move on to the source's reading, never back; return the time in ns.

        One call goes through events for 2 ms of the host's time: where a guest keeps its devices
        busier than the host can follow, virtual time lags behind instead of holding the caller up.

        Raises:
            RuntimeError: if the clock is stepped.
        """
        if self.source is None:
            raise RuntimeError("a stepped clock has no source to follow")
        deadline = time.monotonic() + TURN
        in_time = takewhile(lambda step: not step or time.monotonic() < deadline, count())
        self._advance_to(max(self.source(), self.now), in_time)
        return self.now
