"""RAM of the core, and numpy views of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iommu_emu._core import ffi, lib
from iommu_emu.core.errors import check


class Region:
    """RAM between guard pages.

    Args:
        size: bytes, a multiple of 4096, at least 4096.
        fd: file that is mapped shared and sealed against shrinking; -1: private zeroed memory.
        offset: first byte of the file, a multiple of 4096.

    Raises:
        ValueError: if size or offset is outside its range.
        UnsealedError: if the file can still shrink.
        MemoryError: if the host has no memory left.
    """

    def __init__(self, size: int, fd: int = -1, offset: int = 0) -> None:
        if size < 4096 or size % 4096:
            raise ValueError(f"size must be a multiple of 4096, at least 4096, not {size:#x}")
        if offset < 0 or offset % 4096:
            raise ValueError(f"offset must be a multiple of 4096, not {offset:#x}")
        error = ffi.new("int *")
        handle = lib.iemu_region_create(size, fd, offset, error)
        if not handle:
            check(error[0], f"region of {size:#x} bytes")
        self.size = size
        self.handle = ffi.gc(handle, lib.iemu_region_release)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The memory as bytes; the view keeps the region alive."""
        host = ffi.cast("uint8_t *", lib.iemu_region_host(self.handle))
        # The destructor of this pointer does nothing: it is there to hold the region's handle.
        owner = ffi.gc(host, _Keep(self.handle), size=0)
        return np.frombuffer(ffi.buffer(owner, self.size), dtype=np.uint8)


class _Keep:
    """A destructor that does nothing but hold what must live as long."""

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def __call__(self, _: object) -> None:
        pass
