"""What a policy costs in a laboratory."""

import pytest

from iommu_emu.direction import Direction
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import Laboratory
from iommu_emu.scenarios.workload import block_costs, map_costs, packet_costs
from iommu_emu.timing_model import load


def laboratory(parameters="iommu.strict=1", *, timing="linux", cpus=1, **fields):
    policy = LinuxPolicy(name="test", summary="", source="", parameters=parameters, **fields)
    return Laboratory("vtd", policy, timing=timing and load(timing), cpus=cpus)


def in_cycles(ns):
    return round(ns * 3.1)


def test_strict_map_and_unmap_cost_what_riommu_measured():
    costs = map_costs(laboratory(), operations=4, warm_up=1)
    assert (in_cycles(costs.map_ns), in_cycles(costs.unmap_ns)) == (727, 3067)


def test_commands_are_counted():
    costs = map_costs(laboratory(), operations=4, warm_up=1)
    assert (costs.operations, costs.descriptors, costs.invalidations) == (4, 8, 4)


def test_hosts_time_is_measured():
    costs = map_costs(laboratory(), operations=4, warm_up=1)
    assert costs.measured_map_ns > 0
    assert costs.measured_unmap_ns > 0


def test_all_cpus_work():
    costs = map_costs(laboratory(cpus=2), operations=4, warm_up=1)
    assert costs.operations == 8
    assert costs.lock_wait_ns > 0


@pytest.mark.parametrize("direction", [Direction.FROM_DEVICE, Direction.TO_DEVICE])
def test_queues_of_packets_are_one_group(direction):
    bench = laboratory(cpus=2)
    costs = packet_costs(bench, direction, frames=4, warm_up=0)
    assert costs.operations == 8
    assert len({device.group for device in bench.linux.devices.values()}) == 1


def test_bounced_packets_are_copied():
    costs = packet_costs(laboratory(external=True), frames=2, warm_up=0)
    assert costs.copied == 2 * 2 * 2048


def test_rate_is_told():
    costs = packet_costs(laboratory("iommu.passthrough=1"), frames=4, warm_up=0)
    assert costs.gbps == pytest.approx(8 * 1500 * 3.1 / (1816 + 45 + 25))


def test_block_reads_cost_maps_and_unmaps():
    costs = block_costs(laboratory(), reads=2, warm_up=1)
    assert in_cycles(costs.unmap_ns) == 3067


def test_workload_without_a_timing_model_is_refused():
    with pytest.raises(TypeError, match="a workload needs a laboratory with a timing model"):
        map_costs(laboratory(timing=None))
