"""rmrr-mapped."""

from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="rmrr-mapped",
    summary="A domain of user space gets the reserved memory 1:1, and its guest leaves a hole.",
    source="David Woodhouse's counter-proposal in the thread on RMRRs, 2014; never merged",
    objection="Alex Williamson, 2014: no such device can be plugged into a running guest, and an "
    "untrusted guest reaches the platform's memory.",
    age=KernelAge.UNCHECKED,
    map_reserved=True,
)
