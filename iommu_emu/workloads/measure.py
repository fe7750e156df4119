"""How long calls take, in the time that is modelled and in the host's."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from iommu_emu.driver import count_invalidations
from iommu_emu.virtual_cpus import Task, VirtualCpus

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux
    from iommu_emu.xen import Xen

T = TypeVar("T")
WARM_UP = 384  # enough to fill a CPU's flush queue once: from then on IOVAs come from magazines

__all__ = ["WARM_UP", "Calls", "Measured", "WorkloadError", "pairs", "run_measured", "timed"]


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
        frames: RAM that page tables took and kept, and scratch pages, in pages of 4 KiB.
    """

    maps: Calls = field(default_factory=Calls)
    unmaps: Calls = field(default_factory=Calls)
    elapsed_ns: float = 0.0
    payload: int = 0
    copied: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    lock_wait_ns: float = 0.0
    frames: int = 0

    @property
    def invalidations(self) -> int:
        """How many of the commands were invalidations."""
        return count_invalidations(self.commands)

    @property
    def gbps(self) -> float:
        """Payload in Gb/s, as fast as the CPUs are; infinite if nothing takes time."""
        bits = 8.0 * self.payload
        return bits / self.elapsed_ns if self.elapsed_ns else float("inf") if bits else 0.0


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
    system: Linux | Xen, cpus: VirtualCpus, tasks: Mapping[int, Task], measured: Measured
) -> None:
    """Run the tasks of a workload from the same moment on, and add what they took."""
    cpus.catch_up()
    drivers = system.drivers.values()
    commands = sum((driver.submitted for driver in drivers), Counter[str]())
    frames = sum(driver.frames.available for driver in drivers)
    copied, began, waited = _copied(system), system.machine.clock.now, cpus.lock_wait_ns
    cpus.run(tasks)
    measured.elapsed_ns += max(cpus.time(cpu) for cpu in tasks) - began
    measured.lock_wait_ns += cpus.lock_wait_ns - waited
    measured.copied += _copied(system) - copied
    measured.commands += sum((driver.submitted for driver in drivers), Counter[str]()) - commands
    measured.frames += frames - sum(driver.frames.available for driver in drivers)


def _copied(system: Linux | Xen) -> int:
    """Return the bytes that went through bounce buffers so far; Xen has none."""
    return system.dma.statistics.copied if hasattr(system, "dma") else 0


def pairs(
    system: Linux | Xen,
    cpus: VirtualCpus,
    do: Callable[[], object],
    undo: Callable[[], object],
    operations: int,
) -> Measured:
    """Do something and undo it, again and again, on CPU 0.

    Args:
        system: the operating system.
        cpus: its CPUs, and its meter.
        do: for example maps a page.
        undo: unmaps it.
        operations: how often, 1 or more.

    Raises:
        ValueError: if the number is outside its range.
    """
    if operations < 1:
        raise ValueError(f"operations must be 1 or more, not {operations}")
    measured = Measured()

    def work() -> Task:
        for _ in range(operations):
            yield from timed(cpus, 0, measured.maps, do)
            yield from timed(cpus, 0, measured.unmaps, undo)

    run_measured(system, cpus, {0: work()}, measured)
    return measured
