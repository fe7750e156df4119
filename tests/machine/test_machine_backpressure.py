"""What waits for room in the fabric, and what follows when a drain made it (pci 7, VT-d 7.7)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from iommu_emu import Machine
from iommu_emu.devices import Bar, Device
from iommu_emu.pci.function import BUS_MASTER, COMMAND

MESSAGE = (0xFEE0_1000, 0x41)


@pytest.fixture
def machine() -> Machine:
    return Machine(transactions=1)


@pytest.fixture
def device(machine: Machine) -> Device:
    """The only transaction that there is is taken for 100 ns."""
    device = machine.attach(Device("sender"))
    device.dma.set_latency(100, 0)
    device.dma.write(0x1000, b"\x01")
    return device


def test_backpressure_holds_an_interrupt_back(machine: Machine, device: Device) -> None:
    device.send_message(*MESSAGE)
    assert machine.interrupts == []
    machine.advance(2000)
    assert [(i.address, i.data) for i in machine.interrupts] == [MESSAGE]


def test_backpressure_holds_the_same_interrupt_once(machine: Machine, device: Device) -> None:
    device.send_message(*MESSAGE)
    device.send_message(*MESSAGE)
    machine.advance(10_000)
    assert len(machine.interrupts) == 1


def test_backpressure_keeps_interrupts_in_order(machine: Machine, device: Device) -> None:
    for vector in (3, 1, 2):
        device.send_message(0xFEE0_0000, vector)
    machine.advance(100_000)
    assert [i.vector for i in machine.interrupts] == [3, 1, 2]


def test_interrupt_without_the_bus_master_bit_is_lost(machine: Machine) -> None:
    device = machine.attach(Device("sender"))
    device.config.write(COMMAND, 2, 0)
    device.send_message(*MESSAGE)
    device.config.write(COMMAND, 2, BUS_MASTER)
    machine.advance(10_000)
    assert machine.interrupts == []


def test_interrupt_that_waits_is_forgotten_by_reset(machine: Machine, device: Device) -> None:
    device.send_message(*MESSAGE)
    device.reset()
    machine.advance(10_000)
    assert machine.interrupts == []


def test_interrupt_that_waits_is_forgotten_at_removal(machine: Machine, device: Device) -> None:
    device.send_message(*MESSAGE)
    machine.remove(device)
    machine.advance(10_000)
    assert machine.interrupts == []


class Echo(Device):
    """Answers each write to its BAR with one more."""

    bar_layout = (Bar(0, 4096),)
    echoes = 0

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.echoes += 1
        self.dma.write(self.bar_address(0), bytes(4))


@pytest.mark.parametrize(
    ("source", "handled"), [(None, 64), (lambda: 0, 4)], ids=["stepped", "live"]
)
def test_service_ends_where_devices_keep_each_other_busy(
    monkeypatch: pytest.MonkeyPatch, source: Callable[[], int] | None, handled: int
) -> None:
    machine = Machine(messages=64, clock_source=source)
    echo = machine.attach(Echo())
    ticks = count(step=0.001)  # the host's clock: the second look is the last
    monkeypatch.setattr("iommu_emu.machine.time.monotonic", lambda: next(ticks))
    for _ in range(8):
        echo.dma.write(echo.bar_address(0), bytes(4))
    machine.service()
    assert echo.echoes == handled
