"""rmrr-unchecked."""

from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="rmrr-unchecked",
    summary="A device with an RMRR or unity map is given to user space as any other.",
    source="Linux up to 3.16",
    objection="Alex Williamson, 2014: nothing keeps the device from going on with DMA to the "
    "region, which is an address of the new domain like any other.",
    age=KernelAge.UNCHECKED,
    notifier=True,
)
