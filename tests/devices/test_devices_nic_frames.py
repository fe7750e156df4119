"""The ring NIC: frames in and out, and what is on the wire."""

import pytest
from nic_bed import frame

from iommu_emu.devices.nic import Nic, NicDriver
from iommu_emu.devices.nic.controller import MAX_FRAME


@pytest.mark.parametrize("length", [1, 60, 1500, 2048, 2049, MAX_FRAME])
def test_nic_receives_what_came_from_the_network(guarded_nic, length):
    guarded_nic.nic.receive(frame(length))
    assert guarded_nic.driver.poll() == [frame(length)]


@pytest.mark.parametrize("length", [1, 60, 1500, 2048])
def test_nic_sends_what_the_driver_posts(guarded_nic, length):
    assert guarded_nic.driver.send(frame(length))
    assert list(guarded_nic.nic.sent) == [frame(length)]


def test_nic_gathers_a_frame_from_its_descriptors(guarded_nic):
    guarded_nic.driver.send(b"header", frame(1500), b"trailer")
    assert list(guarded_nic.nic.sent) == [b"header" + frame(1500) + b"trailer"]


def test_nic_receives_many_rings_full_in_order(guarded_nic):
    frames = [frame(100 + n, n) for n in range(100)]
    received = []
    for sent in frames:
        guarded_nic.nic.receive(sent)
        received += guarded_nic.driver.poll()
    assert received == frames


def test_nic_sends_many_rings_full_in_order(guarded_nic):
    frames = [frame(100 + n, n) for n in range(100)]
    for sent in frames:
        assert guarded_nic.driver.send(sent)
        assert guarded_nic.driver.reclaim() == 1
    assert list(guarded_nic.nic.sent) == frames


def test_nic_counts_what_it_received_and_sent(nic):
    nic.nic.receive(frame(100))
    nic.nic.receive(frame(200))
    nic.driver.send(frame(300))
    counts = nic.nic.statistics
    assert (counts.rx_frames, counts.rx_bytes, counts.tx_frames, counts.tx_bytes) == (
        2,
        300,
        1,
        300,
    )


def test_nic_cable_joins_two_controllers(nic):
    other = nic.machine.attach(Nic("other"), "00:05.0")
    driver = NicDriver(nic.machine, other, range(8 << 20, 12 << 20))
    driver.start()
    nic.nic.connect(other)
    nic.driver.send(b"ping")
    assert driver.poll() == [b"ping"]
    driver.send(b"pong")
    assert nic.driver.poll() == [b"pong"]


def test_nic_gives_frames_to_whoever_holds_the_wire(nic):
    nic.nic.wire = lambda sent: nic.nic.receive(sent.upper())
    nic.driver.send(b"echo")
    assert nic.driver.poll() == [b"ECHO"]
    assert not nic.nic.sent


def test_nic_goes_on_after_the_wire_raised(nic):
    def broken(_):
        raise ConnectionError("cable")

    nic.nic.wire = broken
    with pytest.raises(ConnectionError):
        nic.driver.send(b"lost")
    nic.nic.wire = None
    nic.driver.send(b"kept")
    assert list(nic.nic.sent) == [b"kept"]


def test_nic_keeps_the_last_1024_frames(nic):
    for n in range(1025):
        nic.driver.send(n.to_bytes(2, "little"))
        nic.driver.reclaim()
    assert (len(nic.nic.sent), nic.nic.sent[0]) == (1024, b"\x01\x00")


def test_nic_rejects_an_empty_frame_from_the_wire(nic):
    with pytest.raises(ValueError, match="frame must have at least 1 byte"):
        nic.nic.receive(b"")


@pytest.mark.parametrize("limit", [63, 65536])
def test_nic_rejects_a_frame_limit_out_of_range(limit):
    with pytest.raises(ValueError, match=f"max_frame must be in 64..65535, not {limit}"):
        Nic(max_frame=limit)
