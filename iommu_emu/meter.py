"""What software's work costs: the seam between those who work and a timing model.

Code that models an operating system says what it does ("allocate an IOVA", "copy 1500 bytes"); a
meter makes virtual time of it, or nothing at all. `iommu_emu.virtual_cpus` has the one that does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Protocol

__all__ = ["FREE", "Meter", "Work"]


class Work(Enum):
    """Pieces of work with a price; `value` is the name in a timing model.

    Attributes:
        about: what it is, in a few words.
    """

    _value_: str
    about: str

    def __new__(cls, name: str, about: str) -> Work:
        """Make a member of name and description."""
        member = object.__new__(cls)
        member._value_ = name
        member.about = about
        return member

    IOVA_ALLOCATE = "iova_allocate", "an IOVA from a CPU's cache"
    IOVA_SEARCH = "iova_search", "an IOVA from the tree, when caches have none"
    IOVA_FREE = "iova_free", "an IOVA given back"
    TABLE_MAP = "table_map", "one leaf entry written"
    TABLE_UNMAP = "table_unmap", "one leaf entry cleared"
    QUEUE_ADD = "queue_add", "an entry put on a flush queue"
    SLOT_TAKE = "slot_take", "a bounce buffer's slots found"
    SLOT_RELEASE = "slot_release", "a bounce buffer's slots given back"
    COPY = "copy", "one byte copied"
    ZERO = "zero", "one byte cleared"
    SUBMIT = "submit", "descriptors written and the doorbell rung"
    INVALIDATE_PAGE = "invalidate_page", "the unit's: one page-selective invalidation"
    INVALIDATE_DOMAIN = "invalidate_domain", "the unit's: one domain-selective or global one"
    INVALIDATE_CONTEXT = "invalidate_context", "the unit's: one context or device-table entry"
    INVALIDATE_DEVICE_TLB = "invalidate_device_tlb", "the unit's: a round trip to the device"
    WAIT = "wait", "the unit's: one wait descriptor or COMPLETION_WAIT"
    MAP_CALL = "map_call", "the rest of a map call"
    UNMAP_CALL = "unmap_call", "the rest of an unmap call"


class Meter(Protocol):
    """Takes note of work on virtual CPUs."""

    def spend(self, cpu: int, work: Work, times: int = 1) -> None:
        """Charge a CPU for work that it does.

        Args:
            cpu: number of the virtual CPU.
            work: what it does.
            times: how often (for COPY and ZERO: bytes).
        """

    def lock(self, cpu: int, name: str) -> AbstractContextManager[None]:
        """Hold a lock while the CPU does what is in the `with` block, after its turn comes.

        Args:
            cpu: number of the virtual CPU.
            name: which lock, for example "iova:2" or "queue:unit 0".
        """


class _FreeMeter:
    """Charges nothing."""

    def spend(self, cpu: int, work: Work, times: int = 1) -> None:
        """Do nothing."""

    def lock(self, cpu: int, name: str) -> AbstractContextManager[None]:
        """Return a context that is no lock."""
        return nullcontext()


FREE: Meter = _FreeMeter()
