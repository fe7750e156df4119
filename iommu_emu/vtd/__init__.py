"""Intel VT-d: the unit, its memory structures, faults, presets and a small software driver."""

from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.faults import FaultRecord
from iommu_emu.vtd.presets import PRESETS, preset
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

__all__ = [
    "PRESETS",
    "Capabilities",
    "FaultRecord",
    "VtdConfig",
    "VtdDriver",
    "VtdUnit",
    "preset",
]
