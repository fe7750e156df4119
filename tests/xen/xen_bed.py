"""A machine with one unit, a device that does what it likes, and a Xen that can be booted on it."""

from __future__ import annotations

from typing import Any

from iommu_emu import Machine
from iommu_emu.amdvi import presets as amdvi_presets
from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.core import Completion
from iommu_emu.devices import MaliciousDevice
from iommu_emu.machine import ReservedRegion
from iommu_emu.vtd import presets as vtd_presets
from iommu_emu.vtd.unit import VtdUnit
from iommu_emu.xen import Xen, XenDomain

FRAMES = range(0x10_0000, 0x90_0000)
RAM = range(0x100_0000, 0x300_0000)  # the domains'
GUEST_RAM = range(0x200_0000, 0x201_0000)
OTHER_RAM = range(0x280_0000, 0x281_0000)
FIRMWARE = 0x380_0000  # what firmware reserves


class Bed:
    """See the module's text.

    Attributes:
        vendor: "vtd" or "amdvi".
        machine: the machine.
        device: at 00:02.0.
        xen: once `boot` was called.
    """

    xen: Xen

    def __init__(
        self,
        vendor: str,
        *,
        preset: str = "default",
        device: MaliciousDevice | None = None,
        **unit_config: Any,
    ) -> None:
        self.vendor = vendor
        self.machine = Machine()
        if vendor == "vtd":
            VtdUnit(self.machine, vtd_presets.preset(preset, 0xFED9_0000, **unit_config))
        else:
            AmdviUnit(self.machine, amdvi_presets.preset(preset, 0xFED8_0000, **unit_config))
        self.device = self.machine.attach(device or MaliciousDevice("evil"), "00:02.0")

    def reserve(self, base: int = FIRMWARE, size: int = 0x1000, **rights: bool) -> ReservedRegion:
        """Let firmware reserve memory for the device."""
        own = self.device.address
        region = ReservedRegion(base, base + size - 1, 0, ((own, own),), **rights)
        self.machine.reserved_regions.append(region)
        return region

    def boot(self, parameters: str = "", **options: Any) -> Xen:
        """Boot Xen."""
        self.xen = Xen(self.machine, parameters=parameters, frames=FRAMES, ram=RAM, **options)
        return self.xen

    def guest(self, ram: range = GUEST_RAM, gfn: int | None = None) -> XenDomain:
        """Create a guest."""
        return self.xen.create_domain("guest", ram, gfn)

    def give(self) -> XenDomain:
        """Create a guest and give it the device."""
        guest = self.guest()
        self.xen.assign(self.device, guest)
        return guest

    def write(self, address: int, data: bytes = b"data", **how: Any) -> Completion:
        """Let the device write."""
        return self.device.write(address, data, **how)

    def read(self, address: int, size: int = 4, **how: Any) -> Completion:
        """Let the device read."""
        return self.device.read(address, size, **how)

    def reaches(self, address: int, **how: Any) -> bool:
        """Whether a read of the device gets through."""
        return self.read(address, **how).ok

    @property
    def lines(self) -> list[str]:
        """Xen's log after its boot messages."""
        return [line.text for line in self.xen.log][2:]
