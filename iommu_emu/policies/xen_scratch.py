"""xen-scratch."""

from iommu_emu.policies.policy import XenPolicy

POLICY = XenPolicy(
    name="xen-scratch",
    summary="A device taken from a guest reads and writes a page of its own wherever it goes.",
    source="Xen: iommu=quarantine=scratch-page",
    objection="Nothing faults: an administrator may never hear of the problem.",
    parameters="iommu=quarantine=scratch-page",
)
