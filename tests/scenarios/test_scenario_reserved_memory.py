"""What `iommu-emu scenario run reserved-memory` tells; bytes and refusals: expectations.toml."""

import pytest

from iommu_emu import policies
from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.result import FOREVER
from iommu_emu.scenarios.runner import NO_WORKLOAD, run

SCENARIO = registry.load("reserved-memory")
UNCHECKED, MAPPED, EXCLUDED = "rmrr-unchecked", "rmrr-mapped", "rmrr-excluded"
DIRECT = "rmrr-direct"
FIRMWARE = "0x7800000..0x7800fff"


@pytest.fixture(scope="module")
def results():
    return {
        (iommu, row.policy, row.attack): row
        for iommu in ("vtd", "amdvi")
        for row in run(SCENARIO, iommu=iommu, workload=NO_WORKLOAD).rows
    }


def test_reserved_attacks_meet_linux_and_where_it_makes_sense_xen(results):
    met = [(policy, attack) for iommu, policy, attack in results if iommu == "amdvi"]
    xen = {attack for policy, attack in met if policy == "xen-basic"}
    assert xen == {"claim-with-rmrr", "rmrr-squatter", "rmrr-reached-by-guest", "rmrr-hot-add"}
    assert len(met) == 4 * len(SCENARIO.attacks) + len(xen)


# The device is refused for user space, with the reason that the kernel logs.


def test_claim_is_refused_by_vtds_driver_as_its_log_says(results):
    row = results["vtd", EXCLUDED, "claim-with-rmrr"]
    assert row.refused.startswith(f"-EPERM: 0000:01:00.0 may go on using {FIRMWARE} (RMRR)")
    assert row.log[-1] == (
        "vfio-pci 0000:01:00.0: DMAR: Device is ineligible for IOMMU domain attach "
        "due to platform RMRR requirement"
    )


@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_claim_is_refused_by_the_core_as_its_log_says(results, iommu):
    row = results[iommu, DIRECT, "claim-with-rmrr"]
    assert row.refused.startswith(f"-EINVAL: 0000:01:00.0 must keep the 1:1 mapping of {FIRMWARE}")
    assert row.log[-1] == (
        "vfio-pci 0000:01:00.0: Firmware has requested this device have a 1:1 IOMMU mapping"
    )


@pytest.mark.parametrize(("iommu", "policy"), [("amdvi", EXCLUDED), ("vtd", UNCHECKED)])
def test_device_given_away_without_its_memory_faults(results, iommu, policy):
    row = results[iommu, policy, "claim-with-rmrr"]
    assert (row.refused, len(row.faults)) == ("", 1)


def test_regions_are_reported_as_sysfs_shows_them(results):
    story = results["vtd", DIRECT, "claim-with-rmrr"].story
    assert (
        "Its group's reserved_regions file shows: "
        "0x0000000007800000 0x0000000007800fff direct; "
        "0x00000000fee00000 0x00000000feefffff msi."
    ) in story


# The device goes on using its memory.


@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_squatter_reads_and_writes_the_guest_without_a_fault(results, iommu):
    row = results[iommu, UNCHECKED, "rmrr-squatter"]
    outcome = row.outcome
    assert (outcome.leaked, outcome.corrupted, outcome.window) == (64, 64, FOREVER)
    assert row.faults == []


@pytest.mark.parametrize(("iommu", "leaked"), [("vtd", 64), ("amdvi", 0)])
def test_relaxable_squatter_is_vtds_alone(results, iommu, leaked):
    assert results[iommu, DIRECT, "rmrr-squatter-relaxed"].outcome.leaked == leaked


@pytest.mark.parametrize("policy", [MAPPED, "xen-basic"])
@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_mapped_region_is_the_guests_to_read_and_write(results, iommu, policy):
    outcome = results[iommu, policy, "rmrr-reached-by-guest"].outcome
    assert (outcome.leaked, outcome.corrupted) == (4096, 4096)


@pytest.mark.parametrize("attack", ["rmrr-squatter", "rmrr-hot-add"])
def test_mapped_region_needs_a_hole_in_the_guests_memory(results, attack):
    assert results["vtd", MAPPED, attack].refused == (
        f"-EINVAL: input addresses {FIRMWARE} overlap the reserved region {FIRMWARE} (direct)"
    )


@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_core_lets_a_device_come_to_a_group_that_is_claimed_already(results, iommu):
    row = results[iommu, DIRECT, "rmrr-plug-into-claimed-group"]
    assert (row.refused, row.outcome.corrupted) == ("", 64)


def test_refusal_keeps_a_device_with_an_id_of_its_own_off(results):
    row = results["vtd", EXCLUDED, "rmrr-plug-into-claimed-group"]
    assert row.refused.startswith("-EPERM: 0000:01:02.0 may go on using")
    assert (row.outcome.corrupted, len(row.faults)) == (0, 2)


def test_refusal_does_not_keep_requests_off_a_conventional_bus(results):
    row = results["vtd", EXCLUDED, "rmrr-plug-behind-bridge"]
    assert row.refused.startswith("-EPERM: 0000:02:02.0 may go on using")
    assert (row.outcome.corrupted, row.faults) == (64, [])


@pytest.mark.parametrize("policy", [UNCHECKED, MAPPED, EXCLUDED, DIRECT])
@pytest.mark.parametrize("iommu", ["vtd", "amdvi"])
def test_firmware_loses_nothing_under_the_kernels_own_driver(results, iommu, policy):
    row = results[iommu, policy, "firmware-under-kernel"]
    assert (row.outcome.corrupted, row.faults) == (0, [])


# Addresses that must not be used.


def test_memory_over_the_interrupt_window_was_mapped_and_never_reached(results):
    row = results["vtd", UNCHECKED, "map-over-reserved"]
    assert (row.refused, len(row.faults)) == ("", 1)
    assert row.story[-1].endswith("Of the device's 64 bytes 0 reach that memory.")


def test_unmarked_window_is_what_the_dma_api_hands_out_first(results):
    row = results["vtd", DIRECT, "local-window-unmarked"]
    assert "The DMA API hands out 0xfffff000 first" in row.story[-1]
    assert row.outcome.corrupted == 64


def test_marked_window_is_avoided_and_costs_the_card_its_assignment(results):
    row = results["vtd", DIRECT, "local-window-marked"]
    assert "The DMA API hands out 0xfffef000 first: nothing is lost." in row.story
    assert row.refused.startswith("-EINVAL: 0000:01:00.0 must keep")


@pytest.mark.parametrize(
    ("name", "age"),
    [
        (UNCHECKED, KernelAge.UNCHECKED),
        (MAPPED, KernelAge.UNCHECKED),
        (EXCLUDED, KernelAge.LINUX_6_1),
        (DIRECT, KernelAge.LINUX_7_2),
    ],
)
def test_reserved_policy_has_its_age_and_source(name, age):
    policy = policies.load(name)
    assert policy.age is age
    assert policy.source
