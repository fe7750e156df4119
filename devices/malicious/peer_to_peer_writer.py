"""peer-to-peer-writer: writes to the registers of its neighbours."""

from __future__ import annotations

from iommu_emu.core import BytesLike, Completion
from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.pci.function import Function

__all__ = ["DEVICE", "PeerToPeerWriter"]


class PeerToPeerWriter(MaliciousDevice):
    """Uses the way past the IOMMU that a switch without redirection leaves open (pci 4)."""

    def write_bar(
        self, peer: Function, offset: int, data: BytesLike, *, bar: int = 0
    ) -> Completion:
        """Write to a BAR of another function, as it is placed now.

        Args:
            peer: the function.
            offset: in the BAR.
            data: what is written.
            bar: index of the BAR.

        Raises:
            ValueError: if the peer has no such BAR.
        """
        if bar not in peer.bars:
            raise ValueError(f"bar of {peer.name} must be one of {sorted(peer.bars)}, not {bar}")
        return self.write(peer.bar_address(bar) + offset, data)


DEVICE = PeerToPeerWriter
