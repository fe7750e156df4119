"""The ring NIC's driver: starting, stopping, what it maps and what it refuses."""

import pytest
from nic_bed import MEMORY, PAGE, Bed, start_both

from iommu_emu.devices.nic import NicDriver
from iommu_emu.devices.nic.descriptors import DESCRIPTOR, DONE, END_OF_FRAME


def test_nic_driver_unmaps_everything_when_it_stops(guarded_nic):
    guarded_nic.driver.send(b"out")
    guarded_nic.nic.receive(b"in")
    guarded_nic.driver.stop()
    assert (guarded_nic.mapper.live, guarded_nic.status, guarded_nic.iommu.faults()) == ({}, 0, [])


def test_nic_driver_stops_with_frames_in_flight(slow_nic):
    start_both(slow_nic)
    slow_nic.driver.stop()
    assert (slow_nic.mapper.live, slow_nic.iommu.faults()) == ({}, [])


def test_nic_driver_starts_again(guarded_nic):
    buffers = len(guarded_nic.driver.free)
    guarded_nic.driver.stop()
    guarded_nic.driver.start()
    guarded_nic.nic.receive(b"in")
    assert (guarded_nic.driver.poll(), len(guarded_nic.driver.free)) == ([b"in"], buffers)


def test_nic_driver_is_not_started_twice(nic):
    with pytest.raises(RuntimeError, match="stop it first"):
        nic.driver.start()


@pytest.mark.parametrize("left", [0, 1, 2, 10])
def test_nic_driver_leaves_nothing_mapped_if_it_cannot_start(left):
    bed = Bed("vtd")
    buffers = len(bed.driver.free)
    bed.mapper.left = left
    with pytest.raises(MemoryError):
        bed.driver.start()
    assert (bed.mapper.live, len(bed.driver.free), bed.status) == ({}, buffers, 0)


def test_nic_driver_posts_all_parts_of_a_frame_or_none(guarded_nic):
    mapped, buffers = dict(guarded_nic.mapper.live), len(guarded_nic.driver.free)
    guarded_nic.mapper.left = 2
    with pytest.raises(MemoryError):
        guarded_nic.driver.post(b"one", b"two", b"three")
    assert (guarded_nic.mapper.live, len(guarded_nic.driver.free)) == (mapped, buffers)


def test_nic_driver_says_when_its_ring_is_full(guarded_nic):
    assert all(guarded_nic.driver.post(b"out") for _ in range(15))
    assert not guarded_nic.driver.post(b"out")
    guarded_nic.driver.kick()
    assert guarded_nic.driver.reclaim() == 15
    assert guarded_nic.driver.post(b"out")


def test_nic_driver_throws_away_a_frame_longer_than_any(nic):
    """A device that forgets to end its frame neither fills memory nor spoils what follows."""
    for flags in [0] * 40 + [END_OF_FRAME]:
        at = nic.driver.rx.physical + DESCRIPTOR.size * nic.driver.rx.head
        nic.memory.write(at, DESCRIPTOR.pack(0, 2048, flags, DONE))
        assert nic.driver.poll() == []
    at = nic.driver.rx.physical + DESCRIPTOR.size * nic.driver.rx.head
    nic.memory.write(at, DESCRIPTOR.pack(0, 100, END_OF_FRAME, DONE))
    assert nic.driver.poll() == [bytes(100)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "1..15 parts, not 0"), ((b"",), "1..2048 bytes"), ((bytes(2049),), "1..2048 bytes")],
)
def test_nic_driver_rejects_frames_that_it_cannot_describe(nic, parts, message):
    with pytest.raises(ValueError, match=message):
        nic.driver.send(*parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entries": 1}, "entries must be in 2..4096, not 1"),
        ({"buffer_size": 63}, "buffer_size must be in 64..65535, not 63"),
        ({"memory": range(PAGE)}, "memory must have at least 0x42000 bytes, not 0x1000"),
    ],
)
def test_nic_driver_rejects_what_cannot_be(bare_nic, arguments, message):
    with pytest.raises(ValueError, match=message):
        NicDriver(bare_nic.machine, bare_nic.nic, **{"memory": MEMORY} | arguments)
