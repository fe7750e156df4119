"""xen-basic."""

from iommu_emu.policies.policy import XenPolicy

POLICY = XenPolicy(
    name="xen-basic",
    summary="A device taken from a guest reaches nothing but what firmware reserved for it.",
    source="Xen: iommu=quarantine, the default (CONFIG_IOMMU_QUARANTINE_BASIC)",
    objection="Some devices and hosts hang for good on a not-present fault.",
    parameters="iommu=quarantine=yes",
)
