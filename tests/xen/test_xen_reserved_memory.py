"""RMRRs and unity maps follow their devices (os 4.10)."""

import pytest
from xen_bed import FIRMWARE, GUEST_RAM, OTHER_RAM, RAM, Bed

from iommu_emu.devices import MaliciousDevice
from iommu_emu.machine import ReservedRegion
from iommu_emu.refused import RefusedError
from iommu_emu.timing import Timing
from iommu_emu.xen import Advisory
from iommu_emu.xen.rmrr import IdentityRegion


def test_reserved_memory_follows_a_device_to_its_guest(bed):
    bed.reserve()
    bed.boot()
    bed.give()
    assert bed.reaches(FIRMWARE)


def test_reserved_memory_leaves_the_old_owner(bed):
    bed.reserve()
    xen = bed.boot()
    guest = bed.give()
    other = bed.machine.attach(MaliciousDevice("other"), "00:02.1")
    xen.add(other)
    xen.assign(other, guest)
    assert other.read(FIRMWARE, 4).ok  # in the page table of both
    xen.deassign(bed.device)
    assert not other.read(FIRMWARE, 4).ok


def test_reserved_memory_stays_with_the_hardware_domain(bed):
    bed.reserve()
    xen = bed.boot("iommu=quarantine=no")
    bed.give()
    xen.deassign(bed.device)
    assert bed.reaches(FIRMWARE)


def test_reserved_memory_is_in_reach_at_every_moment_of_a_move():
    bed = Bed("vtd", timing=Timing(invalidation=1000, wait=1000))
    bed.reserve()
    xen = bed.boot()
    bed.give()
    reached = []
    bed.machine.clock.call_later(1500, lambda: reached.append(bed.reaches(FIRMWARE)))
    xen.deassign(bed.device)
    assert reached == [True]


def test_reserved_memory_of_a_guest_is_counted(bed):
    """Two devices share a region: it goes when both have gone."""
    own = bed.device.address
    bed.machine.reserved_regions.append(
        ReservedRegion(FIRMWARE, FIRMWARE + 0xFFF, 0, ((own, own + 1),))
    )
    other = bed.machine.attach(MaliciousDevice("other"), "00:02.1")
    xen = bed.boot()
    guest = bed.give()
    xen.assign(other, guest)
    xen.deassign(bed.device)
    assert other.read(FIRMWARE, 4).ok
    assert list(guest.identity) == [(FIRMWARE, FIRMWARE + 0xFFF)]


def test_shared_rmrr_keeps_a_device_from_guests():
    bed = Bed("vtd")
    own = bed.device.address
    bed.machine.reserved_regions.append(
        ReservedRegion(FIRMWARE, FIRMWARE + 0xFFF, 0, ((own, own), (0x28, 0x28)))
    )
    bed.boot()
    guest = bed.guest()
    with pytest.raises(RefusedError, match="-EPERM"):
        bed.xen.assign(bed.device, guest)
    assert bed.lines == [
        "(XEN) [VT-D] It's disallowed to assign 0000:00:02.0 with shared RMRR at 3800000 for d1.",
        "(XEN) d1: assign (0000:00:02.0) failed (-1)",
    ]
    bed.xen.assign(bed.device, guest, relaxed=True)
    assert bed.reaches(FIRMWARE)


def test_guest_memory_in_the_way_refuses_the_device(bed):
    bed.reserve(GUEST_RAM.start)
    xen = bed.boot()
    guest = xen.create_domain("guest", OTHER_RAM, GUEST_RAM.start >> 12)
    guest.table(next(iter(xen.drivers.values())))
    with pytest.raises(RefusedError, match="-EBUSY"):
        xen.assign(bed.device, guest)
    assert xen.device(bed.device).owner is xen.hardware_domain
    assert list(guest.identity) == []


def test_guest_memory_in_the_way_of_its_first_device_refuses_it_too(bed):
    bed.reserve(GUEST_RAM.start)
    xen = bed.boot()
    guest = xen.create_domain("guest", OTHER_RAM, GUEST_RAM.start >> 12)
    with pytest.raises(RefusedError, match="-EBUSY"):
        xen.assign(bed.device, guest)
    assert guest.tables == {}
    assert list(guest.identity) == []


def test_guest_memory_in_the_way_stays_if_that_is_relaxed(bed):
    bed.reserve(GUEST_RAM.start)
    xen = bed.boot()
    guest = xen.create_domain("guest", OTHER_RAM, GUEST_RAM.start >> 12)
    xen.assign(bed.device, guest, relaxed=True)
    bed.write(GUEST_RAM.start, b"mine")
    assert bed.machine.memory.read(OTHER_RAM.start, 4) == b"mine"


