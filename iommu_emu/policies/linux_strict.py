"""linux-strict."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-strict",
    summary="An unmap returns when nothing of the mapping is left in any cache.",
    source="Linux: iommu.strict=1, or CONFIG_IOMMU_DEFAULT_DMA_STRICT",
    parameters="iommu.strict=1",
)
