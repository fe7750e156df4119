"""How long calls take, in the time that is modelled and in the host's."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from iommu_emu.virtual_cpus import Task, VirtualCpus

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

T = TypeVar("T")
WARM_UP = 384  # enough to fill a CPU's flush queue once: from then on IOVAs come from magazines

__all__ = ["WARM_UP", "Calls", "Measured", "WorkloadError", "run_measured", "timed"]


class WorkloadError(RuntimeError):
    """Data of a workload got lost or changed on its way through the IOMMU."""


@dataclass
class Calls:
    """What calls of one kind took.

    Attributes:
        count: how many.
        total_ns: virtual time, all together.
        total_squares: squares of it, all together.
        total_host_ns: the host's time, all together.
    """

    count: int = 0
    total_ns: float = 0.0
    total_squares: float = 0.0
    total_host_ns: int = 0

    def add(self, ns: float, host_ns: int, count: int = 1) -> None:
        """Take note of calls that took some time together."""
        self.count += count
        self.total_ns += ns
        self.total_squares += ns * ns / count
        self.total_host_ns += host_ns

    @property
    def mean_ns(self) -> float:
        """Virtual time of a call, mean."""
        return self.total_ns / self.count if self.count else 0.0

    @property
    def deviation_ns(self) -> float:
        """Standard deviation of it."""
        if not self.count:
            return 0.0
        return sqrt(max(0.0, self.total_squares / self.count - self.mean_ns**2))

    @property
    def host_ns(self) -> float:
        """The host's time of a call, mean; differs from run to run."""
        return self.total_host_ns / self.count if self.count else 0.0


@dataclass(kw_only=True)
class Measured:
    """What a workload took.

    Attributes:
        maps: the maps.
        unmaps: the unmaps.
        elapsed_ns: virtual time from its beginning to its end.
        payload: bytes of data that it moved.
        copied: bytes copied to and from bounce or shadow buffers.
        commands: what was put on the units' queues, by name of the structure.
        lock_wait_ns: virtual time that CPUs waited for locks, or for units busy with the
            invalidations of others, all together.
    """

    maps: Calls = field(default_factory=Calls)
    unmaps: Calls = field(default_factory=Calls)
    elapsed_ns: float = 0.0
    payload: int = 0
    copied: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    lock_wait_ns: float = 0.0

    @property
    def invalidations(self) -> int:
        """How many of the commands were invalidations."""
        return sum(count for name, count in self.commands.items() if "Invalidat" in name)

    @property
    def gbps(self) -> float:
        """Payload in Gb/s, as fast as the CPUs are; infinite if nothing takes time."""
        bits = 8.0 * self.payload
        return bits / self.elapsed_ns if self.elapsed_ns else float("inf") if bits else 0.0

    def share_of(self, line: float) -> float:
        """Return how much of a line's rate (Gb/s) the CPUs can use, 0..1."""
        return min(1.0, self.gbps / line)


def timed(
    cpus: VirtualCpus, cpu: int, calls: Calls, call: Callable[[], T], count: int = 1
) -> Generator[float | None, None, T]:
    """Make calls in a step of their own; add what they took when it is over.

    Args:
        cpus: the virtual CPUs.
        cpu: which of them works.
        calls: where it is added.
        call: what to do; its result is returned.
        count: how many calls it stands for.
    """
    began, host = cpus.time(cpu), time.perf_counter_ns()
    result = call()
    host = time.perf_counter_ns() - host
    yield None
    calls.add(cpus.time(cpu) - began, host, count)
    return result


def run_measured(
    linux: Linux, cpus: VirtualCpus, tasks: Mapping[int, Task], measured: Measured
) -> None:
    """Run the tasks of a workload from the same moment on, and add what they took."""
    cpus.catch_up()
    drivers, dma = linux.drivers.values(), linux.dma.statistics
    commands = sum((driver.submitted for driver in drivers), Counter[str]())
    copied, began, waited = dma.copied, linux.clock.now, cpus.lock_wait_ns
    cpus.run(tasks)
    measured.elapsed_ns += max(cpus.time(cpu) for cpu in tasks) - began
    measured.lock_wait_ns += cpus.lock_wait_ns - waited
    measured.copied += dma.copied - copied
    measured.commands += sum((driver.submitted for driver in drivers), Counter[str]()) - commands
