"""A ring of descriptors as the controller sees it: fetched in batches, written back one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING

from iommu_emu.devices.dma import DmaError, DmaTasks, Work
from iommu_emu.devices.nic.descriptors import DESCRIPTOR, WRITE_BACK
from iommu_emu.devices.nic.registers import MAX_ENTRIES, MIN_ENTRIES, Register

if TYPE_CHECKING:
    from iommu_emu.devices.nic.controller import Nic

BATCH = 16  # descriptors fetched at a time
BUDGET = 256  # DMAs that one doorbell, frame or completion may start at once; then the clock does
ADDRESSES = 1 << 64

__all__ = ["ADDRESSES", "BATCH", "BUDGET", "Ring", "State"]


class State(Enum):
    """Whether a ring is at work."""

    STOPPED = auto()
    RUNNING = auto()
    STOPPING = auto()  # until nothing is in flight
    FAILED = auto()


class Ring(ABC):
    """A ring of descriptors: fetches them, and writes them back.

    It does one DMA at a time, in one task that is over when there is nothing to do.

    Args:
        nic: the controller.
        failure: the cause that tells software of its failure.

    Attributes:
        base: IOVA of descriptor 0.
        size: descriptors.
        head: index of the one that it works on next.
        tail: index of the first that is not its own.
        state: whether it is at work.
    """

    def __init__(self, nic: Nic, failure: int) -> None:
        self.nic = nic
        self.failure = failure
        self.base = self.size = self.head = self.tail = 0
        self.state = State.STOPPED
        self._dma: DmaTasks | None = None
        self._wanted = False
        self._fetched: deque[tuple[int, int, int, int]] = deque()  # from the head on

    # Registers.

    def read(self, offset: int) -> int:
        """Read one of the ring's registers."""
        registers: dict[int, int] = {
            Register.BASE_LOW: self.base & 0xFFFF_FFFF,
            Register.BASE_HIGH: self.base >> 32,
            Register.SIZE: self.size,
            Register.HEAD: self.head,
            Register.TAIL: self.tail,
        }
        return registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write one of the ring's registers, or ring its doorbell."""
        if offset == Register.TAIL:
            self._ring_doorbell(value)
        elif self.state is not State.STOPPED:
            return
        elif offset == Register.BASE_LOW:
            self.base = self.base & ~0xFFFF_FFFF | value & ~(DESCRIPTOR.size - 1)
        elif offset == Register.BASE_HIGH:
            self.base = self.base & 0xFFFF_FFFF | value << 32
        elif offset == Register.SIZE:
            self.size = value

    def _ring_doorbell(self, tail: int) -> None:
        """Take a new tail, unless it is outside the ring or takes descriptors back."""
        if self.state is not State.RUNNING or tail >= self.size:
            self.nic.statistics.doorbell_errors += 1
            return
        used = (self.tail - self.head) % self.size
        if used + (tail - self.tail) % self.size >= self.size:
            self.nic.statistics.doorbell_errors += 1
            return
        self.tail = tail
        self.run()

    # Starting and stopping.

    def switch(self, on: bool) -> None:
        """Start the ring, or stop it; if it is stopping yet, start it when it has."""
        self._wanted = on
        if on and self.state is State.STOPPED:
            self._start()
        elif not on and self.state in (State.RUNNING, State.FAILED):
            self.state = State.STOPPING
            if self._dma is None:
                self._stopped()
            else:
                self._dma.stop(self._stopped)

    def _start(self) -> None:
        self.head = self.tail = 0
        self.begin()
        last = self.base + DESCRIPTOR.size * self.size
        if not MIN_ENTRIES <= self.size <= MAX_ENTRIES or last > ADDRESSES:
            self.fail()
            return
        self.state = State.RUNNING
        self._dma = DmaTasks(self.nic, budget=BUDGET)

    def _stopped(self) -> None:
        self.state = State.STOPPED
        self.begin()
        self.nic.ring_stopped()
        if self._wanted:
            self._start()

    def abandon(self) -> None:
        """Send nothing more, and forget what is in flight."""
        if self._dma is not None:
            self._dma.stop()

    def fail(self) -> None:
        """Stop by itself, and tell software."""
        self.abandon()
        self.state = State.FAILED
        self.begin()
        self.nic.statistics.ring_failures += 1
        self.nic.happened(self.failure)

    def unblocked(self) -> None:
        """Send what was held back while the function must not send."""
        if self._dma is not None:
            self._dma.unblocked()

    def begin(self) -> None:
        """Forget what was under way."""
        self._fetched.clear()

    # Work.

    def run(self) -> None:
        """Work on what there is to do, unless that is being done."""
        dma = self._dma
        if dma is not None and not (dma.running or dma.closed):
            dma.start(self._run(dma))

    def _run(self, dma: DmaTasks) -> Work[None]:
        try:
            yield from self.work(dma)
        except DmaError:  # the buffers' own are caught: this one was about a descriptor
            self.fail()

    @abstractmethod
    def work(self, dma: DmaTasks) -> Work[None]:
        """Do what there is to do, unless the ring is stopped meanwhile.

        Raises:
            DmaError: if a descriptor cannot be fetched or written back.
        """

    @abstractmethod
    def finished(self, flags: int, status: int) -> None:
        """Called when a descriptor has been written back, and the head is past it."""

    def fetch(self, dma: DmaTasks) -> Work[bool]:
        """See to it that the next descriptor is there; False if software has given none.

        Raises:
            DmaError: if it cannot be fetched.
        """
        if not self._fetched:
            end = self.tail if self.tail >= self.head else self.size
            count = min(BATCH, end - self.head)
            if not count:
                return False
            at = self.base + DESCRIPTOR.size * self.head
            data = yield from dma.read(at, DESCRIPTOR.size * count)
            self._fetched.extend(DESCRIPTOR.iter_unpack(data))
        return True

    @property
    def next(self) -> tuple[int, int, int]:
        """Address, length and flags of the next descriptor, which is there."""
        return self._fetched[0][:3]

    def write_back(self, dma: DmaTasks, length: int, flags: int, status: int) -> Work[None]:
        """Write the next descriptor back; it is over then.

        Raises:
            DmaError: if that fails.
        """
        at = self.base + DESCRIPTOR.size * self.head + DESCRIPTOR.size - WRITE_BACK.size
        yield from dma.write(at, WRITE_BACK.pack(length, flags, status))
        self._fetched.popleft()
        self.head = (self.head + 1) % self.size
        self.finished(flags, status)
