"""File descriptors that clients send: which ones are taken, and how the others are closed."""

from __future__ import annotations

import fcntl
import os
import threading
from queue import SimpleQueue

__all__ = ["discard", "is_event", "is_memory"]


def is_event(fd: int) -> bool:
    """Whether it is an event descriptor: writing to anything else might block or destroy."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False


def is_memory(fd: int) -> bool:
    """Whether it is a file in memory, which has seals (memfd_create(2)); any other may block."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


class _Closer:
    """Closes descriptors in a thread of its own: of a client's file system, that may never end."""

    def __init__(self) -> None:
        self._fds: SimpleQueue[int] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self, fd: int) -> None:
        if self._thread is None or not self._thread.is_alive():  # a child process has none
            self._thread = threading.Thread(target=self._run, name="closer", daemon=True)
            self._thread.start()
        self._fds.put(fd)

    def _run(self) -> None:
        while True:
            os.close(self._fds.get())


_closer = _Closer()


def discard(fd: int) -> None:
    """Close a descriptor of any kind without waiting for it."""
    _closer.close(fd)
