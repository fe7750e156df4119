"""What a policy costs in a laboratory."""

import pytest

from iommu_emu import policies
from iommu_emu.devices import Device
from iommu_emu.devices.nvme import Nvme
from iommu_emu.direction import Direction
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import IOMMUS, Laboratory
from iommu_emu.scenarios.workload import (
    block_costs,
    guest_costs,
    map_costs,
    packet_costs,
    user_costs,
)
from iommu_emu.timing_model import load

FILL = 3.1 * 0.05 * 4096  # cycles: a page is written


class CachingDisk(Nvme):
    ats = True


class CachingCard(Device):
    ats = True


def of_xen(policy, iommu="vtd", kind=Device):
    made = Laboratory(iommu, policies.load(policy), timing=load("linux"), cpus=1)
    return guest_costs(made, kind, operations=2, moves=2)


def commands(costs):
    """Return invalidations and all commands of a pair."""
    return costs.invalidations / costs.operations, costs.descriptors / costs.operations


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


def test_device_tlb_is_invalidated_in_each_strict_unmap():
    costs = block_costs(laboratory(), CachingDisk, reads=2, warm_up=1)
    assert in_cycles(costs.unmap_ns) == 3067 + in_cycles(547)
    assert commands(costs) == (2, 3)


def test_device_tlb_is_invalidated_with_each_flush():
    costs = block_costs(laboratory("iommu.strict=0"), CachingDisk, reads=300, warm_up=0)
    assert (costs.invalidations, costs.descriptors) == (2, 3)


@pytest.mark.parametrize("denied", [{"parameters": "pci=noats iommu.strict=1"}, {"external": True}])
def test_device_tlb_that_is_not_allowed_costs_nothing(denied):
    costs = block_costs(laboratory(**denied), CachingDisk, reads=2, warm_up=1)
    assert commands(costs) == (1, 2)


@pytest.mark.parametrize("strict", [0, 1])
def test_unmap_of_user_space_is_strict(strict):
    costs = user_costs(laboratory(f"iommu.strict={strict}"), operations=2)
    user = costs.others["user space's"]
    assert (in_cycles(user.map_ns), in_cycles(user.unmap_ns)) == (590, 427 + 2135)
    assert commands(user) == (1, 2)


@pytest.mark.parametrize("iommu", IOMMUS)
def test_page_of_a_guest_comes_and_goes(iommu):
    costs = of_xen("xen-basic", iommu)
    assert (in_cycles(costs.map_ns), in_cycles(costs.unmap_ns)) == (590, 427 + 2135)
    assert (costs.operations, commands(costs)) == (2, (1, 2))


def test_page_of_a_guest_with_a_device_tlb():
    costs = of_xen("xen-ats", kind=CachingCard)
    assert in_cycles(costs.unmap_ns) == 427 + 2135 + in_cycles(547)
    assert commands(costs) == (2, 3)


def test_scratch_table_is_filled_once_and_its_page_cleared_each_time():
    costs = of_xen("xen-scratch")
    first, later = costs.others["first assign, deassign"], costs.others["assign, deassign"]
    flush = 200 + 1735 + 1850 + 200
    assert in_cycles(first.map_ns) == round(5 * FILL + flush)
    assert in_cycles(first.unmap_ns) == in_cycles(later.unmap_ns) == round(FILL + flush)
    assert in_cycles(later.map_ns) == flush
    assert (first.frames, later.frames) == (5, 0)


def test_entry_that_was_not_present_is_not_invalidated_on_vtd():
    """A device blocked in quarantine has nothing in the caches, which hold no such entries."""
    moves = {iommu: of_xen("xen-basic", iommu).others["assign, deassign"] for iommu in IOMMUS}
    assert {iommu: commands(costs) for iommu, costs in moves.items()} == {
        "vtd": (2, 3),
        "amdvi": (4, 6),
    }


def test_listed_device_comes_from_quarantine():
    costs = of_xen("xen-listed")
    assert commands(costs.others["first assign, deassign"]) == (2, 3)


def test_workload_without_a_timing_model_is_refused():
    with pytest.raises(TypeError, match="a workload needs a laboratory with a timing model"):
        map_costs(laboratory(timing=None))
