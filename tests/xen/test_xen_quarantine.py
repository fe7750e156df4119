"""What devices meet after they were taken from a guest (os 4.10)."""

import pytest
from xen_bed import FIRMWARE, GUEST_RAM, OTHER_RAM, RAM, Bed

from iommu_emu.refused import RefusedError
from iommu_emu.vtd.structures import ContextEntry
from iommu_emu.xen import Release
from iommu_emu.xen.quarantine import PseudoIds

SCRATCH = "iommu=quarantine=scratch-page"
FABRIC = 500  # ns from a device to its unit


@pytest.fixture
def scratch(bed):
    """A bed whose device was taken from its guest in scratch mode."""
    bed.boot(SCRATCH)
    bed.give()
    bed.xen.deassign(bed.device)
    return bed


@pytest.fixture
def full(bed):
    """The same in the proposal's full mode."""
    bed.boot("iommu=quarantine=full", release=Release.PROPOSAL)
    bed.give()
    bed.xen.deassign(bed.device)
    return bed


# ---- none --------------------------------------------------------------------------------------


def test_none_lets_writes_in_flight_land_in_the_hardware_domain(bed):
    bed.boot("iommu=quarantine=no")
    guest = bed.guest(gfn=RAM.start >> 12)
    bed.xen.assign(bed.device, guest)
    bed.device.dma.set_latency(FABRIC, 0)
    bed.write(RAM.start, b"late")
    bed.xen.deassign(bed.device)
    bed.machine.advance(FABRIC)
    assert bed.machine.memory.read(RAM.start, 4) == b"late"


def test_none_quarantines_what_the_toolstack_listed(bed):
    xen = bed.boot("iommu=quarantine=no")
    xen.assign(bed.device, xen.dom_io)
    bed.give()
    xen.deassign(bed.device)
    assert xen.device(bed.device).owner is xen.dom_io
    assert not bed.reaches(RAM.start)


def test_none_quarantines_listed_devices_without_their_reserved_memory(bed):
    bed.reserve()
    xen = bed.boot("iommu=quarantine=no")
    xen.assign(bed.device, xen.dom_io)
    assert not bed.reaches(FIRMWARE)


def test_list_is_left_when_the_hardware_domain_has_the_device_again(bed):
    xen = bed.boot("iommu=quarantine=no")
    xen.assign(bed.device, xen.dom_io)
    xen.deassign(bed.device)
    bed.give()
    xen.deassign(bed.device)
    assert xen.device(bed.device).owner is xen.hardware_domain


# ---- basic -------------------------------------------------------------------------------------


def test_basic_stops_reads_and_writes(bed):
    xen = bed.boot()
    bed.give()
    xen.deassign(bed.device)
    for address in (GUEST_RAM.start, RAM.start):
        assert not bed.read(address).ok
        assert not bed.write(address).ok


def test_basic_stops_what_was_in_flight(bed):
    xen = bed.boot()
    bed.give()
    bed.device.dma.set_latency(FABRIC, 0)
    write = bed.write(GUEST_RAM.start, b"late")
    xen.deassign(bed.device)
    bed.machine.advance(FABRIC)
    assert not write.ok
    assert bed.machine.memory.read(GUEST_RAM.start, 4) == bytes(4)


def test_basic_takes_no_page_table_without_reserved_memory(bed):
    xen = bed.boot()
    bed.give()
    xen.deassign(bed.device)
    assert xen.device(bed.device).quarantine is None


def test_basic_clears_the_context_entry():
    bed = Bed("vtd")
    xen = bed.boot()
    bed.give()
    xen.deassign(bed.device)
    (driver,) = xen.drivers.values()
    at = driver.context_entry_address(bed.device.address)
    assert bed.machine.memory.read(at, ContextEntry.size) == bytes(ContextEntry.size)
    assert bed.read(RAM.start).cause.condition == "context entry not present"


def test_basic_leaves_a_device_table_entry_without_translation():
    bed = Bed("amdvi")
    xen = bed.boot()
    bed.give()
    xen.deassign(bed.device)
    cause = bed.read(RAM.start).cause
    assert cause.condition == "device table entry without translation (V=1, TV=0)"
    (driver,) = xen.drivers.values()
    assert [fault.fields.domain_id for fault in driver.faults()] == [1]  # still the guest's


def test_basic_keeps_reserved_memory_in_reach(bed):
    bed.reserve()
    xen = bed.boot()
    bed.give()
    xen.deassign(bed.device)
    reached = [bed.reaches(at) for at in (FIRMWARE, FIRMWARE + 0x1000, RAM.start)]
    assert reached == [True, False, False]


# ---- scratch page ------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [0, RAM.start, GUEST_RAM.start, (1 << 47) - 4])
def test_scratch_takes_every_access_and_nobody_notices(scratch, address):
    assert scratch.write(address, b"sink").ok
    assert scratch.read(address).data == b"sink"
    assert scratch.xen.faults() == []


def test_scratch_is_one_page_wherever_the_device_goes(scratch):
    scratch.write(0x123, b"here")
    assert scratch.read(0x7654_3000 + 0x123).data == b"here"


