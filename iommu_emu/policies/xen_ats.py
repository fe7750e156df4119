"""xen-ats."""

from iommu_emu.policies.policy import XenPolicy

POLICY = XenPolicy(
    name="xen-ats",
    summary="As xen-basic, and devices may use device-TLBs; Xen waits for them for ever.",
    source="Xen: ats iommu=quarantine",
    objection="Xen's own documentation calls ATS unsafe: a device that does not answer hangs it.",
    parameters="ats iommu=quarantine=yes",
)
