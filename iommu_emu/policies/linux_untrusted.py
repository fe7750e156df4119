"""linux-untrusted."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-untrusted",
    summary="A device below an external-facing port: strict, bounced, without ATS.",
    source="Linux since 5.4 on VT-d and 5.11 on AMD-Vi, whatever iommu.strict says",
    parameters="iommu.strict=0",
    external=True,
)
