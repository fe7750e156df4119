"""The register page of an IOMMU, as BAR 0 of a PCI function that the guest does not enumerate."""

from __future__ import annotations

from iommu_emu.machine import Machine
from iommu_emu.pci.function import Bar, Function
from iommu_emu.unit import Unit

_SYSTEM_PERIPHERAL = 0x088000

__all__ = ["UnitPage"]


class UnitPage(Function):
    """A function whose BAR 0 is a unit's register window.

    It is in no bus of the machine: the unit is. It exists because a vfio-user client can map
    nothing but BARs. Put it where the guest finds no function (function 1 of a device without
    function 0), and point its BAR 0 at the unit's base before the guest runs.

    Args:
        machine: the unit's machine.
        unit: whose registers they are.
    """

    def __init__(self, machine: Machine, unit: Unit) -> None:
        super().__init__(
            f"registers of unit {unit.number}",
            vendor_id=0x1234,
            device_id=0x10E0,
            class_code=_SYSTEM_PERIPHERAL,
            kind=None,
            bars=(Bar(0, unit.window),),
        )
        self.machine = machine
        self.unit = unit

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read a register, as a CPU does at its physical address."""
        return self.machine.mmio_read(self.unit.base + offset, size)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register."""
        self.machine.mmio_write(self.unit.base + offset, size, value)

    def on_reset(self) -> None:
        """Reset the unit as the platform's reset does: sticky fields survive (RW1CS, ROS)."""
        self.unit.reset(power_on=False)
