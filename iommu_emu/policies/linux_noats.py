"""linux-noats."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-noats",
    summary="Strict, and no device may use ATS; root ports block what says it is translated.",
    source="Linux, iommu.strict=1 pci=noats",
    parameters="iommu.strict=1 pci=noats",
)
