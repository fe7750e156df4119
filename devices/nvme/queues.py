"""Submission and completion queues as the controller sees them (4.1)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from iommu_emu.devices.nvme.structures import COMPLETION

if TYPE_CHECKING:
    from iommu_emu.devices.dma import Task

__all__ = ["CompletionQueue", "SubmissionQueue"]


class CompletionQueue:
    """A completion queue (4.1).

    Attributes:
        qid: queue ID.
        base: IOVA of entry 0.
        size: entries.
        vector: interrupt vector.
        interrupts: whether it interrupts at all.
        head: entry that software consumes next.
        tail: entry that is posted next.
        phase: phase tag with which it is posted.
        waiting: tasks that found it full.
        users: submission queues that complete here.
    """

    __slots__ = (
        "base",
        "head",
        "interrupts",
        "phase",
        "qid",
        "size",
        "tail",
        "users",
        "vector",
        "waiting",
    )

    def __init__(self, qid: int, base: int, size: int, vector: int, interrupts: bool) -> None:
        self.qid = qid
        self.base = base
        self.size = size
        self.vector = vector
        self.interrupts = interrupts
        self.head = self.tail = 0
        self.phase = 1
        self.waiting: deque[Task] = deque()
        self.users: list[SubmissionQueue] = []

    @property
    def full(self) -> bool:
        """Whether one more entry would look like an empty queue (4.1.2)."""
        return (self.tail + 1) % self.size == self.head

    def take_slot(self) -> tuple[int, int]:
        """Return address and phase tag of the next entry, and move on."""
        address, phase = self.base + COMPLETION.size * self.tail, self.phase
        self.tail += 1
        if self.tail == self.size:
            self.tail = 0
            self.phase ^= 1
        return address, phase


class SubmissionQueue:
    """A submission queue (4.1).

    Attributes:
        qid: queue ID.
        base: IOVA of entry 0.
        size: entries.
        completions: where its commands complete.
        head: entry that is fetched next.
        tail: entry that software fills next.
        open: whether commands are fetched from it.
        fetching: whether a fetch is under way.
        queued: whether it takes part in the arbitration.
        running: commands fetched and not completed.
        drained: task that waits for none to be left.
    """

    __slots__ = (
        "base",
        "completions",
        "drained",
        "fetching",
        "head",
        "open",
        "qid",
        "queued",
        "running",
        "size",
        "tail",
    )

    def __init__(self, qid: int, base: int, size: int, completions: CompletionQueue) -> None:
        self.qid = qid
        self.base = base
        self.size = size
        self.completions = completions
        self.head = self.tail = 0
        self.open = True
        self.fetching = self.queued = False
        self.running = 0
        self.drained: Task | None = None
        completions.users.append(self)
