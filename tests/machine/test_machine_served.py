"""What a machine offers to a server whose guest configures and interrupts by itself."""

import pytest

from iommu_emu.core import Status
from iommu_emu.devices import Bar, Device
from iommu_emu.pci.function import BUS_MASTER, COMMAND, INTX_DISABLE


class Sender(Device):
    bar_layout = (Bar(0, 4096),)
    interrupt_pin = 1


class Sink:
    """Takes a function's interrupts."""

    def __init__(self):
        self.messages = []
        self.levels = []

    def message(self, vector):
        self.messages.append(vector)
        return True

    def set_intx(self, level):
        self.levels.append(level)


@pytest.fixture
def sender(machine):
    return machine.attach(Sender(), "00:05.0", configure=False)


def test_attach_can_leave_the_configuration_to_software(sender, machine):
    assert sender.config.get(COMMAND, 2) == 0
    assert sender.bar_address(0) == 0
    assert sender.dma.write(0, b"x").status is Status.BUSY
    sender.config.write(COMMAND, 2, BUS_MASTER)
    assert sender.dma.write(0, b"x").ok


def test_interrupts_can_go_to_somebody_else(sender, machine):
    taken = []
    machine.on_interrupt = taken.append
    sender.config.write(COMMAND, 2, BUS_MASTER)
    sender.dma.write(0xFEE0_0000, (0x41).to_bytes(4, "little"))
    machine.service()
    assert [i.data for i in taken] == [0x41]
    assert machine.interrupts == []


def test_interrupt_sink_takes_vectors(sender):
    sender.interrupt_sink = sink = Sink()
    assert sender.interrupt(3)
    assert sink.messages == [3]


def test_interrupt_sink_takes_the_pin_as_the_command_register_lets_it(sender):
    sender.interrupt_sink = sink = Sink()
    sender.set_intx(True)
    sender.config.write(COMMAND, 2, INTX_DISABLE)
    sender.config.write(COMMAND, 2, 0)
    assert sink.levels == [True, False, True]


def test_ports_include_those_of_removed_functions_until_they_are_empty(sender, machine):
    sender.config.write(COMMAND, 2, BUS_MASTER)
    sender.dma.set_latency(10, 0)
    sender.dma.write(0, b"x")
    port = sender.dma
    machine.remove(sender)
    assert machine.ports == [port]
    machine.advance(10)
    assert machine.ports == []


def test_removed_memory_lives_as_long_as_its_region(machine):
    region = machine.memory.remove(0)
    region.array[0] = 7
    assert region.array[0] == 7
    assert machine.memory.ranges == []


def test_port_tells_its_latency(sender):
    assert sender.dma.latency == (0, 0)
    sender.dma.set_latency(3, 4)
    assert sender.dma.latency == (3, 4)
