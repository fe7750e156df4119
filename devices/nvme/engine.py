"""Carries out commands: fetches them, runs them as tasks, posts their completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from iommu_emu.devices.dma import DmaError, DmaTasks, Wait, Work
from iommu_emu.devices.nvme.queues import CompletionQueue, SubmissionQueue
from iommu_emu.devices.nvme.specification import CommandError, StatusCode
from iommu_emu.devices.nvme.structures import COMPLETION, SUBMISSION, SubmissionEntry

if TYPE_CHECKING:
    from iommu_emu.devices.base import Device

MAX_RUNNING = 64  # tasks that are neither done nor parked: bounds the memory they take
BURST = 16  # commands fetched from a queue at a time
BUDGET = 64  # commands started by one doorbell write; the clock starts the rest

__all__ = ["BURST", "Engine"]


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
        dma: the tasks; a command is one, and so is a fetch.
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
        self.dma = DmaTasks(device, self.arbitrate)
        self._execute = execute
        self._failed = failed
        self._notify = notify
        self._fatal = fatal
        self._ready: deque[SubmissionQueue] = deque()
        self._arbitrating = False

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
        ready, dma = self._ready, self.dma
        budget = BUDGET
        while ready and budget and dma.running < MAX_RUNNING and not dma.closed:
            queue = ready.popleft()
            queue.queued = False
            # Those whose completion queue is full are offered again when there is room.
            if not queue.open or queue.completions.waiting:
                continue
            end = queue.tail if queue.tail > queue.head else queue.size
            count = min(end - queue.head, self.burst, budget, MAX_RUNNING - dma.running)
            budget -= count
            queue.fetching = True
            dma.start(self._fetch(queue, count))
        self._arbitrating = False
        if ready and not budget:
            dma.continue_later()

    def _fetch(self, queue: SubmissionQueue, count: int) -> Work[None]:
        """Fetch commands that lie side by side, and start them."""
        try:
            data = yield from self.dma.read(
                queue.base + SUBMISSION.size * queue.head, SUBMISSION.size * count
            )
        except DmaError:
            self._fail()
            return
        queue.head = (queue.head + count) % queue.size
        queue.fetching = False
        queue.running += count
        for fields in SUBMISSION.iter_unpack(data):
            if self.dma.closed:
                return
            self.dma.start(self._command(queue, SubmissionEntry._make(fields)))
        self.offer(queue)

    def _command(self, queue: SubmissionQueue, command: SubmissionEntry) -> Work[None]:
        result: int | None = 0
        error = None
        try:
            outcome = self._execute(command, queue)
            if outcome is None or isinstance(outcome, int):
                result = outcome
            else:
                result = yield from outcome
        except CommandError as raised:
            error = raised
        except DmaError:
            error = CommandError(StatusCode.DATA_TRANSFER_ERROR)
        status = 0 if error is None else self._failed(queue, command, error.status)
        if result is not None:
            yield from self._post(queue, command.cid, result, status)
        queue.running -= 1
        if queue.drained is not None and not queue.running:
            waiting, queue.drained = queue.drained, None
            self.dma.resume(waiting)

    def post(self, queue: SubmissionQueue, cid: int, result: int, status: int = 0) -> None:
        """Complete a command that was left without completion."""
        self.dma.start(self._post(queue, cid, result, status))

    def _post(self, queue: SubmissionQueue, cid: int, result: int, status: int) -> Work[None]:
        completions = queue.completions
        while completions.full:
            completions.waiting.append(self.dma.current)
            yield Wait.PARKED
        address, phase = completions.take_slot()
        entry = COMPLETION.pack(result, queue.head, queue.qid, cid, status << 1 | phase)
        try:
            yield from self.dma.write(address, entry)
        except DmaError:
            self._fail()
            return
        if completions.interrupts:
            self._notify(completions)

    def freed(self, completions: CompletionQueue) -> None:
        """Go on with what waited for room in a completion queue."""
        while completions.waiting and not completions.full:
            self.dma.resume(completions.waiting.popleft())
        if not completions.waiting:
            for queue in completions.users:
                self.offer(queue)
        self.arbitrate()

    def drain(self, queue: SubmissionQueue) -> Work[None]:
        """Fetch nothing more from a queue, and wait until its commands are complete."""
        queue.open = False
        while queue.fetching or queue.running:
            queue.drained = self.dma.current
            yield Wait.PARKED

    # Stopping.

    def quiesce(self, idle: Callable[[], None]) -> None:
        """Start no more commands, and call `idle` when those that run are complete."""
        self._ready.clear()
        for queue in self.submission.values():
            queue.open = False
        self.dma.quiesce(idle)

    def stop(self, idle: Callable[[], None] = lambda: None) -> None:
        """Give every command up, and call `idle` when no DMA of theirs is in flight."""
        self._ready.clear()
        self.dma.stop(idle)

    def _fail(self) -> None:
        """Give up: the controller cannot reach its queues (3.1.6, CSTS.CFS)."""
        self.stop()
        self._fatal()
