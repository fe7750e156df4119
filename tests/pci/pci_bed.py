"""A root port, a switch with two downstream ports, and a device with a BAR below each."""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu import Bridge, Machine
from iommu_emu.devices import Bar, MaliciousDevice
from iommu_emu.pci.capabilities import Acs, PortType
from iommu_emu.pci.function import Function
from iommu_emu.vtd.unit import VtdUnit

ALL = Acs(0x7F)
CONTROL = 6


class Target(MaliciousDevice):
    """A device that keeps what is written to its BAR."""

    bar_layout = (Bar(0, 4096),)
    acs_services = ALL

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.got: list[int] = []

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        return 0x5A

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.got.append(value)


class Registers(Bridge):
    """A port with registers in a BAR."""

    def __init__(self, name: str, kind: PortType | None, acs: Acs = ALL) -> None:
        super().__init__(name, kind, acs=acs, bars=(Bar(0, 4096),))
        self.got: list[int] = []

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        self.got.append(value)


@dataclass
class Bed:
    """The topology, and a unit that blocks whatever reaches it."""

    machine: Machine
    unit: VtdUnit
    root: Registers
    upstream: Registers
    ports: list[Registers]
    devices: list[Target]

    def reaches(self, sender: MaliciousDevice, target: Target | Registers, **how: object) -> str:
        """Write to a target's BAR; return who saw it: "peer", "IOMMU" or "" for nobody."""
        before = len(target.got)
        completion = sender.write(target.bar_address(0), b"\x11\0\0\0", **how)
        self.machine.service()
        if len(target.got) > before:
            return "peer"
        return "IOMMU" if completion.fault else ""


def switch_on(function: Function, services: Acs, vector: int = 0) -> None:
    """Switch access control services on, and all others off."""
    at = function.config.find_extended(0x0D)
    assert at is not None
    function.config.write(at + CONTROL, 2, services)
    function.config.write(at + 8, 4, vector)
