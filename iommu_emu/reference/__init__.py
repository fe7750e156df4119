"""Reference walkers: slow, uncached, plain Python, written from the specification.

They are the oracle that the C core is tested against; they share with it the memory structures
and what a request looks like, and nothing else. A walk is cut into the steps whose results a
cache can remember (a vendor's `Context`, `Node`, `Leaf`, `Failure`), so that `oracle` can
recombine them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from iommu_emu.core import Access, Attribute, Outcome, Request, Result

__all__ = [
    "INTERRUPT_BASE",
    "INTERRUPT_LAST",
    "LEVEL_CONTEXT",
    "LEVEL_ROOT",
    "READ_WRITE",
    "Answer",
    "Context",
    "Failure",
    "Leaf",
    "MemoryRead",
    "Node",
    "Visit",
    "Walker",
    "ats_range",
    "in_interrupt_range",
    "nothing",
    "pass_through",
]

MemoryRead = Callable[[int, int], "bytes | None"]
"""Reads `length` bytes at a physical address; None if any of them is not RAM."""

LEVEL_CONTEXT = 16
LEVEL_ROOT = 17
INTERRUPT_BASE = 0xFEE0_0000
INTERRUPT_LAST = 0xFEEF_FFFF
READ_WRITE = Access.READ | Access.WRITE


@dataclass(frozen=True)
class Visit:
    """One table entry that a walk read: its level, physical address and value."""

    level: int
    address: int
    value: int


@dataclass(frozen=True)
class Failure:
    """Why a request is not served.

    Attributes:
        code: architectural code; 0 if none is ever recorded.
        name: short name: VT-d's of the exact cause, AMD-Vi's of the event.
        qualified: suppressed by the device's fault-processing-disable (VT-d FPD, AMD-Vi SA).
        suppressed: the entry that failed has that bit set itself.
        flags: AMD-Vi: bits 59:48 of the event, without those of the request (AMD-Vi 10.1).
        address: AMD-Vi: physical address to report instead of the request's, or None.
        detail: AMD-Vi: the exact cause.
        domain: VT-d: tag of the context entry that failed, where caching mode lets it be cached.
    """

    code: int
    name: str
    qualified: bool = True
    suppressed: bool = False
    flags: int = 0
    address: int | None = None
    detail: str = ""
    domain: int = 0


@dataclass(frozen=True)
class Answer:
    """What becomes of a request.

    Attributes:
        outcome: where it goes.
        address: physical address if it goes to memory; an interrupt message's own address.
        page_shift: log2 of the bytes that share the translation; 0 if nothing was translated.
        permissions: effective over the whole walk.
        domain: domain ID of the context entry, 0 if none was used.
        snoop: the leaf forces snooping.
        untranslated: to a translation request: the device has to use untranslated requests (U).
        failure: why it is not served, or None.
        recorded: the fault is to be recorded.
        visited: entries that were read, in order; not part of comparisons.
    """

    outcome: Outcome
    address: int = 0
    page_shift: int = 0
    permissions: Access = Access.NONE
    domain: int = 0
    snoop: bool = False
    untranslated: bool = False
    failure: Failure | None = None
    recorded: bool = False
    visited: tuple[Visit, ...] = field(default=(), compare=False, repr=False)

    @property
    def fault(self) -> int:
        """Architectural fault code, 0 for none."""
        return self.failure.code if self.failure else 0

    @property
    def name(self) -> str:
        """Short name of the exact cause, empty for none."""
        return self.failure.name if self.failure else ""

    def differences(self, result: Result) -> list[str]:
        """Return in what a unit's result differs; empty if it is this answer.

        Whether a fault was recorded is compared as if there was room for the record.
        """
        expected: dict[str, object] = {
            "outcome": self.outcome,
            "fault": self.fault,
            "name": self.name,
            "recorded": self.recorded,
        }
        found: dict[str, object] = {
            "outcome": result.outcome,
            "fault": result.fault,
            "name": result.cause.name if result.cause else "",
            "recorded": result.recorded,
        }
        if self.outcome in (Outcome.MEMORY, Outcome.INTERRUPT):
            expected["address"], found["address"] = hex(self.address), hex(result.address)
        if self.outcome is Outcome.MEMORY and self.page_shift:
            for name in ("page_shift", "permissions", "domain"):
                expected[name], found[name] = getattr(self, name), getattr(result, name)
            expected["snoop"] = self.snoop
            found["snoop"] = bool(result.attributes & Attribute.SNOOP)
            expected["untranslated"] = self.untranslated
            found["untranslated"] = bool(result.attributes & Attribute.UNTRANSLATED_ONLY)
        return [
            f"{name}: {value!r} expected, {found[name]!r} found"
            for name, value in expected.items()
            if value != found[name]
        ]


@dataclass(frozen=True)
class Node:
    """A table on the way down: what a paging-structure cache remembers.

    Attributes:
        level: level of the entries in the table; 1 holds 4 KiB leaves.
        table: its physical address.
        permissions: accumulated over the entries above it.
        top: no entry was read yet.
    """

    level: int
    table: int
    permissions: Access
    top: bool = False


@dataclass(frozen=True)
class Leaf:
    """A page.

    Attributes:
        address: base address.
        shift: log2 of its size.
        permissions: accumulated over the walk.
        snoop: it forces snooping.
        untranslated: devices have to use untranslated requests for it (AMD-Vi 5.1, U).
    """

    address: int
    shift: int
    permissions: Access
    snoop: bool = False
    untranslated: bool = False

    def output(self, address: int) -> int:
        """Return where an input address of this page goes."""
        return self.address | address & ((1 << self.shift) - 1)


@dataclass(frozen=True)
class Context:
    """What a context or device-table cache remembers; vendors add to it.

    Attributes:
        domain: domain ID, the tag of everything below.
        suppressed: this device's qualified faults are not recorded.
    """

    domain: int
    suppressed: bool


ContextT = TypeVar("ContextT", bound=Context)


class Walker(ABC, Generic[ContextT]):
    """The steps of a walk over one state of the registers.

    Args:
        read: reads physical memory.

    Attributes:
        visited: table entries that the steps read, in order.
    """

    def __init__(self, read: MemoryRead) -> None:
        self.read = read
        self.visited: list[Visit] = []

    def fetch(self, level: int, address: int, size: int) -> bytes | None:
        """Read a table entry, and remember that it was read."""
        data = self.read(address, size)
        if data is not None:
            self.visited.append(Visit(level, address, int.from_bytes(data, "little")))
        return data

    @abstractmethod
    def admit(self, request: Request) -> Answer | None:
        """Return the answer to a request that needs no table, else None."""

    @abstractmethod
    def context(self, requester: int) -> ContextT | Failure:
        """Read the context of a requester."""

    @abstractmethod
    def enter(self, context: ContextT, request: Request) -> Node | Leaf | Failure | Answer:
        """Return the top table to walk, or how the request ends without a walk."""

    @abstractmethod
    def step(self, node: Node, address: int) -> Node | Leaf | Failure:
        """Read one entry of a table."""

    @abstractmethod
    def finish(self, context: ContextT, end: Leaf | Failure, request: Request) -> Answer:
        """Return the answer once a walk has ended."""

    @abstractmethod
    def fail(self, request: Request, context: ContextT | None, found: Failure) -> Answer:
        """Return the answer to a faulting request."""

    def walk(self, request: Request) -> Answer:
        """Translate one request without any cache."""
        self.visited = []
        return replace(self._walk(request), visited=tuple(self.visited))

    def _walk(self, request: Request) -> Answer:
        early = self.admit(request)
        if early is not None:
            return early
        context = self.context(request.requester)
        if isinstance(context, Failure):
            return self.fail(request, None, context)
        step = self.enter(context, request)
        while isinstance(step, Node):
            step = self.step(step, request.address)
        return step if isinstance(step, Answer) else self.finish(context, step, request)


def in_interrupt_range(address: int) -> bool:
    """Whether an address is in FEEx_xxxxh."""
    return INTERRUPT_BASE <= address <= INTERRUPT_LAST


def ats_range(sized: int, address: int) -> tuple[int, int]:
    """Return the first and last input address of a device-TLB invalidation (VT-d 7.2, AMD-Vi 9.2).

    Args:
        sized: its S bit: the lowest 0 bit of the address from bit 12 on tells the size.
        address: multiple of 4 KiB, 64 bits.
    """
    if not sized:
        return address, address | 0xFFF
    ones = address | 0xFFF
    size = 2 * (~ones & ones + 1)
    if size >> 64 or size == 0:
        return 0, (1 << 64) - 1
    return address & ~(size - 1), address | size - 1


def nothing(domain: int) -> Answer:
    """Return the answer to a translation request that is granted neither R nor W."""
    return Answer(Outcome.MEMORY, domain=domain)


def pass_through(request: Request, domain: int | None = None) -> Answer:
    """Return the answer to a request that is not translated; by a context if it has a domain."""
    shift = 0 if domain is None else 12
    return Answer(
        Outcome.MEMORY, request.address, shift, READ_WRITE, 0 if domain is None else domain
    )
