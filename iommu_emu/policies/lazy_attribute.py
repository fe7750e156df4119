"""lazy-attribute."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="lazy-attribute",
    summary="Strict, but for devices of which root says, by their IDs, that they may be lazy.",
    source="Zhen Lei, March 2019: an attribute file for each device",
    objection="Strictness is a domain's, not a device's; an impostor has the IDs as well (Murphy).",
    parameters="iommu.strict=1",
    attribute=True,
)
