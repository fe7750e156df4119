"""Signalling event descriptors that a client has as well, without ever blocking.

Both sides have the same open file: at any time the client may fill the counter and clear
O_NONBLOCK, so nothing that is looked at before a write(2) holds when it is carried out. The
kernel's own way to signal (eventfd_signal) never blocks, and a counter that is full stays full.
Linux AIO offers it: a completion signals the descriptor that its request names (io_submit(2),
IOCB_FLAG_RESFD).
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from contextlib import suppress
from errno import EAGAIN
from functools import cache

_COMPLETIONS = 64  # that the kernel keeps, at least, until they are taken
_PREAD = 0  # IOCB_CMD_PREAD
_SIGNAL = 1  # IOCB_FLAG_RESFD
_EVENT_SIZE = 32  # struct io_event
# io_setup, io_getevents, io_submit: the C library has no functions for them.
_SYSTEM_CALLS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}

__all__ = ["prepare", "signal_event"]


class _Request(ctypes.Structure):
    """struct iocb (linux/aio_abi.h) of a little-endian machine."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("signalled_fd", ctypes.c_uint32),
    )


class _Aio:
    """A context of Linux AIO, which lasts as long as the process.

    Raises:
        OSError: if this process cannot have one.
    """

    def __init__(self) -> None:
        numbers = _SYSTEM_CALLS.get(platform.machine())
        if numbers is None:
            raise OSError(f"system calls of {platform.machine()} are not known")
        setup, self._take, self._submit = map(ctypes.c_long, numbers)
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._context = ctypes.c_ulong(0)
        if self._call(setup, ctypes.c_long(_COMPLETIONS), ctypes.byref(self._context)):
            raise OSError(ctypes.get_errno(), "no context of Linux AIO")
        self._lock = threading.Lock()
        self._request = _Request(opcode=_PREAD, flags=_SIGNAL)
        self._one = ctypes.c_long(1)
        self._requests = (ctypes.POINTER(_Request) * 1)(ctypes.pointer(self._request))
        self._events = ctypes.create_string_buffer(_COMPLETIONS * _EVENT_SIZE)

    def signal(self, fd: int) -> bool:
        """Signal an event descriptor; False if the kernel refuses it."""
        with self._lock:
            # A read of no bytes is done at once, and an event descriptor refuses it (eventfd(2));
            # its completion signals all the same.
            self._request.fd = self._request.signalled_fd = fd
            if self._submitted():
                return True
            if ctypes.get_errno() != EAGAIN:
                return False
            many = ctypes.c_long(_COMPLETIONS)
            self._call(self._take, self._context, ctypes.c_long(0), many, self._events, None)
            return self._submitted()

    def _submitted(self) -> bool:
        submitted: int = self._call(self._submit, self._context, self._one, self._requests)
        return submitted == 1


@cache
def _aio(process: int) -> _Aio | None:
    """Return a process's context (a child has none of its parent's); None if it has none."""
    try:
        return _Aio()
    except OSError:
        return None


def prepare() -> None:
    """Get what `signal_event` needs while it can be had."""
    _aio(os.getpid())


def signal_event(fd: int) -> None:
    """Add 1 to the counter of an event descriptor; one that is full stays full.

    Where Linux AIO may not be used (a seccomp filter, fs.aio-max-nr, Linux before 5.8), this sets
    O_NONBLOCK and writes: then a client that clears it in the instant between, with a full
    counter, stops us until it reads.
    """
    aio = _aio(os.getpid())
    if aio is None or not aio.signal(fd):
        os.set_blocking(fd, False)
        with suppress(BlockingIOError):
            os.eventfd_write(fd, 1)
