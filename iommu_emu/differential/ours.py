"""Our side: a machine with the same devices, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from iommu_emu.core import TraceKind
from iommu_emu.devices.edu import Edu
from iommu_emu.devices.iommu_testdev import IommuTestdev
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
from iommu_emu.differential.configurations import Configuration
from iommu_emu.differential.observation import Observation, Step
from iommu_emu.differential.program import Dma, Interrupt, Operation, Renumber, Store
from iommu_emu.differential.software import OperationError, collect_buffers, perform, prepare
from iommu_emu.differential.topology import Place
from iommu_emu.machine import Machine
from iommu_emu.pci.function import BUS_MASTER, COMMAND, MEMORY_ENABLE, Function
from iommu_emu.pci.msi import MSI_ID
from iommu_emu.pci.topology import Bridge, PortType
from iommu_emu.reference import INTERRUPT_BASE
from iommu_emu.vtd.unit import VtdUnit

SHV = 1 << 3  # of an interrupt's address: its data holds a subhandle
TRACE_EVENTS = 256

__all__ = ["Ours", "Recording", "build"]


@dataclass
class Recording:
    """What our side did and saw.

    Attributes:
        accesses: those of each operation.
        ending: those that bring the devices' buffers to memory.
        observation: what was seen.
    """

    accesses: list[list[Access]] = field(default_factory=list)
    ending: list[Access] = field(default_factory=list)
    observation: Observation = field(default_factory=lambda: Observation([]))


def build(configuration: Configuration) -> tuple[Machine, VtdUnit, dict[str, Function]]:
    """Return a machine with the unit and the devices of a configuration."""
    machine = Machine(arena.RAM, trace_events=TRACE_EVENTS)
    unit = VtdUnit(machine, configuration.unit())
    functions: dict[str, Function] = {}
    topology = configuration.topology
    for place in topology.places:
        function = _make(place)
        machine.attach(function, topology.bus(place) << 8 | place.devfn)
        if isinstance(function, Bridge):
            function.set_bus_numbers(place.secondary, place.subordinate)
        functions[place.name] = function
    return machine, unit, functions


def _make(place: Place) -> Function:
    match place.model:
        case "iommu-testdev":
            return IommuTestdev(place.name)
        case "edu":
            return Edu(place.name, dma_mask=(1 << 64) - 1)
        case "pcie-root-port":
            return Bridge(place.name, PortType.ROOT_PORT)
        case _:
            return Bridge(place.name, PortType.PCIE_TO_PCI)


class Ours:
    """Runs programs on our unit; each begins with a machine as after a reset.

    Attributes:
        machine: our machine.
        unit: its unit.
        functions: devices and bridges by name.
        topology: where they are.
        commands: the software of the program that runs.
        written: what the program last wrote to each DWORD of the registers, by offset.

    Args:
        configuration: of the unit.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.topology = configuration.topology
        self.machine, self.unit, self.functions = build(configuration)
        self._adapter = configuration.adapter
        self._image = arena.image()
        self._notes = self._adapter.annotator(self.machine, self.unit)
        self.commands = self._adapter.commands()
        self.written: dict[int, int] = {}
        self._accesses: list[Access] = []
        self._results: list[int] = []
        self._overwritten = False  # a device has written a table in this operation

    def run(self, operations: Sequence[Operation]) -> Recording:
        """Run a program and return what was done and seen.

        Raises:
            OperationError: if an operation cannot be done.
        """
        self.begin()
        recording = Recording()
        for number, operation in enumerate(operations):
            self._notes.begin()
            self.perform(operation, number)
            recording.accesses.append(self._accesses)
            recording.observation.steps.append(self._step(operation))
        self._accesses = recording.ending
        if any(isinstance(each, Dma) and not each.write for each in operations):
            collect_buffers(self, self.commands)
        recording.observation.vectors = self._vectors()
        recording.observation.memory = tuple(
            self.machine.memory.read(base, size) for base, size in arena.REGIONS
        )
        return recording

    def perform(self, operation: Operation, number: int) -> None:
        """Carry out one operation; `number` is its index in the program."""
        self._accesses, self._results = [], []
        if isinstance(operation, Store | Renumber):
            self.commands.changed()
        before = self._tables() if isinstance(operation, Dma) and operation.write else ()
        perform(self, self.commands, operation, number)
        self._overwritten = bool(before) and before != self._tables()
        if self._overwritten:
            self.commands.changed()

    def _tables(self) -> tuple[bytes, ...]:
        read = self.machine.memory.read
        return tuple(read(base, size) for base, size in arena.TABLE_REGIONS)

    # What the software of a program needs.

    def do(self, access: Access) -> None:
        """Do one access and note it."""
        self._accesses.append(access)
        match access:
            case MemoryWrite(address, data):
                self.machine.memory.write(address, data)
            case UnitWrite(offset, size, value):
                self.commands.note(self, offset, value)
                for at in range(0, size, 4):
                    self.written[offset + at] = value >> 8 * at & 0xFFFFFFFF
                self.machine.mmio_write(self.unit.base + offset, size, value)
            case UnitRead(offset, size):
                self._results.append(self.unit.core.mmio_read(offset, size))
            case BarWrite(device, offset, size, value):
                self.functions[device].access_write(0, offset, size, value)
                self.machine.service()
            case BarRead(device, offset, size):
                self._results.append(self.functions[device].access_read(0, offset, size))
                self.machine.service()
            case ConfigWrite(function, offset, size, value):
                self.functions[function].config.write(offset, size, value)
                self.machine.service()
            case MessageSetup(device, address, data):
                self._set_message(self.functions[device], address, data)
            case ClockStep(duration):
                self.machine.advance(duration)

    def peek(self, offset: int, size: int) -> int:
        """Return a register's value."""
        return self.unit.core.mmio_read(offset, size)

    # Parts of a run.

    def begin(self) -> None:
        """Bring the machine to the state in which every program begins."""
        machine = self.machine
        machine.reset(power_on=True)
        for name, place in self.topology.bridges.items():
            bridge = self.functions[name]
            if isinstance(bridge, Bridge) and bridge.secondary_number != place.secondary:
                bridge.set_bus_numbers(place.secondary, place.subordinate)
        for function in self.functions.values():
            function.config.write(COMMAND, 2, MEMORY_ENABLE | BUS_MASTER)
        for base, size in arena.RAM:
            machine.memory.view(base, size)[:] = 0
        for (base, _), piece in zip(arena.REGIONS, self._image, strict=True):
            machine.memory.write(base, piece)
        machine.interrupts.clear()
        self.unit.watch(False)
        self.unit.watch(True)
        self.unit.stale_uses()
        machine.core.trace(True)
        self.commands = self._adapter.commands()
        self.written.clear()
        self._accesses, self._results = [], []
        self._sequence = self._last_event()
        prepare(self)

    def _step(self, operation: Operation) -> Step:
        causes: list[str] = []
        stale = False
        if not isinstance(operation, Store):
            causes = self._new_causes()
            stale = bool(self.unit.stale_uses())
            requester = 0
            if isinstance(operation, Dma):
                requester = self.machine.fabric.requester(self.functions[operation.device])
            causes += self._notes.take(operation, requester, self.commands.root)
        translated = isinstance(operation, Dma)
        clean = self.commands.translations_clean if translated else self.commands.interrupts_clean
        expected = self._expected_record(operation)
        dump, error = self._dump(), self._adapter.error
        if self._adapter.value(dump, error):
            expected[error] = self._notes.errors(operation, self.commands.root)
        return Step(
            self._results,
            dump,
            causes,
            stale,
            clean,
            self._overwritten,
            dict(self.written),
            expected,
        )

    def _expected_record(self, operation: Operation) -> dict[str, tuple[int, ...]]:
        """Return what a fault record of an operation can say beside its reason (VT-d 2.10)."""
        match operation:
            case Dma(device, write, address, length):
                width = 12 + 9 * max(self.unit.capabilities.levels)
                pages = range(address >> 12, (address + length - 1 >> 12) + 1)
                information = tuple(page % (1 << width - 12) for page in pages)
                read = int(not write)
            case Interrupt(device, address, data):
                index = address >> 5 & 0x7FFF | (address >> 2 & 1) << 15
                subhandle = data & 0xFFFF if address & SHV else 0
                information, read = (0, index + subhandle << 36 & (1 << 52) - 1), 0
            case _:
                return {}
        requester = self.machine.fabric.requester(self.functions[device])
        return {"FRCD.SID": (requester,), "FRCD.FI": information, "FRCD.T1": (read,)}

    def _dump(self) -> bytes:
        read = self.unit.core.mmio_read
        return b"".join(
            read(offset, 8).to_bytes(8, "little")
            for base, size in self._adapter.ranges
            for offset in range(base, base + size, 8)
        )

    def _last_event(self) -> int:
        events = self.machine.core.trace_read()
        return int(events["sequence"][-1]) if len(events) else -1

    def _new_causes(self) -> list[str]:
        events = self.machine.core.trace_read()
        fresh = events[(events["sequence"] > self._sequence) & (events["kind"] == TraceKind.FAULT)]
        if len(events):
            self._sequence = int(events["sequence"][-1])
        return [self._adapter.faults[int(number)] for number in fresh["a"]]

    def _vectors(self) -> frozenset[int]:
        """Return the vectors that reached APIC 0, by physical destination.

        QEMU's APIC takes delivery modes fixed, lowest priority and ExtINT alike.
        """
        return frozenset(
            message.vector
            for message in self.machine.interrupts
            if message.data >> 8 & 7 in (0, 1, 7)
            and message.address & ~0xFFFFB == INTERRUPT_BASE
            and message.address >> 12 & 0xFF in (0, 0xFF)
        )

    def _set_message(self, function: Function, address: int, data: int) -> None:
        config = function.config
        at = config.find(MSI_ID)
        if at is None:
            raise OperationError(f"{function.name!r} has no MSI")
        config.write(at + 4, 4, address & 0xFFFFFFFF)
        config.write(at + 8, 4, address >> 32)
        config.write(at + 12, 2, data & 0xFFFF)
        config.write(at + 2, 2, 1)
