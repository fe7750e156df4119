"""What stops a host for good, whichever operating system runs."""

from __future__ import annotations

__all__ = ["HungError"]


class HungError(Exception):
    """A CPU waits for ever, and with it whoever needs the same lock: the host is lost.

    Raised where virtual time passes.
    """
