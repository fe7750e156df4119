"""Maps and unmaps by the DMA API, beside what the page table and the unit take of it."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from iommu_emu.core import Access
from iommu_emu.devices import Device
from iommu_emu.direction import Direction
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import Laboratory

PAGE = 4096
PACKET = 1500  # bytes, not page aligned: what is bounced
IOVA = 1 << 32
OPERATIONS = 256  # a round: a lazy domain flushes in nearly every one
ROUNDS, WARMUP = 20, 2


class Mapper:
    """A kernel with one device that something is mapped and unmapped for."""

    def __init__(self, parameters: str, *, external: bool = False) -> None:
        policy = LinuxPolicy(
            name="benchmark", summary="", source="", parameters=parameters, external=external
        )
        laboratory = Laboratory("vtd", policy, cpus=1)
        laboratory.unit.watch(False)
        self.linux = laboratory.linux
        self.device = self.linux.device(laboratory.attach(Device()))
        self.size = PACKET if external else PAGE
        self.buffer = self.linux.dma.alloc_buffer(self.device, 2 * PAGE)

    def pairs(self) -> None:
        """Map and unmap by the DMA API."""
        dma, device, buffer, size = self.linux.dma, self.device, self.buffer, self.size
        for _ in range(OPERATIONS):
            iova = dma.map_single(device, buffer, size, Direction.BIDIRECTIONAL)
            dma.unmap_single(device, iova, size, Direction.BIDIRECTIONAL)
        self.linux.timeline.events.clear()

    def floor(self) -> None:
        """Write the page table and invalidate, as a strict map and unmap must."""
        domain, driver = self.device.domain.table, self.device.driver
        assert domain is not None
        for _ in range(OPERATIONS):
            domain.table.map(IOVA, self.buffer, PAGE, Access.READ | Access.WRITE)
            domain.table.unmap(IOVA, PAGE, keep_tables=True)
            driver.invalidate_range(domain, IOVA, PAGE, keep_tables=True)


@pytest.mark.parametrize("what", ["strict", "lazy", "bounce", "passthrough", "floor"])
def test_map_unmap(benchmark: BenchmarkFixture, what: str) -> None:
    parameters = {"lazy": "iommu.strict=0", "passthrough": "iommu.passthrough=1"}
    mapper = Mapper(parameters.get(what, "iommu.strict=1"), external=what == "bounce")
    action: Callable[[], None] = mapper.floor if what == "floor" else mapper.pairs
    benchmark.group = f"DMA API, map and unmap: {OPERATIONS} operations"
    benchmark.pedantic(action, rounds=ROUNDS, warmup_rounds=WARMUP)
    done = OPERATIONS * (ROUNDS + WARMUP)
    assert mapper.linux.dma.statistics.maps == (0 if what == "floor" else done)
    assert mapper.linux.dma.statistics.copied == (done * 2 * PACKET if what == "bounce" else 0)
    benchmark.extra_info["operations"] = OPERATIONS
    benchmark.extra_info["ns_per_operation"] = round(
        benchmark.stats.stats.median / OPERATIONS * 1e9
    )
