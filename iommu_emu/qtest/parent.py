"""Ending with the process that started us."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1

__all__ = ["exit_with_parent"]


def exit_with_parent() -> None:
    """Have the kernel send us SIGTERM when the process that started us ends.

    Raises:
        OSError: if the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
