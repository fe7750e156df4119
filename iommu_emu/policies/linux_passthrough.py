"""linux-passthrough."""

from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-passthrough",
    summary="Devices that are trusted reach all of memory untranslated.",
    source="Linux: iommu.passthrough=1, or iommu=pt",
    objection="It is no protection.",
    parameters="iommu.passthrough=1",
)
