"""The kernel's memory allocator: whose each byte is, and who gets it next.

Freed pages are handed out again last in, first out, and small objects share a page with other
people's. Both are what a device that reaches too much, or for too long, lives on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from iommu_emu.memory import PAGE
from iommu_emu.timeline import EventKind, Timeline

__all__ = ["MAX_PAGES", "KernelMemory"]

MAX_ORDER = 10
MAX_PAGES = 1 << MAX_ORDER  # in a row, 4 MiB
_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048)  # of small objects


@dataclass(slots=True)
class _Slab:
    """A page of small objects of one size.

    Attributes:
        size: bytes of an object.
        owners: of the objects in use, by address.
        free: addresses of the others, the next one last.
    """

    size: int
    owners: dict[int, str] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)


class KernelMemory:
    """Allocator of a range of RAM.

    Memory is not cleared when it is handed out: what its last owner left is still there.

    Args:
        ram: physical addresses; start and stop are multiples of 4096.
        timeline: where reuse by somebody else is noted; None: nowhere.

    Attributes:
        ram: as given.

    Raises:
        ValueError: if the range is empty or not page aligned.
    """

    def __init__(self, ram: range, timeline: Timeline | None = None) -> None:
        if ram.start % PAGE or ram.stop % PAGE or ram.stop <= ram.start or ram.step != 1:
            raise ValueError(f"ram must be a page-aligned range, not {ram}")
        self.ram = ram
        self._timeline = timeline
        self._free: list[list[int]] = [[] for _ in range(MAX_ORDER + 1)]  # the next one is last
        self._blocks: dict[int, tuple[int, str]] = {}  # order and owner of what is in use
        self._slabs: dict[int, _Slab] = {}  # by page
        self._partial: dict[int, list[int]] = {size: [] for size in _SIZES}  # pages with room
        self._last: dict[int, str] = {}  # address: who had it last
        self._held: Counter[int] = Counter()  # pages that a device may still reach
        self._parked: dict[tuple[str, int], list[int]] = {}  # freed while held, by owner and order
        for address, order in reversed(list(_aligned_blocks(ram))):
            self._free[order].append(address)

    def __repr__(self) -> str:
        return f"<KernelMemory {self.ram.start:#x}..{self.ram.stop - 1:#x}, {self.used} pages used>"

    @property
    def used(self) -> int:
        """Number of pages in use, those with small objects included."""
        return sum(1 << order for order, _ in self._blocks.values())

    # ---- pages -------------------------------------------------------------------------------

    def alloc_pages(self, count: int = 1, owner: str = "kernel") -> int:
        """Return the physical address of pages in a row.

        Args:
            count: pages, 1..1024; rounded up to a power of two, to which they are aligned.
            owner: whose they are.

        Raises:
            ValueError: if the count is outside its range.
            MemoryError: if there are not that many in a row.
        """
        if not 1 <= count <= MAX_PAGES:
            raise ValueError(f"count must be in 1..{MAX_PAGES} pages, not {count}")
        order = (count - 1).bit_length()
        parked = self._parked.get((owner, order))
        address = parked.pop() if parked else self._take(order)
        if address is None:
            self._merge()
            address = self._take(order)
        if address is None:
            raise MemoryError(
                f"no {1 << order} pages in a row are free: {self.used} of "
                f"{len(self.ram) // PAGE} are used"
            )
        self._blocks[address] = order, owner
        self._note_reuse(address, PAGE << order, owner)
        return address

    def free_pages(self, address: int) -> None:
        """Take back what `alloc_pages` returned.

        Raises:
            ValueError: if it is not in use.
        """
        if address not in self._blocks or address in self._slabs:
            raise ValueError(f"{address:#x} is not the address of pages in use")
        order, owner = self._blocks.pop(address)
        self._last[address] = owner
        self._give_back(address, order, owner)

    def _give_back(self, address: int, order: int, owner: str) -> None:
        """Make a block free; as long as it is held, for its owner only."""
        if any(page in self._held for page in _pages(address, PAGE << order)):
            self._parked.setdefault((owner, order), []).append(address)
        else:
            self._free[order].append(address)

    def _take(self, order: int) -> int | None:
        """Take a free block, or the first part of the next larger one that there is."""
        for larger in range(order, MAX_ORDER + 1):
            if self._free[larger]:
                address = self._free[larger].pop()
                for half in reversed(range(order, larger)):
                    self._free[half].append(address + (PAGE << half))
                return address
        return None

    def _merge(self) -> None:
        """Join free blocks with their neighbours, as Linux does when it runs out of large ones."""
        for order in range(MAX_ORDER):
            size = PAGE << order
            blocks = set(self._free[order])
            pairs = {a for a in blocks if not a & size and a | size in blocks}
            self._free[order + 1] += sorted(pairs, reverse=True)
            joined = pairs | {address | size for address in pairs}
            self._free[order] = [a for a in self._free[order] if a not in joined]

    # ---- small objects -----------------------------------------------------------------------

    def kmalloc(self, size: int, owner: str = "kernel") -> int:
        """Return the physical address of a small object; others are in the same page.

        Args:
            size: bytes, 1..2048 rounded up to a size there is; more takes whole pages.
            owner: whose it is.

        Raises:
            ValueError: if the size is outside 1..4 MiB.
            MemoryError: if there is no page left.
        """
        if not 1 <= size <= MAX_PAGES * PAGE:
            raise ValueError(f"size must be in 1..{MAX_PAGES * PAGE} bytes, not {size}")
        if size > _SIZES[-1]:
            return self.alloc_pages(-(-size // PAGE), owner)
        rounded = next(each for each in _SIZES if each >= size)
        partial = self._partial[rounded]
        page = next((p for p in reversed(partial) if p not in self._held), None)
        if page is None:
            page = self._new_slab(rounded)
        slab = self._slabs[page]
        address = slab.free.pop()
        slab.owners[address] = owner
        if not slab.free:
            partial.remove(page)
        self._note_reuse(address, rounded, owner)
        return address

    def kfree(self, address: int) -> None:
        """Take back what `kmalloc` returned.

        Raises:
            ValueError: if it is not in use.
        """
        page = address & ~(PAGE - 1)
        slab = self._slabs.get(page)
        if slab is None:
            self.free_pages(address)
            return
        if address not in slab.owners:
            raise ValueError(f"{address:#x} is not the address of an object in use")
        self._last[address] = slab.owners.pop(address)
        if not slab.free:
            self._partial[slab.size].append(page)
        slab.free.append(address)
        if not slab.owners:
            self._partial[slab.size].remove(page)
            del self._slabs[page], self._blocks[page]
            self._give_back(page, 0, "")  # while it is held, nobody's

    def _new_slab(self, size: int) -> int:
        page = self.alloc_pages(owner=f"kmalloc-{size}")
        addresses = range(page, page + PAGE - size + 1, size)
        self._slabs[page] = _Slab(size, free=list(reversed(addresses)))
        self._partial[size].append(page)
        return page

    # ---- who has what ------------------------------------------------------------------------

    def owner_of(self, address: int) -> str | None:
        """Return whose a byte is; None if it is free, or not of this allocator."""
        slab = self._slabs.get(address & ~(PAGE - 1))
        if slab is not None:
            start = (address % PAGE) // slab.size * slab.size
            return slab.owners.get((address & ~(PAGE - 1)) + start)
        for order in range(MAX_ORDER + 1):
            # Blocks are aligned to their size, and so is where RAM begins for most of them.
            block = self._blocks.get(address & -(PAGE << order))
            if block is not None and block[0] == order:
                return block[1]
        return None

    def hold(self, address: int, size: int) -> None:
        """Let freed memory go to its last owner only, for as long as a device may reach it.

        Of pages that are shared by small objects, nothing is given away meanwhile.

        Args:
            address: physical address.
            size: bytes.
        """
        self._held.update(_pages(address, size))

    def release(self, address: int, size: int) -> None:
        """End one `hold` of a range; what was freed meanwhile is for everybody then."""
        for page in _pages(address, size):
            self._held[page] -= 1
            if self._held[page] <= 0:
                del self._held[page]
        for (_, order), parked in self._parked.items():
            for block in parked[:]:
                if not any(page in self._held for page in _pages(block, PAGE << order)):
                    parked.remove(block)
                    self._free[order].append(block)

    def _note_reuse(self, address: int, size: int, owner: str) -> None:
        before = self._last.pop(address, owner)
        if before != owner and self._timeline is not None:
            self._timeline.add(
                EventKind.REUSE,
                "kernel",
                f"memory of {before} goes to {owner}",
                address=address,
                size=size,
            )


def _pages(address: int, size: int) -> range:
    """Return the addresses of the pages that a range touches."""
    return range(address & ~(PAGE - 1), address + size, PAGE)


def _aligned_blocks(ram: range) -> Iterator[tuple[int, int]]:
    """Yield address and order of the largest aligned blocks that make up a range."""
    address = ram.start
    while address < ram.stop:
        aligned = (address & -address or 1 << 62).bit_length() - 1 - 12
        fits = ((ram.stop - address) // PAGE).bit_length() - 1
        order = min(MAX_ORDER, aligned, fits)
        yield address, order
        address += PAGE << order
