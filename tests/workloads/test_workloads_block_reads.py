"""Reads by an NVMe controller: what they cost, each with a buffer mapped for it."""

import pytest
from workload_bed import MAP, STRICT_UNMAP

from iommu_emu.devices.nvme import Nvme
from iommu_emu.workloads import WorkloadError, block_reads


def run(laboratory, nvme=None, **parameters):
    nvme = laboratory.attach(nvme or Nvme())
    return block_reads(
        laboratory.linux, laboratory.meter, nvme, **{"reads": 3, "warm_up": 1, **parameters}
    )


@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_read_costs_a_map_an_unmap_and_the_rest(laboratory, iommu):
    measured = run(laboratory("iommu.strict=1", iommu=iommu))
    assert measured.elapsed_ns == 3 * (MAP + STRICT_UNMAP + 200_000)
    assert measured.payload == 3 * 4096


def test_each_cpu_reads_by_a_queue_of_its_own(laboratory):
    measured = run(laboratory("iommu.passthrough=1", cpus=2), threads=2)
    assert measured.elapsed_ns == 3 * (1 + 2 + 200_000)
    assert measured.maps.count == 6


def test_nothing_is_left(laboratory):
    bench = laboratory("iommu.strict=1")
    before = bench.linux.leaks()
    run(bench)
    assert bench.linux.leaks() == before


def test_read_that_brings_something_else_is_an_error(laboratory):
    nvme = Nvme()
    reads = iter(range(100))
    nvme.medium.read = lambda offset, length: bytes([next(reads) & 1]) * length
    with pytest.raises(WorkloadError, match="read 0 of CPU 0: SUCCESS"):
        run(laboratory("iommu.strict=1"), nvme)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threads": 2}, r"threads must be in 1\.\.1 \(the CPUs\), not 2"),
        ({"reads": 0}, "reads must be 1 or more and warm_up 0 or more, not 0 and 1"),
    ],
)
def test_parameters_outside_their_ranges_are_refused(laboratory, parameters, message):
    with pytest.raises(ValueError, match=message):
        run(laboratory("iommu.strict=1"), **parameters)
