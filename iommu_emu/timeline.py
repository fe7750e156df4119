"""What happened when, for people: maps, unmaps, flushes, DMA, faults and words of the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from iommu_emu.clock import Clock

__all__ = ["EventKind", "Timeline", "TimelineEvent"]

MAX_EVENTS = 100_000


class EventKind(Enum):
    """Kinds of events; `value` is how they are written."""

    MAP = "map"  # software mapped memory for a device
    UNMAP = "unmap"  # software took it away again, as far as page tables go
    FLUSH = "flush"  # cached translations were invalidated
    REUSE = "reuse"  # memory, or an IOVA, went to somebody else
    DMA = "dma"  # a device's request got through
    FAULT = "fault"  # a device's request did not
    LOG = "log"  # the kernel said something
    NOTE = "note"  # anything else


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """One event.

    Attributes:
        time: virtual time, ns.
        kind: what it is.
        lane: who did it, for example "CPU 0", "nic" or "IOMMU".
        text: what, in a few words.
        address: IOVA or physical address; None: it has none.
        size: bytes; 0 without an address.
        duration: ns; 0: a moment.
    """

    time: int
    kind: EventKind
    lane: str
    text: str
    address: int | None = None
    size: int = 0
    duration: int = 0


class Timeline:
    """Events in the order in which they happened.

    Args:
        clock: the machine's.
        limit: how many events are kept; later ones are counted and dropped.

    Attributes:
        events: what is kept.
        dropped: how many were not.
    """

    def __init__(self, clock: Clock, limit: int = MAX_EVENTS) -> None:
        self.events: list[TimelineEvent] = []
        self.dropped = 0
        self._clock = clock
        self._limit = limit

    def __iter__(self) -> Iterator[TimelineEvent]:
        return iter(self.events)

    @property
    def now(self) -> int:
        """Virtual time, ns."""
        return self._clock.now

    def add(
        self,
        kind: EventKind,
        lane: str,
        text: str,
        *,
        address: int | None = None,
        size: int = 0,
        duration: int = 0,
        time: int | None = None,
    ) -> None:
        """Note an event; see `TimelineEvent`. It happens now unless `time` (ns) says otherwise."""
        if len(self.events) >= self._limit:
            self.dropped += 1
            return
        when = self.now if time is None else time
        self.events.append(TimelineEvent(when, kind, lane, text, address, size, duration))
