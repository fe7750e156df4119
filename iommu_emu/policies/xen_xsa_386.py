"""xen-xsa-386."""

from iommu_emu.policies.policy import XenPolicy
from iommu_emu.xen.advisory import Advisory

POLICY = XenPolicy(
    name="xen-xsa-386",
    summary="A device with an RMRR is not taken from its guest, though Xen thinks that it is.",
    source="Xen before the fix of CVE-2021-28702 (XSA-386), on VT-d",
    objection="It is what the advisory is about.",
    parameters="iommu=quarantine=yes",
    unfixed=frozenset({Advisory.XSA_386}),
)
