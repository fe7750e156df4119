"""Device-TLBs under Xen: whether they are used, and devices that do not answer (os 4.10)."""

import pytest
from xen_bed import GUEST_RAM, OTHER_RAM, Bed

from iommu_emu.clock import MILLISECOND, SECOND
from iommu_emu.core import Answer
from iommu_emu.devices import MaliciousDevice
from iommu_emu.hung import HungError
from iommu_emu.refused import RefusedError
from iommu_emu.xen import Advisory


class Card(MaliciousDevice):
    """A device with a device-TLB."""

    ats = True


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    return Bed(request.param, preset="default-ats", device=Card("evil"))


@pytest.fixture
def old():
    """A Xen without the fix of XSA-373, and a guest whose device keeps silent."""
    bed = Bed("vtd", preset="default-ats", device=Card("evil"))
    bed.boot("ats", unfixed=[Advisory.XSA_373])
    bed.give()
    keep_silent(bed)
    return bed


def keep_silent(bed):
    bed.read(GUEST_RAM.start)
    bed.device.dma.device_tlb.set_answer(Answer.NEVER)


def test_ats_stays_off_unless_asked_for(bed):
    bed.boot()
    bed.give()
    assert not bed.device.ats_capability.enabled


def test_ats_is_used_if_asked_for(bed):
    bed.boot("ats")
    bed.give()
    bed.read(GUEST_RAM.start)
    assert len(bed.device.dma.device_tlb.entries()) == 1


def test_ats_needs_a_unit_that_knows_it():
    bed = Bed("amdvi", device=Card("evil"))
    bed.boot("ats")
    assert not bed.device.ats_capability.enabled


def test_quarantine_without_a_table_switches_ats_off(bed):
    xen = bed.boot("ats")
    bed.give()
    bed.read(GUEST_RAM.start)
    xen.deassign(bed.device)
    assert not bed.device.ats_capability.enabled
    assert not bed.reaches(GUEST_RAM.start)


def test_quarantine_with_a_scratch_page_leaves_nothing_in_the_device(bed):
    xen = bed.boot("ats iommu=quarantine=scratch-page")
    bed.machine.memory.write(GUEST_RAM.start, b"data")
    bed.give()
    assert bed.read(GUEST_RAM.start).data == b"data"
    xen.deassign(bed.device)
    assert bed.device.ats_capability.enabled
    assert bed.read(GUEST_RAM.start).data == bytes(4)


@pytest.mark.parametrize(
    ("vendor", "name"),
    [
        ("vtd", "[VT-D] IOMMU#0: QI dev wait descriptor"),
        ("amdvi", "AMD IOMMU 0000:00:00.2: iotlb completion wait"),
    ],
)
def test_slow_device_is_waited_for_and_logged(vendor, name):
    bed = Bed(vendor, preset="default-ats", device=Card("evil"))
    xen = bed.boot("ats")
    bed.give()
    bed.read(GUEST_RAM.start)
    bed.device.dma.device_tlb.set_answer(Answer.AFTER, delay=1500 * MILLISECOND)
    bed.machine.clock.advance(4000 * MILLISECOND)
    xen.deassign(bed.device)
    assert bed.lines == [f"(XEN) {name} taking too long", f"(XEN) {name} took 150ms"]
    assert xen.log.lines[-2].time == 5 * SECOND


def test_slow_device_has_the_time_that_the_command_line_says(bed):
    xen = bed.boot("ats iommu_dev_iotlb_timeout=2000")
    bed.give()
    bed.read(GUEST_RAM.start)
    bed.device.dma.device_tlb.set_answer(Answer.AFTER, delay=1500 * MILLISECOND)
    xen.deassign(bed.device)
    assert bed.lines == []


def test_silent_device_hangs_the_host(bed):
    xen = bed.boot("ats")
    bed.give()
    keep_silent(bed)
    with pytest.raises(HungError, match="Xen waits"):
        xen.deassign(bed.device)
    assert xen.guests[1].crashed is False


# ---- before XSA-373 was fixed --------------------------------------------------------------------


def test_xsa_373_silent_device_gets_its_guest_crashed(old):
    old.xen.deassign(old.device)
    assert old.machine.clock.now == SECOND
    assert old.xen.guests[1].crashed
    assert old.lines == [
        "(XEN) [VT-D] Queue invalidate wait descriptor timed out",
        "(XEN) dom1: ATS device 0000:00:02.0 flush failed",
        "(XEN) Domain 1 reported crashed by domain 0 on cpu#0:",
    ]


def test_xsa_373_silent_device_loses_ats(old):
    old.xen.deassign(old.device)
    assert not old.device.ats_capability.enabled


def test_xsa_373_silent_device_goes_to_guests_no_more(old):
    xen = old.xen
    xen.deassign(old.device)
    xen.deassign(old.device)
    with pytest.raises(RefusedError, match="-EBADF"):
        xen.assign(old.device, old.guest(OTHER_RAM))


def test_xsa_373_silent_device_crashes_no_hardware_domain():
    bed = Bed("vtd", preset="default-ats", device=Card("evil"))
    xen = bed.boot("ats", unfixed=[Advisory.XSA_373])
    bed.device.dma.device_tlb.set_answer(Answer.NEVER)
    xen.assign(bed.device, xen.dom_io)
    assert xen.device(bed.device).broken
    assert not xen.hardware_domain.crashed
    assert bed.lines[-1] == "(XEN) dom0: ATS device 0000:00:02.0 flush failed"


def test_xsa_373_amdvi_goes_on_and_tells_nobody():
    bed = Bed("amdvi", preset="default-ats", device=Card("evil"))
    xen = bed.boot("ats", unfixed=[Advisory.XSA_373])
    bed.give()
    keep_silent(bed)
    xen.deassign(bed.device)
    assert bed.machine.clock.now == MILLISECOND
    assert (bed.lines, xen.guests[1].crashed, xen.device(bed.device).broken) == ([], False, False)
