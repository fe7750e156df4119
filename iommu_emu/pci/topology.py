"""The bus tree: root buses, bridges and switches, and the requester IDs that come out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from iommu_emu.core import Status
from iommu_emu.pci.address import format_requester, requester_id
from iommu_emu.pci.capabilities import Acs, PortType
from iommu_emu.pci.function import BUS_MASTER, COMMAND, Bar, Function
from iommu_emu.pci.hotplug import Slot

BRIDGE_CLASS = 0x060400
PRIMARY, SECONDARY, SUBORDINATE, BRIDGE_CONTROL = 0x18, 0x19, 0x1A, 0x3E
_SECONDARY_RESET = 1 << 6
_PORT_NUMBER = 0x0F  # high byte of the link capabilities
# Bridges below which requests keep their requester ID (pci 5).
_TRANSPARENT = (PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM)

__all__ = ["Bridge", "Bus", "Fabric", "FirmwareAlias", "PortType"]


class Bus:
    """One bus; its number is what its bridge says, or fixed for a root bus.

    Attributes:
        segment: PCI segment.
        parent: the bridge above; None for a root bus.
        functions: what is on it, by device and function number.
    """

    def __init__(self, segment: int, parent: Bridge | None, number: int = 0) -> None:
        self._segment = segment
        self._number = number
        self.parent = parent
        self.functions: dict[int, Function] = {}

    def __repr__(self) -> str:
        return f"<Bus {self.segment:04x}:{self.number:02x}, {len(self.functions)} functions>"

    @property
    def segment(self) -> int:
        """PCI segment; that of the bridge above."""
        return self._segment if self.parent is None else self.parent.segment

    @property
    def number(self) -> int:
        """Bus number; software can change all but a root bus's."""
        return self._number if self.parent is None else self.parent.secondary_number

    def bridges(self) -> Iterator[Bridge]:
        """Yield the bridges on the bus."""
        return (f for f in self.functions.values() if isinstance(f, Bridge))

    def all_functions(self) -> Iterator[Function]:
        """Yield every function on this bus and below."""
        for function in self.functions.values():
            yield function
            if isinstance(function, Bridge):
                yield from function.secondary.all_functions()


