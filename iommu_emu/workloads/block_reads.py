"""Reads of blocks by an NVMe controller, each into a buffer that is mapped for it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from iommu_emu.devices.nvme import Nvme, NvmeDriver
from iommu_emu.devices.nvme.driver import QueuePair
from iommu_emu.devices.nvme.specification import NvmOpcode
from iommu_emu.direction import Direction
from iommu_emu.memory import PAGE
from iommu_emu.virtual_cpus import Task, VirtualCpus
from iommu_emu.workloads.measure import WARM_UP, Measured, WorkloadError, run_measured, timed
from iommu_emu.workloads.packets import DmaApiMapper

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

ENTRIES = 32  # of a queue
PAGES = 8  # of the medium that are read

__all__ = ["block_reads"]


def block_reads(
    linux: Linux,
    cpus: VirtualCpus,
    nvme: Nvme,
    *,
    threads: int = 1,
    reads: int = 256,
    warm_up: int = WARM_UP,
) -> Measured:
    """Read 4 KiB at a time, each CPU through a queue pair of its own.

    What is read is compared with the medium.

    Args:
        linux: the kernel.
        cpus: its CPUs, and its meter.
        nvme: the controller, not yet enabled; its medium is written.
        threads: how many CPUs read, at most all of them.
        reads: how many for each.
        warm_up: maps and unmaps of each before, without a read; they do not count.

    Raises:
        ValueError: if a number is outside its range.
        WorkloadError: if a read fails, or data changed.
        DmaMappingError: if a buffer cannot be mapped.
    """
    if not 1 <= threads <= len(cpus):
        raise ValueError(f"threads must be in 1..{len(cpus)} (the CPUs), not {threads}")
    if reads < 1 or warm_up < 0:
        raise ValueError(
            f"reads must be 1 or more and warm_up 0 or more, not {reads} and {warm_up}"
        )
    dma, device = linux.dma, linux.device(nvme)
    blocks = PAGE // nvme.medium.block_size
    block_ns = cpus.model.ns("block")
    for page in range(PAGES):
        nvme.medium.write(page * PAGE, bytes([page + 1]) * PAGE)

    def warmer(cpu: int, buffer: int) -> Task:
        mapper = DmaApiMapper(dma, device, cpu)
        for _ in range(warm_up):
            iova = mapper.map(buffer, PAGE, Direction.FROM_DEVICE)
            yield None
            mapper.unmap(iova, PAGE, Direction.FROM_DEVICE)
            yield None

    def reader(cpu: int, pair: QueuePair, buffer: int, measured: Measured) -> Task:
        mapper = DmaApiMapper(dma, device, cpu)

        def take_back() -> None:
            mapper.unmap(iova, PAGE, Direction.FROM_DEVICE)

        for number in range(reads):
            page = number % PAGES  # so that what comes differs from what is there

            def give() -> int:
                return mapper.map(buffer, PAGE, Direction.FROM_DEVICE)

            iova = yield from timed(cpus, cpu, measured.maps, give)
            reply = driver.execute(
                NvmOpcode.READ, pair, nsid=1, prp1=iova, cdw10=page * blocks, cdw12=blocks - 1
            )
            cpus.work(cpu, block_ns)
            yield None
            yield from timed(cpus, cpu, measured.unmaps, take_back)
            data = linux.machine.memory.read(buffer, PAGE)
            if not reply.ok or data != nvme.medium.read(page * PAGE, PAGE):
                raise WorkloadError(f"read {number} of CPU {cpu}: {reply.status.name}")

    with ExitStack() as stack:
        # Two pages for each queue pair, the admin queues' as well.
        queues = dma.alloc_coherent(device, 2 * PAGE * (threads + 1))
        stack.callback(dma.free_coherent, device, queues)
        memory = range(queues.physical, queues.physical + queues.size)
        driver = NvmeDriver(linux.machine, nvme, memory, queues.iova)
        driver.enable()
        stack.callback(driver.disable)
        pairs = [driver.create_queues(cpu + 1, ENTRIES) for cpu in range(threads)]
        buffers = []
        for cpu in range(threads):
            buffers.append(dma.alloc_buffer(device, PAGE, cpu))
            stack.callback(dma.free_buffer, device, buffers[cpu], cpu)
        cpus.run({cpu: warmer(cpu, buffers[cpu]) for cpu in range(threads)})
        measured = Measured(payload=threads * reads * PAGE)
        tasks = {cpu: reader(cpu, pairs[cpu], buffers[cpu], measured) for cpu in range(threads)}
        run_measured(linux, cpus, tasks, measured)
    return measured
