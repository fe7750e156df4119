"""Physical memory of a machine: RAM that Python sees as bytes, integers and numpy arrays."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from iommu_emu.core import BytesLike, CoreMachine, NotRamError, Region, require_range

PAGE = 4096

__all__ = ["PAGE", "PhysicalMemory"]


class PhysicalMemory:
    """RAM and BAR windows of one machine, at their physical addresses.

    Integers are little endian and may lie at any address. Every access is to RAM: registers and
    BARs are reached through `Machine.mmio_read` and `mmio_write`.

    Args:
        core: the machine's handle on the C core.
    """

    def __init__(self, core: CoreMachine) -> None:
        self._core = core
        self._regions: dict[int, Region] = {}
        self._bases: list[int] = []

    def __repr__(self) -> str:
        ranges = ", ".join(f"{base:#x}..{base + size - 1:#x}" for base, size in self.ranges)
        return f"<PhysicalMemory {ranges or 'empty'}>"

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """Base and size of every piece of RAM, ascending."""
        return [(base, self._regions[base].size) for base in self._bases]

    @property
    def size(self) -> int:
        """Bytes of RAM."""
        return sum(region.size for region in self._regions.values())

    def add_ram(self, base: int, size: int) -> Region:
        """Place zeroed RAM.

        Args:
            base: physical address, a multiple of 4096.
            size: bytes, a multiple of 4096.

        Raises:
            ValueError: if base or size is no multiple of 4096.
            OverlapError: if something is there.
        """
        return self._add(base, Region(size))

    def add_shared(self, base: int, fd: int, size: int, offset: int = 0) -> Region:
        """Place a file as RAM, shared with whoever else maps it.

        Args:
            base: physical address, a multiple of 4096.
            fd: file descriptor, sealed against shrinking (F_SEAL_SHRINK).
            size: bytes, a multiple of 4096.
            offset: first byte in the file, a multiple of 4096.

        Raises:
            ValueError: if a number is no multiple of 4096.
            OverlapError: if something is there.
            UnsealedError: if the file can still shrink.
        """
        require_range("fd", fd, (1 << 31) - 1)
        return self._add(base, Region(size, fd, offset))

    def _add(self, base: int, region: Region) -> Region:
        if base % PAGE:
            raise ValueError(f"base must be a multiple of {PAGE}, not {base:#x}")
        self._core.map(base, region)
        self._regions[base] = region
        self._bases = sorted(self._regions)
        return region

    def remove(self, base: int) -> Region:
        """Remove the RAM that starts at `base`; views of it stay valid, but nobody writes there.

        Returns:
            The region: it lives as long as it, or a view of it, is referenced.

        Raises:
            ValueError: if no RAM starts there.
        """
        if base not in self._regions:
            raise ValueError(f"base must be the start of RAM ({self!r}), not {base:#x}")
        self._core.unmap(base)
        self._bases.remove(base)
        return self._regions.pop(base)

    def view(self, address: int, length: int) -> NDArray[np.uint8]:
        """Return RAM as an array, without a copy: writes to it are writes to RAM.

        Args:
            address: physical address.
            length: bytes, 1 or more; the range lies inside one region.

        Raises:
            NotRamError: if it does not.
        """
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and length > 0:
            base = self._bases[index]
            region = self._regions[base]
            if address + length <= base + region.size:
                return region.array[address - base : address - base + length]
        raise NotRamError(f"range {address:#x}+{length:#x} is not inside one region of {self!r}")

    def read(self, address: int, length: int) -> bytes:
        """Read bytes.

        Raises:
            NotRamError: if any byte is not RAM.
        """
        if length > self.size:
            raise NotRamError(f"length must be at most {self.size:#x}, not {length:#x}")
        return self._core.read(address, length)

    def write(self, address: int, data: BytesLike) -> None:
        """Write bytes, all or nothing.

        Raises:
            NotRamError: if any byte is not RAM.
        """
        self._core.write(address, data)

    def read_u8(self, address: int) -> int:
        """Read one byte."""
        return self._core.read(address, 1)[0]

    def read_u16(self, address: int) -> int:
        """Read a 16-bit integer."""
        return int.from_bytes(self._core.read(address, 2), "little")

    def read_u32(self, address: int) -> int:
        """Read a 32-bit integer."""
        return int.from_bytes(self._core.read(address, 4), "little")

    def read_u64(self, address: int) -> int:
        """Read a 64-bit integer."""
        return int.from_bytes(self._core.read(address, 8), "little")

    def write_u8(self, address: int, value: int) -> None:
        """Write one byte."""
        self._write(address, value, 1)

    def write_u16(self, address: int, value: int) -> None:
        """Write a 16-bit integer."""
        self._write(address, value, 2)

    def write_u32(self, address: int, value: int) -> None:
        """Write a 32-bit integer."""
        self._write(address, value, 4)

    def write_u64(self, address: int, value: int) -> None:
        """Write a 64-bit integer."""
        self._write(address, value, 8)

    def _write(self, address: int, value: int, size: int) -> None:
        require_range("value", value, (1 << 8 * size) - 1)
        self._core.write(address, value.to_bytes(size, "little"))

    def map_window(self, base: int, size: int, owner: int) -> None:
        """Place a BAR window; accesses of devices to it go to the outbox with `owner`.

        Raises:
            OverlapError: if something is there.
        """
        self._core.map_bar(base, size, owner)

    def unmap_window(self, base: int) -> None:
        """Remove the BAR window that starts at `base`.

        Raises:
            ValueError: if RAM starts there, or nothing does.
        """
        if base in self._regions:
            raise ValueError(f"base {base:#x} is RAM, not a BAR window")
        self._core.unmap(base)