class Bridge(Function):
    """A root port, switch port, or bridge to another bus.

    Args:
        name: for people.
        kind: PCI Express type; None: a conventional PCI bridge.
        slot: physical slot number of a hot-plug port; None: no hot plug.
        acs: access control services of the port.
        external_facing: whether its hierarchy can be reached from outside the case (pci 9).
        bars: memory BARs of its own; a bridge's header has room for 0 and 1.

    Attributes:
        secondary: the bus right below.
        slot: the hot-plug slot; None without one.

    Raises:
        ValueError: if `kind` is an endpoint's, or there is no room for a BAR.
    """

    def __init__(
        self,
        name: str = "bridge",
        kind: PortType | None = PortType.ROOT_PORT,
        *,
        slot: int | None = None,
        acs: Acs = Acs.NONE,
        external_facing: bool = False,
        bars: Sequence[Bar] = (),
        vendor_id: int = 0x8086,
        device_id: int = 0x0001,
    ) -> None:
        if kind in (PortType.ENDPOINT, PortType.LEGACY_ENDPOINT, PortType.INTEGRATED_ENDPOINT):
            raise ValueError(f"kind of a bridge must be a port or bridge, not {kind!r}")
        if any(bar.index + bar.wide > 1 for bar in bars):
            raise ValueError(f"BARs of a bridge must be 0 and 1, not {[bar.index for bar in bars]}")
        super().__init__(
            name,
            vendor_id=vendor_id,
            device_id=device_id,
            class_code=BRIDGE_CLASS,
            kind=kind,
            bars=bars,
            acs=acs,
            slot=slot,
            msi_vectors=1 if slot is not None else 0,
            header_type=1,
        )
        self.external_facing = external_facing
        self.secondary = Bus(0, self)
        self.slot = None if slot is None else Slot(self)
        config = self.config
        config.allow(PRIMARY, 4, 0xFFFFFFFF)
        for offset in (0x20, 0x24):  # memory windows, kept for software; nothing is filtered
            config.allow(offset, 4, 0xFFF0FFF0)
        config.allow(0x28, 4, 0xFFFFFFFF)
        config.allow(0x2C, 4, 0xFFFFFFFF)
        config.allow(BRIDGE_CONTROL, 2, 0x005F)
        config.observe(PRIMARY, 3, self._renumber)
        config.observe(BRIDGE_CONTROL, 2, self._control)
        self._resetting = False

    @property
    def secondary_number(self) -> int:
        """Number of the bus right below."""
        return self.config.get(SECONDARY, 1)

    @property
    def subordinate_number(self) -> int:
        """Highest bus number below."""
        return self.config.get(SUBORDINATE, 1)

    def set_bus_numbers(self, secondary: int, subordinate: int, *, follow: bool = True) -> None:
        """Set the bus numbers, as firmware does.

        Args:
            secondary: number of the bus below.
            subordinate: highest number of a bus behind the bridge.
            follow: False leaves it to the caller to call `Machine.topology_changed`, which takes
                its time, once for several bridges.

        Raises:
            ValueError: if a number is outside 0..255.
        """
        for name, number in (("secondary", secondary), ("subordinate", subordinate)):
            if not 0 <= number <= 0xFF:
                raise ValueError(f"{name} must be in 0..255, not {number}")
        primary = 0 if self.bus is None else self.bus.number
        # Together, not one by one: the topology follows every change.
        self.config.set(PRIMARY, 3, primary | secondary << 8 | subordinate << 16)
        if follow:
            self._renumber()

    def alias(self, requester: int) -> int:
        """Return the requester ID with which a request from below leaves this bridge (pci 5)."""
        if self.kind in _TRANSPARENT:
            return requester
        if self.kind is PortType.PCIE_TO_PCI:
            return requester_id(self.secondary_number, 0)
        return self.address

    def _renumber(self) -> None:
        if self.attached:
            self.machine.topology_changed()

    def _control(self) -> None:
        """Reset everything below when software sets the secondary bus reset."""
        resetting = bool(self.config.get(BRIDGE_CONTROL, 2) & _SECONDARY_RESET)
        if resetting and not self._resetting:
            for function in list(self.secondary.all_functions()):
                function.reset()
        self._resetting = resetting

    def on_attach(self) -> None:
        """Number a downstream port, as egress control vectors count them (pci 4)."""
        if self.kind is PortType.DOWNSTREAM and self.pcie is not None:
            self.config.set(self.pcie + _PORT_NUMBER, 1, self.devfn >> 3)

    def on_reset(self) -> None:
        """Lose the bus numbers."""
        self.config.set(PRIMARY, 3, 0)
        self._renumber()


@dataclass(frozen=True)
class FirmwareAlias:
    """Requesters `first`..`last` of a segment that firmware says appear as `alias` (IVHD)."""

    segment: int
    first: int
    last: int
    alias: int


