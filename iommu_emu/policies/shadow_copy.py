"""shadow-copy."""

from iommu_emu.linux.shadow_copy import ShadowCopy
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="shadow-copy",
    summary="Buffers are copied to and from shadow buffers, which stay mapped.",
    source="Markuze, Morrison, Tsafrir: True IOMMU Protection from DMA Attacks, ASPLOS 2016",
    objection="Every byte is copied.",
    parameters="iommu.strict=1",
    dma_api=ShadowCopy,
)
