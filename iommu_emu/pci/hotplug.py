"""The slot of a hot-plug port: presence, link, events, interrupt (pci 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iommu_emu.pci.topology import Bridge

LINK_STATUS = 0x12
SLOT_CONTROL = 0x18
SLOT_STATUS = 0x1A
LINK_ACTIVE = 1 << 13
PRESENCE = 1 << 6
PRESENCE_CHANGED = 1 << 3
LINK_CHANGED = 1 << 8
_PRESENCE_ENABLE = 1 << 3
_INTERRUPT_ENABLE = 1 << 5
_LINK_ENABLE = 1 << 12

__all__ = ["Slot"]


class Slot:
    """Registers of one slot, in the PCI Express capability of its port.

    Args:
        port: a port made with a slot number.

    Raises:
        ValueError: if the port has no slot.
    """

    def __init__(self, port: Bridge) -> None:
        if port.pcie is None or not port.config.get(port.pcie + 2, 2) & 1 << 8:
            raise ValueError(f"{port.name} has no hot-plug slot")
        self.port = port
        self._at = port.pcie
        self._signalled = False
        port.config.observe(self._at + SLOT_CONTROL, 4, self._signal)

    @property
    def present(self) -> bool:
        """Whether an adapter is in the slot."""
        return bool(self._status & PRESENCE)

    @property
    def link_active(self) -> bool:
        """Whether the data link is up."""
        return bool(self.port.config.get(self._at + LINK_STATUS, 2) & LINK_ACTIVE)

    @property
    def _status(self) -> int:
        return self.port.config.get(self._at + SLOT_STATUS, 2)

    def change(self, present: bool) -> None:
        """Insert or remove the adapter: presence and link follow at once, each with its event."""
        if present == self.present:
            return
        config = self.port.config
        link = config.get(self._at + LINK_STATUS, 2) & ~LINK_ACTIVE
        config.set(self._at + LINK_STATUS, 2, link | (LINK_ACTIVE if present else 0))
        status = self._status & ~PRESENCE | (PRESENCE if present else 0)
        config.set(self._at + SLOT_STATUS, 2, status | PRESENCE_CHANGED | LINK_CHANGED)
        self._signal()

    def _signal(self) -> None:
        """Send the interrupt when enabled events go from none to some."""
        control, status = self.port.config.get(self._at + SLOT_CONTROL, 2), self._status
        wanted = bool(
            control & _INTERRUPT_ENABLE
            and (
                (control & _PRESENCE_ENABLE and status & PRESENCE_CHANGED)
                or (control & _LINK_ENABLE and status & LINK_CHANGED)
            )
        )
        if wanted and not self._signalled and self.port.attached:
            self.port.interrupt()
        self._signalled = wanted