def test_refused_first_device_leaves_nothing_mapped(bed):
    """The first of two regions has a place in the guest, the second has not."""
    bed.reserve()
    bed.reserve(GUEST_RAM.start)
    xen = bed.boot()
    (driver,) = xen.drivers.values()
    guest = xen.create_domain("guest", OTHER_RAM, GUEST_RAM.start >> 12)
    with pytest.raises(RefusedError, match=r"^-EBUSY: the domain has 0x2800000 at 0x2000000"):
        xen.assign(bed.device, guest)
    assert (guest.tables, list(guest.identity)) == ({}, [])
    assert bed.reaches(FIRMWARE)  # as the hardware domain's device
    assert len(driver.domains) == 2  # the hardware domain's, and the quarantine's


def test_overlapping_regions_are_logged_and_keep_a_device_from_guests(bed):
    bed.reserve(FIRMWARE, 0x2000)
    bed.reserve(FIRMWARE + 0x1000, 0x2000)
    bed.boot()
    with pytest.raises(RefusedError, match="-EADDRINUSE"):
        bed.give()
    log = [line.text for line in bed.xen.log]
    vtd = "[VT-D]d0: RMRR mapping failed"
    amdvi = "AMD-Vi: Warning: d0: unity mapping failed for 0000:00:02.0"
    assert f"(XEN) {vtd if bed.vendor == 'vtd' else amdvi}" in log
    assert log[-1] == "(XEN) d1: assign (0000:00:02.0) failed (-98)"


def test_region_ends_where_its_last_byte_rounds_up_to():
    pages = [list(IdentityRegion(0x1000, end).pages) for end in (0x1FFF, 0x2000, 0x2001)]
    assert pages == [[0x1000], [0x1000], [0x1000, 0x2000]]


def test_unity_maps_take_ir_for_iw():
    bed = Bed("amdvi")
    bed.reserve(writable=False)
    bed.boot()
    bed.give()
    assert (bed.read(FIRMWARE).ok, bed.write(FIRMWARE).ok) == (False, True)


# ---- without fixes -----------------------------------------------------------------------------


def test_xsa_378_leaves_a_unity_map_with_the_guest():
    bed = Bed("amdvi")
    bed.reserve()
    xen = bed.boot(unfixed=[Advisory.XSA_378])
    guest = bed.give()
    other = bed.machine.attach(MaliciousDevice("other"), "00:02.1")
    xen.add(other)
    xen.assign(other, guest)
    xen.deassign(bed.device)
    assert other.read(FIRMWARE, 4).ok


def test_xsa_386_leaves_a_device_with_its_guest():
    bed = Bed("vtd")
    bed.reserve()
    xen = bed.boot(unfixed=[Advisory.XSA_386])
    guest = bed.give()
    xen.deassign(bed.device)
    assert xen.device(bed.device).owner is guest
    assert bed.reaches(GUEST_RAM.start)
    assert not bed.reaches(FIRMWARE)


def test_xsa_386_leaves_a_device_with_freed_page_tables():
    bed = Bed("vtd")
    bed.reserve()
    xen = bed.boot(unfixed=[Advisory.XSA_386])
    guest = bed.give()
    (driver,) = xen.drivers.values()
    root = guest.tables[driver].table.root
    xen.destroy_domain(guest)
    at = driver.context_entry_address(bed.device.address)
    entry = int.from_bytes(bed.machine.memory.read(at, 8), "little")
    assert entry == root | 1  # present
    taken = {driver.frames.take() for _ in range(8)}
    assert root in taken


def test_xsa_400_leaves_reserved_memory_out_of_quarantine(bed):
    bed.reserve()
    xen = bed.boot(unfixed=[Advisory.XSA_400])
    bed.give()
    xen.deassign(bed.device)
    assert not bed.reaches(FIRMWARE)


def test_xsa_400_cuts_a_device_off_while_it_moves():
    bed = Bed("vtd", timing=Timing(invalidation=1000, wait=1000))
    bed.reserve()
    xen = bed.boot("iommu=quarantine=no", unfixed=[Advisory.XSA_400])
    bed.give()
    start = bed.machine.clock.now
    reached = []
    bed.machine.clock.call_later(2500, lambda: reached.append(bed.reaches(FIRMWARE)))
    xen.deassign(bed.device)
    assert bed.machine.clock.now - start > 2500
    assert reached == [False]
    assert bed.reaches(RAM.start)
