"""A unit's register page, its interrupts, and DMA through it into a client's memory."""

import os
import struct
from errno import EFAULT

import pytest
from vfio_user_client import (
    DMA_WRITE,
    ERROR,
    HEADER,
    REGION_WRITE,
    REPLY,
    RESET,
)

from iommu_emu.pci.function import BUS_MASTER, COMMAND
from iommu_emu.vtd.driver import VtdDriver

MIB = 1 << 20
FECTL, FEDATA, FEADDR = 0x38, 0x3C, 0x40
IOVA = 0x7000_0000


@pytest.fixture
def registers(connect, page):
    """A client of the register page."""
    return connect(page)


@pytest.fixture
def driver(machine, unit, client, memory):
    """A driver whose tables are in the client's memory."""
    client.map(0, 16 * MIB, memory)
    driver = VtdDriver(machine, unit, range(MIB, 2 * MIB))
    driver.start(fault_vector=0x41)
    return driver


@pytest.fixture
def master(client, sample):
    sample.config.write(COMMAND, 2, BUS_MASTER)
    return sample


def provoke(registers, offset=0):
    """Let the client do an access in whose course a fault event is sent; returns its ID."""
    return registers.send(REGION_WRITE, struct.pack("<QIII", offset, 0, 4, 0))


# The page.


def test_page_is_bar_0_as_large_as_the_window(registers, unit):
    assert registers.region_info(0) == (3, unit.window)


def test_page_reads_registers(registers, unit):
    assert registers.read32(0, 0) == 0x10
    assert registers.read(0, 8, 8) == unit.read("CAP").to_bytes(8, "little")


def test_page_writes_registers(registers, unit):
    registers.write32(0, FEDATA, 0x41)
    assert unit.read("FEDATA") == 0x41


def test_page_is_on_no_bus(registers, machine):
    assert list(machine.fabric.functions()) == []


def test_page_starts_with_a_power_on_reset(connect, page, unit):
    first = connect(page)
    first.write32(0, FEDATA, 0x41)
    first.close()
    assert unit.read("FEDATA") == 0x41  # for those who look at what was left
    connect(page)
    assert unit.read("FEDATA") == 0


def test_page_reset_is_a_warm_one(registers, unit, machine):
    registers.write32(0, FEDATA, 0x41)
    registers.call(RESET)
    assert unit.read("FEDATA") == 0


# DMA through the unit.


def test_dma_goes_through_the_unit_into_shared_memory(driver, master, memory):
    domain = driver.create_domain()
    driver.attach(domain, master.dma.requester)
    domain.map(IOVA, 0x4000, 4096)
    assert master.dma.write(IOVA + 8, b"translated").ok
    assert os.pread(memory, 10, 0x4008) == b"translated"


def test_driver_in_the_client_needs_nothing_but_memory_and_registers(
    registers, client, unit, memory, master
):
    # Root table at 0x1000, context table at 0x2000: pass-through, the widest AW (VT-d 4.3).
    client.map(0, 16 * MIB, memory)
    registers.map(0, 16 * MIB, memory)
    os.pwrite(memory, struct.pack("<QQ", 0x2000 | 1, 0), 0x1000)
    context = struct.pack("<QQ", 2 << 2 | 1, 1 << 8 | 3)
    os.pwrite(memory, context, 0x2000 + 16 * master.devfn)
    registers.write(0, 0x20, struct.pack("<Q", 0x1000))
    for bit in (30, 31):
        registers.write32(0, 0x18, 1 << bit)
    assert registers.read32(0, 0x1C) >> 30 == 3
    assert master.dma.write(0x5000, b"passed").ok
    assert os.pread(memory, 6, 0x5000) == b"passed"


# Interrupts.


def test_fault_interrupt_goes_to_the_client_of_the_page(driver, registers, unit, master):
    driver = restart(driver, registers)
    master.dma.write(IOVA, b"nowhere")
    message = registers.receive()
    assert (message.command, message.flags) == (DMA_WRITE, 0)
    assert message.body == struct.pack("<QQI", 0xFEE0_0000, 4, 0x41)
    assert driver.faults()[0].address == IOVA


