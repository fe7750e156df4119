import pytest

from iommu_emu import Machine, PortType
from iommu_emu.devices.shpc_bridge import (
    COMMAND,
    COMMAND_STATUS,
    SLOTS,
    ShpcBridge,
    SlotState,
    slot_command,
)


@pytest.fixture
def machine():
    return Machine(1 << 20)


@pytest.fixture
def bridge(machine):
    return machine.attach(ShpcBridge(slots=2), "00:1e.0")


@pytest.fixture
def write(machine, bridge):
    base = bridge.bar_address(0)
    return lambda offset, size, value: machine.mmio_write(base + offset, size, value)


def command(slot, state):
    return int.from_bytes(slot_command(slot, state), "little")


def test_shpc_slots_start_enabled(bridge):
    assert [bridge.slot_state(slot) for slot in (1, 2)] == [SlotState.ENABLED] * 2


def test_shpc_command_disables_its_slot(bridge, write):
    write(COMMAND, 2, command(2, SlotState.DISABLED))
    assert [bridge.slot_state(slot) for slot in (1, 2)] == [SlotState.ENABLED, SlotState.DISABLED]


def test_shpc_command_leaves_fields_that_are_0(bridge, write):
    write(COMMAND, 2, 1 << 8 | 0x10)  # attention light on, nothing else
    assert bridge.registers[SLOTS] == 0x16


def test_shpc_status_tells_the_new_state(machine, bridge, write):
    write(COMMAND, 2, command(1, SlotState.DISABLED))
    assert machine.mmio_read(bridge.bar_address(0) + SLOTS, 2) == 0x3F


@pytest.mark.parametrize("value", [0x0003, 0x0303, 0x0140])  # no slot, no such slot, bus speed
def test_shpc_invalid_command_is_reported(machine, bridge, write, value):
    write(COMMAND, 2, value)
    assert machine.mmio_read(bridge.bar_address(0) + COMMAND_STATUS, 2) == 4
    assert bridge.slot_state(1) is SlotState.ENABLED


def test_shpc_status_is_read_only(bridge, write):
    write(SLOTS, 2, 0xFFFF)
    assert bridge.slot_state(1) is SlotState.ENABLED


def test_shpc_masks_are_writable(bridge, write):
    write(SLOTS + 4, 4, 0xFF00_0000)
    assert bridge.registers[SLOTS + 7] == 0xFF


def test_shpc_reset_enables_all_slots(bridge, write):
    write(COMMAND, 2, command(1, SlotState.DISABLED))
    bridge.reset()
    assert bridge.slot_state(1) is SlotState.ENABLED


def test_shpc_reads_0_beyond_its_registers(machine, bridge):
    assert machine.mmio_read(bridge.bar_address(0) + 0x800, 4) == 0


@pytest.mark.parametrize("slots", [0, 32])
def test_shpc_slots_out_of_range_are_an_error(slots):
    with pytest.raises(ValueError, match=r"^slots must be in 1\.\.31, not"):
        ShpcBridge(slots=slots)


@pytest.mark.parametrize("slot", [0, 3])
def test_shpc_state_of_no_slot_is_an_error(bridge, slot):
    with pytest.raises(ValueError, match=r"^slot must be in 1\.\.2, not"):
        bridge.slot_state(slot)


def test_shpc_may_be_a_switch_port(machine):
    port = machine.attach(ShpcBridge("port", PortType.DOWNSTREAM), "00:1c.0")
    assert port.bar_address(0)
