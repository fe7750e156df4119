"""What is odd about an invalidation descriptor, read from the fact sheet alone (VT-d 7.2, 7.6).

Comparisons use it to tell for which descriptor two queues went apart, and which error a unit has
to report where QEMU reports none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iommu_emu.vtd.capabilities import Capabilities

CONTEXT, IOTLB, INTERRUPT, WAIT = 1, 2, 4, 5
SELECTIVE = 3
ERROR_TYPE, ERROR_RESERVED = 3, 4  # IQERCD.IQEI
RESERVED = {
    CONTEXT: (0xFFFC_0000_0000_F1C0, (1 << 64) - 1),
    IOTLB: (0xFFFF_FFFF_0000_F100, 0xF80),
    INTERRUPT: (0xFFFF_0000_07FF_F1E0, (1 << 64) - 1),
    WAIT: (0x0000_0000_FFFF_F180, 3),
}

IsRam = Callable[[int], bool]

__all__ = ["RESERVED", "Oddity", "oddity"]


@dataclass(frozen=True)
class Oddity:
    """What is not ordinary about a descriptor.

    Attributes:
        text: what.
        error: IQERCD.IQEI that it has to raise; 0: none.
    """

    text: str
    error: int = 0


def oddity(low: int, high: int, capabilities: Capabilities, is_ram: IsRam) -> Oddity | None:
    """Return what is odd about a descriptor of a 128-bit queue; None: nothing.

    Args:
        low: first quadword.
        high: second quadword.
        capabilities: of the unit.
        is_ram: whether a physical address is RAM.
    """
    kind = low & 0xF | (low >> 9 & 7) << 4
    missing = kind == INTERRUPT and not capabilities.interrupt_remapping
    if kind not in RESERVED or missing:
        # With a type that is not one, what else may be wrong does not matter.
        return Oddity(f"type {kind & 0xF}, high bits {kind >> 4}", ERROR_TYPE)
    granularity = low >> 4 & 3
    for half, mask, name in zip((low, high), RESERVED[kind], ("low", "high"), strict=True):
        if half & mask:
            return Oddity(f"type {kind}, reserved {name} bits {half & mask:#x}", ERROR_RESERVED)
    if kind in (CONTEXT, IOTLB) and granularity == 0:
        return Oddity(f"type {kind}, granularity 0", ERROR_RESERVED)
    if kind == IOTLB and granularity == SELECTIVE:
        mask = high & 0x3F
        if mask > capabilities.max_address_mask or not capabilities.page_selective:
            return Oddity(f"address mask {mask}", ERROR_RESERVED)
    if kind == INTERRUPT and low >> 4 & 1 and low >> 27 & 0x1F > capabilities.max_handle_mask:
        return Oddity("handle mask above MHMV", ERROR_RESERVED)
    return _wait_oddity(low, high, is_ram) if kind == WAIT else None


def _wait_oddity(low: int, high: int, is_ram: IsRam) -> Oddity | None:
    interrupts, stores = bool(low & 0x10), bool(low & 0x20)
    if stores and interrupts:
        return Oddity("wait with status and interrupt")
    if stores and not is_ram(high):
        return Oddity("wait, status address is not RAM")
    if not stores and not interrupts:
        return Oddity("wait with neither status nor interrupt")
    return None
