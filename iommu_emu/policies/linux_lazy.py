"""linux-lazy."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-lazy",
    summary="Invalidation waits for a flush of the domain: 10 ms, or 255 unmaps on one CPU.",
    source="Linux since 4.14: iommu.strict=0, the default on x86; a queue per CPU",
    objection="Until the flush a device reaches memory that is somebody else's by then.",
    parameters="iommu.strict=0",
)
