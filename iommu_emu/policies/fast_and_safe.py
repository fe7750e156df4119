"""fast-and-safe."""

from iommu_emu.linux.fast_and_safe import FastAndSafe
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="fast-and-safe",
    summary="Strict; the buffers of a descriptor are mapped in a row and invalidated at once.",
    source="Fast and Safe IO Memory Protection, SOSP 2024",
    parameters="iommu.strict=1",
    dma_api=FastAndSafe,
)
