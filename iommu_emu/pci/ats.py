"""Address translation services: a function's capability, and its device-TLB (pci 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.core import Answer, DeviceTlb, Port
from iommu_emu.geometry import CacheGeometry
from iommu_emu.pci.config_space import ConfigSpace

ATS_ID = 0x0F
MOST_PENDING = 32  # invalidations; the capability says so with a depth of 0
_PAGE_ALIGNED = 1 << 5
_GLOBAL_INVALIDATE = 1 << 6
_SMALLEST_UNIT = 0x1F
_ENABLE = 1 << 15

__all__ = [
    "ATS_ID",
    "AT_ONCE",
    "DEVICE_TLB",
    "IN_PYTHON",
    "MOST_PENDING",
    "NEVER",
    "WRONGLY",
    "Answering",
    "Ats",
    "late",
]

# Parts do not publish the shape of their device-TLBs; this one holds 256 KiB of small pages.
DEVICE_TLB = CacheGeometry(sets=16, ways=4)


@dataclass(frozen=True)
class Answering:
    """How a function answers when it is asked to invalidate.

    Attributes:
        answer: what it does.
        delay: ns until it does.
    """

    answer: Answer
    delay: int = 0


def late(delay: int) -> Answering:
    """Drop what is to be dropped, and answer, after a while.

    Args:
        delay: ns from the request.
    """
    return Answering(Answer.AFTER, delay)


AT_ONCE = late(0)
NEVER = Answering(Answer.NEVER)
"""Keep everything, and say nothing: the request times out."""
WRONGLY = Answering(Answer.WRONG_TAG)
"""Drop what is to be dropped, and answer a request that nobody made."""
IN_PYTHON = Answering(Answer.ASK)
"""Let `Function.on_invalidate` see to it."""


class Ats:
    """The extended capability, which starts switched off, and the device-TLB behind it.

    Args:
        config: where the capability is added.
        queue_depth: invalidations that the function takes without answering one, 1..32.
        shape: of the device-TLB.
        page_aligned: whether its translation requests always begin at a page.
        global_invalidate: whether it knows invalidations of every PASID at once.

    Attributes:
        control: offset of the control register.
        queue_depth: see above.
        device_tlb: the device-TLB; None: the function is not attached yet.

    Raises:
        ValueError: if the queue depth is outside its range.
    """

    def __init__(
        self,
        config: ConfigSpace,
        *,
        queue_depth: int = MOST_PENDING,
        shape: CacheGeometry = DEVICE_TLB,
        page_aligned: bool = True,
        global_invalidate: bool = True,
    ) -> None:
        if not 1 <= queue_depth <= MOST_PENDING:
            raise ValueError(f"queue_depth must be in 1..{MOST_PENDING}, not {queue_depth}")
        self._config = config
        self._shape = shape
        self._answering = AT_ONCE
        self.queue_depth = queue_depth
        self.device_tlb: DeviceTlb | None = None
        capability = queue_depth % MOST_PENDING
        capability |= page_aligned * _PAGE_ALIGNED | global_invalidate * _GLOBAL_INVALIDATE
        writable = (_SMALLEST_UNIT | _ENABLE).to_bytes(2, "little")
        at = config.add_extended_capability(
            ATS_ID, capability.to_bytes(2, "little") + bytes(2), bytes(2) + writable
        )
        self.control = at + 6
        config.observe(self.control, 2, self._follow)

    def connect(self, port: Port, owner: int) -> None:
        """Give the function's port its device-TLB.

        Args:
            port: where the function's requests enter the fabric.
            owner: of the messages that ask to invalidate.
        """
        answer, delay = self._answering.answer, self._answering.delay
        self.device_tlb = port.add_device_tlb(self._shape.parameters(), answer, delay, owner)
        self._follow()

    def _follow(self) -> None:
        """Let the device-TLB follow the enable bit: switched off, it is empty."""
        if self.device_tlb is not None and self.device_tlb.enabled is not self.enabled:
            self.device_tlb.enable(self.enabled)

    @property
    def enabled(self) -> bool:
        """Whether software has switched the device-TLB on."""
        return bool(self._config.get(self.control, 2) & _ENABLE)

    @property
    def smallest_unit(self) -> int:
        """Bytes of the smallest translation that the function may ask for, 4 KiB or more."""
        return 4096 << (self._config.get(self.control, 2) & _SMALLEST_UNIT)

    def enable(self, on: bool = True) -> None:
        """Switch ATS on, with units of 4 KiB, or off, as software does."""
        kept = self._config.read(self.control, 2) & _SMALLEST_UNIT
        self._config.write(self.control, 2, _ENABLE if on else kept)

    @property
    def answering(self) -> Answering:
        """How the function answers requests to invalidate that come from now on."""
        return self._answering

    @answering.setter
    def answering(self, answering: Answering) -> None:
        self._answering = answering
        if self.device_tlb is not None:
            self.device_tlb.set_answer(answering.answer, answering.delay)

    def reset(self) -> None:
        """Go back to the state after reset."""
        self._config.set(self.control, 2, 0)
        self._follow()
