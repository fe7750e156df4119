import pytest

from iommu_emu import Bridge, Device, Status
from iommu_emu.pci.hotplug import (
    LINK_ACTIVE,
    LINK_CHANGED,
    LINK_STATUS,
    PRESENCE,
    PRESENCE_CHANGED,
    SLOT_STATUS,
    Slot,
)

PORT = "00:1c.0"


@pytest.fixture
def port(machine):
    return machine.attach(Bridge("port", slot=7), PORT)


def slot_status(machine, port):
    return machine.config_read(PORT, port.pcie + SLOT_STATUS, 2)


def clear_events(machine, port):
    machine.config_write(PORT, port.pcie + SLOT_STATUS, 2, 0xFFFF)


def enable_interrupt(machine, port):
    msi = port.config.find(0x05)
    machine.config_write(PORT, msi + 4, 4, 0xFEE0_0000)
    machine.config_write(PORT, msi + 12, 2, 0x60)
    machine.config_write(PORT, msi + 2, 2, 1)
    # Presence changed, hot-plug interrupt and link-state change.
    machine.config_write(PORT, port.pcie + 0x18, 2, 1 << 3 | 1 << 5 | 1 << 12)


def test_slot_capability_tells_surprise_and_number(machine, port):
    slot_capability = machine.config_read(PORT, port.pcie + 0x14, 4)
    assert slot_capability == 7 << 19 | 1 << 18 | 1 << 6 | 1 << 5


def test_slot_insertion_sets_presence_link_and_events(machine, port):
    machine.attach(Device(), under=port)
    assert slot_status(machine, port) == PRESENCE | PRESENCE_CHANGED | LINK_CHANGED
    assert machine.config_read(PORT, port.pcie + LINK_STATUS, 2) & LINK_ACTIVE


def test_slot_removal_clears_presence_and_link_and_sets_events(machine, port):
    device = machine.attach(Device(), under=port)
    clear_events(machine, port)
    machine.remove(device)
    assert slot_status(machine, port) == PRESENCE_CHANGED | LINK_CHANGED
    assert not machine.config_read(PORT, port.pcie + LINK_STATUS, 2) & LINK_ACTIVE


def test_slot_events_are_cleared_by_writing_1(machine, port):
    machine.attach(Device(), under=port)
    clear_events(machine, port)
    assert slot_status(machine, port) == PRESENCE


def test_slot_sends_one_interrupt_for_an_insertion(machine, port):
    enable_interrupt(machine, port)
    machine.attach(Device(), under=port)
    assert [(i.vector, i.requester) for i in machine.interrupts] == [(0x60, 0x00E0)]


def test_slot_sends_again_only_after_all_events_were_clear(machine, port):
    enable_interrupt(machine, port)
    device = machine.attach(Device(), under=port)
    machine.config_write(PORT, port.pcie + SLOT_STATUS, 2, PRESENCE_CHANGED)
    machine.remove(device)
    assert len(machine.interrupts) == 1
    clear_events(machine, port)
    machine.attach(device, under=port)
    assert len(machine.interrupts) == 2


def test_slot_needs_a_hot_plug_port(machine):
    with pytest.raises(ValueError, match="plain has no hot-plug slot"):
        Slot(Bridge("plain"))


def test_removed_function_reads_all_ones(machine, port):
    machine.remove(machine.attach(Device(), under=port))
    assert machine.config_read("01:00.0", 0, 4) == 0xFFFF_FFFF


def test_removed_function_sends_nothing_new(machine, port):
    device = machine.attach(Device(), under=port)
    machine.remove(device)
    assert device.dma.write(0x1000, b"x").status is Status.REMOVED


def test_removed_function_is_told(machine, port):
    told = []

    class Told(Device):
        def on_removed(self):
            told.append(self.attached)

    machine.remove(machine.attach(Told(), under=port))
    assert told == [False]


def test_write_in_flight_at_removal_still_lands(machine, port):
    device = machine.attach(Device(), under=port)
    device.dma.set_latency(100, 100)
    device.dma.write(0x1000, b"ghost")
    machine.remove(device)
    machine.advance(200)
    assert machine.memory.read(0x1000, 5) == b"ghost"


def test_read_in_flight_at_removal_completes_to_nobody(machine, port):
    called = []
    device = machine.attach(Device(), under=port)
    device.dma.set_latency(100, 100)
    completion = device.dma.read(0x1000, 4, called.append)
    machine.remove(device)
    machine.advance(200)
    assert (completion.status, completion.data, called) == (Status.REMOVED, b"", [])


def test_write_in_flight_at_removal_is_still_translated(machine, unit, port, block_everything):
    device = machine.attach(Device(), under=port)
    device.dma.set_latency(100, 0)
    device.dma.write(0x1000, b"ghost")
    machine.remove(device)
    block_everything(unit)
    machine.advance(100)
    assert [record.requester for record in unit.fault_records()] == [0x0100]


def test_pool_is_whole_again_after_removal_in_flight(machine, port):
    device = machine.attach(Device(), under=port)
    device.dma.set_latency(10, 10)
    for _ in range(256):
        device.dma.read(0x1000, 4)
    machine.remove(device)
    machine.advance(20)
    assert machine.attach(Device(), under=port).dma.write(0x1000, b"x").ok


def test_removed_function_can_come_back(machine, port):
    device = machine.attach(Device(), under=port)
    machine.remove(device)
    machine.attach(device, under=port)
    assert device.dma.write(0x1000, b"back").ok


def test_removed_bridge_takes_everything_below_with_it(machine, port):
    switch = machine.attach(Bridge("switch"), under=port)
    device = machine.attach(Device(), under=switch)
    machine.remove(switch)
    assert (device.attached, switch.attached) == (False, False)


def test_timer_of_a_removed_device_does_not_fire(machine, port):
    fired = []
    device = machine.attach(Device(), under=port)
    device.call_later(10, lambda: fired.append(1))
    machine.remove(device)
    machine.advance(20)
    assert fired == []
