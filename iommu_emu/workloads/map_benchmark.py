"""Map and unmap in a loop, with the parameters of Linux's dma_map_benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommu_emu.clock import MILLISECOND
from iommu_emu.direction import Direction
from iommu_emu.linux.dma_device import DmaDevice
from iommu_emu.memory import PAGE
from iommu_emu.virtual_cpus import Task, VirtualCpus
from iommu_emu.workloads.measure import WARM_UP, Measured, run_measured, timed

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

MAX_GRANULE = 1024  # pages
MAX_TRANSFER = 10 * MILLISECOND

__all__ = ["map_benchmark"]


def map_benchmark(
    linux: Linux,
    cpus: VirtualCpus,
    device: DmaDevice,
    *,
    threads: int = 1,
    operations: int = 256,
    direction: Direction = Direction.BIDIRECTIONAL,
    granule: int = 1,
    batch: int = 1,
    transfer_ns: int = 0,
    warm_up: int = WARM_UP,
) -> Measured:
    """Map and unmap buffers of whole pages, on several CPUs for one device.

    Args:
        linux: the kernel.
        cpus: its CPUs, and its meter.
        device: for whom; it does nothing.
        threads: how many CPUs do it, at most all of them.
        operations: how many buffers each maps and unmaps, instead of a number of seconds.
        direction: of the mappings.
        granule: pages of a buffer, 1..1024.
        batch: buffers that are mapped and unmapped together, 1 or more, as in drivers that map
            for many descriptors at once.
        transfer_ns: virtual time between map and unmap, ns, 0..10 ms.
        warm_up: operations of each CPU before those that count; a flush queue of 32,767 entries
            would need as many.

    Raises:
        ValueError: if a number is outside its range.
        DmaMappingError: if a buffer cannot be mapped.
    """
    if not 1 <= threads <= len(cpus):
        raise ValueError(f"threads must be in 1..{len(cpus)} (the CPUs), not {threads}")
    if operations < 1 or batch < 1 or warm_up < 0:
        raise ValueError(
            "operations and batch must be 1 or more and warm_up 0 or more, "
            f"not {operations}, {batch} and {warm_up}"
        )
    if not 1 <= granule <= MAX_GRANULE:
        raise ValueError(f"granule must be in 1..{MAX_GRANULE} pages, not {granule}")
    if not 0 <= transfer_ns <= MAX_TRANSFER:
        raise ValueError(f"transfer_ns must be in 0..{MAX_TRANSFER}, not {transfer_ns}")
    dma, size = linux.dma, granule * PAGE

    def thread(cpu: int, operations: int, measured: Measured) -> Task:
        buffers: list[int] = []
        mapped: list[tuple[int, int]] = []

        def map_all() -> None:
            count = min(batch, operations - done)
            if batch == 1:
                iovas = [dma.map_single(device, buffers[0], size, direction, cpu)]
            else:
                pieces = [(buffer, size) for buffer in buffers[:count]]
                iovas = dma.map_batch(device, pieces, direction, cpu)
            mapped.extend((iova, size) for iova in iovas)

        def unmap_all() -> None:
            taken = mapped[:]
            mapped.clear()
            if batch > 1:
                dma.unmap_batch(device, taken, direction, cpu)
            else:
                dma.unmap_single(device, *taken[0], direction, cpu)

        done = 0
        try:
            for _ in range(min(batch, operations)):
                buffers.append(dma.alloc_buffer(device, size, cpu))
            while done < operations:
                count = min(batch, operations - done)
                yield from timed(cpus, cpu, measured.maps, map_all, count)
                if transfer_ns:
                    yield transfer_ns
                yield from timed(cpus, cpu, measured.unmaps, unmap_all, count)
                done += count
        finally:
            if mapped:
                unmap_all()
            for buffer in buffers:
                dma.free_buffer(device, buffer, cpu)

    measured = Measured()
    for count in (warm_up, operations):
        measured = Measured()
        tasks = {cpu: thread(cpu, count, measured) for cpu in range(threads)}
        run_measured(linux, cpus, tasks, measured)
    return measured
