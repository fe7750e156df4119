"""PCI Express: configuration space, capabilities, bus tree, requester-ID aliases, hot plug."""

from iommu_emu.pci.address import format_requester, parse_address, requester_id
from iommu_emu.pci.function import Bar, Function
from iommu_emu.pci.topology import Bridge, Bus, Fabric, PortType

__all__ = [
    "Bar",
    "Bridge",
    "Bus",
    "Fabric",
    "Function",
    "PortType",
    "format_requester",
    "parse_address",
    "requester_id",
]
