"""linux-nobounce."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-nobounce",
    summary="A device that is not trusted, with bounce buffers switched off: strict, no more.",
    source="Linux 5.4 on Intel: intel_iommu=nobounce; current kernels have no such switch",
    objection="The kernel itself logged: This could expose security risks of DMA attacks.",
    parameters="intel_iommu=nobounce",
    external=True,
)
