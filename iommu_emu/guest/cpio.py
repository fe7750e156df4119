"""Archives in cpio's "newc" format, which the kernel unpacks as its first file system."""

from __future__ import annotations

import stat

__all__ = ["Archive"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


class Archive:
    """An archive in the making. The same calls make the same bytes: there are no times in it.

    Directories above a file are added by themselves.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._directories: set[str] = set()
        self._entries = 0

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file.

        Args:
            path: where it goes, with or without a leading slash.
            data: its content.
            mode: permission bits.

        Raises:
            ValueError: if the path is empty, or the data larger than 4 GiB.
        """
        if len(data) >= 1 << 32:
            raise ValueError(f"data of {path} must be below 4 GiB, not {len(data)} bytes")
        self._add(self._prepare(path), stat.S_IFREG | mode, data)

    def add_directory(self, path: str) -> None:
        """Add a directory, once."""
        name = self._prepare(path)
        if name not in self._directories:
            self._directories.add(name)
            self._add(name, stat.S_IFDIR | 0o755)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`."""
        self._add(self._prepare(path), stat.S_IFLNK | 0o777, target.encode())

    def add_character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device: /dev/console has to be there before anything is mounted."""
        self._add(self._prepare(path), stat.S_IFCHR | 0o600, device=(major, minor))

    def build(self) -> bytes:
        """Return the archive, with its trailer."""
        return b"".join([*self._parts, _entry(0, _TRAILER, 0, b"", (0, 0))])

    def _prepare(self, path: str) -> str:
        name = path.strip("/")
        if not name:
            raise ValueError("path must name something, not the root")
        parent = name.rpartition("/")[0]
        if parent:
            self.add_directory(parent)
        return name

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._entries += 1
        self._parts.append(_entry(self._entries, name, mode, data, device))


def _entry(inode: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    """Return one entry: 13 fields of 8 hexadecimal digits, name and data padded to 4 bytes."""
    text = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(text), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + text) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
