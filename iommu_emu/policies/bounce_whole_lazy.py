"""bounce-whole-lazy."""

from iommu_emu.linux.lazy_variants import BounceLazy
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="bounce-whole-lazy",
    summary="The whole buffer is bounced, and its slots are given back by a lazy flush.",
    source="Lu Baolu, 2019, fourth version of the bounce page series, as announced",
    objection="Everything is copied; what is mapped in place must be unmapped strictly still.",
    parameters="iommu.strict=0",
    external=True,
    dma_api=BounceLazy,
)
