"""A guest's console, read line by line: what its kernel says, and what our check says in between.

Everything that a guest prints is hostile: lines are cut at a length, and only a bounded number of
them is kept.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from iommu_emu.core import Access

T = TypeVar("T")

__all__ = ["Check", "Console", "KernelFault", "Line", "parse_fault"]

MAX_LINE = 1000  # characters; the kernel's own records are shorter
MAX_LINES = 20_000  # of a whole run
MAX_FACTS = 1000  # of each kind

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()].|[c=>])|[^\x20-\x7e]")
_STAMP = re.compile(r"^\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? (.*)$")
# Linux before 5.18 says PASID ffffffff after the requester, and leaves out the 0x of the numbers;
# from 6.16 or so on, the requester has its segment.
_FAULT = re.compile(
    r"DMAR: \[(?P<kind>DMA (?:Read|Write)|INTR-REMAP)[^]]*\] Request device "
    r"\[(?:[0-9a-f]{4,8}:)?(?P<bus>[0-9a-f]{2}):(?P<device>[0-9a-f]{2})\.(?P<function>[0-7])\]"
    r"(?: PASID [0-9a-f]+)? fault (?:addr|index) (?:0x)?(?P<address>[0-9a-f]{1,16}) "
    r"\[fault reason (?:0x)?(?P<reason>[0-9a-f]{1,2})\] ?(?P<text>.*)"
)
# What a healthy guest never prints.
_TROUBLE = re.compile(
    r"\bWARNING: |\bBUG: |\bOops\b|Kernel panic|general protection fault|blocked for more than|"
    r"detected stall|soft lockup|hard LOCKUP|unable to handle|refcount_t:|list_(?:add|del) corrup|"
    r"nvme .*(?:timeout|controller is down|Abort status|Device not ready)|I/O error, dev nvme|"
    r"DMAR: .*(?:[Ee]rror|failed|VT-d detected)|irq \d+: nobody cared|__common_interrupt: "
)


@dataclass(frozen=True)
class Line:
    """One line of the console.

    Attributes:
        text: without the kernel's time stamp.
        time: seconds since the kernel started, as it says itself; None: not from the kernel.
    """

    text: str
    time: float | None = None


@dataclass(frozen=True)
class Check:
    """A result of the check inside the guest.

    Attributes:
        name: which check.
        ok: whether what was expected happened.
        detail: what happened.
    """

    name: str
    ok: bool
    detail: str

    def value(self, key: str) -> str | None:
        """Return the value of a word KEY=VALUE in the detail."""
        for word in self.detail.split():
            name, equals, value = word.partition("=")
            if equals and name == key:
                return value
        return None


@dataclass(frozen=True)
class KernelFault:
    """A DMA fault as the guest's kernel reports it.

    Attributes:
        access: READ or WRITE; NONE for an interrupt that was refused.
        requester: requester ID.
        address: of the page, as the fault record has it; of an interrupt: its index.
        reason: the architectural fault reason (VT-d 8.2).
        text: the whole line.
    """

    access: Access
    requester: int
    address: int
    reason: int
    text: str


def parse_fault(text: str) -> KernelFault | None:
    """Return the fault that a line of Linux's Intel driver reports; None: it reports none."""
    found = _FAULT.search(text)
    if found is None:
        return None
    kinds = {"DMA Read": Access.READ, "DMA Write": Access.WRITE}
    bus, device = int(found["bus"], 16), int(found["device"], 16)
    return KernelFault(
        access=kinds.get(found["kind"], Access.NONE),
        requester=bus << 8 | (device & 31) << 3 | int(found["function"]),
        address=int(found["address"], 16),
        reason=int(found["reason"], 16),
        text=text,
    )


@dataclass
class Console:
    """What a guest has printed so far.

    Attributes:
        lines: the last lines.
        checks: results, in order.
        skipped: (what, why) could not be tried.
        phases: names of the phases of the check that began.
        facts: (name, value) for the report.
        asked: what the guest wants the host to do, and the host has not taken yet.
        faults: DMA faults that the kernel reported.
        trouble: lines that a healthy guest does not print.
        ended: whether the check came to its end.
    """

    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=MAX_LINES))
    checks: list[Check] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    asked: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_FACTS))
    faults: list[KernelFault] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    ended: bool = False
    _rest: bytes = b""

    def feed(self, data: bytes) -> Iterator[Line]:
        """Take what the console printed; yield each line that is complete now."""
        *complete, rest = (self._rest + data).split(b"\n")
        if len(rest) > MAX_LINE:
            complete.append(rest)
            rest = b""
        self._rest = rest
        for raw in complete:
            line = _line(raw)
            if line.text:
                self.lines.append(line)
                self._understand(line)
                yield line

    def fact(self, name: str) -> str | None:
        """Return the first value of a fact."""
        return next((value for key, value in self.facts if key == name), None)

    def find(self, *words: str) -> list[str]:
        """Return the kernel's lines that contain one of the words."""
        return [line.text for line in self.lines if any(word in line.text for word in words)]

    def _understand(self, line: Line) -> None:
        if line.text.startswith("IEMU "):
            self._take(line.text.split(" ", 3)[1:])
            return
        fault = parse_fault(line.text)
        if fault is not None:
            _keep(self.faults, fault)
        elif _TROUBLE.search(line.text):
            _keep(self.trouble, line.text)

    def _take(self, words: list[str]) -> None:
        kind, name, rest = (*words, "", "")[:3]
        if kind == "check":
            verdict, _, detail = rest.partition(" ")
            _keep(self.checks, Check(name, verdict == "ok", detail))
        elif kind == "fact":
            _keep(self.facts, (name, rest))
        elif kind == "skip":
            _keep(self.skipped, (name, rest))
        elif kind == "phase":
            _keep(self.phases, name)
        elif kind == "ask":
            self.asked.append(f"{name} {rest}".strip())
        elif kind == "end":
            self.ended = True


def _keep(items: list[T], item: T) -> None:
    if len(items) < MAX_FACTS:
        items.append(item)


def _line(raw: bytes) -> Line:
    text = _ESCAPES.sub("", raw[:MAX_LINE].decode("latin-1")).strip()
    found = _STAMP.match(text)
    return Line(text) if found is None else Line(found[2], float(found[1]))
