"""vfio-notifier."""

from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="vfio-notifier",
    summary="VFIO looks at a group's drivers once, and stops the machine if one is bound later.",
    source="Linux up to 5.18: a notifier on the group; any driver is allowed on a bridge",
    objection="Lu Baolu, 2022: a bridge's driver that relies on MMIO, such as shpchp, is not safe "
    "next to a device of user space, which can write the registers peer to peer.",
    age=KernelAge.LINUX_6_1,
    notifier=True,
)
