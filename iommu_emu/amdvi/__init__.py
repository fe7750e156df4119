"""AMD-Vi: the unit, its memory structures, events, presets and a small software driver."""

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.events import EventRecord
from iommu_emu.amdvi.features import Features
from iommu_emu.amdvi.presets import PRESETS, preset
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit

__all__ = [
    "PRESETS",
    "AmdviConfig",
    "AmdviDriver",
    "AmdviUnit",
    "EventRecord",
    "Features",
    "preset",
]
