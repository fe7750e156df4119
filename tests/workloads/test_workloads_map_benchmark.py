"""The map and unmap loop: what each call costs, to the nanosecond, and who waits for whom."""

import pytest
from workload_bed import MAP, STRICT_UNMAP

from iommu_emu.devices import Device
from iommu_emu.linux.flush_queue import GLOBAL_LIST
from iommu_emu.workloads import map_benchmark

STRICT, LAZY = "iommu.strict=1", "iommu.strict=0"


def run(laboratory, **parameters):
    linux = laboratory.linux
    device = linux.device(laboratory.attach(Device("benchmark")))
    return map_benchmark(linux, laboratory.meter, device, **{"warm_up": 1, **parameters})


@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_strict_unmap_pays_for_its_invalidation(laboratory, iommu):
    measured = run(laboratory(STRICT, iommu=iommu), operations=3)
    assert (measured.maps.mean_ns, measured.maps.deviation_ns) == (MAP, 0)
    assert (measured.unmaps.mean_ns, measured.unmaps.deviation_ns) == (STRICT_UNMAP, 0)
    assert measured.elapsed_ns == 3 * (MAP + STRICT_UNMAP)


def test_strict_unmap_is_one_invalidation_and_one_wait(laboratory):
    measured = run(laboratory(STRICT), operations=3)
    assert measured.invalidations == 3
    assert measured.commands.total() == 6


def test_first_iova_takes_a_search(laboratory):
    measured = run(laboratory(STRICT), operations=1, warm_up=0)
    assert measured.maps.mean_ns == 1 + 50 + 100


def test_every_page_has_an_entry(laboratory):
    measured = run(laboratory(STRICT), operations=1, granule=4)
    assert measured.maps.mean_ns == 1 + 10 + 4 * 100
    assert measured.unmaps.mean_ns == STRICT_UNMAP + 3 * 200


def test_lazy_unmap_only_queues(laboratory):
    measured = run(laboratory(LAZY), operations=10)
    assert measured.unmaps.mean_ns == 200 + 3 + 2
    assert measured.invalidations == 0


def test_lazy_unmap_that_finds_its_queue_full_flushes_for_all(laboratory):
    measured = run(laboratory(LAZY), operations=1, warm_up=255)
    flush = 1_000 + 20_000 + 5_000
    assert measured.unmaps.mean_ns == 200 + 3 + flush + 255 * 20 + 2
    assert measured.invalidations == 1


def test_passthrough_costs_the_calls_alone(laboratory):
    measured = run(laboratory("iommu.passthrough=1"), operations=2)
    assert (measured.maps.mean_ns, measured.unmaps.mean_ns) == (1, 2)


def test_time_between_map_and_unmap_passes(laboratory):
    measured = run(laboratory(STRICT), operations=1, transfer_ns=7_777)
    assert measured.elapsed_ns == MAP + 7_777 + STRICT_UNMAP


def test_batch_counts_every_buffer(laboratory):
    measured = run(laboratory(STRICT), operations=5, batch=2, warm_up=2)
    assert measured.unmaps.count == 5
    assert measured.unmaps.mean_ns == STRICT_UNMAP


def test_strict_cpus_wait_for_the_unit(laboratory):
    measured = run(laboratory(STRICT, cpus=4), threads=4, operations=20)
    assert measured.lock_wait_ns > 0
    # The unit does one invalidation after the other, whoever it is for.
    assert measured.elapsed_ns > 4 * 20 * (10_000 + 5_000)


def test_lazy_cpus_wait_for_nobody_once_they_have_magazines(laboratory):
    measured = run(laboratory(LAZY, cpus=2), threads=2, operations=20, warm_up=256)
    assert measured.lock_wait_ns == 0
    assert measured.elapsed_ns == 20 * (MAP + 200 + 3 + 2)


def test_cpus_without_magazines_wait_for_each_others_searches(laboratory):
    bench = laboratory(LAZY, cpus=4, queue=GLOBAL_LIST)
    measured = run(bench, threads=4, operations=20)
    assert measured.maps.mean_ns > 1 + 50 + 100
    assert measured.lock_wait_ns > 0


def test_cpus_with_one_list_wait_for_its_flush(laboratory):
    bench = laboratory(LAZY, cpus=4, queue=GLOBAL_LIST)
    measured = run(bench, threads=4, operations=70, warm_up=0)
    assert measured.invalidations == 1
    # The other three find the list locked soon after the flush has begun.
    flush = 1_000 + 20_000 + 5_000
    assert bench.meter.locks["flush list"].wait_ns > 3 * (flush - 1_000)


def test_nothing_is_left(laboratory):
    bench = laboratory(STRICT, cpus=2)
    before = bench.linux.leaks()
    run(bench, threads=2, operations=4, batch=3)
    assert bench.linux.leaks() == before


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threads": 2}, r"threads must be in 1\.\.1 \(the CPUs\), not 2"),
        ({"operations": 0}, "operations and batch must be 1 or more and warm_up 0 or more, not 0"),
        ({"granule": 1025}, r"granule must be in 1\.\.1024 pages, not 1025"),
        ({"transfer_ns": -1}, r"transfer_ns must be in 0\.\.10000000, not -1"),
    ],
)
def test_parameters_outside_their_ranges_are_refused(laboratory, parameters, message):
    with pytest.raises(ValueError, match=message):
        run(laboratory(STRICT), **parameters)
