"""deferred-writer: sends now what arrives later."""

from __future__ import annotations

from iommu_emu.clock import MILLISECOND
from iommu_emu.devices.malicious.device import MaliciousDevice

__all__ = ["DEVICE", "DeferredWriter"]


class DeferredWriter(MaliciousDevice):
    """Its requests are long on their way, and meet the tables that are in force on arrival.

    Nothing recalls them: neither a reset of the function, nor its removal or reassignment.

    Args:
        name: for people.
        in_fabric: ns from the device to the IOMMU.
        to_memory: ns from there to memory, past the IOMMU.
    """

    def __init__(
        self, name: str = "deferred writer", *, in_fabric: int = MILLISECOND, to_memory: int = 0
    ) -> None:
        super().__init__(name)
        self._latency = in_fabric, to_memory

    def on_attach(self) -> None:
        """Settle far away."""
        self.dma.set_latency(*self._latency)


DEVICE = DeferredWriter
