"""What `iommu-emu scenario run ats-bypass` tells; bytes and windows: expectations.toml."""

import pytest

from iommu_emu.scenarios import registry
from iommu_emu.scenarios.result import FOREVER
from iommu_emu.scenarios.runner import NO_WORKLOAD, run
from iommu_emu.timeline import EventKind

SCENARIO = registry.load("ats-bypass")
FORGED, WITHOUT = "translated-request-forged", "translated-request-without-ats"
STALE, NEVER = "stale-device-tlb", "invalidation-never-answered"
LATE, WRONG = "invalidation-answered-late", "invalidation-answered-wrongly"
GUEST = "guests-device-never-answers"
LOCKUP = "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0"
TIMED_OUT = "AMD-Vi: IOMMU 0000:00:00.2: Completion-Wait loop timed out"
MILLISECOND = 10**6


@pytest.fixture(scope="module")
def results():
    return {
        (iommu, row.policy, row.attack): row
        for iommu in ("vtd", "amdvi")
        for row in run(SCENARIO, iommu=iommu, workload=NO_WORKLOAD).rows
    }


@pytest.fixture(params=["vtd", "amdvi"])
def rows(request, results):
    """The rows of one vendor, by policy and attack."""
    return {key[1:]: row for key, row in results.items() if key[0] == request.param}


# Forged requests.


@pytest.mark.parametrize("policy", ["linux-strict", "linux-lazy", "xen-ats"])
def test_forged_request_passes_and_nobody_notices(rows, policy):
    row = rows[policy, FORGED]
    assert row.outcome.window == FOREVER
    assert row.faults == []
    assert row.stale_uses == 0


@pytest.mark.parametrize("policy", ["linux-noats", "linux-untrusted"])
@pytest.mark.parametrize("attack", [FORGED, WITHOUT])
def test_translation_blocking_stops_it_before_the_iommu(rows, policy, attack):
    row = rows[policy, attack]
    assert row.outcome.blocked
    assert row.faults == []
    assert row.story[-1].startswith("The root port blocks them")


@pytest.mark.parametrize("policy", ["linux-strict", "linux-lazy", "xen-basic", "xen-ats"])
def test_forged_request_without_ats_is_refused_and_recorded(rows, policy):
    assert len(rows[policy, WITHOUT].faults) == 2  # a read and a write


def test_vtd_refuses_with_the_context_entrys_fault(results):
    line = results["vtd", "linux-strict", WITHOUT].faults[0]
    assert "[fault reason 0x0d]" in line


# Translations that outlive their mapping.


@pytest.mark.parametrize("policy", ["linux-strict", "linux-lazy"])
def test_kept_translation_shows_only_to_the_detector(rows, policy):
    row = rows[policy, STALE]
    assert row.outcome.window == FOREVER
    assert row.faults == []
    assert row.stale_uses == row.outcome.dmas


def test_kept_translation_is_nothing_without_ats(rows):
    assert rows["linux-noats", STALE].outcome.dmas == 0
    assert rows["linux-untrusted", STALE].outcome.dmas == 0


# Devices that do not answer.


@pytest.mark.parametrize("attack", [NEVER, WRONG])
def test_vtd_strict_unmap_never_returns(results, attack):
    row = results["vtd", "linux-strict", attack]
    assert row.outcome.hung
    assert row.outcome.leaked == 0
    assert LOCKUP in row.log
    assert "DMAR: VT-d detected Invalidation Time-out Error: SID 100" in row.log


def test_vtd_lazy_unmap_returns_and_the_page_is_lost_before_anybody_knows(results):
    row = results["vtd", "linux-lazy", NEVER]
    assert row.outcome.hung
    assert row.outcome.leaked == 4096
    first_leak = next(e.time for e in row.timeline if e.kind is EventKind.DMA and e.time)
    lockup = next(e.time for e in row.timeline if e.text == LOCKUP)
    assert first_leak < lockup


@pytest.mark.parametrize("policy", ["linux-strict", "linux-lazy"])
def test_amdvi_goes_on_and_logs_two_lines(results, policy):
    row = results["amdvi", policy, NEVER]
    assert row.outcome.window == FOREVER
    assert row.log[-2] == TIMED_OUT
    assert "IOTLB_INV_TIMEOUT" in row.log[-1]


def test_late_answer_costs_vtds_strict_unmap_its_time(results):
    row = results["vtd", "linux-strict", LATE]
    assert row.outcome.blocked
    assert "The unmap takes 500 ms, which a CPU spends on waiting." in row.story


def test_late_answer_comes_too_late_for_amdvis_strict_unmap(results):
    row = results["amdvi", "linux-strict", LATE]
    assert 300 * MILLISECOND < row.outcome.window <= 400 * MILLISECOND
    assert TIMED_OUT in row.log


def test_memory_kept_for_the_device_helps_as_long_as_the_kernel_waits(results):
    assert results["vtd", "lazy-device-private", LATE].outcome.blocked
    assert results["vtd", "lazy-device-private", NEVER].outcome.leaked == 0
    assert results["amdvi", "lazy-device-private", NEVER].outcome.leaked == 4096


# Xen.


def test_xen_without_ats_asks_no_device(rows):
    assert rows["xen-basic", GUEST].outcome.blocked
    assert len(rows["xen-basic", GUEST].faults) == 1


def test_xen_with_ats_waits_for_ever(rows):
    row = rows["xen-ats", GUEST]
    assert row.outcome.hung
    assert row.log[-1].endswith("taking too long")


def test_xen_before_xsa_373_crashes_the_guest(results):
    row = results["vtd", "xen-xsa-373", GUEST]
    assert row.outcome.blocked
    assert "(XEN) dom1: ATS device 0000:01:00.0 flush failed" in row.log
