"""Where functions' BARs are decoded in physical memory, and how accesses reach them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iommu_emu.core import CoreMachine, FullError, Message
from iommu_emu.memory import PhysicalMemory
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Fabric
from iommu_emu.unit import Unit

LOW_BARS = range(0xE000_0000, 0xFEC0_0000)  # below the I/O APICs
HIGH_BARS = range(1 << 37, 1 << 38)  # for 64-bit BARs that do not fit below
_LARGE_BAR = 64 << 20

__all__ = ["BarWindows", "aligned_pieces"]


class BarWindows:
    """The BAR windows of one machine.

    Args:
        core: the machine's handle on the C core.
        memory: where the windows are.
        fabric: the functions there are.
        units: the IOMMUs there are; their registers are no place for a BAR.
    """

    def __init__(
        self, core: CoreMachine, memory: PhysicalMemory, fabric: Fabric, units: Sequence[Unit]
    ) -> None:
        self._core = core
        self._memory = memory
        self._fabric = fabric
        self._units = units
        self._windows: dict[int, tuple[Function, int, int]] = {}  # base: function, BAR, owner
        self._owners: dict[int, tuple[Function, int, int]] = {}  # owner: function, BAR, base
        self._last_owner = 0

    def __repr__(self) -> str:
        windows = ", ".join(
            f"{base:#x} BAR {index} of {function.name}"
            for base, (function, index, _) in sorted(self._windows.items())
        )
        return f"<BarWindows {windows or 'empty'}>"

    def place(self, function: Function) -> None:
        """Give the function's BARs addresses, as firmware does; those that have one keep it.

        Raises:
            FullError: if there is no room.
        """
        for index, bar in function.bars.items():
            if function.bar_address(index):
                continue
            large = bar.wide and bar.size > _LARGE_BAR
            within = HIGH_BARS if large else LOW_BARS
            function.place_bar(index, self._free_range(bar.size, within, function))

    def _free_range(self, size: int, within: range, new: Function) -> int:
        """Return where `size` bytes are free of memory, registers and BARs, those of `new` too."""
        taken = [(base, base + size) for base, size in self._memory.ranges]
        taken += [(unit.base, unit.base + unit.window) for unit in self._units]
        for function in (*self._fabric.functions(), new):
            for index, bar in function.bars.items():
                address = function.bar_address(index)
                taken.append((address, address + bar.size))
        address = -(-within.start // size) * size
        for start, end in sorted(taken):
            if start < address + size and address < end:
                address = -(-end // size) * size
        if address + size > within.stop:
            raise FullError(f"no room for a BAR of {size:#x} bytes in {within}")
        return address

    def follow(self, function: Function) -> bool:
        """Let the windows follow a function's configuration; return whether any changed.

        A BAR that software put over RAM, registers or another BAR is not decoded.
        """
        before = dict(self._windows)
        wanted = {address: index for index, address in function.decoded_bars().items()}
        mine = {base: w for base, w in self._windows.items() if w[0] is function}
        for base, (_, index, owner) in mine.items():
            if wanted.get(base) == index:
                del wanted[base]
            else:
                self._memory.unmap_window(base)
                del self._windows[base], self._owners[owner]
        for base, index in wanted.items():
            owner = self._last_owner + 1
            try:
                self._memory.map_window(base, function.bars[index].size, owner)
            except (ValueError, FullError):
                continue
            self._last_owner = owner
            self._windows[base] = (function, index, owner)
            self._owners[owner] = (function, index, base)
        return self._windows != before

    def by_function(self) -> dict[Function, list[tuple[int, int]]]:
        """Return base and size of the windows of each function that has any."""
        found: dict[Function, list[tuple[int, int]]] = {}
        for base, (function, index, _) in sorted(self._windows.items()):
            found.setdefault(function, []).append((base, function.bars[index].size))
        return found

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Base and size of every window."""
        return [
            (base, function.bars[index].size)
            for base, (function, index, _) in self._windows.items()
        ]

    def at(self, address: int, size: int) -> tuple[Function, int, int] | None:
        """Return function, BAR and base of the window that holds all of a range, or None."""
        for base, (function, index, _) in self._windows.items():
            if base <= address and address + size <= base + function.bars[index].size:
                return function, index, base
        return None

    def write(self, message: Message) -> None:
        """Carry out a device's write to a BAR; dropped if it was unmapped since it was sent."""
        window = self._owners.get(message.owner)
        if window is None:
            return
        function, index, base = window
        at = message.address - base
        for start, size in aligned_pieces(at, message.size):
            value = int.from_bytes(message.data[start - at : start - at + size], "little")
            function.access_write(index, start, size, value)

    def read(self, message: Message) -> bytes | None:
        """Carry out a device's read of a BAR; None if it was unmapped since it was sent."""
        window = self._owners.get(message.owner)
        if window is None:
            return None
        function, index, base = window
        at = message.address - base
        return b"".join(
            function.access_read(index, start, size).to_bytes(size, "little")
            for start, size in aligned_pieces(at, message.size)
        )


def aligned_pieces(offset: int, length: int, largest: int = 8) -> Iterator[tuple[int, int]]:
    """Split an access into naturally aligned ones of powers of two up to `largest` bytes.

    Yields:
        Offset and size of each.
    """
    end = offset + length
    while offset < end:
        size = largest
        while offset % size or offset + size > end:
            size //= 2
        yield offset, size
        offset += size
