"""xen-xsa-373."""

from iommu_emu.policies.policy import XenPolicy
from iommu_emu.xen.advisory import Advisory

POLICY = XenPolicy(
    name="xen-xsa-373",
    summary="A device that does not answer: VT-d's code crashes its guest after 1,000 ms, AMD-Vi's "
    "goes on after 1,000 looks as if it had.",
    source="Xen before the fix of CVE-2021-28692 (XSA-373)",
    objection="It is what the advisory is about: flushes that failed count as done.",
    parameters="ats iommu=quarantine=yes",
    unfixed=frozenset({Advisory.XSA_373}),
)
