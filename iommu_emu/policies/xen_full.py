"""xen-full."""

from iommu_emu.policies.policy import XenPolicy
from iommu_emu.xen.advisory import Advisory
from iommu_emu.xen.parameter import Release

POLICY = XenPolicy(
    name="xen-full",
    summary="A device taken from a guest reads a dummy page wherever it goes; its writes fault.",
    source="the patch of March 2020, version 3: iommu=quarantine=full, as its help text says",
    objection="Reads go unnoticed: an administrator may never hear of the problem.",
    parameters="iommu=quarantine=full",
    release=Release.PROPOSAL,
    unfixed=frozenset({Advisory.XSA_400}),  # nothing but the dummy page was in the table
)
