"""lazy-coherent-only."""

from iommu_emu.linux.lazy_variants import LazyCoherentOnly
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="lazy-coherent-only",
    summary="Coherent memory alone is unmapped lazily, and freed after the flush that covers it.",
    source="Zhen Lei, March 2019, proposal (1)",
    objection="Drivers that map every buffer, as network drivers do, gain nothing.",
    parameters="iommu.strict=0",
    dma_api=LazyCoherentOnly,
)
