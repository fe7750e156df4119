"""The small piece of software that carries operations out, one access after the other."""

from __future__ import annotations

from typing import Protocol

from iommu_emu.devices.edu import BUFFER, BUFFER_SIZE, START, TO_RAM
from iommu_emu.devices.edu import Register as Edu
from iommu_emu.devices.iommu_testdev import Register as Testdev
from iommu_emu.differential import arena
from iommu_emu.differential.accesses import (
    Access,
    BarRead,
    BarWrite,
    ClockStep,
    ConfigWrite,
    MemoryWrite,
    MessageSetup,
    UnitRead,
    UnitWrite,
)
from iommu_emu.differential.program import (
    Dma,
    Everything,
    Interrupt,
    Invalidate,
    Operation,
    RegisterRead,
    RegisterWrite,
    Renumber,
    Store,
    Submit,
)
from iommu_emu.differential.topology import Topology
from iommu_emu.pci.topology import SECONDARY, SUBORDINATE

EDU_LATENCY = 100_000_000  # ns from an edu's command to its transfer

__all__ = ["Bench", "Commands", "OperationError", "collect_buffers", "perform", "prepare"]


class OperationError(ValueError):
    """An operation names a device that is not there, or asks what it cannot do."""


class Bench(Protocol):
    """Something that accesses can be done on, and whose registers can be looked at.

    Attributes:
        topology: the devices.
    """

    topology: Topology

    def do(self, access: Access) -> None:
        """Do one access; of a read the value is a result of the operation."""

    def peek(self, offset: int, size: int) -> int:
        """Return a register's value, which is no access of the program."""


class Commands(Protocol):
    """What software of one vendor does to the unit's command interface.

    Attributes:
        root: the root table pointer as the unit has latched it.
        translations_clean: whether contexts and translations were invalidated since a change.
        interrupts_clean: the same of interrupt entries.
    """

    root: int
    translations_clean: bool
    interrupts_clean: bool

    def changed(self) -> None:
        """Note that something has changed that a cache may hold."""

    def note(self, bench: Bench, offset: int, value: int) -> None:
        """Follow a write of the program to a register, before it is done."""

    def submit(self, bench: Bench, descriptors: tuple[tuple[int, int], ...]) -> None:
        """Put descriptors in the queue."""

    def invalidate(self, bench: Bench, how: Everything) -> None:
        """Invalidate everything that the unit caches."""

    def switch_off(self, bench: Bench) -> None:
        """Let DMA pass untranslated from now on."""


def perform(bench: Bench, commands: Commands, operation: Operation, number: int) -> None:
    """Carry out one operation of a program.

    Args:
        bench: where to.
        commands: the vendor's.
        operation: what.
        number: its index in the program, which chooses where an edu keeps what it reads.

    Raises:
        OperationError: if there is no such device, or it cannot do that.
    """
    match operation:
        case Store(address, words):
            data = b"".join(word.to_bytes(8, "little") for word in words)
            bench.do(MemoryWrite(address, data))
        case RegisterWrite(offset, size, value):
            bench.do(UnitWrite(offset, size, value))
        case RegisterRead(offset, size):
            bench.do(UnitRead(offset, size))
        case Submit(descriptors):
            commands.submit(bench, descriptors)
        case Invalidate(how):
            commands.invalidate(bench, how)
        case Dma():
            _dma(bench, operation, number)
        case Interrupt(device, address, data):
            _require(device in bench.topology.edus, f"{device!r} sends no interrupts")
            bench.do(MessageSetup(device, address, data))
            bench.do(BarWrite(device, Edu.RAISE, 4, 1))
            bench.do(BarWrite(device, Edu.ACKNOWLEDGE, 4, 1))
        case Renumber(bridge, bus):
            _require(bridge in bench.topology.bridges, f"there is no bridge {bridge!r}")
            if bus >= bench.topology.bridges[bridge].secondary:
                bench.do(ConfigWrite(bridge, SUBORDINATE, 1, bus))
                bench.do(ConfigWrite(bridge, SECONDARY, 1, bus))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OperationError(message)


def _dma(bench: Bench, dma: Dma, number: int) -> None:
    _require(dma.device in bench.topology.devices, f"there is no device {dma.device!r}")
    if dma.device in bench.topology.edus:
        _edu(bench, dma, number)
        return
    _require(dma.write, f"{dma.device!r} cannot read")
    registers = {
        Testdev.IOVA_LOW: dma.address & 0xFFFFFFFF,
        Testdev.IOVA_HIGH: dma.address >> 32,
        Testdev.LENGTH: dma.length,
        Testdev.DOORBELL: 1,
    }
    for register, value in registers.items():
        bench.do(BarWrite(dma.device, register, 4, value))
    bench.do(BarRead(dma.device, Testdev.TRIGGER, 4))
    bench.do(BarRead(dma.device, Testdev.RESULT, 4))


def _edu(bench: Bench, dma: Dma, number: int) -> None:
    _require(dma.length <= BUFFER_SIZE, f"an edu moves up to {BUFFER_SIZE} bytes")
    # Where reads land differs from one to the next, so that several can be told apart at the end.
    inside = BUFFER + min(number * 64 % BUFFER_SIZE, BUFFER_SIZE - dma.length)
    source, destination = (inside, dma.address) if dma.write else (dma.address, inside)
    for register, value in (
        (Edu.DMA_SOURCE, source),
        (Edu.DMA_DESTINATION, destination),
        (Edu.DMA_COUNT, dma.length),
        (Edu.DMA_COMMAND, START | TO_RAM * dma.write),
    ):
        bench.do(BarWrite(dma.device, register, 8, value))
    bench.do(ClockStep(EDU_LATENCY))
    bench.do(BarRead(dma.device, Edu.DMA_COMMAND, 8))


def prepare(bench: Bench) -> None:
    """Bring the devices to the state in which every program begins.

    iommu-testdevs compare what they wrote with a copy of their pattern. QEMU's edu keeps its
    buffer over a reset, so it is cleared.
    """
    for name in bench.topology.edus:
        for register, value in (
            (Edu.DMA_SOURCE, arena.STATUS),
            (Edu.DMA_DESTINATION, BUFFER),
            (Edu.DMA_COUNT, BUFFER_SIZE),
            (Edu.DMA_COMMAND, START),
        ):
            bench.do(BarWrite(name, register, 8, value))
        bench.do(ClockStep(EDU_LATENCY))
    for name in bench.topology.testdevs:
        bench.do(BarWrite(name, Testdev.PHYSICAL_LOW, 4, arena.PATTERN & 0xFFFFFFFF))
        bench.do(BarWrite(name, Testdev.PHYSICAL_HIGH, 4, arena.PATTERN >> 32))


def collect_buffers(bench: Bench, commands: Commands) -> None:
    """Bring what the edus have read to where it is compared, with translation off."""
    commands.switch_off(bench)
    for name, page in zip(bench.topology.edus, arena.DUMPS, strict=False):
        for register, value in (
            (Edu.DMA_SOURCE, BUFFER),
            (Edu.DMA_DESTINATION, page),
            (Edu.DMA_COUNT, BUFFER_SIZE),
            (Edu.DMA_COMMAND, START | TO_RAM),
        ):
            bench.do(BarWrite(name, register, 8, value))
        bench.do(ClockStep(EDU_LATENCY))
