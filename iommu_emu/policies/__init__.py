"""Named protection policies: what an operating system does with its IOMMU, ready to run.

One small file a policy, and nothing else to register: a module of this package defines `POLICY`.
"""

from iommu_emu.policies.policy import LinuxPolicy, Policy, XenPolicy
from iommu_emu.policies.registry import load, names, table

__all__ = ["LinuxPolicy", "Policy", "XenPolicy", "load", "names", "table"]
