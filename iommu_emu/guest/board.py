"""The guest's board: what sits where, told alike to QEMU, to the guest's firmware, and to us.

    00:02.0  root port, bus 01  →  01:00.0  an NVMe disk with MSI-X
    00:03.0  root port, bus 02  →  02:00.0  the attacker
    00:04.0  root port, bus 03  →  03:00.0  an NVMe disk with MSI, which is unplugged and replugged
    00:05.1  not enumerated: no 00:05.0     our unit's registers, as BAR 0 at fed90000

All four are ours, over vfio-user; the rest is QEMU's. The DMAR names the two endpoints that stay,
and the root port of the one that comes and goes with everything below it, as firmware describes
hot-plug slots (VT-d 12.3). QEMU's own devices are not behind our unit, and its I/O APIC is not
either, which keeps interrupt remapping off.

Why two disks: QEMU 11.1 aborts when it unplugs a vfio-user device that has MSI-X.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iommu_emu import acpi, firmware
from iommu_emu.acpi.dmar import PCI_ENDPOINT, PCI_SUB_HIERARCHY, DeviceScope, Dmar, Drhd
from iommu_emu.clock import monotonic_source
from iommu_emu.devices.attacker import Attacker
from iommu_emu.devices.base import Device
from iommu_emu.devices.nvme import Nvme, RamMedium
from iommu_emu.guest.errors import GuestError
from iommu_emu.guest.observer import TRACE_EVENTS
from iommu_emu.machine import Machine
from iommu_emu.pci.topology import Bridge, PortType
from iommu_emu.vtd.unit import VtdUnit

UNIT_BASE = 0xFED9_0000
HOST_ADDRESS_WIDTH = 39  # bits; what the narrowest preset has
MEDIUM_SIZE = 64 << 20
PORTS = {"nvme": 2, "attacker": 3, "pluggable": 4}  # devices: where their root port is on bus 0
PAGE_DEVFN = 5 << 3 | 1  # of the register page, on bus 0

__all__ = [
    "MEDIUM_SIZE",
    "PAGE_DEVFN",
    "PORTS",
    "UNIT_BASE",
    "Board",
    "PluggableNvme",
    "build_dmar",
]


def build_dmar() -> bytes:
    """Return the guest's DMAR: one unit with explicit scopes."""
    scopes = [
        DeviceScope(type=PCI_ENDPOINT, path=[(PORTS["nvme"], 0), (0, 0)]),
        DeviceScope(type=PCI_ENDPOINT, path=[(PORTS["attacker"], 0), (0, 0)]),
        DeviceScope(type=PCI_SUB_HIERARCHY, path=[(PORTS["pluggable"], 0)]),
    ]
    unit = Drhd(base_address=UNIT_BASE, scopes=scopes)
    return acpi.build(Dmar(host_address_width=HOST_ADDRESS_WIDTH, structures=[unit]))


class PluggableNvme(Nvme):
    """An NVMe disk with one MSI vector instead of MSI-X."""

    msix_vectors = 0
    msi_vectors = 1


@dataclass(frozen=True)
class Board:
    """Our side of the board; a vfio-user server attaches the devices when QEMU connects.

    Attributes:
        machine: without RAM: the guest's is mapped by vfio-user.
        unit: the IOMMU.
        nvme: the disk that stays.
        attacker: the malicious device.
        pluggable: the disk that comes and goes.
    """

    machine: Machine
    unit: VtdUnit
    nvme: Nvme
    attacker: Attacker
    pluggable: Nvme

    @classmethod
    def build(cls, preset: str = "default") -> Board:
        """Build the machine behind the guest's devices.

        Args:
            preset: a VT-d preset, see `iommu_emu.vtd.presets`.

        Raises:
            ValueError: if there is no such preset.
        """
        machine = Machine(
            (), transactions=1024, trace_events=TRACE_EVENTS, clock_source=monotonic_source()
        )
        for number, device in enumerate(PORTS.values(), 1):
            port = Bridge(f"root port 00:{device:02x}.0", PortType.ROOT_PORT)
            port.set_bus_numbers(number, number)  # as SeaBIOS will, in this order
            machine.attach(port, device << 3)
        firmware.populate(machine, build_dmar(), preset)
        unit = machine.units[0]
        assert isinstance(unit, VtdUnit)
        return cls(
            machine,
            unit,
            nvme=Nvme(medium=RamMedium(MEDIUM_SIZE)),
            attacker=Attacker(),
            pluggable=PluggableNvme(
                "pluggable nvme", medium=RamMedium(MEDIUM_SIZE), serial="IOMMUEMU0002"
            ),
        )

    def devices(self) -> dict[str, Device]:
        """Return the devices by the names of `PORTS`."""
        return {"nvme": self.nvme, "attacker": self.attacker, "pluggable": self.pluggable}

    def port(self, name: str) -> Bridge:
        """Return the root port above a device."""
        port = self.machine.fabric.find(0, PORTS[name] << 3)
        assert isinstance(port, Bridge)
        return port

    def address(self, name: str) -> int:
        """Return the requester ID that a device has in its slot, whether or not it is plugged."""
        return self.port(name).secondary_number << 8

    def follow_buses(self, pci: Sequence[Mapping[str, Any]]) -> None:
        """Take over the bus numbers that the guest's firmware gave the root ports.

        Args:
            pci: QMP's answer to query-pci.

        Raises:
            GuestError: if a root port has no bus.
        """
        numbers = {
            device["slot"]: device["pci_bridge"]["bus"]["secondary"]
            for bus in pci
            for device in bus["devices"]
            if bus["bus"] == 0 and "pci_bridge" in device
        }
        for name, slot in PORTS.items():
            bridge, number = self.port(name), numbers.get(slot)
            if not number:
                raise GuestError(f"the guest's firmware gave {bridge.name} no bus number")
            if bridge.secondary_number != number:
                bridge.set_bus_numbers(number, number)
