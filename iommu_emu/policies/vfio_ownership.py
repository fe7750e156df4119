"""vfio-ownership."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="vfio-ownership",
    summary="A group's DMA belongs to the kernel's drivers or to user space, never to both.",
    source="Linux 5.19: DMA ownership; Lu Baolu, 'vfio: Remove iommu group notifier', 2022",
    objection="Alex Williamson, 2022: whoever assigned devices next to a bridge that has another "
    "driver than pcieport finds that broken, and must unbind it or bind pci-stub.",
)
