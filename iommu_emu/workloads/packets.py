"""Packets through network controllers: what is left of a line's rate under a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from iommu_emu.devices.driver import Buffer
from iommu_emu.devices.nic import Nic, NicDriver
from iommu_emu.direction import Direction
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.dma_device import DmaDevice
from iommu_emu.memory import PAGE
from iommu_emu.virtual_cpus import Task, VirtualCpus
from iommu_emu.workloads.measure import WARM_UP, Measured, WorkloadError, run_measured, timed

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

ENTRIES = 64  # descriptors of a ring
BATCH = 32  # frames that a CPU takes at once, and buffers that it gives back for them
BUFFER = 2048  # bytes: two share a page
POLL = 100.0  # ns between two looks at a descriptor that is not done
MAX_POLLS = 100_000
PAUSE = 1_000_000.0  # ns until a map is tried again for which there was no room
MAX_PAUSES = 100

__all__ = ["DmaApiMapper", "packets"]


class DmaApiMapper:
    """The mapper of a driver that uses the DMA API on one CPU.

    Args:
        dma: the DMA API.
        device: for whom.
        cpu: number of the virtual CPU.
    """

    def __init__(self, dma: DmaApi, device: DmaDevice, cpu: int = 0) -> None:
        self._dma = dma
        self._device = device
        self._cpu = cpu

    def map(self, physical: int, size: int, direction: Direction) -> int:
        """Return the IOVA by which the device reaches a buffer from now on."""
        return self._dma.map_single(self._device, physical, size, direction, self._cpu)

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Take back what `map` returned."""
        self._dma.unmap_single(self._device, iova, size, direction, self._cpu)

    def map_batch(self, buffers: Sequence[tuple[int, int]], direction: Direction) -> list[int]:
        """Return the IOVAs by which the device reaches buffers: all of them, or none."""
        return self._dma.map_batch(self._device, buffers, direction, self._cpu)

    def unmap_batch(self, buffers: Sequence[tuple[int, int]], direction: Direction) -> None:
        """Take back what `map_batch` returned."""
        self._dma.unmap_batch(self._device, buffers, direction, self._cpu)


