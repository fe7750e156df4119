"""The window of deferred invalidation: a device that keeps using what its driver has unmapped.

After each read of the guest, which has unmapped its buffer by then, the device touches every
page that the IOTLB still has for it. What the tables no longer map and the device reaches all the
same is a use of a stale entry, and the window is how long that goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.clock import MILLISECOND, Timer
from iommu_emu.core import Access
from iommu_emu.guest.observer import Observer
from iommu_emu.pci.function import Function

PERIOD = MILLISECOND  # ns between two looks
PATIENCE = 50 * MILLISECOND  # ns after which a round ends; Linux's timer runs for 10 ms
MAX_ROUNDS = 1000

__all__ = ["Window", "WindowRound"]


@dataclass(frozen=True)
class WindowRound:
    """One unmap.

    Attributes:
        size: bytes of the buffer.
        touched: pages that the device had used and touched once more.
        stale: those that were not mapped any more, and reached.
        lasted_ms: longest time from the first touch that reached one to the last.
    """

    size: int
    touched: int
    stale: int
    lasted_ms: float


class Window:
    """Looks, one round after each unmap.

    Where a window is expected, the device touches its pages before the unmap as well: on a busy
    host the window may be over before anybody hears of the unmap. Where none is expected, that
    would find pages between the kernel's change of the tables and its invalidation, which is no
    window of its policy.

    Args:
        device: the device that keeps using its pages.
        observer: where the uses of stale entries are counted.

    Attributes:
        rounds: the rounds that are over.
    """

    def __init__(self, device: Function, observer: Observer) -> None:
        self.rounds: list[WindowRound] = []
        self._device = device
        self._observer = observer
        self._clock = observer.machine.clock
        self._timer: Timer | None = None
        self._expecting = False
        self._since: dict[int, int] = {}  # pages that were stale at the last touch: from when on
        self._size: int  # of the buffer whose unmap ends the round; 0: there was none yet
        self._forget()

    def expect(self) -> None:
        """Touch all the time from now on."""
        self._expecting = True
        if self._timer is None:
            self._touch()

    def look(self, size: int) -> None:
        """End a round soon: a buffer of `size` bytes has been unmapped.

        Without effect while the round is ending, and after the thousandth.
        """
        if self._size or len(self.rounds) >= MAX_ROUNDS:
            return
        self._size = size
        self._unmapped = self._clock.now
        if self._timer is None:
            self._observer.take_stale()
            self._touch()

    def stop(self) -> None:
        """Touch nothing more."""
        self._expecting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._since.clear()
        self._forget()

    def _forget(self) -> None:
        """Begin a round."""
        self._size = 0
        self._unmapped = 0
        self._lasted = 0
        self._touched: set[int] = set()
        self._stale: set[int] = set()

    def _touch(self) -> None:
        self._timer = None
        unit, requester = self._observer.unit, self._device.dma.requester
        # Reads of no byte: they are translated and change nothing, and with CAP.ZLR a page that
        # is mapped for writes alone takes them (VT-d 5.5).
        wanted = Access.ATOMIC if unit.config.capabilities.zero_length_reads else Access.READ
        for entry in unit.entries("iotlb"):
            if entry.requester == requester and entry.permissions & wanted:
                self._touched.add(entry.address)
                self._device.dma.read(entry.address, 0)
        now = self._clock.now
        uses = {use.request.address for use in self._observer.take_stale()}
        # What was stale in the round before is not this round's.
        self._stale |= uses - self._since.keys()
        self._since = {page: self._since.get(page, now) for page in uses}
        lasted = [now - self._since[page] for page in uses & self._stale]
        self._lasted = max([self._lasted, *lasted])
        # Once nothing is stale, nothing becomes so before the next unmap.
        if self._size and (not uses or now - self._unmapped >= PATIENCE):
            self._end_round()
        if self._size or self._expecting:
            self._timer = self._clock.call_later(PERIOD, self._touch)

    def _end_round(self) -> None:
        lasted = self._lasted / MILLISECOND
        done = WindowRound(self._size, len(self._touched), len(self._stale), lasted)
        self.rounds.append(done)
        self._forget()
