"""A network controller with one receive and one transmit ring: an honest, simple workload.

Where what is:

    controller.py    the device: registers, interrupts, the wire, resets
    registers.py     what the registers are
    descriptors.py   what a descriptor is
    ring.py          fetches descriptors, and writes them back
    receive.py transmit.py    the two rings: frames into buffers, and out of them
    statistics.py    what is counted
    driver.py        a small software driver
    driver_ring.py   its view of a ring
    mapper.py        how it gives the device access to memory
"""

from iommu_emu.devices.nic.controller import Nic
from iommu_emu.devices.nic.descriptors import DescriptorStatus
from iommu_emu.devices.nic.driver import NicDriver, Received
from iommu_emu.devices.nic.driver_ring import DriverRing
from iommu_emu.devices.nic.mapper import BatchMapper, Mapper, Untranslated
from iommu_emu.devices.nic.registers import Cause, Control, NicStatus, Register
from iommu_emu.devices.nic.statistics import Statistics

__all__ = [
    "BatchMapper",
    "Cause",
    "Control",
    "DescriptorStatus",
    "DriverRing",
    "Mapper",
    "Nic",
    "NicDriver",
    "NicStatus",
    "Received",
    "Register",
    "Statistics",
    "Untranslated",
]
