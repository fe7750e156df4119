"""IOVA allocation as in Linux: which input address a mapping gets, and which it gets next.

The ranges in use are a sorted list that is searched top-down from where the last search ended.
Freed ranges of up to 32 pages do not go back to it: they stay in per-CPU magazines and are handed
out again last in, first out. That reuse is what makes a stale IOTLB entry dangerous: it soon
points into somebody else's buffer.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from iommu_emu.clock import MILLISECOND, Clock, Timer

__all__ = [
    "CACHED_ORDERS",
    "DEPOT_DELAY",
    "MAGAZINE_SIZE",
    "DmaLimit",
    "IovaDomain",
    "IovaStatistics",
]

MAGAZINE_SIZE = 127  # ranges (os 4.2)
CACHED_ORDERS = 6  # sizes of 2**0 to 2**5 pages are cached (os 4.2)
DEPOT_DELAY = 100 * MILLISECOND  # until a depot with too many magazines loses one (os 4.2)
SPACE_32BIT = 1 << 32
SPACE_64BIT = 1 << 64
ANCHOR = SPACE_64BIT - 1  # page number above any that can be allocated: the end of the list


@dataclass
class DmaLimit:
    """Which addresses a device can use, and whether Linux still keeps it below 4 GiB.

    Attributes:
        last: the last address: the least of DMA mask and bus limit.
        pci_32bit_workaround: 32-bit addresses first; true for a PCI device unless
            iommu.forcedac=1, and until they run out (os 4.2).
        log: takes the kernel's notice when they do.
    """

    last: int
    pci_32bit_workaround: bool = True
    log: Callable[[str], None] = field(default=lambda message: None, repr=False, compare=False)


@dataclass
class IovaStatistics:
    """How allocations were served.

    Attributes:
        cached: from a magazine.
        searched: by a search of the ranges in use.
        steps: ranges that searches passed; what makes them slow.
        cache_flushes: times that exhaustion emptied every magazine.
    """

    cached: int = 0
    searched: int = 0
    steps: int = 0
    cache_flushes: int = 0


@dataclass
class _CpuCache:
    """A CPU's two magazines of one size: first page numbers, the next to go last."""

    loaded: list[int] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)

    def swap(self) -> None:
        self.loaded, self.previous = self.previous, self.loaded


class _RangeCache:
    """Freed ranges of one size: two magazines a CPU, and a depot of full ones (os 4.2)."""

    def __init__(self, cpus: int) -> None:
        self.cpus = [_CpuCache() for _ in range(cpus)]
        self.depot: list[list[int]] = []
        self.timer: Timer | None = None

    def put(self, page: int, cpu: int) -> bool:
        """Keep a range; return whether the depot grew."""
        cache = self.cpus[cpu]
        grew = False
        if len(cache.loaded) == MAGAZINE_SIZE:
            if len(cache.previous) < MAGAZINE_SIZE:
                cache.swap()
            else:
                self.depot.append(cache.loaded)
                cache.loaded = []
                grew = True
        cache.loaded.append(page)
        return grew

    def take(self, highest: int, cpu: int) -> int | None:
        """Hand out the range that came last of those whose first page is not above `highest`.

        Only the magazine in use is looked at.
        """
        cache = self.cpus[cpu]
        if not cache.loaded:
            if cache.previous:
                cache.swap()
            elif self.depot:
                cache.loaded = self.depot.pop()
        magazine = cache.loaded
        for index in reversed(range(len(magazine))):
            if magazine[index] <= highest:
                # The last one fills the hole, which changes the order of what is left.
                magazine[index], magazine[-1] = magazine[-1], magazine[index]
                return magazine.pop()
        return None

    def empty(self, cpu: int) -> list[int]:
        """Return what a CPU's magazines hold, and empty them."""
        cache, self.cpus[cpu] = self.cpus[cpu], _CpuCache()
        return cache.loaded + cache.previous

    def __iter__(self) -> Iterator[int]:
        for cache in self.cpus:
            yield from cache.loaded
            yield from cache.previous
        for magazine in self.depot:
            yield from magazine


