"""translated-forger: says that its requests are translated already."""

from __future__ import annotations

from iommu_emu.core import AddressType, BytesLike, Completion
from iommu_emu.devices.malicious.device import MaliciousDevice

__all__ = ["DEVICE", "TranslatedForger"]


class TranslatedForger(MaliciousDevice):
    """Sends requests with AT = 10 to physical addresses that no translation gave it (pci 6).

    Where it is allowed ATS no table stands in its way; translation blocking of a port does.
    """

    ats = True

    def read_physical(self, address: int, length: int) -> Completion:
        """Read physical memory."""
        return self.read(address, length, at=AddressType.TRANSLATED)

    def write_physical(self, address: int, data: BytesLike) -> Completion:
        """Write physical memory."""
        return self.write(address, data, at=AddressType.TRANSLATED)


DEVICE = TranslatedForger
