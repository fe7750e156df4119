"""IOMMU groups: which functions Linux cannot keep apart (os 4.8).

A group is the smallest set of functions that the IOMMU can tell from all others: they share a
requester ID, or a path on which one can reach the other without passing the IOMMU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from iommu_emu.pci.address import format_requester
from iommu_emu.pci.capabilities import ACS_ID, Acs, PortType
from iommu_emu.pci.function import HEADER_TYPE, MULTIFUNCTION, Function
from iommu_emu.pci.topology import Bridge, Bus

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

# What a path must do so that nothing on it reaches a peer past the IOMMU (os 4.8).
REQUIRED_ACS = (
    Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
)
_SHORT = {
    Acs.SOURCE_VALIDATION: "SV",
    Acs.TRANSLATION_BLOCKING: "TB",
    Acs.REQUEST_REDIRECT: "RR",
    Acs.COMPLETION_REDIRECT: "CR",
    Acs.UPSTREAM_FORWARDING: "UF",
    Acs.EGRESS_CONTROL: "EC",
    Acs.DIRECT_TRANSLATED: "DT",
}
_ALIASING = (None, PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE)  # they replace requester IDs (pci 5)
_NEVER_ACS = (PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE, PortType.EVENT_COLLECTOR)
_PORTS = (PortType.ROOT_PORT, PortType.DOWNSTREAM)

__all__ = ["REQUIRED_ACS", "IommuGroup", "IommuGroups", "acs_gap", "device_name", "enable_acs"]


def device_name(function: Function) -> str:
    """Return a function's name as Linux writes it, for example "0000:03:00.0"."""
    return f"{function.segment:04x}:{format_requester(function.address)}"


def enable_acs(machine: Machine, *functions: Function, ats: bool = True) -> None:
    """Switch access control services on, as Linux does when it finds functions, with an IOMMU.

    Of what a function can do, the required services; translation blocking as well where a port
    is external-facing, a function is below such a port, or ATS is not used (os 4.5).

    Args:
        machine: the machine.
        functions: those that were found; all of the machine's without any.
        ats: False: booted with `pci=noats`.
    """
    for function in functions or machine.fabric.functions():
        at = _acs_offset(function)
        if at is None:
            continue
        wanted = REQUIRED_ACS
        path = [function, *machine.fabric.bridges_above(function)]
        if not ats or any(isinstance(each, Bridge) and each.external_facing for each in path):
            wanted |= Acs.TRANSLATION_BLOCKING
        control = function.config.read(at + 6, 2) | wanted & function.config.read(at + 4, 2)
        function.config.write(at + 6, 2, control)


def acs_gap(function: Function, required: Acs = REQUIRED_ACS) -> str:
    """Return why a function does not keep its requests from peers; "" if it does.

    Ports need the services on. Endpoints, upstream ports and root-complex integrated endpoints
    need them only if their device has several functions, which could reach each other inside
    it. A service that the capability lacks counts as on, except egress control (os 4.8).

    Args:
        function: an endpoint or bridge, attached.
        required: the services.
    """
    if function.kind is None:
        return "conventional PCI, which has no ACS"
    if function.kind in _NEVER_ACS:
        return "of a kind that never has ACS"
    if function.kind not in _PORTS and not _is_multifunction(function):
        return ""
    at = _acs_offset(function)
    if at is None:
        return "without ACS"
    capable = Acs(function.config.get(at + 4, 2) & 0x7F) | Acs.EGRESS_CONTROL
    off = required & capable & ~Acs(function.config.get(at + 6, 2) & 0x7F)
    names = [name for service, name in _SHORT.items() if service & off]
    return f"with ACS {', '.join(names)} off" if names else ""


def _acs_offset(function: Function) -> int | None:
    # A conventional function has no extended configuration space to look into.
    return None if function.kind is None else function.config.find_extended(ACS_ID)


def _is_multifunction(function: Function) -> bool:
    """Return whether a function has, or says it may have, siblings in its device."""
    marked = bool(function.config.get(HEADER_TYPE, 1) & MULTIFUNCTION)
    return marked or bool(function.devfn & 7) or bool(_siblings(function))


def _siblings(function: Function) -> list[Function]:
    """Return the other functions of the same device, in order."""
    return [other for other in _neighbours(function) if other.devfn >> 3 == function.devfn >> 3]


def _neighbours(function: Function) -> list[Function]:
    """Return the other functions on the same bus, in order."""
    found = {} if function.bus is None else function.bus.functions
    return [other for _, other in sorted(found.items()) if other is not function]