class IovaDomain:
    """The IOVA space of a domain.

    Args:
        clock: the machine's; depots are trimmed by its time.
        cpus: number of CPUs, at least 1.
        granule: smallest page of the unit in bytes, a power of two.
        base: first address that may be handed out; page 0 never is (os 4.2).
        last: last address that the unit translates (the domain's aperture).
        cached_orders: sizes of 2**0 to 2**(n-1) pages are cached, 0..6; 0 is Linux before it
            had magazines, when every freed range went back to the search.

    Attributes:
        statistics: how allocations were served.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        cpus: int = 1,
        granule: int = 4096,
        base: int = 0,
        last: int = SPACE_64BIT - 1,
        cached_orders: int = CACHED_ORDERS,
    ) -> None:
        if cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {cpus}")
        if not 1 <= granule <= SPACE_32BIT or granule & (granule - 1):
            raise ValueError(f"granule must be a power of two up to 2**32, not {granule}")
        if not 0 <= base <= last < SPACE_64BIT:
            raise ValueError(f"base and last must be a range of 64 bits, not {base:#x}..{last:#x}")
        if not 0 <= cached_orders <= CACHED_ORDERS:
            raise ValueError(f"cached_orders must be in 0..{CACHED_ORDERS}, not {cached_orders}")
        self.granule = granule
        self.last = last
        self.statistics = IovaStatistics()
        self._clock = clock
        self._cpus = cpus
        self._base = max(1, -(-base // granule))
        self._starts = [ANCHOR]  # first pages of the ranges in use or reserved, sorted
        self._ends = {ANCHOR: ANCHOR}  # their last pages
        self._live: set[int] = set()  # first pages of the ranges that callers hold
        self._end_32bit = SPACE_32BIT // granule
        self._hopeless = self._end_32bit  # pages: a search below 4 GiB for so many would fail
        self._cursor_32bit = ANCHOR  # start of the range that the next search goes down from
        self._cursor = ANCHOR
        self._caches = [_RangeCache(cpus) for _ in range(cached_orders)]

    def __repr__(self) -> str:
        return f"<IovaDomain: {self.live} IOVAs in use, {self.cached} cached>"

    @property
    def live(self) -> int:
        """Number of ranges that are allocated and not freed."""
        return len(self._live)

    @property
    def cached(self) -> int:
        """Number of freed ranges in magazines and depots."""
        return sum(1 for cache in self._caches for _ in cache)

    def reserve(self, first: int, last: int) -> None:
        """Never hand out a range: MSI window, RMRR, window of a PCI host bridge (os 4.2).

        Args:
            first: first address; the whole page is reserved.
            last: last address.

        Raises:
            ValueError: if it is no range of 64 bits, or an IOVA in it is in use or cached;
                nothing is reserved then.
        """
        if not 0 <= first <= last < SPACE_64BIT:
            raise ValueError(f"a reserved range has 64-bit addresses, not {first:#x}..{last:#x}")
        page, end = first // self.granule, last // self.granule
        gaps: list[tuple[int, int]] = []
        in_use = self._live.union(*self._caches)
        index = bisect_left(self._starts, page)
        for start in self._starts[max(0, index - 1) :]:
            if start > end:
                break
            if self._ends[start] < page:
                continue
            if start in in_use:
                raise ValueError(
                    f"{first:#x}..{last:#x} overlaps the IOVA {start * self.granule:#x} in use: "
                    "reserve before the first mapping"
                )
            if start > page:
                gaps.append((page, start - 1))
            page = self._ends[start] + 1
        if page <= end:
            gaps.append((page, end))
        for start, stop in gaps:
            insort(self._starts, start)
            self._ends[start] = stop

    def allocate(
        self, size: int, limit: int, cpu: int = 0, *, flush_caches: bool = True
    ) -> int | None:
        """Return the address of a free range that is aligned to its size, or None.

        Sizes below 32 pages are rounded up to a power of two of pages, others to pages; the
        alignment is the next power of two (os 4.2). A failure changes nothing but the caches.

        Args:
            size: bytes.
            limit: last address that the range may have.
            cpu: whose magazines are looked at first.
            flush_caches: if nothing is free, give back all that is cached, and try again.

        Raises:
            ValueError: if the size is not positive, or there is no such CPU.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1 byte, not {size}")
        self._check_cpu(cpu)
        end = (min(limit, self.last) + 1) // self.granule  # exclusive
        pages = -(-size // self.granule)
        if pages < (1 << len(self._caches)) // 2:
            pages = 1 << (pages - 1).bit_length()
        cache = self._cache_of(pages)
        page = None if cache is None else cache.take(end - pages, cpu)
        if page is not None:
            self.statistics.cached += 1
        else:
            page = self._search(pages, end)
            if page is None and flush_caches:
                self.flush_caches()
                self.statistics.cache_flushes += 1
                page = self._search(pages, end)
            if page is None:
                return None
            self.statistics.searched += 1
        self._live.add(page)
        return page * self.granule

    def allocate_for(self, device: DmaLimit, size: int, cpu: int = 0) -> int:
        """Return an address for a device: below 4 GiB while that works, then anywhere (os 4.2).

        Args:
            device: what it can address.
            size: bytes.
            cpu: the CPU that maps.

        Raises:
            ValueError: if the size is not positive, or there is no such CPU.
            MemoryError: if nothing is free; nothing is held then.
        """
        limit = min(device.last, self.last)
        if limit >= SPACE_32BIT and device.pci_32bit_workaround:
            # The 64-bit space is the way out, so the caches stay as they are.
            address = self.allocate(size, SPACE_32BIT - 1, cpu, flush_caches=False)
            if address is not None:
                return address
            device.pci_32bit_workaround = False
            device.log(f"Using {limit.bit_length()}-bit DMA addresses")
        address = self.allocate(size, limit, cpu)
        if address is None:
            raise MemoryError(
                f"no {size} bytes of IOVA space left up to {limit:#x} "
                f"({self.live} IOVAs are in use): unmap, or widen the DMA mask"
            )
        return address

    def free(self, address: int, cpu: int = 0) -> None:
        """Take a range back.

        Args:
            address: what `allocate` returned.
            cpu: whose magazine it goes to.

        Raises:
            ValueError: if the address is not allocated, or there is no such CPU.
        """
        self._check_cpu(cpu)
        page = self._page(address)
        self._live.remove(page)
        cache = self._cache_of(self._ends[page] - page + 1)
        if cache is None:
            self._remove(page)
        elif cache.put(page, cpu) and not (cache.timer and cache.timer.pending):
            cache.timer = self._clock.call_later(DEPOT_DELAY, lambda: self._trim(cache))

    def size_of(self, address: int) -> int:
        """Return the bytes that an allocated range has, rounding included.

        Raises:
            ValueError: if the address is not allocated.
        """
        page = self._page(address)
        return (self._ends[page] - page + 1) * self.granule

    def flush_caches(self) -> None:
        """Give what is in magazines and depots back to the search."""
        # By CPU, then by size, as Linux does it: the order decides where searches go on.
        for cpu in range(self._cpus):
            for cache in self._caches:
                self._remove_all(cache.empty(cpu))
        for cache in self._caches:
            while cache.depot:
                self._remove_all(cache.depot.pop())

    def close(self) -> None:
        """Drop the caches and their timers, as when the domain goes away."""
        self.flush_caches()
        for cache in self._caches:
            if cache.timer is not None:
                cache.timer.cancel()

    # ---- inside ------------------------------------------------------------------------------

    def _check_cpu(self, cpu: int) -> None:
        if not 0 <= cpu < self._cpus:
            raise ValueError(f"cpu must be in 0..{self._cpus - 1}, not {cpu}")

    def _page(self, address: int) -> int:
        page, offset = divmod(address, self.granule)
        if offset or page not in self._live:
            raise ValueError(f"{address:#x} is not the address of an IOVA in use")
        return page

    def _cache_of(self, pages: int) -> _RangeCache | None:
        order = (pages - 1).bit_length()
        return self._caches[order] if order < len(self._caches) else None

    def _trim(self, cache: _RangeCache) -> None:
        """Give back one magazine of a depot that has more of them than there are CPUs."""
        if len(cache.depot) > self._cpus:
            self._remove_all(cache.depot.pop())
            cache.timer = self._clock.call_later(DEPOT_DELAY, lambda: self._trim(cache))

    def _search(self, pages: int, end: int) -> int | None:
        """Insert a range of free pages below `end`; return the first, or None."""
        low = end <= self._end_32bit
        if low and pages >= self._hopeless:
            return None
        cursor = self._cursor_32bit if low else self._cursor
        index = bisect_left(self._starts, cursor)
        page = self._gap_below(index, pages, end, self._base)
        if page is None and self._ends[cursor] < end:
            # Gaps above the cursor were too small for somebody else, maybe not for this one.
            index = bisect_left(self._starts, end)
            page = self._gap_below(index, pages, end, self._ends[cursor] + 1)
        if page is None:
            # Remembered whatever the limit was, until something below 4 GiB is freed.
            self._hopeless = pages
            return None
        insort(self._starts, page)
        self._ends[page] = page + pages - 1
        if self._ends[page] < self._end_32bit:
            self._cursor_32bit = page
        else:
            self._cursor = page
        return page

    def _gap_below(self, index: int, pages: int, end: int, lowest: int) -> int | None:
        """Return the highest aligned page with a gap of `pages`, from range `index` down."""
        alignment = 1 << (pages - 1).bit_length()
        while True:
            end = min(end, self._starts[index])
            page = (end - pages) & -alignment
            if page < lowest:
                return None
            index -= 1
            self.statistics.steps += 1
            if index < 0 or page > self._ends[self._starts[index]]:
                return page

    def _remove_all(self, magazine: list[int]) -> None:
        for page in magazine:
            self._remove(page)

    def _remove(self, page: int) -> None:
        """Take a range off the list, and move the cursors up to where it was."""
        index = bisect_left(self._starts, page)
        above = self._starts[index + 1]
        end = self._ends[page]
        if page == self._cursor_32bit or (end < self._end_32bit and page >= self._cursor_32bit):
            self._cursor_32bit = above
        if page < self._end_32bit:
            self._hopeless = self._end_32bit
        if page >= self._cursor:
            self._cursor = above
        del self._starts[index]
        del self._ends[page]
