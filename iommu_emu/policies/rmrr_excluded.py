"""rmrr-excluded."""

from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="rmrr-excluded",
    summary="VT-d's driver keeps devices with an RMRR from user space; AMD's driver does not.",
    source="Linux 3.17 to 6.5; Alex Williamson, 'iommu/intel: Exclude devices using RMRRs from "
    "IOMMU API domains', 2014",
    objection="David Woodhouse, 2014: an RMRR that only marks addresses as unusable takes its "
    "device away from user space as well.",
    age=KernelAge.LINUX_6_1,
)