def test_scratch_reaches_nobodys_memory(scratch):
    for address in (RAM.start, GUEST_RAM.start):
        scratch.write(address, b"sink")
        assert scratch.machine.memory.read(address, 4) == bytes(4)


def test_scratch_table_has_one_page_a_level(scratch):
    table = scratch.xen.device(scratch.device).quarantine
    levels = table.domain.table.levels
    memory = scratch.machine.memory
    assert (levels, len(table.shared)) == (4, 4)
    page = table.domain.table.root
    for level in reversed(range(levels)):
        entries = {memory.read(page + 8 * index, 8) for index in range(512)}
        assert len(entries) == 1
        next_page = int.from_bytes(entries.pop(), "little") & 0x000F_FFFF_FFFF_F000
        assert next_page == table.shared[level]
        page = next_page


def test_scratch_keeps_reserved_memory_where_it_is(bed):
    bed.reserve()
    bed.boot(SCRATCH)
    bed.machine.memory.write(FIRMWARE, b"firm")
    bed.give()
    bed.xen.deassign(bed.device)
    assert bed.read(FIRMWARE).data == b"firm"
    bed.write(FIRMWARE + 0x1000, b"sink")
    assert bed.machine.memory.read(FIRMWARE + 0x1000, 4) == bytes(4)


@pytest.mark.parametrize("distance", [0x1000, 1 << 21, 1 << 30, 1 << 39])
def test_scratch_is_around_reserved_memory_as_well(bed, distance):
    bed.reserve()
    xen = bed.boot("iommu=quarantine=scratch-page")
    bed.give()
    xen.deassign(bed.device)
    assert bed.write(FIRMWARE + distance).ok
    assert bed.read(FIRMWARE + 2 * distance).data == b"data"


def test_scratch_keeps_large_reserved_memory_where_it_is(bed):
    bed.reserve(0x320_0000, 0x20_0000)  # one large page
    bed.boot(SCRATCH)
    bed.machine.memory.write(0x33F_FFFC, b"firm")
    bed.give()
    bed.xen.deassign(bed.device)
    assert bed.read(0x33F_FFFC).data == b"firm"


def test_scratch_is_cleared_when_the_device_comes_again(scratch):
    scratch.write(0, b"left")
    scratch.xen.assign(scratch.device, scratch.guest(OTHER_RAM))
    scratch.xen.deassign(scratch.device)
    assert scratch.read(0).data == bytes(4)


def test_scratch_is_a_page_of_its_own_for_each_device(scratch):
    other = type(scratch.device)("other")
    scratch.machine.attach(other, "00:02.1")
    scratch.xen.add(other)
    scratch.xen.assign(other, scratch.xen.dom_io)
    scratch.write(0, b"mine")
    assert other.read(0, 4).data == bytes(4)


def test_scratch_table_is_there_before_a_guest_gets_the_device(bed):
    bed.boot(SCRATCH)
    bed.give()
    assert bed.xen.device(bed.device).quarantine is not None


def test_scratch_frames_come_back_with_the_device(bed):
    xen = bed.boot(SCRATCH)
    (driver,) = xen.drivers.values()
    before = driver.frames.available
    xen.assign(bed.device, xen.dom_io)
    assert driver.frames.available == before - 5  # the root, three tables, the scratch page
    xen.remove(bed.device)
    assert driver.frames.available == before


def test_scratch_without_frames_is_refused_and_takes_none(bed):
    xen = bed.boot(SCRATCH)
    (driver,) = xen.drivers.values()
    for _ in range(driver.frames.available - 4):
        driver.frames.take()
    with pytest.raises(RefusedError, match="-ENOMEM"):
        xen.assign(bed.device, xen.dom_io)
    assert driver.frames.available == 4
    assert bed.reaches(RAM.start)


# ---- full, as proposed -------------------------------------------------------------------------


def test_full_answers_reads_with_a_dummy_page(full):
    assert full.read(RAM.start).data == bytes(4)
    assert full.xen.faults() == []


def test_full_stops_writes_and_tells(full):
    write = full.write(RAM.start, b"sink")
    assert write.cause.condition == "write without write permission"
    assert len(full.xen.faults()) == 1
    assert full.read(RAM.start).data == bytes(4)


# ---- pseudo domain IDs -------------------------------------------------------------------------


def test_pseudo_ids_rotate():
    ids = PseudoIds()
    first = ids.take()
    ids.release(first)
    assert (first, ids.take()) == (0x8000, 0x8001)


def test_pseudo_ids_wrap_round_and_end():
    ids = PseudoIds()
    taken = [ids.take() for _ in range(0x7FFF)]
    ids.release(0x8005)
    assert (taken[-1], ids.take(), ids.take()) == (0xFFFE, 0x8005, None)


def test_pseudo_id_tags_the_quarantine_in_caches(scratch):
    table = scratch.xen.device(scratch.device).quarantine
    assert table.domain.id == scratch.xen.device(scratch.device).pseudo


def test_no_pseudo_ids_without_quarantine(bed):
    xen = bed.boot("iommu=quarantine=no")
    xen.assign(bed.device, xen.dom_io)
    assert xen.device(bed.device).pseudo is None
