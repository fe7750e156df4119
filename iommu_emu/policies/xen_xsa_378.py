"""xen-xsa-378."""

from iommu_emu.policies.policy import XenPolicy
from iommu_emu.xen.advisory import Advisory

POLICY = XenPolicy(
    name="xen-xsa-378",
    summary="A unity map stays with the guest whose device was taken.",
    source="Xen before the fix of CVE-2021-28696 (XSA-378), on AMD-Vi",
    objection="It is what the advisory is about.",
    parameters="iommu=quarantine=yes",
    unfixed=frozenset({Advisory.XSA_378}),
)
