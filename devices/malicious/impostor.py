"""impostor: shows the identity of a device that is trusted."""

from __future__ import annotations

from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.pci.capabilities import serial_number, set_serial_number
from iommu_emu.pci.function import Function

_IDENTITY = (0x00, 0x08, 0x2C)  # vendor and device, class and revision, subsystem

__all__ = ["DEVICE", "Impostor"]


class Impostor(MaliciousDevice):
    """Gets whatever software grants by vendor ID, device ID, class or serial number.

    Args:
        name: for people.
        original: whose identity it takes; None: `impersonate` says.
    """

    def __init__(self, name: str = "impostor", original: Function | None = None) -> None:
        super().__init__(name)
        if original is not None:
            self.impersonate(original)

    def impersonate(self, original: Function) -> None:
        """Show the IDs, class, revision and serial number of another function."""
        for offset in _IDENTITY:
            self.config.set(offset, 4, original.config.get(offset, 4))
        serial = serial_number(original.config)
        if serial is not None:
            set_serial_number(self.config, serial)


DEVICE = Impostor
