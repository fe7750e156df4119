"""permanent."""

from iommu_emu.linux.permanent import PermanentMappings
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="permanent",
    summary="Drivers get their buffers from memory that their device reaches for good.",
    source="Markuze, Smolyar, Morrison, Tsafrir: DAMN, ASPLOS 2018; its allocator alone",
    objection="The device still reads and changes what is in a buffer after its unmap, unless the "
    "network stack copies whatever the kernel reads, as DAMN has it do.",
    parameters="iommu.strict=1",
    dma_api=PermanentMappings,
)
