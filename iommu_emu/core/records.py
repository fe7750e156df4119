"""Requests, results and reports of the core as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iommu_emu._core import ffi, lib
from iommu_emu.core.enums import (
    Access,
    AddressType,
    Attribute,
    CacheId,
    InvalidationState,
    MessageKind,
    Outcome,
    Owed,
    RequestFlag,
    Status,
    Vendor,
    Verdict,
)
from iommu_emu.core.errors import MAX_PASID, U16, U64, require_range
from iommu_emu.core.tables import FaultInfo, faults


@dataclass(slots=True)
class Request:
    """One request at the IOMMU.

    Attributes:
        address: IOVA, or host physical address if `at` is TRANSLATED; 64 bits.
        length: bytes; the request must not cross a 4 KiB page.
        requester: requester ID: bus 15:8, device 7:3, function 2:0.
        access: READ, WRITE or ATOMIC.
        at: address type.
        pasid: 20 bits, or None without a PASID prefix.
        flags: further attributes; HAS_PASID follows `pasid`.
    """

    address: int
    length: int = 4
    requester: int = 0
    access: Access = Access.READ
    at: AddressType = AddressType.UNTRANSLATED
    pasid: int | None = None
    flags: RequestFlag = RequestFlag.NONE

    def struct(self) -> Any:
        """Return the request as `struct iemu_request *`.

        Raises:
            ValueError: if a value is outside its range.
        """
        require_range("address", self.address, U64)
        require_range("length", self.length, 4096)
        require_range("requester", self.requester, U16)
        request = ffi.new("struct iemu_request *")
        request.address = self.address
        request.length = self.length
        request.requester = self.requester
        request.access = self.access
        request.at = self.at
        request.pasid, request.flags = pasid_flags(self.pasid, self.flags)
        return request


def pasid_flags(pasid: int | None, flags: int) -> tuple[int, int]:
    """Return PASID and flags as the core wants them: HAS_PASID follows `pasid`."""
    if pasid is None:
        return 0, flags & ~lib.IEMU_HAS_PASID
    require_range("pasid", pasid, MAX_PASID)
    return pasid, flags | lib.IEMU_HAS_PASID


def make_request(struct: Any) -> Request:
    """Return `struct iemu_request` as a dataclass."""
    return Request(
        address=struct.address,
        length=struct.length,
        requester=struct.requester,
        access=Access(struct.access),
        at=AddressType(struct.at),
        pasid=struct.pasid if struct.flags & lib.IEMU_HAS_PASID else None,
        flags=RequestFlag(struct.flags & ~lib.IEMU_HAS_PASID),
    )


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one request.

    Attributes:
        address: host physical address.
        outcome: where the request goes.
        page_shift: log2 of the bytes that share this translation.
        permissions: effective over the whole walk.
        attributes: snooping and pass-through.
        domain: domain ID with which the translation is tagged.
        fault: architectural fault code; 0: none.
        diagnostic: row of the vendor's fault table; 0: none.
        recorded: the fault reached a fault record or the event log.
        cause: the row itself; None without a fault.
    """

    address: int
    outcome: Outcome
    page_shift: int
    permissions: Access
    attributes: Attribute
    domain: int
    fault: int
    diagnostic: int
    recorded: bool
    cause: FaultInfo | None

    @property
    def ok(self) -> bool:
        """Whether the request completes successfully."""
        return self.outcome not in (Outcome.UNSUPPORTED, Outcome.ABORTED)


def make_result(vendor: Vendor, struct: Any) -> Result:
    """Return `struct iemu_result` as a dataclass."""
    return Result(
        address=struct.address,
        outcome=Outcome(struct.outcome),
        page_shift=struct.page_shift,
        permissions=Access(struct.permissions),
        attributes=Attribute(struct.attributes),
        domain=struct.domain,
        fault=struct.fault,
        diagnostic=struct.diagnostic,
        recorded=bool(struct.recorded),
        cause=faults(vendor)[struct.diagnostic] if struct.diagnostic else None,
    )


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One live entry of a unit's cache or a device-TLB; see `struct iemu_cache_entry`."""

    cache: CacheId
    address: int
    output: int
    page_shift: int
    domain: int
    pasid: int
    requester: int
    permissions: Access
    attributes: int
    negative: bool
    filled: int


