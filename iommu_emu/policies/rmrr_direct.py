"""rmrr-direct."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="rmrr-direct",
    summary="No device that must keep a 1:1 mapping can be claimed for user space, on any unit.",
    source="Linux 6.6 and later: no blocking domain for a device with a direct region",
)
