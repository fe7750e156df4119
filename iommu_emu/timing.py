"""Latencies of an IOMMU's invalidation machine."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LATENCY = 10**12  # ns: longer than any real invalidation by nine orders of magnitude

__all__ = ["IMMEDIATE", "MANUAL", "Timing"]


@dataclass(frozen=True)
class Timing:
    """How long a queued or register-based invalidation takes.

    With every latency 0 an invalidation completes inside the doorbell write. In manual timing
    nothing moves but by `Unit.step()`: submitted, in progress, complete.

    Attributes:
        command: fetch and decode of one descriptor or command, ns in 0..10**12.
        invalidation: one invalidation, ns in 0..10**12.
        wait: one wait descriptor or COMPLETION_WAIT, ns in 0..10**12.
        manual: nothing moves by itself.

    Raises:
        ValueError: if a latency is outside its range.
    """

    command: int = 0
    invalidation: int = 0
    wait: int = 0
    manual: bool = False

    def __post_init__(self) -> None:
        for name in ("command", "invalidation", "wait"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_LATENCY:
                raise ValueError(f"{name} must be in 0..{MAX_LATENCY} ns, not {value}")

    def parameters(self) -> dict[str, int]:
        """Return the values of `struct iemu_timing`."""
        return {
            "command": self.command,
            "invalidation": self.invalidation,
            "wait": self.wait,
            "manual": self.manual,
        }


IMMEDIATE = Timing()
MANUAL = Timing(manual=True)