def make_cache_entry(struct: Any) -> CacheEntry:
    """Return `struct iemu_cache_entry` as a dataclass."""
    return CacheEntry(
        cache=CacheId(struct.cache),
        address=struct.address,
        output=struct.output,
        page_shift=struct.page_shift,
        domain=struct.domain,
        pasid=struct.pasid,
        requester=struct.requester,
        permissions=Access(struct.permissions),
        attributes=struct.attributes,
        negative=bool(struct.negative),
        filled=struct.filled,
    )


@dataclass(frozen=True, slots=True)
class StaleUse:
    """A device used a cached entry that the tables no longer say (VT-d 9.4).

    Attributes:
        request: what the device asked.
        cached: what it got.
        fresh: what the tables say now.
        time: ns.
        cache: the cache that answered.
        level: paging level 1..6 of the entry that changed, or a `TableLevel`.
        entry: physical address of the entry that changed; 0: none, or unknown.
        before: its quadword when it was cached; level REGISTER: address of the first entry.
        after: the same now.
        owed: the invalidations that software owed and that are not complete.
        invalidation: IDLE: nothing is on its way; else it may be what is owed.
    """

    request: Request
    cached: Result
    fresh: Result
    time: int
    cache: CacheId
    level: int
    entry: int
    before: int
    after: int
    owed: Owed
    invalidation: InvalidationState


@dataclass(frozen=True, slots=True)
class Message:
    """What the core leaves to Python; see `struct iemu_message`."""

    kind: MessageKind
    time: int
    address: int
    data: bytes
    size: int
    segment: int
    requester: int
    owner: int
    token: int


@dataclass(frozen=True, slots=True)
class PortRule:
    """What the fabric does with some requests of a port before any IOMMU (pci 4).

    Attributes:
        verdict: PEER: to the BAR at its address; REFUSE: Unsupported Request.
        address_types: the address types that it is about.
        first: first address, as the request carries it.
        last: last address.
        requesters: first and last requester ID.
        reason: for people; the core does not know it.
    """

    verdict: Verdict
    address_types: frozenset[AddressType]
    first: int = 0
    last: int = U64
    requesters: tuple[int, int] = (0, U16)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CompletionDetails:
    """What a transfer says beside its data; see `Completion`."""

    status: Status
    address: int
    done: int
    time: int
    fault: int = 0
    diagnostic: int = 0
    recorded: bool = False
    cause: FaultInfo | None = None


class Completion:
    """What came back of one transfer.

    A transfer that passed at once is a success without details. One that is in flight is
    `pending`, and the same object is filled in when its completion arrives.

    Attributes:
        data: what was read; b"" for a write, and before a read is complete.
        details: None if the transfer was done inside the call.
    """

    __slots__ = ("data", "details")

    def __init__(self, data: bytes = b"", details: CompletionDetails | None = None) -> None:
        self.data = data
        self.details = details

    @property
    def status(self) -> Status:
        """State of the transfer."""
        return Status.DONE if self.details is None else self.details.status

    @property
    def ok(self) -> bool:
        """Whether the transfer completed successfully."""
        return self.details is None or self.details.status is Status.DONE

    @property
    def pending(self) -> bool:
        """Whether the transfer is still in flight."""
        return self.details is not None and self.details.status is Status.PENDING

    @property
    def fault(self) -> int:
        """Architectural fault code of the first request that failed; 0: none."""
        return 0 if self.details is None else self.details.fault

    @property
    def cause(self) -> FaultInfo | None:
        """The cause of the fault; None without one."""
        return None if self.details is None else self.details.cause

    def __repr__(self) -> str:
        details = self.details
        text = f"<Completion {self.status.name}"
        if self.data:
            text += f", {len(self.data)} bytes"
        if details is not None and details.cause is not None:
            text += f", {details.cause.name} (fault {details.fault:#x}) at {details.address:#x}"
        return text + ">"
