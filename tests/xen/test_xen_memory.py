"""A guest's memory comes and goes while it has devices."""

import pytest
from xen_bed import GUEST_RAM, OTHER_RAM

from iommu_emu.xen.domain import MemoryRange

PAGE = 0x1000
NEW = MemoryRange(OTHER_RAM.start, OTHER_RAM.start, PAGE)


@pytest.fixture
def guest(bed):
    bed.boot()
    return bed.give()


def frames(bed):
    return [driver.frames.available for driver in bed.xen.drivers.values()]


def test_memory_that_is_added_is_reached(bed, guest):
    guest.add_memory(NEW)
    assert bed.write(NEW.address, b"more").ok
    assert bed.machine.memory.read(NEW.machine, 4) == b"more"


def test_memory_that_is_removed_is_reached_no_more(bed, guest):
    guest.add_memory(NEW)
    assert bed.reaches(NEW.address)
    guest.remove_memory(range(NEW.machine, NEW.machine + PAGE))
    assert not bed.reaches(NEW.address)
    assert bed.reaches(GUEST_RAM.start)


def test_memory_that_is_added_before_a_device_comes_is_reached_after(bed):
    bed.boot()
    guest = bed.guest()
    guest.add_memory(NEW)
    bed.xen.assign(bed.device, guest)
    assert bed.reaches(NEW.address)


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        (MemoryRange(OTHER_RAM.start, OTHER_RAM.start, PAGE - 1), "mapping must be of whole pages"),
        (MemoryRange(OTHER_RAM.start, OTHER_RAM.start, 0), "mapping must be of whole pages"),
        (
            MemoryRange(GUEST_RAM.start, OTHER_RAM.start, PAGE),
            "d1 has memory at 0x2000000..0x2001000",
        ),
        (MemoryRange(1 << 60, OTHER_RAM.start, PAGE), "map must stay in"),
    ],
)
def test_memory_that_cannot_be_added_changes_nothing(bed, guest, mapping, reason):
    before = frames(bed), list(guest.memory)
    with pytest.raises(ValueError, match=reason):
        guest.add_memory(mapping)
    assert (frames(bed), guest.memory) == before
