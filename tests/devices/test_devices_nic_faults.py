"""The ring NIC: buffers and rings that an IOMMU keeps out of its reach."""

import pytest
from nic_bed import PAGE, RAW, RX, TX, UNMAPPED, only_fault

from iommu_emu.core import Access
from iommu_emu.devices.nic import Cause, NicStatus, Register
from iommu_emu.devices.nic.descriptors import DESCRIPTOR, DONE, END_OF_FRAME, FAULT
from iommu_emu.direction import Direction


def test_nic_receive_buffer_out_of_reach_loses_the_frame_alone(guarded_nic):
    first = guarded_nic.driver.rx.buffers[0]
    guarded_nic.domain.unmap(first.iova & ~0xFFF, PAGE)
    guarded_nic.nic.receive(b"lost")
    assert only_fault(guarded_nic) == (guarded_nic.nic.address, first.iova & ~0xFFF, Access.WRITE)
    guarded_nic.nic.receive(b"kept")
    # Mapped again, since the driver unmaps it.
    guarded_nic.domain.map(first.iova & ~0xFFF, first.physical & ~0xFFF, PAGE)
    received = guarded_nic.driver.take()
    assert (received.data, received.last, received.status) == (b"", True, DONE | FAULT)
    assert guarded_nic.driver.poll() == [b"kept"]
    assert guarded_nic.nic.statistics.rx_faults == 1


def test_nic_transmit_buffer_out_of_reach_loses_the_frame_alone(guarded_nic):
    guarded_nic.driver.post(b"head", b"lost", b"tail")
    buffer = guarded_nic.driver.tx.buffers[1]
    at = guarded_nic.driver.tx.physical + DESCRIPTOR.size
    guarded_nic.memory.write(at, DESCRIPTOR.pack(UNMAPPED, buffer.size, 0, 0))
    guarded_nic.driver.send(b"kept")
    guarded_nic.driver.reclaim()
    assert only_fault(guarded_nic) == (guarded_nic.nic.address, UNMAPPED, Access.READ)
    assert list(guarded_nic.driver.statuses) == [DONE | FAULT, DONE]
    assert list(guarded_nic.nic.sent) == [b"kept"]
    assert guarded_nic.nic.statistics.tx_faults == 1


@pytest.mark.parametrize(
    ("direction", "access"),
    [(Direction.TO_DEVICE, Access.WRITE), (Direction.FROM_DEVICE, Access.READ)],
)
def test_nic_buffer_mapped_for_the_other_direction_is_a_fault(guarded_nic, direction, access):
    guarded_nic.driver.stop()
    base = guarded_nic.mapper.map(RAW, PAGE, Direction.BIDIRECTIONAL)
    iova = guarded_nic.mapper.map(RAW + PAGE, PAGE, direction)
    register = RX if access is Access.WRITE else TX
    guarded_nic.raw(register, (iova, 64, END_OF_FRAME), base=base)
    guarded_nic.nic.receive(b"in")
    assert guarded_nic.written_back(0)[2] == DONE | FAULT
    assert only_fault(guarded_nic) == (guarded_nic.nic.address, iova, access)


@pytest.mark.parametrize(
    ("register", "failed", "cause"),
    [
        (RX, NicStatus.RECEIVE_FAILED, Cause.RECEIVE_FAILED),
        (TX, NicStatus.TRANSMIT_FAILED, Cause.TRANSMIT_FAILED),
    ],
)
def test_nic_ring_whose_descriptors_are_out_of_reach_fails(guarded_nic, register, failed, cause):
    guarded_nic.driver.stop()
    guarded_nic.ring(register, base=UNMAPPED, size=16)
    guarded_nic.enable()
    guarded_nic.driver.write(Register.CAUSE, 0x1F)
    guarded_nic.tail(register, 1)
    guarded_nic.nic.receive(b"in")
    assert guarded_nic.status & failed == failed
    assert guarded_nic.causes & cause == cause
    assert only_fault(guarded_nic) == (guarded_nic.nic.address, UNMAPPED, Access.READ)


@pytest.mark.parametrize("register", [RX, TX])
def test_nic_ring_that_cannot_be_written_back_fails(guarded_nic, register):
    guarded_nic.driver.stop()
    base = guarded_nic.mapper.map(RAW, PAGE, Direction.TO_DEVICE)
    buffer = guarded_nic.mapper.map(RAW + PAGE, PAGE, Direction.BIDIRECTIONAL)
    guarded_nic.raw(register, (buffer, 64, END_OF_FRAME), base=base)
    guarded_nic.nic.receive(b"in")
    failed = NicStatus.RECEIVE_FAILED if register == RX else NicStatus.TRANSMIT_FAILED
    assert (guarded_nic.status, guarded_nic.head(register)) == (failed, 0)
    assert only_fault(guarded_nic) == (guarded_nic.nic.address, base, Access.WRITE)


def test_nic_one_ring_fails_without_the_other(guarded_nic):
    guarded_nic.domain.unmap(guarded_nic.driver.tx.iova, PAGE)
    guarded_nic.driver.send(b"out")
    guarded_nic.nic.receive(b"in")
    assert guarded_nic.driver.poll() == [b"in"]
    assert guarded_nic.status == NicStatus.RECEIVE | NicStatus.TRANSMIT_FAILED
    assert guarded_nic.vectors == [0x41, 0x40]


def test_nic_failed_ring_works_again_after_off_and_on(bare_nic):
    bare_nic.raw(TX, (RAW, 1, END_OF_FRAME), size=1)
    assert bare_nic.status == NicStatus.TRANSMIT_FAILED
    bare_nic.enable(0)
    bare_nic.raw(TX, (RAW, 1, END_OF_FRAME))
    assert (bare_nic.status, len(bare_nic.nic.sent)) == (NicStatus.TRANSMIT, 1)


def test_nic_forgotten_invalidation_leaves_a_freed_buffer_writable(guarded_nic):
    """What a deferred invalidation concedes: the controller still writes the old page."""
    guarded_nic.driver.stop()
    base = guarded_nic.mapper.map(RAW, PAGE, Direction.BIDIRECTIONAL)
    iova = guarded_nic.mapper.map(RAW + PAGE, PAGE, Direction.FROM_DEVICE)
    guarded_nic.raw(RX, *[(iova, 64, 0)] * 3, base=base)
    guarded_nic.nic.receive(b"warm")
    guarded_nic.domain.unmap(iova, PAGE, invalidate=False)
    guarded_nic.nic.receive(b"late")
    assert guarded_nic.memory.read(RAW + PAGE, 4) == b"late"
    guarded_nic.domain.flush()
    guarded_nic.nic.receive(b"more")
    assert [guarded_nic.written_back(n)[2] for n in range(3)] == [DONE, DONE, DONE | FAULT]
