"""Devices go to guests and come back (os 4.10)."""

import pytest
from xen_bed import FRAMES, GUEST_RAM, OTHER_RAM, RAM, Bed

from iommu_emu import Machine
from iommu_emu.devices import MaliciousDevice
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.xen import Xen


def test_boot_gives_every_device_to_the_hardware_domain(bed):
    xen = bed.boot()
    assert xen.device(bed.device).owner is xen.hardware_domain
    assert bed.reaches(RAM.start)


def test_boot_keeps_xens_own_memory_from_the_hardware_domain(bed):
    bed.boot()
    assert not bed.reaches(FRAMES.start)


def test_boot_tells_the_mode(bed):
    bed.boot("dom0-iommu=strict")
    assert [line.text for line in bed.xen.log] == [
        "(XEN) I/O virtualisation enabled",
        "(XEN)  - Dom0 mode: Strict",
    ]


def test_boot_complains_before_anything_else(bed):
    bed.boot("iommu=quarantine=full")
    assert bed.xen.log.lines[0].text == (
        '(XEN) parameter "iommu" has invalid value "quarantine=full", rc=-22!'
    )


def test_boot_without_a_required_iommu_fails():
    with pytest.raises(RuntimeError, match="iommu=required/force"):
        Xen(Machine(), parameters="iommu=force", frames=FRAMES, ram=RAM)


def test_boot_passthrough_lets_the_hardware_domain_reach_everything(bed):
    bed.boot("dom0-iommu=passthrough")
    assert bed.reaches(FRAMES.start)


def test_boot_passthrough_shares_no_tag_with_a_guest(bed):
    bed.boot("dom0-iommu=passthrough")
    assert str(bed.guest()) == "d2"


def test_boot_without_queued_invalidation_uses_registers():
    bed = Bed("vtd")
    bed.boot("iommu=no-qinval")
    bed.give()
    (driver,) = bed.xen.drivers.values()
    assert driver.invalidation == "register"
    assert not bed.reaches(RAM.start)


def test_boot_with_iommus_off_refuses_assignment(bed):
    xen = bed.boot("iommu=off")
    guest = bed.guest()
    with pytest.raises(RefusedError, match="-EOPNOTSUPP"):
        xen.assign(bed.device, guest)
    with pytest.raises(RefusedError, match="-EOPNOTSUPP"):
        xen.deassign(bed.device)


def test_assignment_gives_the_guests_memory_and_no_other(bed):
    bed.boot()
    bed.give()
    assert bed.reaches(GUEST_RAM.start)
    assert not bed.reaches(RAM.start)


def test_assignment_translates_guest_frame_numbers(bed):
    bed.boot()
    guest = bed.guest(gfn=0x100)
    bed.xen.assign(bed.device, guest)
    bed.write(0x100000, b"mine")
    assert bed.machine.memory.read(GUEST_RAM.start, 4) == b"mine"


def test_assignment_leaves_nothing_of_the_old_owner_in_caches(bed):
    bed.boot()
    bed.read(RAM.start)  # now it is cached
    bed.give()
    assert not bed.reaches(RAM.start)


def test_assignment_of_a_guests_device_is_refused(bed):
    xen = bed.boot()
    bed.give()
    with pytest.raises(RefusedError, match=r"-EBUSY: .* is assigned to d1"):
        xen.assign(bed.device, bed.guest(OTHER_RAM))


def test_assignment_to_the_hardware_domain_is_refused(bed):
    xen = bed.boot()
    with pytest.raises(RefusedError, match="-EINVAL"):
        xen.assign(bed.device, xen.hardware_domain)


def test_assignment_of_an_unknown_function_is_refused(bed):
    xen = bed.boot()
    with pytest.raises(RefusedError, match="-ENODEV"):
        xen.assign(MaliciousDevice("elsewhere"), xen.dom_io)


def test_assignment_of_a_broken_device_is_refused_and_logged(bed):
    xen = bed.boot()
    xen.device(bed.device).broken = True
    with pytest.raises(RefusedError, match="-EBADF"):
        bed.give()
    assert bed.lines == ["(XEN) d1: assign (0000:00:02.0) failed (-9)"]


def test_assignment_of_a_broken_device_to_dom_io_passes(bed):
    xen = bed.boot()
    xen.device(bed.device).broken = True
    xen.assign(bed.device, xen.dom_io)
    assert xen.device(bed.device).owner is xen.dom_io


def test_deassignment_of_the_hardware_domains_device_is_refused(bed):
    xen = bed.boot()
    with pytest.raises(RefusedError, match="-EINVAL"):
        xen.deassign(bed.device)


def test_deassignment_without_quarantine_goes_to_the_hardware_domain(bed):
    xen = bed.boot("iommu=no-quarantine")
    bed.give()
    xen.deassign(bed.device)
    assert xen.device(bed.device).owner is xen.hardware_domain
    assert bed.reaches(RAM.start)


