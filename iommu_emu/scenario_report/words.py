"""Outcomes, windows and numbers as people read them."""

from __future__ import annotations

from iommu_emu.clock import MICROSECOND, MILLISECOND, SECOND
from iommu_emu.scenarios.result import FOREVER, Row

__all__ = ["VENDORS", "duration", "outcome_words", "window_words"]

VENDORS = {"vtd": "VT-d", "amdvi": "AMD-Vi"}
_UNITS = ((SECOND, "s"), (MILLISECOND, "ms"), (MICROSECOND, "µs"))


def duration(time: float) -> str:
    """Return a time in ns with three digits, and the unit that fits."""
    for size, unit in _UNITS:
        if time >= size:
            return f"{time / size:.3g} {unit}"
    return f"{time:.3g} ns"


def window_words(window: int) -> str:
    """Return how long a window was, ns or `FOREVER`."""
    if window == FOREVER:
        return "forever"
    return duration(window) if window else "none"


def outcome_words(row: Row) -> str:
    """Return what an attack got."""
    outcome = row.outcome
    if outcome.hung:
        return "host hung"
    parts = [
        f"{count} B {what}"
        for count, what in ((outcome.leaked, "leaked"), (outcome.corrupted, "corrupted"))
        if count
    ]
    return ", ".join(parts) or ("refused" if row.refused else "blocked")
