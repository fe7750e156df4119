"""xen-xsa-400."""

from iommu_emu.policies.policy import XenPolicy
from iommu_emu.xen.advisory import Advisory

POLICY = XenPolicy(
    name="xen-xsa-400",
    summary="A device is cut off from its reserved memory in quarantine, and on the way there.",
    source="Xen before the fix of CVE-2022-26358 (XSA-400)",
    objection="It is what the advisory is about.",
    parameters="iommu=quarantine=yes",
    unfixed=frozenset({Advisory.XSA_400}),
)
