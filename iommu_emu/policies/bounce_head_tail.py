"""bounce-head-tail."""

from iommu_emu.linux.bounce import BounceRule
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="bounce-head-tail",
    summary="Partial pages at a buffer's ends are bounced, those between mapped in place; strict.",
    source="Lu Baolu, 2019, third version of the bounce page series",
    objection="The pages in place tie it to strict unmaps (Robin Murphy).",
    parameters="iommu.strict=0",
    external=True,
    bounce=BounceRule.HEAD_TAIL,
)
