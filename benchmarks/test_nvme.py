"""Reads of 4 KiB by an NVMe controller behind VT-d, beside the DMA of the same bytes alone."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from iommu_emu import Machine
from iommu_emu.devices.nvme import Nvme, NvmeDriver
from iommu_emu.devices.nvme.specification import NvmOpcode
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

PAGE = 4096
TABLES = range(8 << 20, 16 << 20)
MEMORY = range(16 << 20, 32 << 20)
IOVA = 1 << 32
ROUNDS, WARMUP = 20, 2
ENTRIES = 1024  # of the queue; also the reads of one round


class Reader:
    """A controller whose submission queue is full of reads: a doorbell starts any of them."""

    def __init__(self) -> None:
        self.machine = machine = Machine(32 << 20)
        iommu = VtdDriver(machine, VtdUnit(machine, VtdConfig(base=0xFED9_0000)), TABLES)
        iommu.start()
        self.nvme = machine.attach(Nvme(), "00:03.0")
        domain = iommu.create_domain()
        iommu.attach(domain, self.nvme.address)
        domain.map(IOVA, MEMORY.start, len(MEMORY), page_size=PAGE)
        self.driver = NvmeDriver(machine, self.nvme, MEMORY, IOVA)
        self.driver.use_msix(2)
        self.driver.enable()
        self.pair = self.driver.create_queues(1, ENTRIES, vector=1)
        self.buffers = [self.driver.allocate(PAGE) for _ in range(64)]
        for number in range(ENTRIES):
            self.driver.put(
                self.pair,
                NvmOpcode.READ,
                nsid=1,
                prp1=self.buffers[number % 64].iova,
                cdw10=number * 8,
                cdw12=7,
            )
        self.nvme.medium.write(0, bytes(range(256)) * (ENTRIES * PAGE // 256))
        self.position = 0

    def read(self, depth: int) -> None:
        """Read `ENTRIES` times 4 KiB, `depth` of them by each doorbell."""
        for _ in range(ENTRIES // depth):
            self.position = (self.position + depth) % ENTRIES
            self.driver.ring_tail(1, self.position)
            self.driver.ring_head(1, self.position)
        self.machine.interrupts.clear()

    def write(self) -> None:
        """Do the DMAs of that by themselves."""
        write, buffers, data = self.nvme.dma.write, self.buffers, self.nvme.medium.read(0, PAGE)
        for number in range(ENTRIES):
            write(buffers[number % 64].iova, data)


@pytest.mark.parametrize("what", ["depth 1", "depth 32", "floor"])
def test_read_4k(benchmark: BenchmarkFixture, what: str) -> None:
    reader = Reader()
    depth = 1 if what == "depth 1" else 32
    action: Callable[[], None] = reader.write if what == "floor" else lambda: reader.read(depth)
    benchmark.group = f"NVMe read, 4 KiB: {ENTRIES} operations"
    benchmark.pedantic(action, rounds=ROUNDS, warmup_rounds=WARMUP)
    reads = 0 if what == "floor" else ENTRIES * (ROUNDS + WARMUP)
    assert reader.nvme.logs.reads == reads
    assert reader.machine.memory.read(reader.buffers[0].physical, 256) == bytes(range(256))
    benchmark.extra_info["operations"] = ENTRIES
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["operations_per_second"] = round(ENTRIES / seconds)
