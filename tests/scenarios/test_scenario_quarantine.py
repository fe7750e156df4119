"""What `iommu-emu scenario run quarantine` tells; bytes, windows and hangs: expectations.toml."""

import pytest

from iommu_emu import policies
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.laboratory import RAM
from iommu_emu.scenarios.quarantine import MODES, UNFIXED, VICTIM
from iommu_emu.scenarios.result import FOREVER
from iommu_emu.scenarios.runner import NO_WORKLOAD, run
from iommu_emu.timeline import EventKind
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.xen.advisory import Advisory
from iommu_emu.xen.parameter import Release
from iommu_emu.xen.unit_driver import XenVtdDriver

SCENARIO = registry.load("quarantine")
IOMMUS = ("vtd", "amdvi")


@pytest.fixture(scope="module")
def results():
    return {
        (iommu, row.policy, row.attack): row
        for iommu in IOMMUS
        for row in run(SCENARIO, iommu=iommu, workload=NO_WORKLOAD).rows
    }


@pytest.fixture(params=IOMMUS)
def rows(request, results):
    """Rows of one vendor, by policy and attack."""
    return {key[1:]: row for key, row in results.items() if key[0] == request.param}


def met(rows, attack):
    """Return the policies in whose log an attack leaves faults."""
    return [policy for policy in MODES if rows[policy, attack].faults]


def test_quarantine_runs_every_mode_and_every_unfixed_advisory(rows):
    assert len(rows) == len(MODES) * len(SCENARIO.attacks) + len(UNFIXED) * 3


# Who notices: an administrator sees what faults.


def test_quarantine_lost_writes_are_noticed_but_in_scratch_mode(rows):
    noticed = ["xen-listed", "xen-basic", "xen-full"]
    assert met(rows, "in-flight-write") == noticed
    assert met(rows, "write-after-deassign") == noticed


def test_quarantine_lost_reads_are_noticed_only_where_nothing_answers_them(rows):
    noticed = ["xen-listed", "xen-basic"]
    assert met(rows, "in-flight-read") == noticed
    assert met(rows, "read-after-deassign") == noticed


def test_quarantine_corruption_of_the_host_is_noticed_by_nobody(rows):
    row = rows["xen-none", "in-flight-write"]
    assert (row.outcome.corrupted, row.faults) == (64, [])


@pytest.mark.parametrize(
    ("iommu", "line"),
    [
        (
            "vtd",
            f"(XEN) [VT-D]DMAR:[DMA Write] Request device [0000:01:00.0] fault addr {VICTIM:x}",
        ),
        (
            "amdvi",
            f"(XEN) AMD-Vi: IO_PAGE_FAULT: 0000:01:00.0 d1 addr {VICTIM:016x} flags 0x20 RW",
        ),
    ],
)
def test_quarantine_fault_is_in_xens_log(results, iommu, line):
    assert line in results[iommu, "xen-basic", "in-flight-write"].log


def test_quarantine_scratch_mode_has_nothing_in_the_log(rows):
    row = rows["xen-scratch", "write-after-deassign"]
    assert row.log == ["(XEN) I/O virtualisation enabled", "(XEN)  - Dom0 mode: Relaxed"]


# The host that hangs.


def test_quarantine_fragile_host_survives_what_answers_its_reads(rows):
    hung = [policy for policy in MODES if rows[policy, "fragile-in-flight-read"].outcome.hung]
    assert hung == ["xen-basic"]


def test_quarantine_tells_why_a_fragile_host_survives_a_fault(rows):
    row = rows["xen-full", "fragile-in-flight-write"]
    assert row.faults
    assert "a page that is there and must not be written: the host survives" in " ".join(row.story)


def test_quarantine_fragile_device_left_off_the_list_reaches_the_host(rows):
    """What the reviewer's counter-proposal costs."""
    row = rows["xen-listed", "fragile-in-flight-write"]
    assert (row.outcome.hung, row.outcome.corrupted) == (False, 64)


def test_quarantine_helps_no_fragile_host_against_the_guest_itself(rows):
    """What the reviewer said: such a device is insecure while it is assigned."""
    assert all(rows[policy, "guest-faults-fragile"].outcome.hung for policy in MODES)


# Windows.


def test_quarantine_write_in_flight_lands_when_it_arrives(rows):
    row = rows["xen-none", "in-flight-write"]
    assert row.outcome.window == 2000
    used, landed = [event for event in row.timeline if event.kind is EventKind.DMA]
    assert (used.text, landed.text) == ("read got through", "write got through")
    assert (landed.address, landed.size) == (VICTIM, 64)


def test_quarantine_nothing_ends_what_goes_back_to_the_hardware_domain(rows):
    assert rows["xen-none", "read-after-deassign"].outcome.window == FOREVER


def test_quarantine_victim_is_the_hardware_domains():
    assert VICTIM in RAM


# What the scenario would notice.


def test_quarantine_shows_what_a_forgotten_invalidation_leaves(monkeypatch):
    def forgetful(driver, requester, **_):
        VtdDriver.detach(driver, requester, invalidate=False)

    monkeypatch.setattr(XenVtdDriver, "detach", forgetful)
    basic = [policies.load("xen-basic")]
    (row,) = run(SCENARIO, basic, attacks=["read-after-deassign"]).rows
    assert (row.outcome.leaked, row.stale_uses) == (4096, 10)


# Stories and policies.


def test_quarantine_story_says_where_the_device_goes(rows):
    none, basic = (rows[policy, "read-after-deassign"].story for policy in MODES[::2][:2])
    assert none[0] == "The guest is destroyed, and its nic goes back to the hardware domain."
    assert basic[0] == "The guest is destroyed, and its nic goes into quarantine."


def test_quarantine_story_tells_of_the_toolstack(rows):
    assert rows["xen-listed", "in-flight-read"].story[0] == (
        "The toolstack puts the nic into quarantine before a guest gets it."
    )


def test_quarantine_full_is_the_proposals():
    full = policies.load("xen-full")
    assert (full.release, full.unfixed) == (Release.PROPOSAL, {Advisory.XSA_400})


def test_quarantine_device_of_a_dead_guest_is_thought_to_be_taken(results):
    row = results["vtd", "xen-xsa-386", "dead-guests-device"]
    assert row.story[0] == (
        "The guest is destroyed, and its nic stays where it was, though Xen thinks that it was "
        "taken."
    )
