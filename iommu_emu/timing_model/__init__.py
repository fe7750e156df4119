"""What work costs on a real machine: prices by name, each with its source.

Built-in models are data files of this package; a user's own is a TOML file, which may extend one.
"""

from iommu_emu.timing_model.file import TimingModelError, parse
from iommu_emu.timing_model.model import NUMBERS, Certainty, Number, Row, TimingModel
from iommu_emu.timing_model.registry import DEFAULT, load, names

__all__ = [
    "DEFAULT",
    "NUMBERS",
    "Certainty",
    "Number",
    "Row",
    "TimingModel",
    "TimingModelError",
    "load",
    "names",
    "parse",
]
