"""Phantom functions get what their device gets (os 4.10)."""

import pytest
from xen_bed import GUEST_RAM, RAM

from iommu_emu.devices import MaliciousDevice


@pytest.fixture
def phantoms(bed):
    """The requester IDs of two phantom functions of the device at 00:02.0, and one that is none."""
    return [bed.device.address | number for number in (3, 6, 1)]


def test_phantom_functions_are_blocked_unless_they_are_known(bed, phantoms):
    bed.boot()
    bed.give()
    assert [bed.reaches(GUEST_RAM.start, requester=each) for each in phantoms] == [False] * 3


def test_phantom_functions_follow_to_the_guest(bed, phantoms):
    bed.boot("pci-phantom=0:2,1")
    bed.give()
    assert [bed.reaches(GUEST_RAM.start, requester=each) for each in phantoms] == [True] * 3


def test_phantom_functions_follow_to_quarantine(bed, phantoms):
    xen = bed.boot("pci-phantom=0:2,1")
    bed.give()
    xen.deassign(bed.device)
    assert [bed.reaches(GUEST_RAM.start, requester=each) for each in phantoms] == [False] * 3


def test_phantom_functions_share_the_scratch_page(bed, phantoms):
    xen = bed.boot("pci-phantom=0:2,1 iommu=quarantine=scratch-page")
    bed.give()
    xen.deassign(bed.device)
    bed.write(0, b"mine", requester=phantoms[0])
    assert bed.read(0).data == b"mine"


def test_phantom_stride_leaves_numbers_out(bed):
    xen = bed.boot("pci-phantom=0:2,2")
    assert xen.device(bed.device).phantoms == [0x12, 0x14, 0x16]


def test_phantom_stride_is_as_the_capability_says(bed):
    config = bed.device.config
    at = bed.device.pcie + 4
    config.set(at, 4, config.get(at, 4) | 1 << 3)  # one bit of the function number
    xen = bed.boot("pci-phantom=0:2,1")
    assert xen.device(bed.device).phantoms == [0x14]


def test_phantom_stride_grows_where_a_real_function_is(bed):
    bed.machine.attach(MaliciousDevice("real"), "00:02.2")
    xen = bed.boot("pci-phantom=0:2,1")
    assert xen.device(bed.device).phantoms == [0x14]
    assert [line.text for line in xen.log if "real device" in line.text] == [
        "(XEN) 0000:00:02.2 looks to be a real device; bumping 0000:00:02 stride to 2",
        "(XEN) 0000:00:02.2 looks to be a real device; bumping 0000:00:02 stride to 4",
    ]


def test_phantom_functions_of_others_are_not_this_devices(bed):
    xen = bed.boot("pci-phantom=0:3,1")
    assert xen.device(bed.device).phantoms == []


def test_phantom_functions_are_the_hardware_domains_at_boot(bed, phantoms):
    bed.boot("pci-phantom=0:2,1")
    assert bed.reaches(RAM.start, requester=phantoms[0])


@pytest.mark.parametrize(("where", "expected"), [("00:05.1", [0x2B, 0x2D, 0x2F]), ("00:05.3", [])])
def test_phantom_functions_begin_behind_the_function(bed, where, expected):
    later = bed.machine.attach(MaliciousDevice("later"), where)
    xen = bed.boot("pci-phantom=0:5,2")
    assert xen.device(later).phantoms == expected
