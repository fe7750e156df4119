"""A machine: memory, virtual time, the PCI fabric, IOMMU units, and the interrupt sink."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from iommu_emu.bar_windows import BarWindows
from iommu_emu.clock import TURN, Clock
from iommu_emu.core import (
    CoreMachine,
    FullError,
    Message,
    MessageKind,
    NotRamError,
    Port,
    StateError,
)
from iommu_emu.memory import PhysicalMemory
from iommu_emu.pci.access_control import apply_access_control
from iommu_emu.pci.address import format_requester, parse_address
from iommu_emu.pci.function import BUS_MASTER, COMMAND, MEMORY_ENABLE, Function
from iommu_emu.pci.topology import Bridge, Bus, Fabric
from iommu_emu.routing import Rule, RuleKind, apply_rules
from iommu_emu.unit import Unit

if TYPE_CHECKING:
    from iommu_emu.acpi.table import AnyTable

F = TypeVar("F", bound=Function)

DEFAULT_MEMORY = 64 << 20
_LIVE_BATCH = 4  # messages between two looks at the time: one may be a dozen doorbells

__all__ = ["DEFAULT_MEMORY", "Interrupt", "Machine", "ReservedRegion"]


@dataclass(frozen=True, slots=True)
class Interrupt:
    """One message interrupt as it reached the interrupt controller.

    Attributes:
        time: ns.
        address: message address, after remapping.
        data: message data, after remapping.
        requester: requester ID of the sender; 0 if a unit sent it.
        segment: PCI segment of the sender.
        source: "device", or the number of the unit whose own event this is.
    """

    time: int
    address: int
    data: int
    requester: int
    segment: int
    source: str | int

    @property
    def vector(self) -> int:
        """Interrupt vector, 8 bits."""
        return self.data & 0xFF


@dataclass(frozen=True, slots=True)
class ReservedRegion:
    """Memory that firmware wants some devices to reach from reset on (RMRR, IVMD).

    Attributes:
        base: first byte.
        limit: last byte.
        segment: PCI segment of the devices.
        requesters: their requester IDs, as inclusive ranges.
        readable: whether they may read.
        writable: whether they may write.
        exclusion: whether translation leaves the region out, instead of a mapping (AMD-Vi).
    """

    base: int
    limit: int
    segment: int
    requesters: tuple[tuple[int, int], ...]
    readable: bool = True
    writable: bool = True
    exclusion: bool = False


class Machine:
    """Everything that a DMA meets, from the function that sends it to the RAM it reaches.

    Args:
        memory: bytes of RAM at address 0, or (base, size) of each piece of RAM.
        transactions: requests in flight at once, 1..4096.
        messages: capacity of the outbox, 64..65536.
        trace_events: capacity of the trace ring, 0 (off) or a power of two up to 2**24.
        clock_source: what the clock follows; None: stepped.

    Attributes:
        core: handle on the C core.
        memory: physical memory.
        clock: virtual time.
        fabric: the PCI bus tree.
        units: the IOMMUs, by number.
        rules: which unit serves which requester.
        reserved_regions: RMRRs and IVMDs of the firmware's table.
        platform_opt_in: whether firmware wants devices kept from memory (VT-d 12.1, DMAR flag).
        ioapics: (segment, requester ID) of I/O APICs by ID, as the table says.
        hpets: (segment, requester ID) of each interrupt source of HPETs by number.
        places: PCI addresses of a platform's functions by name.
        windows: where functions' BARs are decoded.
        notes: what was odd in the firmware's table, and what was done about it.
        on_interrupt: called with every message interrupt that arrives, instead of keeping it
            in `interrupts`; None: they are kept.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        memory: int | Sequence[tuple[int, int]] = DEFAULT_MEMORY,
        *,
        transactions: int = 256,
        messages: int = 1024,
        trace_events: int = 0,
        clock_source: Callable[[], int] | None = None,
    ) -> None:
        self.core = CoreMachine(transactions, messages, trace_events)
        self.memory = PhysicalMemory(self.core)
        for base, size in [(0, memory)] if isinstance(memory, int) else memory:
            self.memory.add_ram(base, size)
        self.clock = Clock(self.core, self.service, clock_source)
        self.fabric = Fabric()
        self.units: list[Unit] = []
        self.rules: list[Rule] = []
        self.reserved_regions: list[ReservedRegion] = []
        self.platform_opt_in = False
        self.ioapics: dict[int, tuple[int, int]] = {}
        self.hpets: dict[int, list[tuple[int, int]]] = {}
        self.places: dict[str, str] = {}
        self.notes: list[str] = []
        self.on_interrupt: Callable[[Interrupt], None] | None = None
        self._interrupts: list[Interrupt] = []
        self.windows = BarWindows(self.core, self.memory, self.fabric, self.units)
        self._removed: list[Port] = []
        self._servicing = False
        self._budget = messages
        self._awaited: list[Callable[[], bool]] = []
        self._looking = False
        self._asked: dict[int, Function] = {}  # owners of messages that ask to invalidate
        self._next_owner = 0

    @classmethod
    def from_acpi(
        cls,
        table: AnyTable | bytes,
        *,
        memory: int | Sequence[tuple[int, int]] = DEFAULT_MEMORY,
        preset: str = "default",
        unit_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Machine:
        """Build a machine with the units of a DMAR or IVRS table; see `iommu_emu.firmware`.

        Args:
            table: a parsed table, or its bytes.
            memory: as for `Machine`.
            preset: name of a unit preset of the vendor.
            unit_config: values of the units' configuration that differ from table and preset.
            options: further arguments of `Machine`.

        Raises:
            AcpiError: if bytes are no valid table.
            ValueError: if the table describes what cannot be built; the message says which
                structure, and why.
        """
        from iommu_emu import firmware

        machine = cls(memory, **options)
        firmware.populate(machine, table, preset, unit_config)
        return machine

    @classmethod
    def from_platform(
        cls,
        name: str,
        *,
        preset: str = "default",
        unit_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Machine:
        """Build a built-in platform: its units, and its bridges with their bus numbers.

        Args:
            name: one of `acpi.platforms.names()`, for example "q35-vtd".
            preset: name of a unit preset of the vendor.
            unit_config: values of the units' configuration that differ from table and preset.
            options: further arguments of `Machine`.

        Raises:
            AcpiError: if there is no such platform.
        """
        from iommu_emu import firmware
        from iommu_emu.acpi import platforms

        machine = cls(**options)
        platform = platforms.load(name)
        firmware.build_bridges(machine, platform.devices)
        firmware.populate(machine, platform.table, preset, unit_config)
        return machine

    def __repr__(self) -> str:
        functions = sum(1 for _ in self.fabric.functions())
        return (
            f"<Machine at {self.clock.now} ns: {self.memory.size >> 20} MiB RAM, "
            f"{len(self.units)} units, {functions} PCI functions>"
        )

    # Units.

    def register_unit(self, unit: Unit) -> None:
        """Take in a unit; called by the unit itself.

        The first unit of a segment serves all of it until the rules say otherwise.
        """
        self.units.append(unit)
        if not any(rule.unit.segment == unit.segment for rule in self.rules):
            self.rules.append(Rule(unit, RuleKind.ALL))
            self.topology_changed()

    def unit_of(self, function: Function) -> Unit | None:
        """Return the unit that a function's requests meet; None: they go untranslated."""
        routed = self.core.routed_unit(function.segment, self.fabric.requester(function))
        return None if routed is None else self.units[routed.number]

    def topology_changed(self) -> None:
        """Let requester IDs and routes follow the bus tree and the rules."""
        self.fabric.refresh()
        apply_rules(self.rules, self.fabric, self.core)
        self.follow_access_control()

    def follow_access_control(self) -> None:
        """Let ports follow BARs and access control services: what never reaches an IOMMU."""
        apply_access_control(self.fabric, self.windows.by_function())

    # Attaching and removing.

    def attach(
        self,
        function: F,
        address: str | int | None = None,
        *,
        under: Bridge | None = None,
        configure: bool = True,
    ) -> F:
        """Put a function on a bus, at build time or as a hot-plug at run time.

        As firmware would, its BARs get addresses, a bridge gets bus numbers, and memory access
        and bus mastering are switched on.

        Args:
            function: a device or bridge.
            address: "03:00.0", "0000:03:00.0" or a requester ID; None: the first free device.
            under: a bridge, right below which the function goes; an address then is its device
                and function number, 0..255.
            configure: False: BARs, command register and a bridge's bus numbers are left to
                software, as in a guest whose own firmware sees the function.

        Returns:
            The function.

        Raises:
            ValueError: if there is no such bus, or something is at the address.
            StateError: if the function is attached already, or the bridge is not.
        """
        if function.attached:
            raise StateError(f"{function!r} is attached already")
        bus, devfn = self._place(address, under)
        if devfn in bus.functions:
            raise ValueError(
                f"address {format_requester(bus.number << 8 | devfn, bus.segment)} is taken by "
                f"{bus.functions[devfn].name}"
            )
        function.bus, function.devfn = bus, devfn
        function.machine = self
        try:
            if configure:
                if isinstance(function, Bridge):
                    self._number(function)
                self.windows.place(function)
            function.dma = self.core.create_port(bus.segment, self.fabric.requester(function))
            if function.ats_capability is not None:
                function.ats_capability.connect(function.dma, self._next_owner)
                self._asked[self._next_owner] = function
                self._next_owner += 1
        except Exception:
            function.bus = None
            self.topology_changed()  # bridges above may have new bus numbers
            raise
        bus.functions[devfn] = function
        self.windows.follow(function)
        command = function.config.get(COMMAND, 2)
        if configure:
            command |= MEMORY_ENABLE | BUS_MASTER
        function.config.write(COMMAND, 2, command)
        self.topology_changed()
        function.on_attach()
        if bus.parent is not None and bus.parent.slot is not None:
            bus.parent.slot.change(present=True)
        self.service()
        return function

    def remove(self, function: Function) -> None:
        """Remove a function by surprise, with everything below it (pci 8).

        Nothing new is sent. What was sent still arrives and is translated; its completions
        are dropped.

        Raises:
            StateError: if the function is not attached to this machine.
        """
        bus = function.bus
        if bus is None or function.machine is not self:
            raise StateError(f"{function!r} is not attached to this machine")
        if isinstance(function, Bridge):
            for below in list(function.secondary.functions.values()):
                self.remove(below)
        function.dma.remove()
        self._removed.append(function.dma)
        self._asked = {
            owner: asked for owner, asked in self._asked.items() if asked is not function
        }
        del bus.functions[function.devfn]
        function.bus = None
        self.windows.follow(function)
        self.topology_changed()
        function.on_removed()
        if bus.parent is not None and bus.parent.slot is not None and not bus.functions:
            bus.parent.slot.change(present=False)
        self.service()

    @property
    def ports(self) -> list[Port]:
        """Ports of all functions, and of removed ones that still have something in flight."""
        return [*(function.dma for function in self.fabric.functions()), *self._removed]

    def _place(self, address: str | int | None, under: Bridge | None) -> tuple[Bus, int]:
        if under is not None:
            if not under.attached or under.machine is not self:
                raise StateError(f"{under!r} is not attached to this machine: attach it first")
            if address is None:
                return under.secondary, _free_device(under.secondary, 0)
            if not isinstance(address, int) or not 0 <= address <= 0xFF:
                raise ValueError(f"address under a bridge must be in 0..255, not {address!r}")
            return under.secondary, address
        if address is None:
            bus = self.fabric.add_root(0, 0)
            return bus, _free_device(bus, 1)
        segment, requester = parse_address(address)
        found = self.fabric.find_bus(segment, requester >> 8)
        if found is None:
            raise ValueError(
                f"there is no bus {segment:04x}:{requester >> 8:02x}; the tree is\n"
                f"{self.fabric.describe()}"
            )
        return found, requester & 0xFF

    def _number(self, bridge: Bridge) -> None:
        """Give a bridge bus numbers unless it has them, and let the bridges above cover them."""
        number = bridge.secondary_number or self.fabric.free_bus_number(bridge)
        bridge.set_bus_numbers(number, max(number, bridge.subordinate_number), follow=False)
        for above in self.fabric.bridges_above(bridge):
            last = max(above.subordinate_number, bridge.subordinate_number)
            above.set_bus_numbers(above.secondary_number, last, follow=False)

    # What the CPU does.

    def mmio_read(self, address: int, size: int) -> int:
        """Read physical memory as a CPU does: registers, BARs or RAM, little endian.

        Args:
            address: physical address.
            size: bytes, 1, 2, 4 or 8.

        Returns:
            The value; all ones where nothing answers.

        Raises:
            ValueError: if the size is another one.
        """
        _check_size(size)
        unit = self._unit_at(address, size)
        if unit is not None:
            return unit.core.mmio_read(address - unit.base, size)
        window = self.windows.at(address, size)
        if window is not None:
            function, index, base = window
            value = function.access_read(index, address - base, size)
            self.service()
            return value
        try:
            return int.from_bytes(self.memory.read(address, size), "little")
        except NotRamError:
            return (1 << 8 * size) - 1

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write physical memory as a CPU does; dropped where nothing answers.

        Raises:
            ValueError: if size is not 1, 2, 4 or 8, or the value does not fit.
        """
        _check_size(size)
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(f"value must fit in {size} bytes, not {value:#x}")
        unit = self._unit_at(address, size)
        window = self.windows.at(address, size)
        if unit is not None:
            unit.core.mmio_write(address - unit.base, size, value)
        elif window is not None:
            function, index, base = window
            function.access_write(index, address - base, size, value)
        else:
            try:
                self.memory.write(address, value.to_bytes(size, "little"))
            except NotRamError:
                return
        self.service()

    def config_read(self, address: str | int, offset: int, size: int) -> int:
        """Read configuration space as a CPU does; all ones if no function is there."""
        function = self.fabric.find(*parse_address(address))
        if function is None:
            return (1 << 8 * size) - 1
        return function.config.read(offset, size)

    def config_write(self, address: str | int, offset: int, size: int, value: int) -> None:
        """Write configuration space as a CPU does; dropped if no function is there."""
        function = self.fabric.find(*parse_address(address))
        if function is not None:
            function.config.write(offset, size, value)
            self.service()

    def claims(self, address: int, size: int) -> bool:
        """Whether a unit's registers, a BAR or RAM takes accesses to all of a range."""
        if self._unit_at(address, size) is not None or self.windows.at(address, size) is not None:
            return True
        ranges = self.memory.ranges
        return any(base <= address and address + size <= base + length for base, length in ranges)

    def _unit_at(self, address: int, size: int) -> Unit | None:
        for unit in self.units:
            if unit.base <= address and address + size <= unit.base + unit.window:
                return unit
        return None

    # Time and the outbox.

    def advance(self, duration: int) -> None:
        """Move the clock on by `duration` ns, through every event on the way."""
        self.clock.advance(duration)

    @property
    def interrupts(self) -> list[Interrupt]:
        """The interrupt sink: every message that arrived so far; clear it as you like."""
        self.service()
        return self._interrupts

    def service(self) -> None:
        """Do what the core left to Python: BAR accesses, interrupts, completions.

        One call handles a bounded number of messages, and where the clock follows the host's, no
        more than a few ms allow: devices that keep writing to each other go on when it is called
        next, so no guest can keep it busy for ever.
        """
        if self._servicing:
            return
        self._servicing = True
        try:
            budget = self._budget
            live = self.clock.source is not None
            batch, deadline = (_LIVE_BATCH, time.monotonic() + TURN) if live else (64, None)
            while budget > 0 and (deadline is None or time.monotonic() < deadline):
                messages = self.core.take_messages(batch)
                for message in messages:
                    self._deliver(message)
                arrived = sum(port.poll() for port in list(self.core.waiting))
                if not messages and not arrived:
                    break
                budget -= len(messages) + arrived
            if self._removed:
                self._forget_removed()
        finally:
            self._servicing = False
        if self._awaited and not self._looking:
            self._look()

    def expect(self, happened: Callable[[], bool]) -> None:
        """Call `happened` now and whenever something may have changed, until it returns True.

        For what software would poll for: it is asked after each event of the clock, and after
        each access to registers or BARs. It may do whatever a timer may.
        """
        if not happened():
            self._awaited.append(happened)

    def _look(self) -> None:
        self._looking = True
        try:
            again = True
            while again:
                again = False
                for happened in self._awaited[:]:
                    self._awaited.remove(happened)  # also if it raises
                    if happened():
                        again = True
                    else:
                        self._awaited.append(happened)
        finally:
            self._looking = False

    def _forget_removed(self) -> None:
        """Free the ports of removed functions once nothing of theirs is in flight."""
        for port in self._removed[:]:
            if port.in_flight == (0, 0):
                self._removed.remove(port)
                port.destroy()

    def _deliver(self, message: Message) -> None:
        if message.kind is MessageKind.BAR_WRITE:
            self.windows.write(message)
        elif message.kind is MessageKind.BAR_READ:
            self.core.answer(message.token, self.windows.read(message))
        elif message.kind is MessageKind.INVALIDATE:
            asked = self._asked.get(message.owner)
            if asked is not None:
                last = int.from_bytes(message.data[:8], "little")
                asked.on_invalidate(message.address, last, message.token)
        else:
            own = message.kind is MessageKind.UNIT
            sink = self.on_interrupt or self._interrupts.append
            sink(
                Interrupt(
                    time=message.time,
                    address=message.address,
                    data=int.from_bytes(message.data[:4], "little"),
                    requester=message.requester,
                    segment=message.segment,
                    source=message.owner if own else "device",
                )
            )

    def reset(self, *, power_on: bool = True) -> None:
        """Reset every unit and function; memory, bus numbers and time stay.

        Bridges keep what firmware would program again.
        """
        for unit in self.units:
            unit.reset(power_on=power_on)
        for function in list(self.fabric.functions()):
            if not isinstance(function, Bridge):
                function.reset()
        self.service()


def _check_size(size: int) -> None:
    if size not in (1, 2, 4, 8):
        raise ValueError(f"size must be 1, 2, 4 or 8, not {size}")


def _free_device(bus: Bus, first: int) -> int:
    """Return the first device number from `first` on without functions, as devfn."""
    for device in range(first, 32):
        if not any(devfn >> 3 == device for devfn in bus.functions):
            return device << 3
    raise FullError(f"bus {bus.segment:04x}:{bus.number:02x} has no device number left of 32")
