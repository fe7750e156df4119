"""linux-legacy-250."""

from iommu_emu.linux.flush_queue import GLOBAL_LIST
from iommu_emu.policies.policy import LinuxPolicy

POLICY = LinuxPolicy(
    name="linux-legacy-250",
    summary="One list for all domains and CPUs: every unit is flushed after 250 unmaps or 10 ms.",
    source="Linux 2.6.26 to 4.13 (Mark Gross, 2008), VT-d's driver; on AMD-Vi it is a what-if",
    objection="The list's lock, and that of the IOVAs, stop scaling at 16 cores (ATC'15).",
    parameters="iommu.strict=0",
    queue=GLOBAL_LIST,
)