def test_deassignment_from_quarantine_goes_to_the_hardware_domain(bed):
    xen = bed.boot()
    bed.give()
    xen.deassign(bed.device)
    xen.deassign(bed.device)
    assert xen.device(bed.device).owner is xen.hardware_domain


def test_destroyed_guests_devices_are_taken(bed):
    xen = bed.boot()
    guest = bed.give()
    xen.destroy_domain(guest)
    assert xen.device(bed.device).owner is xen.dom_io
    assert xen.guests == {}


def test_destroyed_guests_frames_come_back(bed):
    xen = bed.boot("iommu=no-quarantine")
    (driver,) = xen.drivers.values()
    before = driver.frames.available
    xen.destroy_domain(bed.give())
    assert driver.frames.available == before


def test_destroyed_guests_number_is_not_used_again(bed):
    xen = bed.boot()
    xen.destroy_domain(bed.guest())
    assert str(bed.guest()) == "d2"


def test_guests_memory_is_nobody_elses(bed):
    bed.boot()
    bed.guest()
    with pytest.raises(ValueError, match="overlaps guest's"):
        bed.guest(range(GUEST_RAM.start + 0x1000, GUEST_RAM.stop + 0x1000))


@pytest.mark.parametrize("ram", [range(0x1000), range(RAM.start, RAM.start), range(RAM.start, 5)])
def test_guests_memory_is_ram_of_domains(bed, ram):
    bed.boot()
    with pytest.raises(ValueError, match="ram must be"):
        bed.guest(ram)


@pytest.mark.parametrize("gfn", [-1, 1 << 36])
def test_guest_frame_numbers_are_what_units_translate(bed, gfn):
    bed.boot()
    with pytest.raises(ValueError, match=r"gfn must be in 0\.\.0x"):
        bed.guest(gfn=gfn)


def test_owner_of_memory_is_a_guest_the_hardware_domain_or_nobody(bed):
    xen = bed.boot()
    guest = bed.guest()
    owners = [xen.owner_of(at) for at in (GUEST_RAM.start, RAM.start, FRAMES.start)]
    assert owners == [guest, xen.hardware_domain, None]


def test_hardware_domain_reaches_guests_memory_unless_strict(bed):
    bed.boot()
    bed.guest()
    assert bed.reaches(GUEST_RAM.start)


def test_strict_hardware_domain_loses_what_guests_get(bed):
    bed.boot("dom0-iommu=strict")
    bed.read(GUEST_RAM.start)
    bed.guest()
    reached = [bed.reaches(at) for at in (GUEST_RAM.start - 4, GUEST_RAM.start, GUEST_RAM.stop)]
    assert reached == [True, False, True]


def test_hotplugged_device_goes_to_the_hardware_domain(bed):
    xen = bed.boot()
    late = bed.machine.attach(MaliciousDevice("late"), "00:02.1")
    assert not late.read(RAM.start, 4).ok
    xen.add(late)
    assert late.read(RAM.start, 4).ok


def test_removed_device_leaves_its_requester_id_blocked(bed):
    xen = bed.boot()
    bed.give()
    own = bed.device.address
    xen.remove(bed.device)
    bed.machine.remove(bed.device)
    impostor = bed.machine.attach(MaliciousDevice("impostor"), own)
    assert not impostor.read(GUEST_RAM.start, 4).ok


def test_failed_assignment_changes_nothing(bed):
    xen = bed.boot("iommu=no-quarantine")
    (driver,) = xen.drivers.values()
    spare = [driver.frames.take() for _ in range(driver.frames.available)]
    with pytest.raises(RefusedError, match="-ENOMEM"):
        bed.give()
    assert bed.lines == ["(XEN) d1: assign (0000:00:02.0) failed (-12)"]
    assert xen.device(bed.device).owner is xen.hardware_domain
    assert bed.reaches(RAM.start)
    driver.frames.release(spare)
    xen.assign(bed.device, xen.guests[1])
    assert bed.reaches(GUEST_RAM.start)


@pytest.mark.parametrize(
    ("capabilities", "tag"),
    [
        (Capabilities(), 1),
        (Capabilities(caching_mode=True), 0xFFFE),  # ID 0 is the unit's own
        (Capabilities(domain_bits=8), 3),  # the lowest free one, after the hardware domain's
    ],
)
def test_guests_tag_in_a_vtd_units_caches(capabilities, tag):
    bed = Bed("vtd", capabilities=capabilities)
    bed.boot()
    guest = bed.give()
    (driver,) = bed.xen.drivers.values()
    assert guest.tables[driver].id == tag


def test_xen_is_described_in_a_line(bed):
    bed.boot()
    bed.give()
    assert repr(bed.xen).startswith("<Xen: 1 guests, ")