class _Queue:
    """A controller with its driver on a CPU."""

    def __init__(
        self, linux: Linux, cpus: VirtualCpus, nic: Nic, cpu: int, size: int, stack: ExitStack
    ) -> None:
        self.cpus = cpus
        self.nic = nic
        self.cpu = cpu
        self.packet_ns = cpus.model.ns("packet")
        dma, device = linux.dma, linux.device(nic)
        buffer_size = -(-max(size, BUFFER) // BUFFER) * BUFFER
        rings = dma.alloc_coherent(device, 2 * PAGE, cpu)
        stack.callback(dma.free_coherent, device, rings, cpu)
        pool_size = 2 * ENTRIES * buffer_size
        pool = dma.alloc_buffer(device, pool_size, cpu)
        stack.callback(dma.free_buffer, device, pool, cpu)
        self.driver = NicDriver(
            linux.machine,
            nic,
            range(pool, pool + pool_size),
            DmaApiMapper(dma, device, cpu),
            entries=ENTRIES,
            buffer_size=buffer_size,
            rings=[
                Buffer(rings.physical + offset, rings.iova + offset, PAGE) for offset in (0, PAGE)
            ],
        )
        self.driver.start(causes=0)  # the tasks poll
        stack.callback(self.driver.stop)

    def mapping(self, measured: Measured, call: Callable[[], object], count: int = 1) -> Task:
        """Map; try again as long as bounce buffers are short that wait for a flush."""
        for _ in range(MAX_PAUSES):
            try:
                yield from timed(self.cpus, self.cpu, measured.maps, call, count)
                return
            except DmaMappingError:
                yield PAUSE
        yield from timed(self.cpus, self.cpu, measured.maps, call, count)

    def receive(self, frames: Sequence[bytes], measured: Measured) -> Task:
        driver, cpus, cpu = self.driver, self.cpus, self.cpu
        for first in range(0, len(frames), BATCH):
            batch = frames[first : first + BATCH]
            for frame in batch:
                self.nic.receive(frame)
            received: list[bytes] = []
            polls = 0
            while len(received) < len(batch) and polls < MAX_POLLS:
                ready = driver.rx.ready(len(batch))
                if not ready:
                    polls += 1
                    yield POLL
                    continue
                taken = yield from timed(
                    cpus, cpu, measured.unmaps, partial(driver.take_all, ready), ready
                )
                received += [each.data for each in taken]
                yield from self.mapping(measured, driver.refill, ready)
            if received != list(batch):
                raise WorkloadError(f"{self.nic.name} received other frames than were sent to it")
            cpus.work(cpu, self.packet_ns * len(batch))
            yield None

    def send(self, frames: Sequence[bytes], measured: Measured) -> Task:
        driver, sent = self.driver, self.nic.sent
        for frame in frames:
            self.cpus.work(self.cpu, self.packet_ns)
            yield None
            yield from self.mapping(measured, partial(driver.post, frame))
            driver.kick()
            for _ in range(MAX_POLLS):
                if driver.tx.ready():
                    break
                yield POLL
            yield from timed(self.cpus, self.cpu, measured.unmaps, driver.reclaim)
            if not sent or sent.pop() != frame:
                raise WorkloadError(f"{self.nic.name} sent another frame than it was given")


def packets(
    linux: Linux,
    cpus: VirtualCpus,
    nics: Sequence[Nic],
    *,
    direction: Direction = Direction.FROM_DEVICE,
    frames: int = 256,
    size: int = 1500,
    warm_up: int = WARM_UP,
) -> Measured:
    """Receive or send frames, each controller with a CPU of its own.

    For every frame, a buffer is mapped and unmapped, and its CPU spends what the model says a
    packet takes beside that. Frames come as fast as the CPUs take them; what they carry is
    compared at the other end. Where bounce buffers are short, a CPU waits for the next flush.

    Args:
        linux: the kernel.
        cpus: its CPUs, and its meter.
        nics: the controllers; the first is CPU 0's.
        direction: FROM_DEVICE receives, TO_DEVICE sends.
        frames: how many for each.
        size: bytes of a frame, 1..9216.
        warm_up: frames of each before those that count.

    Raises:
        ValueError: if a number is outside its range, or the direction is BIDIRECTIONAL.
        WorkloadError: if a frame got lost or changed.
        DmaMappingError: if a buffer cannot be mapped.
    """
    if not 1 <= len(nics) <= len(cpus):
        raise ValueError(f"nics must be 1..{len(cpus)} (one a CPU), not {len(nics)}")
    if frames < 1 or warm_up < 0:
        raise ValueError(
            f"frames must be 1 or more and warm_up 0 or more, not {frames} and {warm_up}"
        )
    for nic in nics:
        if not 1 <= size <= nic.max_frame:
            raise ValueError(f"size must be in 1..{nic.max_frame} bytes, not {size}")
    if direction is Direction.BIDIRECTIONAL:
        raise ValueError("direction must be FROM_DEVICE or TO_DEVICE, not BIDIRECTIONAL")
    # No two of a CPU's frames are equal: each begins with its number.
    pattern = bytes(range(1, 256)) * (size // 255 + 1)
    contents = [(number.to_bytes(4, "big") + pattern)[:size] for number in range(warm_up + frames)]
    work = _Queue.receive if direction is Direction.FROM_DEVICE else _Queue.send
    measured = Measured()
    with ExitStack() as stack:
        queues = [_Queue(linux, cpus, nic, cpu, size, stack) for cpu, nic in enumerate(nics)]
        for part in (contents[:warm_up], contents[warm_up:]):
            measured = Measured(payload=len(nics) * len(part) * size)
            tasks = {queue.cpu: work(queue, part, measured) for queue in queues}
            run_measured(linux, cpus, tasks, measured)
    return measured
