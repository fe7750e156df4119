"""The ring NIC: guests of bad will."""

import itertools

import pytest
from nic_bed import PAGE, RAW, RX, TX, Bed

from iommu_emu.devices.nic import Cause, Control, NicStatus, Register
from iommu_emu.devices.nic.controller import MAX_FRAME
from iommu_emu.devices.nic.descriptors import DESCRIPTOR, DONE, END_OF_FRAME, FAULT
from iommu_emu.devices.nic.ring import BUDGET


@pytest.mark.parametrize("size", [0, 1, 4097, 0xFFFF_FFFF])
def test_nic_ring_of_an_impossible_size_fails(bare_nic, size):
    bare_nic.raw(TX, size=size)
    assert (bare_nic.status, bare_nic.causes) == (NicStatus.TRANSMIT_FAILED, Cause.TRANSMIT_FAILED)
    assert bare_nic.nic.statistics.ring_failures == 1


def test_nic_ring_beyond_the_last_address_fails(bare_nic):
    bare_nic.ring(TX, size=4096, base=(1 << 64) - 4096)
    bare_nic.enable()
    assert bare_nic.status & NicStatus.TRANSMIT_FAILED


@pytest.mark.parametrize("tail", [8, 0xFFFF_FFFF])
def test_nic_ignores_a_tail_outside_the_ring(bare_nic, tail):
    bare_nic.raw(TX)
    bare_nic.tail(TX, tail)
    assert bare_nic.driver.read(TX + Register.TAIL) == 0
    assert bare_nic.nic.statistics.doorbell_errors == 1


def test_nic_ignores_a_tail_that_takes_descriptors_back(bare_nic):
    bare_nic.raw(RX, *[(RAW + PAGE, 64, 0)] * 4)
    bare_nic.tail(RX, 3)
    assert (bare_nic.driver.read(RX + Register.TAIL), bare_nic.nic.statistics.doorbell_errors) == (
        4,
        1,
    )


def test_nic_ignores_a_doorbell_of_a_ring_that_is_off(bare_nic):
    bare_nic.ring(TX)
    bare_nic.tail(TX, 1)
    assert bare_nic.nic.statistics.doorbell_errors == 1


@pytest.mark.parametrize("transactions", [1, 256])
def test_nic_buffer_beyond_the_last_address_is_a_fault(transactions):
    bed = Bed(transactions=transactions)
    bed.raw(TX, ((1 << 64) - 8, 64, END_OF_FRAME), ((1 << 64) - 8000, 9000, END_OF_FRAME))
    assert [bed.written_back(n)[2] for n in range(2)] == [DONE | FAULT] * 2


def test_nic_doorbell_starts_a_bounded_number_of_dmas(bare_nic):
    bare_nic.ring(TX, size=4096)
    bare_nic.memory.write(RAW, DESCRIPTOR.pack(RAW, 1, END_OF_FRAME, 0) * 4096)
    bare_nic.enable(Control.TRANSMIT)
    calls = itertools.count()
    send = bare_nic.nic.dma.read
    bare_nic.nic.dma.read = lambda *arguments: (next(calls), send(*arguments))[1]
    bare_nic.tail(TX, 4095)
    assert next(calls) <= BUDGET
    assert 0 < bare_nic.head(TX) < 4095
    bare_nic.machine.advance(1_000_000)
    assert bare_nic.nic.statistics.tx_frames == 4095


def test_nic_frame_without_end_reads_no_more_than_the_limit(bare_nic):
    read = []
    send = bare_nic.nic.dma.read
    bare_nic.nic.dma.read = lambda at, length, done: (
        read.append((at, length)) or send(at, length, done)
    )
    bare_nic.raw(TX, *[(RAW + PAGE, 4096, 0)] * 7)
    bare_nic.describe(7, RAW + PAGE, 4096)
    for tail in (6, 5, 4, 3):
        bare_nic.tail(TX, tail)
    assert read.count((RAW + PAGE, 4096)) == MAX_FRAME // 4096
    assert (bare_nic.head(TX), bare_nic.nic.statistics.tx_length) == (3, 0)


def test_nic_buffer_in_its_own_registers_does_no_harm(bare_nic):
    bare_nic.ring(RX)
    bare_nic.describe(0, bare_nic.nic.bar_address(0) + RX + Register.TAIL, 4)
    bare_nic.enable(Control.RECEIVE)
    bare_nic.tail(RX, 1)
    bare_nic.nic.receive((7).to_bytes(4, "little"))
    bare_nic.machine.advance(1_000)
    assert bare_nic.driver.read(RX + Register.TAIL) == 7