def restart(driver, registers):
    """Start the driver again: the page's client has reset the unit."""
    assert registers.silent
    driver.start(fault_vector=0x41)
    return driver


def test_interrupt_comes_behind_the_reply_to_the_access_that_caused_it(
    driver, registers, unit, master, monkeypatch
):
    restart(driver, registers)
    unit.write_field("FECTL", "IM", 1)
    master.dma.write(IOVA, b"nowhere")
    message_id = registers.send(REGION_WRITE, struct.pack("<QIII", FECTL, 0, 4, 0))
    reply, message = registers.receive(), registers.receive()
    assert (reply.id, reply.command, reply.flags) == (message_id, REGION_WRITE, REPLY)
    assert message.command == DMA_WRITE


def test_server_goes_on_while_a_client_owes_a_reply(driver, registers, client, unit, master):
    restart(driver, registers)
    master.dma.write(IOVA, b"nowhere")
    message = registers.receive()
    assert registers.read32(0, 0) == 0x10
    assert client.read(0, 0, 4) == bytes(4)
    registers.send_raw(HEADER.pack(message.id, DMA_WRITE, HEADER.size, REPLY, 0))
    assert registers.silent


def test_interrupt_that_the_client_refuses_is_reported(driver, registers, unit, master, events):
    restart(driver, registers)
    master.dma.write(IOVA, b"nowhere")
    message = registers.receive()
    registers.send_raw(HEADER.pack(message.id, DMA_WRITE, HEADER.size, REPLY | ERROR, EFAULT))
    assert registers.silent
    event = events[-1]
    assert (event.kind, event.details["reason"]) == ("interrupt-refused", "Bad address")
    assert (event.details["address"], event.details["data"]) == (0xFEE0_0000, 0x41)


def test_interrupt_without_a_client_is_lost_and_reported(machine, unit, server, events):
    machine.memory.add_ram(0, 4 * MIB)
    VtdDriver(machine, unit, range(MIB, 2 * MIB)).start(fault_vector=0x41)
    unit.translate(0x0310, IOVA)
    machine.service()
    assert [e.kind for e in events] == ["interrupt-lost"]


def test_interrupt_written_by_a_device_goes_to_its_units_page(registers, client, master, events):
    assert registers.silent
    master.dma.write(0xFEE0_1000, struct.pack("<I", 0x55))
    message = registers.receive()
    assert message.body == struct.pack("<QQI", 0xFEE0_1000, 4, 0x55)
    assert events[-1].details["requester"] == "00:05.0"


def test_interrupt_written_by_a_device_goes_to_its_own_client_without_a_unit(client, master):
    master.dma.write(0xFEE0_1000, struct.pack("<I", 0x55))
    assert client.receive().body == struct.pack("<QQI", 0xFEE0_1000, 4, 0x55)


def test_interrupts_that_nobody_answers_are_limited(machine, client, master, endpoint):
    for _ in range(2000):
        master.dma.write(0xFEE0_1000, struct.pack("<I", 0x55))
        machine.service()
    assert endpoint.connection.dropped == 2000 - 256 - 1024
    for _ in range(256 + 1024):
        message = client.receive()
        client.send_raw(HEADER.pack(message.id, DMA_WRITE, HEADER.size, REPLY, 0))
    assert client.silent


def test_reply_to_nothing_ends_the_connection(registers):
    registers.send_raw(HEADER.pack(0x4711, DMA_WRITE, HEADER.size, REPLY, 0))
    assert registers.ended


def test_reply_comes_once(registers, client, master):
    assert registers.silent
    master.dma.write(0xFEE0_1000, struct.pack("<I", 0x55))
    message = registers.receive()
    answer = HEADER.pack(message.id, DMA_WRITE, HEADER.size + 16, REPLY, 0) + message.body[:16]
    registers.send_raw(answer * 2)
    assert registers.ended