class Fabric:
    """Every root bus of a machine and what hangs below.

    The memory windows of bridges are registers for software and filter nothing: a bridge forwards
    every address upstream that nothing below it claims. What is claimed there, and what access
    control services do about it, is in `access_control`.
    """

    def __init__(self) -> None:
        self.roots: dict[tuple[int, int], Bus] = {}
        self.firmware_aliases: list[FirmwareAlias] = []
        self.add_root(0, 0)

    def __repr__(self) -> str:
        roots = ", ".join(f"{segment:04x}:{bus:02x}" for segment, bus in self.roots)
        return f"<Fabric with root buses {roots}>"

    def add_root(self, segment: int, number: int) -> Bus:
        """Return the root bus of this number; make it if it is not there."""
        key = segment, number
        if key not in self.roots:
            self.roots[key] = Bus(segment, None, number)
        return self.roots[key]

    def functions(self) -> Iterator[Function]:
        """Yield every function."""
        for root in self.roots.values():
            yield from root.all_functions()

    def find_bus(self, segment: int, number: int) -> Bus | None:
        """Return the bus that a configuration access to this number reaches; None: nothing."""
        root = self.roots.get((segment, number))
        if root is not None:
            return root
        for (root_segment, _), bus in self.roots.items():
            if root_segment == segment:
                found = _descend(bus, number)
                if found is not None:
                    return found
        return None

    def find(self, segment: int, requester: int) -> Function | None:
        """Return the function at bus, device and function; None if there is none."""
        bus = self.find_bus(segment, requester >> 8)
        return None if bus is None else bus.functions.get(requester & 0xFF)

    def walk(
        self, segment: int, start_bus: int, path: Sequence[tuple[int, int]]
    ) -> tuple[int, Function | None] | None:
        """Follow a device-scope path (VT-d 12.3).

        Args:
            segment: PCI segment.
            start_bus: bus of the first hop.
            path: hops as (device, function); each next one is on the secondary bus of the
                one before.

        Returns:
            Requester ID of the last hop, and the function there if there is one; None if a
            bridge on the way is missing, or the path is empty.
        """
        number = start_bus
        for index, (device, function) in enumerate(path):
            devfn = (device & 31) << 3 | function & 7
            found = self.find(segment, number << 8 | devfn)
            if index == len(path) - 1:
                return number << 8 | devfn, found
            if not isinstance(found, Bridge):
                return None
            number = found.secondary_number
        return None

    def bridges_above(self, function: Function) -> Iterator[Bridge]:
        """Yield the bridges from a function up to its root bus, nearest first."""
        bus = function.bus
        while bus is not None and bus.parent is not None:
            yield bus.parent
            bus = bus.parent.bus

    def requester(self, function: Function) -> int:
        """Return the requester ID with which a function's requests reach the IOMMU (pci 5)."""
        requester = function.address
        for bridge in self.bridges_above(function):
            requester = bridge.alias(requester)
        return self._firmware_alias(function.segment, requester)

    def _firmware_alias(self, segment: int, requester: int) -> int:
        for row in reversed(self.firmware_aliases):  # the table's later entry wins
            if row.segment == segment and row.first <= requester <= row.last:
                return row.alias
        return requester

    def aliases(self, function: Function) -> list[int]:
        """Return every requester ID that stands for a function, its own first (pci 5).

        Software must give all of them the same domain.
        """
        aliases = [function.address]
        for bridge in self.bridges_above(function):
            alias = bridge.alias(aliases[-1])
            if alias not in aliases:
                aliases.append(alias)
        alias = self._firmware_alias(function.segment, aliases[-1])
        if alias not in aliases:
            aliases.append(alias)
        return aliases

    def apply_bus_master(self, function: Function) -> None:
        """Let the bus-master bits of a function, or of a bridge for all below, take effect."""
        below = function.secondary.all_functions() if isinstance(function, Bridge) else ()
        for each in (function, *below):
            bridges = self.bridges_above(each)
            each.apply_bus_master(all(b.config.get(COMMAND, 2) & BUS_MASTER for b in bridges))

    def refresh(self) -> None:
        """Give every port the requester ID that the bus tree says now."""
        for function in self.functions():
            requester = self.requester(function)
            if function.dma.requester != requester and function.dma.blocked is not Status.REMOVED:
                function.dma.set_requester(requester)

    def free_bus_number(self, bridge: Bridge) -> int:
        """Return a bus number that nothing uses, above the bridge's own bus if there is one.

        Raises:
            ValueError: if all 256 are taken.
        """
        segment, own = bridge.segment, bridge.address >> 8
        used = {number for root_segment, number in self.roots if root_segment == segment}
        for function in self.functions():
            if function.segment == segment and isinstance(function, Bridge):
                used.update(range(function.secondary_number, function.subordinate_number + 1))
        for number in chain(range(own + 1, 256), range(1, own)):
            if number not in used:
                return number
        raise ValueError(f"segment {segment} has no bus number left of 256")

    def describe(self) -> str:
        """Return the tree, for people."""
        lines: list[str] = []
        for (segment, number), root in sorted(self.roots.items()):
            lines.append(f"root bus {segment:04x}:{number:02x}")
            lines += _describe(root, "  ")
        return "\n".join(lines)


def _descend(bus: Bus, number: int) -> Bus | None:
    """Follow the bridges whose range holds the number; the tree's depth bounds it."""
    while True:
        for bridge in bus.bridges():
            if bridge.secondary_number <= number <= bridge.subordinate_number:
                break
        else:
            return None
        bus = bridge.secondary
        if bus.number == number:
            return bus


def _describe(bus: Bus, indent: str) -> list[str]:
    lines = []
    for _, function in sorted(bus.functions.items()):
        text = f"{indent}{format_requester(function.address, function.segment)} {function.name}"
        if isinstance(function, Bridge):
            last = function.subordinate_number
            lines.append(f"{text} (bus {function.secondary_number:02x}..{last:02x})")
            lines += _describe(function.secondary, indent + "  ")
        else:
            lines.append(text)
    return lines
