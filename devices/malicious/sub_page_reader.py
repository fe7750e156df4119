"""sub-page-reader: reads what lies beside its buffers in the same pages."""

from __future__ import annotations

from iommu_emu.core import Completion
from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.memory import PAGE

__all__ = ["DEVICE", "SubPageReader"]


class SubPageReader(MaliciousDevice):
    """Knows that protection is in pages, and buffers are not."""

    def given(self, address: int, length: int) -> tuple[Completion, Completion]:
        """Take a buffer; return what is before and behind it in its first and last page.

        Args:
            address: IOVA of the buffer.
            length: its bytes, 1 or more.
        """
        first = address & -PAGE
        end = address + length
        return self.read(first, address - first), self.read(end, -end % PAGE)


DEVICE = SubPageReader
