"""Linux 6.1, 6.12 and 7.x, strict and lazy, on our unit: what must hold in each."""

import pytest

from iommu_emu.core import Access

RELEASES = {"bookworm": "6.1.", "trixie": "6.12.", "trixie-backports": "7."}
STORED = (
    "nvme-write-direct",
    "nvme-write-flush",
    "nvme-bind-write",
    "pluggable-write",
    "pluggable-plug-write",
)
READ_BACK = (
    "nvme-read-direct",
    "nvme-bind-read",
    "nvme-bind-reread",
    "pluggable-read",
    "pluggable-plug-read",
    "pluggable-plug-reread",
)


def test_live_every_check_passes(cell):
    assert [(who, c) for who, c in cell.report.results if not c.ok] == []


def test_live_kernel_is_the_one_that_was_asked_for(cell):
    assert cell.report.versions.kernel.startswith(RELEASES[cell.kernel])


def test_live_kernel_follows_its_policy(cell):
    words = {"strict": "strict mode", "lazy": "lazy mode"}
    (line,) = cell.report.console.find("TLB invalidation policy")
    assert words[cell.policy] in line


def test_live_every_device_has_a_group_of_its_own(cell):
    facts = [value.split() for name, value in cell.report.console.facts if name == "group"]
    groups = {device: group for group, device, *_ in facts}
    assert len({groups[f"0000:0{bus}:00.0"] for bus in (1, 2, 3)}) == 3


@pytest.mark.parametrize("name", STORED)
def test_live_disk_holds_what_the_guest_stored(cell, name):
    assert cell.check(name) == (True, True)


@pytest.mark.parametrize("name", READ_BACK)
def test_live_guest_reads_what_the_disk_holds(cell, name):
    assert cell.check(name) == (True, True)


def test_live_guest_reads_through_its_page_cache(cell):
    assert cell.check("nvme-read-cached") == (True, None)


@pytest.mark.parametrize(
    ("address", "access", "reason"),
    [
        (0x7F_1234_5000, Access.WRITE, 0x05),
        (0x7E_2345_6000, Access.READ, 0x06),
        (0x4000_0000, Access.WRITE, 0x05),  # once user space's buffer is unmapped
    ],
)
def test_live_kernel_prints_the_attackers_fault(cell, address, access, reason):
    said = [
        (f.requester, f.address, f.access, f.reason)
        for f in cell.report.console.faults
        if f.address == address
    ]
    assert said == [(0x0200, address, access, reason)]


def test_live_kernel_prints_every_fault_that_we_saw(cell):
    seen = [(f.requester, f.page, f.access, f.code) for f in cell.report.observer.faults]
    said = [(f.requester, f.address, f.access, f.reason) for f in cell.report.console.faults]
    assert said == seen


def test_live_device_reaches_unmapped_pages_in_lazy_mode_alone(cell):
    stale = [each for each in cell.report.window if each.stale]
    assert bool(stale) is (cell.policy == "lazy")


def test_live_use_of_a_stale_entry_owes_an_invalidation_in_lazy_mode_alone(cell):
    observer = cell.report.observer
    assert bool(observer.stale_count) is (cell.policy == "lazy")
    assert all(use.owed.name and "IOTLB" in use.owed.name for use in observer.stale)


def test_live_lazy_flushes_by_domain_and_strict_by_page(cell):
    kinds = cell.report.observer.invalidations
    by_page = kinds["IOTLB, page"] > kinds["IOTLB, domain"]
    assert by_page is (cell.policy == "strict")


def test_live_disks_are_mapped_page_by_page_at_the_end(cell):
    mappings = cell.report.mappings["nvme"]
    assert mappings is not None
    assert not mappings.pass_through
    assert 0 < mappings.pages[4096] < 1000


def test_live_trace_is_complete(cell):
    assert cell.report.observer.lost == 0


def test_live_recording_plays_again_without_the_guest(cell):
    outcome = cell.replayed()
    assert outcome.same, outcome
