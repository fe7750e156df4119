"""xen-none."""

from iommu_emu.policies.policy import XenPolicy

POLICY = XenPolicy(
    name="xen-none",
    summary="A device taken from a guest goes straight back to the hardware domain.",
    source="Xen: iommu=quarantine=no, and nothing on the toolstack's list",
    objection="What it still has in flight lands in the hardware domain's memory (XSA-302).",
    parameters="iommu=quarantine=no",
)
