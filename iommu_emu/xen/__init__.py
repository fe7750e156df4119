"""What the Xen hypervisor does with an IOMMU: domains, assignment, quarantine (os 4.10)."""

from iommu_emu.xen.advisory import Advisory
from iommu_emu.xen.domain import XenDomain
from iommu_emu.xen.hypervisor import Xen
from iommu_emu.xen.parameter import Parameters, Quarantine, Release, parse_command_line

__all__ = [
    "Advisory",
    "Parameters",
    "Quarantine",
    "Release",
    "Xen",
    "XenDomain",
    "parse_command_line",
]
