"""lazy-opt-in."""

from iommu_emu.linux.lazy_variants import LazyOptIn
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="lazy-opt-in",
    summary="Strict, but for the unmaps of drivers that ask for deferred ones by new calls.",
    source="Zhen Lei, March 2019, proposal (2)",
    objection="Behind such a driver the window is as wide as ever, also for an impostor.",
    parameters="iommu.strict=0",
    opt_in=True,
    dma_api=LazyOptIn,
)
