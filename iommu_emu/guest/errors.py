"""What can go wrong with a live guest, as the user is told."""

from __future__ import annotations

__all__ = ["GuestError", "GuestTimeoutError", "MissingDriverError"]


class GuestError(Exception):
    """A guest cannot be started, or did not come to its end; the message says what to do."""


class MissingDriverError(GuestError):
    """A kernel has a driver neither built in nor among its modules."""


class GuestTimeoutError(GuestError):
    """A guest did not come as far as it should have in the time it had."""
