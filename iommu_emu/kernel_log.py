"""The log of an operating system's kernel: what an administrator gets to see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iommu_emu.timeline import EventKind, Timeline

__all__ = ["KernelLog", "LogLine"]


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line.

    Attributes:
        time: virtual time, ns.
        text: what it says.
    """

    time: int
    text: str

    def __str__(self) -> str:
        """Return the line as dmesg prints it."""
        return f"[{self.time // 10**9:5d}.{self.time // 1000 % 10**6:06d}] {self.text}"


class KernelLog:
    """A kernel's log; every line is on the timeline as well.

    Args:
        timeline: where it is noted.
        lane: whose log it is there, for example "Linux".
    """

    def __init__(self, timeline: Timeline, lane: str = "kernel") -> None:
        self.lines: list[LogLine] = []
        self._timeline = timeline
        self._lane = lane

    def __iter__(self) -> Iterator[LogLine]:
        return iter(self.lines)

    def write(self, text: str) -> None:
        """Log a line, now."""
        self._timeline.add(EventKind.LOG, self._lane, text)
        self.lines.append(LogLine(self._timeline.now, text))
