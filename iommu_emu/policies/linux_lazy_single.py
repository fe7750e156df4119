"""linux-lazy-single."""

from iommu_emu.linux.flush_queue import SINGLE
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-lazy-single",
    summary="As linux-lazy with one queue for all CPUs: 1 s, or 32,767 unmaps.",
    source="Linux since 6.7: the queue for units whose flushes are very slow",
    objection="The window is a hundred times as long.",
    parameters="iommu.strict=0",
    queue=SINGLE,
)
