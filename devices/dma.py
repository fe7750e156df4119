"""DMA of device models: cut at pages, sent again when the fabric is full, waited for.

What a device does by DMA is a *task*: a generator that sends a DMA and, if that does not pass at
once, yields until it has. So one code path serves a machine without latencies, where a task is over
before the write to a doorbell returns, and one where each DMA takes its time:

    tasks = DmaTasks(device)

    def copy(source, target, length):
        data = yield from tasks.read(source, length)
        yield from tasks.write(target, data)

    tasks.start(copy(0x1000, 0x2000, 64))

A task that yields says what it waits for:

- `Wait.DMA`: a completion of the port wakes it;
- `Wait.ROOM`: the fabric has no room for a request (backpressure); it is sent again from the clock;
- `Wait.PARKED`: whoever holds the task resumes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from iommu_emu.clock import MICROSECOND, Timer
from iommu_emu.core import Completion, Status
from iommu_emu.memory import PAGE

if TYPE_CHECKING:
    from iommu_emu.devices.base import Device

PAUSE = MICROSECOND  # until what found no room is sent again
LONGEST = 1 << 16  # DMAs are cut at multiples of this
_ADDRESSES = (1 << 64) - 1  # a DMA goes on at 0 that reaches the end of the address space

__all__ = ["DmaError", "DmaTasks", "Task", "Wait", "Work"]


class DmaError(Exception):
    """A DMA did not pass: its fault has been reported, the device only knows that it failed."""


class Wait(Enum):
    """What a task waits for."""

    DMA = auto()
    ROOM = auto()
    PARKED = auto()


T = TypeVar("T")
Work: TypeAlias = Generator[Wait, None, T]


class Task:
    """A generator, and what it waits for; None: it is running, or over."""

    __slots__ = ("tasks", "wait", "work")

    def __init__(self, tasks: DmaTasks, work: Work[None]) -> None:
        self.tasks = tasks
        self.work = work
        self.wait: Wait | None = None

    def wake(self, _: Completion) -> None:
        """Go on: the DMA that it sent is complete. Called too early if that passed at once."""
        if self.wait is Wait.DMA:
            self.tasks.woken(self)


class DmaTasks:
    """The tasks of one period of a device: from when software starts it until it stops.

    Args:
        device: whose port and clock they use.
        proceed: called when tasks have gone on after waiting: there may be room for new ones.
        budget: DMAs that tasks may send before what called them goes on; then the clock does. It
            keeps a guest from keeping the host busy for ever. None: any number.

    Attributes:
        closed: whether everything was stopped.
        running: tasks that are neither over nor parked, as long as not everything was stopped.
    """

    def __init__(
        self,
        device: Device,
        proceed: Callable[[], None] = lambda: None,
        *,
        budget: int | None = None,
    ) -> None:
        self.closed = False
        self.running = 0
        self._device = device
        self._port = device.dma
        # The fabric splits a DMA at pages. None may have more parts than the fabric has
        # transactions: it would wait for ever.
        few = device.machine.core.transactions * PAGE < LONGEST
        self._block = PAGE if few else LONGEST
        self._proceed = proceed
        self._budget = self._left = sys.maxsize if budget is None else budget
        self._tasks: set[Task] = set()
        self._current: Task | None = None
        self._stalled: list[Task] = []
        self._timer: Timer | None = None
        self._idle: Callable[[], None] | None = None

    # Tasks.

    def start(self, work: Work[None]) -> None:
        """Run a new task until it has to wait."""
        if self.closed:
            work.close()
            return
        task = Task(self, work)
        self._tasks.add(task)
        self.running += 1
        self._run(task)

    def _run(self, task: Task) -> None:
        outer, self._current = self._current, task
        if outer is None:
            self._left = self._budget
        task.wait = None
        try:
            task.wait = next(task.work)
        except StopIteration:
            self._over(task)
        except BaseException:
            self._over(task)
            raise
        else:
            if self.closed:  # by what the task called
                task.work.close()
                self._over(task)
            elif task.wait is Wait.ROOM:
                self._stalled.append(task)
                self.continue_later()
            elif task.wait is Wait.PARKED:
                self.running -= 1
        finally:
            self._current = outer

    def _over(self, task: Task) -> None:
        self._tasks.discard(task)
        self.running -= 1
        if self._idle is not None and not (self._tasks if self.closed else self.running):
            idle, self._idle = self._idle, None
            idle()

    def woken(self, task: Task) -> None:
        """Go on with a task whose DMA is complete, and then with what waited for its place."""
        self._run(task)
        self._proceed()

    def resume(self, task: Task) -> None:
        """Go on with a task that was parked."""
        if not self.closed:
            self.running += 1
            self._run(task)

    @property
    def current(self) -> Task:
        """The task that is running."""
        assert self._current is not None
        return self._current

    # DMA.

    def read(self, address: int, length: int) -> Work[bytes]:
        """Read memory.

        Args:
            address: IOVA.
            length: bytes, 1 or more.

        Raises:
            DmaError: if that fails.
        """
        task = self._current
        assert task is not None
        parts: list[bytes] = []
        while True:
            if not self._left:
                yield Wait.ROOM
            self._left -= 1
            address &= _ADDRESSES
            size = self._block - address % self._block
            if size > length:
                size = length
            done = self._port.read(address, size, task.wake)
            details = done.details
            if details is not None and details.status is Status.PENDING:
                yield Wait.DMA
                details = done.details
            if details is not None and details.status is not Status.DONE:
                if details.status is not Status.BUSY:
                    raise DmaError(details.status.name)
                yield Wait.ROOM
                continue
            if size == length:
                return b"".join((*parts, done.data)) if parts else done.data
            parts.append(done.data)
            address += size
            length -= size

    def write(self, address: int, data: bytes) -> Work[None]:
        """Write memory.

        Args:
            address: IOVA.
            data: 1 byte or more.

        Raises:
            DmaError: if that fails.
        """
        task = self._current
        assert task is not None
        while True:
            if not self._left:
                yield Wait.ROOM
            self._left -= 1
            address &= _ADDRESSES
            size = self._block - address % self._block
            if size > len(data):
                size = len(data)
            done = self._port.write(address, data[:size], task.wake)
            details = done.details
            if details is not None and details.status is Status.PENDING:
                yield Wait.DMA
                details = done.details
            if details is not None and details.status is not Status.DONE:
                if details.status is not Status.BUSY:
                    raise DmaError(details.status.name)
                size = details.done
                yield Wait.ROOM
            if size == len(data):
                return
            address += size
            data = data[size:]

    # Waiting and stopping.

    def continue_later(self) -> None:
        """Send from the clock what found no room, and proceed."""
        # While the function must not send, time helps nothing: `unblocked` goes on.
        blocked = self._stalled and self._port.blocked is Status.BUSY
        if self._timer is None and not blocked and not self.closed:
            self._timer = self._device.call_later(PAUSE, self._continue)

    def _continue(self) -> None:
        self._timer = None
        if self.closed:
            return
        stalled, self._stalled = self._stalled, []
        for task in stalled:
            self._run(task)
        self._proceed()

    def unblocked(self) -> None:
        """Send again what was held back while the function must not send."""
        if self._timer is None:
            self._continue()

    def quiesce(self, idle: Callable[[], None]) -> None:
        """Call `idle` when the tasks that run are over; the device starts no new ones."""
        if self.running:
            self._idle = idle
        else:
            idle()

    def stop(self, idle: Callable[[], None] = lambda: None) -> None:
        """Give every task up, and call `idle` when no DMA of theirs is in flight.

        Nothing that they sent can be called back, and nothing new is sent. A task that stops the
        device by what it calls, an interrupt for instance, goes on until it sends or waits.
        """
        self.closed = True
        self._left = 0
        self._stalled.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            if task.wait is not None:
                task.work.close()  # what it waits for finds it at its end
            if task.wait is not Wait.DMA:
                self._tasks.discard(task)
        self._idle = idle if self._tasks else None
        if not self._tasks:
            idle()
