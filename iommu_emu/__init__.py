"""A register-level, hardware-accurate emulator of Intel VT-d and AMD-Vi.

A machine is built from firmware's table, devices are attached to its buses, and their DMA goes
through the IOMMU unit that the table says:

>>> from iommu_emu import Machine
>>> from iommu_emu.devices import MaliciousDevice
>>> machine = Machine.from_platform("q35-vtd")
>>> attacker = machine.attach(MaliciousDevice())
>>> attacker.read(0x1000, 64).ok  # nobody has switched translation on yet
True

`iommu_emu.vtd.driver` and `iommu_emu.amdvi.driver` program a unit as an operating system does.
"""

from importlib.metadata import version

from iommu_emu.core import Access, AddressType, Completion, Status
from iommu_emu.devices.base import Bar, Device
from iommu_emu.machine import Interrupt, Machine
from iommu_emu.pci.topology import Bridge, PortType
from iommu_emu.timing import Timing

__version__ = version("iommu-emu")

__all__ = [
    "Access",
    "AddressType",
    "Bar",
    "Bridge",
    "Completion",
    "Device",
    "Interrupt",
    "Machine",
    "PortType",
    "Status",
    "Timing",
    "__version__",
]
