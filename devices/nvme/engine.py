"""Carries out commands: fetches them, runs them through their DMAs, posts their completions.

Whatever the controller does is a *task*: a generator that sends a DMA and, if that does not pass
at once, yields until it has. So one code path serves a machine without latencies, where a command
is over before the doorbell write returns, and one where each DMA takes its time.

A task that yields says what it waits for:

- `Wait.DMA`: a completion of the port wakes it;
- `Wait.ROOM`: the fabric has no room for a request (backpressure); it is sent again from the clock;
- `Wait.PARKED`: whoever holds the task runs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from iommu_emu.clock import MICROSECOND, Timer
from iommu_emu.core import Completion, CompletionDetails, Status
from iommu_emu.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iommu_emu.devices.nvme.specification import CommandError, StatusCode
from iommu_emu.devices.nvme.structures import COMPLETION, SUBMISSION, SubmissionEntry

if TYPE_CHECKING:
    from iommu_emu.devices.base import Device

MAX_RUNNING = 64  # tasks that are neither done nor parked: bounds the memory they take
BURST = 16  # commands fetched from a queue at a time
BUDGET = 64  # commands started by one doorbell write; the clock starts the rest
PAUSE = MICROSECOND  # until then
PAGE = 4096  # the fabric splits a DMA at its multiples
LONGEST = 1 << 16  # DMAs are cut at multiples of this
_ADDRESSES = (1 << 64) - 1  # where a queue goes on that reaches the end of the address space

__all__ = [
    "BURST",
    "Engine",
    "FatalError",
    "Task",
    "Wait",
    "Work",
]


class Wait(Enum):
    """What a task waits for."""

    DMA = auto()
    ROOM = auto()
    PARKED = auto()


T = TypeVar("T")
Work: TypeAlias = Generator[Wait, None, T]


class FatalError(Exception):
    """The controller cannot reach its queues: a fatal status (3.1.6, CSTS.CFS)."""


class Task:
    """A generator, and what it waits for; None: it is running, or over."""

    __slots__ = ("engine", "wait", "work")

    def __init__(self, engine: Engine, work: Work[None]) -> None:
        self.engine = engine
        self.work = work
        self.wait: Wait | None = None

    def wake(self, _: Completion) -> None:
        """Go on: the DMA that it sent is complete. Called too early if that passed at once."""
        if self.wait is Wait.DMA:
            self.engine.woken(self)


class Engine:
    """The tasks of one enabled period of the controller, and the arbitration of its queues.

    Args:
        device: whose port and clock it uses.
        execute: what a command does; returns dword 0 of its completion, or None if there is to be
            no completion now.
        failed: told of a command's error: queue, command and status; returns the status to report.
        notify: told that something was posted to a queue that interrupts.
        fatal: told that the controller cannot go on.

    Attributes:
        submission: submission queues by ID.
        completion: completion queues by ID.
        burst: commands that may be fetched from a queue before it is the next one's turn.
        running: tasks that are neither over nor parked.
    """

    def __init__(
        self,
        device: Device,
        execute: Callable[[SubmissionEntry, SubmissionQueue], int | Work[int] | None],
        failed: Callable[[SubmissionQueue, SubmissionEntry, int], int],
        notify: Callable[[CompletionQueue], None],
        fatal: Callable[[], None],
    ) -> None:
        self.submission: dict[int, SubmissionQueue] = {}
        self.completion: dict[int, CompletionQueue] = {}
        self.burst = BURST
        self.running = 0
        self.closed = False
        self._device = device
        self._port = device.dma
        # No DMA may have more parts than the fabric has transactions: it would wait for ever.
        few = device.machine.core.transactions * PAGE < LONGEST
        self._block = PAGE if few else LONGEST
        self._execute = execute
        self._failed = failed
        self._notify = notify
        self._fatal = fatal
        self._tasks: set[Task] = set()
        self._current: Task | None = None
        self._ready: deque[SubmissionQueue] = deque()
        self._stalled: list[Task] = []
        self._timer: Timer | None = None
        self._arbitrating = False
        self._idle: Callable[[], None] | None = None

    # Tasks.

    def start(self, work: Work[None]) -> None:
        """Run a new task until it has to wait."""
        task = Task(self, work)
        self._tasks.add(task)
        self.running += 1
        self._run(task)

    def _run(self, task: Task) -> None:
        outer, self._current = self._current, task
        task.wait = None
        try:
            task.wait = next(task.work)
        except StopIteration:
            self._over(task)
        except FatalError:
            self._over(task)
            if not self.closed:
                self.stop()
                self._fatal()
        else:
            if task.wait is Wait.ROOM:
                self._stalled.append(task)
                self._continue_later()
            elif task.wait is Wait.PARKED:
                self.running -= 1
        finally:
            self._current = outer

    def _over(self, task: Task) -> None:
        self._tasks.discard(task)
        self.running -= 1
        if self._idle is not None and not self.running:
            idle, self._idle = self._idle, None
            idle()

    def woken(self, task: Task) -> None:
        """Go on with a task whose DMA is complete, and then with what waited for its place."""
        self._run(task)
        self.arbitrate()

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

        Raises:
            CommandError: Data Transfer Error, if that fails.
        """
        task = self.current
        parts: list[bytes] = []
        while True:
            address &= _ADDRESSES
            size = min(length, self._block - address % self._block)
            done = self._port.read(address, size, task.wake)
            details = done.details
            if details is not None:
                if details.status is Status.PENDING:
                    yield Wait.DMA
                    details = _landed(done)
                if details.status is Status.BUSY:
                    yield Wait.ROOM
                    continue
                if details.status is not Status.DONE:
                    raise CommandError(StatusCode.DATA_TRANSFER_ERROR)
            parts.append(done.data)
            if size == length:
                return b"".join(parts)
            address += size
            length -= size

    def write(self, address: int, data: bytes) -> Work[None]:
        """Write memory.

        Raises:
            CommandError: Data Transfer Error, if that fails.
        """
        task = self.current
        while True:
            address &= _ADDRESSES
            size = min(len(data), self._block - address % self._block)
            done = self._port.write(address, data[:size], task.wake)
            details = done.details
            if details is not None:
                if details.status is Status.PENDING:
                    yield Wait.DMA
                    details = _landed(done)
                if details.status is Status.BUSY:
                    address += details.done
                    data = data[details.done :]
                    yield Wait.ROOM
                    continue
                if details.status is not Status.DONE:
                    raise CommandError(StatusCode.DATA_TRANSFER_ERROR)
            if size == len(data):
                return
            address += size
            data = data[size:]

    # From the doorbell to the completion.

    def offer(self, queue: SubmissionQueue) -> None:
        """Let a queue take part in the arbitration if it has commands."""
        if queue.open and queue.head != queue.tail and not (queue.queued or queue.fetching):
            queue.queued = True
            self._ready.append(queue)

    def arbitrate(self) -> None:
        """Fetch and start commands, round robin over the queues that have some (4.13.1).

        The budget keeps a guest from keeping the host busy for ever: the clock goes on with what
        is left.
        """
        if self._arbitrating:
            return
        self._arbitrating = True
        ready = self._ready
        budget = BUDGET
        while ready and budget and self.running < MAX_RUNNING and not self.closed:
            queue = ready.popleft()
            queue.queued = False
            # Those whose completion queue is full are offered again when there is room.
            if not queue.open or queue.completions.waiting:
                continue
            end = queue.tail if queue.tail > queue.head else queue.size
            count = min(end - queue.head, self.burst, budget, MAX_RUNNING - self.running)
            budget -= count
            queue.fetching = True
            self.start(self._fetch(queue, count))
        self._arbitrating = False
        if ready and not budget:
            self._continue_later()

    def _fetch(self, queue: SubmissionQueue, count: int) -> Work[None]:
        """Fetch commands that lie side by side, and start them."""
        try:
            data = yield from self.read(
                queue.base + SUBMISSION.size * queue.head, SUBMISSION.size * count
            )
        except CommandError:
            raise FatalError from None
        queue.head = (queue.head + count) % queue.size
        queue.fetching = False
        queue.running += count
        for fields in SUBMISSION.iter_unpack(data):
            if self.closed:
                return
            self.start(self._command(queue, SubmissionEntry._make(fields)))
        self.offer(queue)

    def _command(self, queue: SubmissionQueue, command: SubmissionEntry) -> Work[None]:
        result: int | None = 0
        status = 0
        try:
            outcome = self._execute(command, queue)
            if outcome is None or isinstance(outcome, int):
                result = outcome
            else:
                result = yield from outcome
        except CommandError as error:
            status = self._failed(queue, command, error.status)
        if result is not None:
            yield from self._post(queue, command.cid, result, status)
        queue.running -= 1
        if queue.drained is not None and not queue.running:
            waiting, queue.drained = queue.drained, None
            self.resume(waiting)

    def post(self, queue: SubmissionQueue, cid: int, result: int, status: int = 0) -> None:
        """Complete a command that was left without completion."""
        self.start(self._post(queue, cid, result, status))

    def _post(self, queue: SubmissionQueue, cid: int, result: int, status: int) -> Work[None]:
        completions = queue.completions
        while completions.full:
            completions.waiting.append(self.current)
            yield Wait.PARKED
        address, phase = completions.take_slot()
        entry = COMPLETION.pack(result, queue.head, queue.qid, cid, status << 1 | phase)
        try:
            yield from self.write(address, entry)
        except CommandError:
            raise FatalError from None
        if completions.interrupts:
            self._notify(completions)

    def freed(self, completions: CompletionQueue) -> None:
        """Go on with what waited for room in a completion queue."""
        while completions.waiting and not completions.full:
            self.resume(completions.waiting.popleft())
        if not completions.waiting:
            for queue in completions.users:
                self.offer(queue)
        self.arbitrate()

    def drain(self, queue: SubmissionQueue) -> Work[None]:
        """Fetch nothing more from a queue, and wait until its commands are complete."""
        queue.open = False
        while queue.fetching or queue.running:
            queue.drained = self.current
            yield Wait.PARKED

    # Waiting and stopping.

    def _continue_later(self) -> None:
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
        self.arbitrate()

    def unblocked(self) -> None:
        """Send again what was held back while the function must not send."""
        if self._timer is None:
            self._continue()

    def quiesce(self, idle: Callable[[], None]) -> None:
        """Start no more commands, and call `idle` when those that run are complete."""
        self._ready.clear()
        for queue in self.submission.values():
            queue.open = False
        if self.running:
            self._idle = idle
        else:
            idle()

    def stop(self, idle: Callable[[], None] = lambda: None) -> None:
        """Give every command up, and call `idle` when no DMA of theirs is in flight.

        Nothing that they sent can be called back, and nothing new is sent.
        """
        self.closed = True
        self._idle = None
        self._ready.clear()
        self._stalled.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            if task is self._current or task.wait is None:
                continue
            task.work.close()  # what it waits for finds it at its end
            if task.wait is not Wait.DMA:
                self._tasks.discard(task)
            if task.wait is Wait.ROOM:
                self.running -= 1
        if self.running:
            self._idle = idle
        else:
            idle()


def _landed(done: Completion) -> CompletionDetails:
    """Return what a completion says that was pending."""
    assert done.details is not None
    return done.details
