"""What a namespace is stored in: RAM, or a file."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path

PAGE = 4096  # what the host takes back
BLOCK_SIZES = (512, 4096)
_ZEROES = bytes(1 << 20)
_NO_RESERVE = 0x4000  # MAP_NORESERVE, which Python's mmap does not name

__all__ = ["BLOCK_SIZES", "PAGE", "FileMedium", "Medium", "RamMedium"]


class Medium(ABC):
    """Blocks of bytes; offsets and lengths that reach it have been checked.

    Args:
        size: bytes, a multiple of the block size.
        block_size: 512 or 4096 bytes.
        read_only: refuse writes: the namespace is write protected.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(self, size: int, block_size: int, read_only: bool) -> None:
        if block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size must be 512 or 4096, not {block_size}")
        if size <= 0 or size % block_size:
            raise ValueError(
                f"size must be a multiple of the block size of {block_size} bytes, "
                f"and more than 0, not {size}"
            )
        self.size = size
        self.block_size = block_size
        self.read_only = read_only

    def __repr__(self) -> str:
        access = ", read-only" if self.read_only else ""
        return f"<{type(self).__name__} of {self.size} bytes, blocks of {self.block_size}{access}>"

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.size // self.block_size

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return bytes.

        Raises:
            OSError: if they cannot be read.
        """

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Store bytes.

        Raises:
            OSError: if they cannot be stored.
        """

    @abstractmethod
    def discard(self, offset: int, length: int) -> bool:
        """Give whole pages of 4 KiB back to the host, so that they read 0.

        Returns:
            Whether that was possible; nothing has changed if not.
        """

    @abstractmethod
    def flush(self) -> None:
        """Make what was written survive a power loss.

        Raises:
            OSError: if that is not possible.
        """

    def deallocate(self, offset: int, length: int) -> None:
        """Give back the whole pages in a range; what shares a page with others stays."""
        start = -(-offset // PAGE) * PAGE
        end = (offset + length) // PAGE * PAGE
        if start < end:
            self.discard(start, end - start)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read 0.

        Raises:
            OSError: if that is not possible.
        """
        start = -(-offset // PAGE) * PAGE
        end = (offset + length) // PAGE * PAGE
        if start < end and self.discard(start, end - start):
            self._write_zeroes(offset, start)
            self._write_zeroes(end, offset + length)
        else:
            self._write_zeroes(offset, offset + length)

    def _write_zeroes(self, offset: int, end: int) -> None:
        while offset < end:
            length = min(len(_ZEROES), end - offset)
            self.write(offset, _ZEROES[:length])
            offset += length


class RamMedium(Medium):
    """Blocks in RAM, all 0 at first; the host's memory is taken when they are written.

    Args:
        size: bytes, a multiple of the block size.
        block_size: 512 or 4096 bytes.
        read_only: refuse a guest's writes; `write` fills it all the same.

    Raises:
        ValueError: if an argument is outside its range.
        MemoryError: if the host cannot address so much.
    """

    def __init__(self, size: int, *, block_size: int = 512, read_only: bool = False) -> None:
        super().__init__(size, block_size, read_only)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        try:
            self._map = mmap.mmap(-1, size, flags=flags)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no room for a medium of {size} bytes") from error

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes."""
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        self._map[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> bool:
        """Give pages back; private anonymous memory reads 0 afterwards."""
        self._map.madvise(mmap.MADV_DONTNEED, offset, length)
        return True

    def flush(self) -> None:
        """Do nothing: RAM does not survive anyway."""


class FileMedium(Medium):
    """Blocks in a file, whose size decides how many; use it in a `with`, or close it.

    Data goes through pread and pwrite, not through a mapping: a file that somebody cuts short is
    then a media error for the guest, and no fault of this process.

    Args:
        path: a regular file, or a block device.
        block_size: 512 or 4096 bytes.
        read_only: open it for reading only.

    Raises:
        OSError: if it cannot be opened, or another medium writes to it (flock(2)).
        ValueError: if it is no such file, or its size no multiple of the block size.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, block_size: int = 512, read_only: bool = False
    ) -> None:
        self.path = Path(path)
        mode = os.stat(self.path).st_mode  # before opening: that of a FIFO waits for its peer
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ValueError(f"{self.path} must be a regular file or a block device")
        # Open until `close`.
        self._file = open(self.path, "rb" if read_only else "r+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_NB | (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX))
            size = self._file.seek(0, os.SEEK_END)
            super().__init__(size, block_size, read_only)
        except OSError as error:
            self._file.close()
            held = isinstance(error, BlockingIOError)
            reason = "somebody else has it open" if held else error.strerror
            raise OSError(error.errno, reason, str(self.path)) from None
        except ValueError as error:
            self._file.close()
            raise ValueError(f"{self.path}: {error}") from None
        # For nothing but punching holes, which needs an address.
        self._map = None if read_only else mmap.mmap(self._file.fileno(), size)

    def __enter__(self) -> FileMedium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a guest that goes on gets media errors."""
        if self._map is not None:
            self._map.close()
        self._file.close()

    def _descriptor(self) -> int:
        if self._file.closed:
            raise OSError(f"{self.path} is closed")
        return self._file.fileno()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes."""
        data = os.pread(self._descriptor(), length, offset)
        if len(data) < length:
            raise OSError(f"{self.path} ends before {offset + length:#x}")
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        if os.pwrite(self._descriptor(), data, offset) < len(data):
            raise OSError(f"{self.path} takes no more at {offset:#x}")

    def discard(self, offset: int, length: int) -> bool:
        """Punch a hole, where the file system can."""
        if self._map is None or self._map.closed:
            return False
        try:
            self._map.madvise(mmap.MADV_REMOVE, offset, length)
        except OSError:
            return False
        return True

    def flush(self) -> None:
        """Wait until the host has written everything."""
        os.fsync(self._descriptor())
