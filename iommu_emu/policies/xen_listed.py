"""xen-listed."""

from iommu_emu.policies.policy import XenPolicy

POLICY = XenPolicy(
    name="xen-listed",
    summary="No global quarantine: the toolstack lists devices, and leaves out the fragile ones.",
    source="review of the patch of March 2020; iommu=quarantine=no, devices assigned to dom_io",
    objection="A device that nobody thought of listing is not quarantined (XSA-306).",
    parameters="iommu=quarantine=no",
    quarantined=("nic",),
)
