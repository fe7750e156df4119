"""Reads in a window: the knee where it outgrows the IOTLB, as pcie-bench found it."""

import pytest

from iommu_emu import Machine
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.devices import Device
from iommu_emu.geometry import preset
from iommu_emu.timing_model import load
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit
from iommu_emu.workloads import WorkloadError, dma_window

PAGE = 4096
IOVA = 1 << 32
MODEL = load("linux")
HIT = 273 + 274  # ns


class Bed:
    """A device before a unit whose IOTLB has 64 entries, any page in any."""

    def __init__(self, iommu):
        self.machine = Machine(8 << 20)
        geometry = preset("fully-associative-64")
        if iommu == "vtd":
            self.unit = VtdUnit(self.machine, VtdConfig(base=0xFED9_0000, geometry=geometry))
            driver = VtdDriver(self.machine, self.unit, range(4 << 20))
        else:
            self.unit = AmdviUnit(self.machine, AmdviConfig(base=0xFED8_0000, geometry=geometry))
            driver = AmdviDriver(self.machine, self.unit, range(4 << 20))
        driver.start()
        self.device = self.machine.attach(Device())
        domain = driver.create_domain()
        driver.attach(domain, self.device.address)
        domain.map(IOVA, 4 << 20, 2 << 20, page_size=PAGE)

    def read(self, window, **parameters):
        return dma_window(self.unit, self.device, MODEL, IOVA, window, **parameters)


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    return Bed(request.param)


def test_window_of_256_kib_hits(bed):
    result = bed.read(64 * PAGE)
    assert (result.misses, result.memory_reads, result.ns) == (0, 0, HIT)


def test_window_of_twice_that_misses_half_the_time(bed):
    result = bed.read(128 * PAGE)
    assert 0.45 < result.misses / result.reads < 0.55
    assert result.ns == HIT + 330 * result.misses / result.reads


def test_miss_reads_the_leaf_alone_while_upper_tables_are_cached(bed):
    result = bed.read(128 * PAGE)
    assert result.memory_reads == result.misses


def test_same_seed_same_misses(bed):
    assert bed.read(128 * PAGE, seed=3).misses == bed.read(128 * PAGE, seed=3).misses


def test_read_that_fails_is_an_error(bed):
    with pytest.raises(WorkloadError, match="Device: read at 0x100200000"):
        bed.read((2 << 20) + PAGE)


@pytest.mark.parametrize(
    ("window", "parameters", "message"),
    [
        (100, {}, "iova and window must be whole pages, not 0x100000000 and 100"),
        (PAGE, {"size": 96}, "size must be a power of two up to 4096, not 96"),
        (PAGE, {"reads": 0}, "reads must be 1 or more, not 0"),
    ],
)
def test_parameters_outside_their_ranges_are_refused(window, parameters, message):
    with pytest.raises(ValueError, match=message):
        Bed("vtd").read(window, **parameters)
