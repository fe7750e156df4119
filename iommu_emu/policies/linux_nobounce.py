"""linux-nobounce."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-nobounce",
    summary="A device that is not trusted, with bounce buffers switched off: strict, no more.",
    source="Linux 5.4 to 5.10, VT-d's driver: intel_iommu=nobounce; 5.11 took it away",
    objection="The kernel itself logged: This could expose security risks of DMA attacks.",
    parameters="intel_iommu=nobounce",
    external=True,
)
