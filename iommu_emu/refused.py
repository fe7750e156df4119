"""What an operating system answers when it will not do something."""

from __future__ import annotations

__all__ = ["RefusedError"]


class RefusedError(Exception):
    """The kernel refuses; whatever was asked for has not happened, not even in part.

    Args:
        error: name of the error number, for example "EBUSY".
        reason: why, for people.
        log: the line in the kernel's log; "" where the kernel returns the number alone.
    """

    def __init__(self, error: str, reason: str, log: str = "") -> None:
        super().__init__(f"-{error}: {reason}")
        self.error = error
        self.reason = reason
        self.log = log
