"""The ring NIC: DMAs that take their time, or find no room in the fabric."""

import pytest
from nic_bed import ADDRESS, FABRIC, PAGE, RUNNING, TO_MEMORY, Bed, FullFabric, frame, only_fault

from iommu_emu.core import Access
from iommu_emu.devices.nic import NicStatus
from iommu_emu.devices.nic.receive import FIFO


def test_nic_works_with_latencies(slow_nic):
    frames = [frame(1500, n) for n in range(10)]
    for sent in frames:
        slow_nic.driver.send(sent)
        slow_nic.nic.receive(sent)
    slow_nic.machine.advance(100_000)
    assert list(slow_nic.nic.sent) == frames
    assert slow_nic.driver.poll() == frames


def test_nic_frame_takes_a_fetch_its_data_and_a_write_back(slow_nic):
    slow_nic.nic.receive(frame(1500))
    slow_nic.machine.advance(3 * (FABRIC + TO_MEMORY) - 1)
    assert slow_nic.driver.take() is None
    slow_nic.machine.advance(1)
    assert slow_nic.driver.take().data == frame(1500)


def test_nic_buffer_unmapped_while_a_frame_is_in_the_fabric(slow_nic):
    """A write sent before the unmap arrives after it: it meets the tables in force then."""
    buffer = slow_nic.driver.rx.buffers[0]
    slow_nic.nic.receive(b"late")
    slow_nic.machine.advance(FABRIC + TO_MEMORY + 10)  # fetched; the data is in the fabric
    assert slow_nic.nic.dma.in_flight == (1, 0)
    slow_nic.domain.unmap(buffer.iova & ~0xFFF, PAGE)
    slow_nic.machine.advance(1_000)
    assert only_fault(slow_nic) == (slow_nic.nic.address, buffer.iova & ~0xFFF, Access.WRITE)
    assert slow_nic.memory.read(buffer.physical, 4) == bytes(4)
    assert slow_nic.nic.statistics.rx_faults == 1


def test_nic_fetch_that_faults_later_fails_the_ring(slow_nic):
    slow_nic.domain.unmap(slow_nic.driver.rx.iova, PAGE)
    slow_nic.nic.receive(b"in")
    assert slow_nic.status == RUNNING
    slow_nic.machine.advance(1_000)
    assert slow_nic.status == NicStatus.RECEIVE_FAILED | NicStatus.TRANSMIT


def test_nic_frames_that_wait_for_the_ring_are_bounded(slow_nic):
    for _ in range(FIFO + 10):
        slow_nic.nic.receive(b"in")
    assert slow_nic.nic.statistics.rx_missed == 10


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
@pytest.mark.parametrize("transactions", [1, 3])
def test_nic_sends_more_than_the_fabric_takes_at_once(vendor, transactions):
    bed = Bed(vendor, transactions=transactions, driver={"buffer_size": 9000}).ready()
    bed.nic.dma.set_latency(FABRIC, TO_MEMORY)
    bed.driver.send(frame(9000))
    bed.nic.receive(frame(9000, 1))
    bed.machine.advance(100_000)
    assert list(bed.nic.sent) == [frame(9000)]
    assert bed.driver.poll() == [frame(9000, 1)]


@pytest.mark.parametrize("done", [0, 512])
def test_nic_writes_on_from_the_clock_what_found_no_room(nic, done):
    buffer = nic.driver.rx.buffers[0]
    fabric = FullFabric(nic.nic.dma, buffer.iova, done)
    nic.nic.receive(frame(1500))
    assert nic.driver.take() is None
    nic.machine.advance(1_000)
    assert fabric.later[1] == buffer.iova + done
    assert nic.driver.poll() == [frame(1500)]


def test_nic_reads_again_from_the_clock_what_found_no_room(nic):
    FullFabric(nic.nic.dma, nic.driver.free[0])
    nic.driver.send(frame(1500))
    assert not nic.nic.sent
    nic.machine.advance(1_000)
    assert list(nic.nic.sent) == [frame(1500)]


def test_nic_waits_for_its_bus_master_bit(guarded_nic):
    guarded_nic.machine.config_write(ADDRESS, 4, 2, 2)
    guarded_nic.driver.send(b"out")
    guarded_nic.nic.receive(b"in")
    assert (list(guarded_nic.nic.sent), guarded_nic.machine.clock.next_event) == ([], None)
    guarded_nic.machine.config_write(ADDRESS, 4, 2, 6)
    assert list(guarded_nic.nic.sent) == [b"out"]
    assert guarded_nic.driver.poll() == [b"in"]
