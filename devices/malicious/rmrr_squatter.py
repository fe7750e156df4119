"""rmrr-squatter: goes on using the memory that firmware reserved for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommu_emu.clock import MICROSECOND
from iommu_emu.core import Completion
from iommu_emu.devices.malicious.post_deassign import PostDeassign

if TYPE_CHECKING:
    from iommu_emu.machine import ReservedRegion

MARK = b"squatted"

__all__ = ["DEVICE", "MARK", "RmrrSquatter"]


class RmrrSquatter(PostDeassign):
    """Cannot be told that its reserved region (RMRR, IVMD) is not its own any more."""

    @property
    def regions(self) -> list[ReservedRegion]:
        """What firmware reserved for it."""
        return [
            region
            for region in self.machine.reserved_regions
            if region.segment == self.segment
            and any(first <= self.address <= last for first, last in region.requesters)
        ]

    def squat(self, *, interval: int = 100 * MICROSECOND, times: int = 10) -> list[Completion]:
        """Write a mark to each of its regions, again and again; see `keep_writing`."""
        return [
            completion
            for region in self.regions
            for completion in self.keep_writing(region.base, MARK, interval=interval, times=times)
        ]


DEVICE = RmrrSquatter
