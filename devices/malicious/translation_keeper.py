"""translation-keeper: says that it has dropped translations, and goes on using them."""

from __future__ import annotations

from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.pci.ats import IN_PYTHON

__all__ = ["DEVICE", "TranslationKeeper"]


class TranslationKeeper(MaliciousDevice):
    """Answers every invalidation of its device-TLB in time, and drops nothing.

    Nothing tells software, and no fault ever does: the IOMMU trusts what a device answers as it
    trusts what a device says it has translated (VT-d 6.3, 6.4).
    """

    ats = True

    def __init__(self, name: str = "translation keeper") -> None:
        super().__init__(name)
        assert self.ats_capability is not None
        self.ats_capability.answering = IN_PYTHON

    def on_invalidate(self, first: int, last: int, tag: int) -> None:
        """Answer."""
        self.dma.complete_invalidation(1 << tag)


DEVICE = TranslationKeeper
