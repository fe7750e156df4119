"""Which way the data of a DMA mapping goes."""

from __future__ import annotations

from enum import Enum

__all__ = ["Direction"]


class Direction(Enum):
    """Seen from the device: what it may do with the memory."""

    TO_DEVICE = "to-device"
    FROM_DEVICE = "from-device"
    BIDIRECTIONAL = "bidirectional"
