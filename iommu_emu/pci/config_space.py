"""Configuration space of a function: 4 KiB of bytes, each bit with its access kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

SIZE = 4096
STANDARD_END = 256
STATUS_CAPABILITIES = 1 << 4

__all__ = ["SIZE", "ConfigSpace"]


class ConfigSpace:
    """4 KiB of registers with write masks, and the lists of capabilities in it.

    A bit is read-only unless it is in `writable` or `clearable` (write 1 to clear). Software
    reads and writes through `read` and `write`; a model sets what it likes through `set`.
    """

    def __init__(self) -> None:
        self._data = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clearable = bytearray(SIZE)
        self._observers: list[tuple[int, int, Callable[[], None]]] = []
        self._next_standard = 0x40
        self._next_extended = 0x100
        self._last_extended = 0

    # The model's side.

    def get(self, offset: int, size: int) -> int:
        """Return `size` bytes as an integer."""
        return int.from_bytes(self._data[offset : offset + size], "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Store an integer, whatever the masks say.

        Raises:
            ValueError: if the range is not inside the 4 KiB.
        """
        if not 0 <= offset <= SIZE - size:
            raise ValueError(f"offset must be in 0..{SIZE - size:#x}, not {offset:#x}")
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, size: int, writable: int, clearable: int = 0) -> None:
        """Set the masks of `size` bytes: bits that are written, bits that a 1 clears."""
        self._writable[offset : offset + size] = writable.to_bytes(size, "little")
        self._clearable[offset : offset + size] = clearable.to_bytes(size, "little")

    def observe(self, offset: int, size: int, action: Callable[[], None]) -> None:
        """Call `action` after software has written any of `size` bytes."""
        self._observers.append((offset, size, action))

    def add_capability(self, capability: int, body: bytes, writable: bytes = b"") -> int:
        """Append a standard capability.

        Args:
            capability: its ID.
            body: what follows ID and next pointer, so from offset 2 on.
            writable: write mask of the body; shorter ones are filled up with 0.

        Returns:
            Offset of the capability, a multiple of 4.

        Raises:
            ValueError: if it does not fit in the first 256 bytes.
        """
        offset, size = self._next_standard, 2 + len(body)
        if offset + size > STANDARD_END:
            raise ValueError(
                f"capability {capability:#x} ({size} bytes) does not fit at {offset:#x}"
            )
        links = [0x34, *(at + 1 for _, at in self.capabilities())]
        self._data[links[-1]] = offset
        self._data[offset] = capability
        self._data[offset + 2 : offset + size] = body
        self._writable[offset + 2 : offset + size] = writable.ljust(len(body), b"\0")
        self._data[0x06] |= STATUS_CAPABILITIES
        self._next_standard = (offset + size + 3) & ~3
        return offset

    def add_extended_capability(
        self, capability: int, body: bytes, writable: bytes = b"", version: int = 1
    ) -> int:
        """Append an extended capability; `body` follows its 4-byte header.

        Returns:
            Offset of the capability, 100h or more.

        Raises:
            ValueError: if it does not fit in the 4 KiB.
        """
        offset, size = self._next_extended, 4 + len(body)
        if offset + size > SIZE:
            raise ValueError(
                f"capability {capability:#x} ({size} bytes) does not fit at {offset:#x}"
            )
        if self._last_extended:
            header = self.get(self._last_extended, 4) & 0xFFFFF
            self.set(self._last_extended, 4, header | offset << 20)
        self.set(offset, 4, capability | version << 16)
        self._data[offset + 4 : offset + size] = body
        self._writable[offset + 4 : offset + size] = writable.ljust(len(body), b"\0")
        self._last_extended = offset
        self._next_extended = (offset + size + 3) & ~3
        return offset

    # Software's side.

    def read(self, offset: int, size: int) -> int:
        """Read as software does; all ones unless 1, 2 or 4 aligned bytes inside are meant."""
        if not _acceptable(offset, size):
            return (1 << 8 * size) - 1 if size > 0 else 0
        return self.get(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write as software does; dropped unless 1, 2 or 4 aligned bytes inside are meant."""
        if not _acceptable(offset, size):
            return
        for index in range(offset, offset + size):
            byte = value & 0xFF
            value >>= 8
            writable = self._writable[index]
            kept = self._data[index] & ~writable & ~(byte & self._clearable[index])
            self._data[index] = kept | byte & writable
        for start, length, action in self._observers:
            if start < offset + size and offset < start + length:
                action()

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """Yield ID and offset of every standard capability, in list order."""
        offset = self._data[0x34]
        while offset:
            yield self._data[offset], offset
            offset = self._data[offset + 1]

    def extended_capabilities(self) -> Iterator[tuple[int, int]]:
        """Yield ID and offset of every extended capability, in list order."""
        offset = 0x100
        while offset >= 0x100 and self.get(offset, 4):
            header = self.get(offset, 4)
            yield header & 0xFFFF, offset
            offset = header >> 20

    def find(self, capability: int) -> int | None:
        """Return the offset of a standard capability; None if it is not there."""
        return next((at for found, at in self.capabilities() if found == capability), None)

    def find_extended(self, capability: int) -> int | None:
        """Return the offset of an extended capability; None if it is not there."""
        return next((at for found, at in self.extended_capabilities() if found == capability), None)


def _acceptable(offset: int, size: int) -> bool:
    return size in (1, 2, 4) and offset % size == 0 and 0 <= offset < SIZE
