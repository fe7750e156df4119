"""The ring NIC: what it does with descriptors, and writes into them."""

from nic_bed import PAGE, RAW, RX, TX, Bed, frame

from iommu_emu.devices.nic import Cause
from iommu_emu.devices.nic.descriptors import DONE, END_OF_FRAME, LENGTH


def test_nic_writes_length_and_end_of_frame_into_receive_descriptors(bare_nic):
    bare_nic.raw(RX, (RAW + PAGE, 64, 0), (RAW + PAGE, 64, 0))
    bare_nic.nic.receive(frame(100))
    assert [bare_nic.written_back(n) for n in range(2)] == [(64, 0, DONE), (36, END_OF_FRAME, DONE)]


def test_nic_writes_the_status_alone_into_transmit_descriptors(bare_nic):
    bare_nic.raw(TX, (RAW + PAGE, 64, 0xFF00), (RAW + PAGE, 36, 0xFF01))
    assert [bare_nic.written_back(n) for n in range(2)] == [(64, 0xFF00, DONE), (36, 0xFF01, DONE)]


def test_nic_moves_the_head_over_what_it_has_done(bare_nic):
    bare_nic.raw(TX, *[(RAW + PAGE, 64, END_OF_FRAME)] * 7)
    assert bare_nic.head(TX) == 7
    bare_nic.tail(TX, 2)
    assert bare_nic.head(TX) == 2


def test_nic_skips_receive_buffers_without_room(bare_nic):
    bare_nic.raw(RX, (RAW + PAGE, 0, 0), (RAW + PAGE, 64, 0))
    bare_nic.nic.receive(frame(10))
    assert [bare_nic.written_back(n) for n in range(2)] == [(0, 0, DONE), (10, END_OF_FRAME, DONE)]


def test_nic_reports_an_empty_frame(bare_nic):
    bare_nic.raw(TX, (RAW + PAGE, 0, 0), (RAW + PAGE, 0, END_OF_FRAME))
    assert bare_nic.written_back(1) == (0, END_OF_FRAME, DONE | LENGTH)
    assert (bare_nic.nic.statistics.tx_length, len(bare_nic.nic.sent)) == (1, 0)


def test_nic_does_not_send_a_frame_beyond_the_limit():
    bed = Bed(max_frame=100)
    bed.raw(TX, (RAW, 64, 0), (RAW, 37, 0), (RAW, 1, END_OF_FRAME), (RAW, 100, END_OF_FRAME))
    statuses = [bed.written_back(n)[2] for n in range(4)]
    assert statuses == [DONE, DONE | LENGTH, DONE | LENGTH, DONE]
    assert [len(sent) for sent in bed.nic.sent] == [100]


def test_nic_drops_a_frame_beyond_the_limit():
    bed = Bed(max_frame=100).ready()
    bed.nic.receive(frame(101))
    bed.nic.receive(frame(100))
    assert bed.driver.poll() == [frame(100)]
    assert bed.nic.statistics.rx_oversize == 1


def test_nic_drops_a_frame_without_descriptor(bare_nic):
    bare_nic.raw(RX)
    bare_nic.nic.receive(frame(10))
    bare_nic.tail(RX, 1)
    assert (bare_nic.nic.statistics.rx_no_descriptor, bare_nic.head(RX)) == (1, 0)
    assert bare_nic.causes == Cause.NO_DESCRIPTOR


def test_nic_frame_that_has_begun_waits_for_descriptors(bare_nic):
    bare_nic.raw(RX, (RAW + PAGE, 64, 0))
    bare_nic.nic.receive(frame(100))
    assert (bare_nic.written_back(0), bare_nic.causes) == ((64, 0, DONE), 0)
    bare_nic.describe(1, RAW + PAGE + 64, 64)
    bare_nic.tail(RX, 2)
    assert bare_nic.written_back(1) == (36, END_OF_FRAME, DONE)
    assert bare_nic.memory.read(RAW + PAGE, 100) == frame(100)


def test_nic_misses_frames_while_receiving_is_off(bare_nic):
    bare_nic.nic.receive(frame(10))
    assert bare_nic.nic.statistics.rx_missed == 1
