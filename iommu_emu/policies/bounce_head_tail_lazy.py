"""bounce-head-tail-lazy."""

from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.policies.policy import LinuxPolicy


class _Lazy(DmaApi):
    """Linux's own, but lazy for devices that are not trusted as well."""

    lazy_untrusted = True


POLICY = LinuxPolicy(
    name="bounce-head-tail-lazy",
    summary="Head and tail bounced, whole pages mapped in place, and all of it unmapped lazily.",
    source="Nobody's proposal: the third version of 2019 as it would be without strict unmaps",
    objection="The pages in place tie it to strict unmaps (Robin Murphy): this shows why.",
    parameters="iommu.strict=0",
    bounce=BounceRule.HEAD_TAIL,
    external=True,
    dma_api=_Lazy,
)