@dataclass(eq=False)
class IommuGroup:
    """Functions that share one fate: one domain, one owner.

    Attributes:
        number: as in /sys/kernel/iommu_groups.
        members: the functions, each with the reason why it is in this group.
    """

    number: int
    members: dict[Function, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the group with its members and their reasons, for people."""
        lines = [f"group {self.number}"]
        lines += [f"  {_named(function)}: {why}" for function, why in self.members.items()]
        return "\n".join(lines)


class IommuGroups:
    """The groups of a machine, as Linux makes them when it boots and when devices come later.

    Functions are taken unit by unit in the order of the firmware's table; for each unit in the
    order in which Linux scans buses: all of a bus, then what is behind its bridges. A function
    that no unit serves has no group. Groups are a matter of the moment when a function came:
    later changes of ACS do not move it.

    Args:
        machine: the machine; its access control services as they are (`enable_acs`).
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._groups: dict[int, IommuGroup] = {}
        self._of: dict[Function, IommuGroup] = {}
        functions = [
            function for _, root in sorted(machine.fabric.roots.items()) for function in _scan(root)
        ]
        for unit in machine.units:
            for function in functions:
                if machine.unit_of(function) is unit:
                    self.add(function)

    def __iter__(self) -> Iterator[IommuGroup]:
        return iter([group for _, group in sorted(self._groups.items())])

    def __len__(self) -> int:
        return len(self._groups)

    def of(self, function: Function) -> IommuGroup | None:
        """Return the group of a function; None: it has none."""
        return self._of.get(function)

    def add(self, function: Function) -> IommuGroup | None:
        """Give a function that has come, for example by hot plug, its group.

        Returns:
            The group, an existing one or a new one with the lowest free number; None if no unit
            serves the function.

        Raises:
            ValueError: if it has a group, or is not attached to this machine.
        """
        if function in self._of:
            number = self._of[function].number
            raise ValueError(f"{function.name} is in group {number} already")
        if not function.attached or function.machine is not self._machine:
            raise ValueError(f"{function.name} is not attached to this machine")
        if self._machine.unit_of(function) is None:
            return None
        group, why = self._find(function)
        if group is None:
            number = next(n for n in count() if n not in self._groups)
            group = self._groups[number] = IommuGroup(number)
        group.members[function] = why
        self._of[function] = group
        return group

    def remove(self, function: Function) -> None:
        """Take a function out that is gone; the last one takes the group with it.

        Raises:
            ValueError: if it has no group.
        """
        group = self._of.pop(function, None)
        if group is None:
            raise ValueError(f"{function.name} has no group")
        del group.members[function]
        if not group.members:
            del self._groups[group.number]

    def describe(self) -> str:
        """Return all groups, for people."""
        return "\n".join(group.describe() for group in self)

    # The search for a group that is there already (os 4.8, pci_device_group).

    def _find(self, function: Function) -> tuple[IommuGroup | None, str]:
        fabric = self._machine.fabric
        top = function
        for bridge in fabric.bridges_above(function):
            if bridge.kind in _ALIASING:
                top = bridge
                if bridge in self._of:
                    return self._of[bridge], f"its requests carry an ID of {_named(bridge)}"
        for bridge in fabric.bridges_above(top):
            gap = self._path_gap(bridge)
            if not gap:
                break
            top = bridge
            if bridge in self._of:
                return self._of[bridge], gap
        seen: set[Function] = set()
        for search in (self._aliased, self._not_isolated):
            group, why = search(top, seen)
            if group is not None:
                return group, why
        return None, "first of its group"

    def _path_gap(self, bridge: Bridge) -> str:
        """Return what lets requests turn back between a bridge and the root; "" if nothing."""
        for each in (bridge, *self._machine.fabric.bridges_above(bridge)):
            gap = acs_gap(each)
            if gap:
                return f"it is below {_named(each)}, {gap}"
        return ""

    def _aliased(self, function: Function, seen: set[Function]) -> tuple[IommuGroup | None, str]:
        """Look for a group among functions on the bus whose requester ID firmware mixes up."""
        if function in seen:
            return None, ""
        seen.add(function)
        if function in self._of:
            return self._of[function], f"it goes with {_named(function)}"
        aliases = self._machine.fabric.aliases
        for other in _neighbours(function):
            if other.address not in aliases(function) and function.address not in aliases(other):
                continue
            for search in (self._aliased, self._not_isolated):
                group, _ = search(other, seen)
                if group is not None:
                    return group, f"firmware says that it shares an ID with {_named(other)}"
        return None, ""

    def _not_isolated(
        self, function: Function, seen: set[Function]
    ) -> tuple[IommuGroup | None, str]:
        """Look for a group among functions of the device that reach each other inside it."""
        gap = acs_gap(function) if _is_multifunction(function) else ""
        if not gap:
            return None, ""
        for other in _siblings(function):
            if acs_gap(other):
                group, _ = self._aliased(other, seen)
                if group is not None:
                    return group, f"{_named(other)} is in the same device, {gap}"
        return None, ""


def _named(function: Function) -> str:
    return f"{device_name(function)} {function.name}"


def _scan(bus: Bus) -> Iterator[Function]:
    """Yield functions in the order in which Linux finds them: a bus, then below its bridges."""
    functions = [function for _, function in sorted(bus.functions.items())]
    yield from functions
    for function in functions:
        if isinstance(function, Bridge):
            yield from _scan(function.secondary)
