"""lazy-device-private."""

from iommu_emu.linux.lazy_variants import LazyDevicePrivate
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="lazy-device-private",
    summary="Lazy; what a driver frees before the flush is for the same device only until then.",
    source="Zhen Lei, March 2019, after section 4.3 of the paper named there",
    objection="Every allocator must know devices ('too hard to implement now'); memory lies idle.",
    parameters="iommu.strict=0",
    dma_api=LazyDevicePrivate,
)
