"""Typed handles on the C core: the only module that touches cffi.

Handles are thin: one method a C function, Python types in and out, errors as exceptions. A
`CoreMachine` owns everything on the C side but `Region`s; units and ports keep their machine
alive, and a region lives as long as a machine maps it or a numpy view of it exists.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from iommu_emu._core import ffi, lib

BytesLike: TypeAlias = "bytes | bytearray | memoryview | NDArray[Any]"

MAX_TRANSFER = 16 << 20  # bytes of one DMA transfer
MAX_PASID = (1 << 20) - 1
_U16 = (1 << 16) - 1
_U32 = (1 << 32) - 1
_U64 = (1 << 64) - 1
CACHES: int = lib.IEMU_CACHES


# ---- enums: every number comes from the header -------------------------------------------


class Access(IntFlag):
    """Access kinds of a request; an AtomicOp is both."""

    NONE = 0
    READ = lib.IEMU_READ
    WRITE = lib.IEMU_WRITE
    ATOMIC = lib.IEMU_ATOMIC


class AddressType(IntEnum):
    """AT field of a memory request."""

    UNTRANSLATED = lib.IEMU_UNTRANSLATED
    TRANSLATION_REQUEST = lib.IEMU_TRANSLATION_REQUEST
    TRANSLATED = lib.IEMU_TRANSLATED
    RESERVED = lib.IEMU_AT_RESERVED


class RequestFlag(IntFlag):
    """Attributes of a request beside its address and access."""

    NONE = 0
    HAS_PASID = lib.IEMU_HAS_PASID
    PRIVILEGED = lib.IEMU_PRIVILEGED
    EXECUTE = lib.IEMU_EXECUTE
    ZERO_LENGTH = lib.IEMU_ZERO_LENGTH
    NO_SNOOP = lib.IEMU_NO_SNOOP
    NO_WRITE = lib.IEMU_NO_WRITE


class Outcome(IntEnum):
    """Where a translated request goes."""

    MEMORY = lib.IEMU_MEMORY
    INTERRUPT = lib.IEMU_INTERRUPT
    DISCARDED = lib.IEMU_DISCARDED
    UNSUPPORTED = lib.IEMU_UNSUPPORTED
    ABORTED = lib.IEMU_ABORTED


class Attribute(IntFlag):
    """Attributes of a translation."""

    NONE = 0
    SNOOP = lib.IEMU_SNOOP
    UNTRANSLATED_PASS = lib.IEMU_UNTRANSLATED_PASS


class Status(IntEnum):
    """State of a transfer as its device sees it."""

    DONE = lib.IEMU_DONE
    UNSUPPORTED_REQUEST = lib.IEMU_UR
    COMPLETER_ABORT = lib.IEMU_CA
    PENDING = lib.IEMU_PENDING
    BUSY = lib.IEMU_BUSY
    REMOVED = lib.IEMU_REMOVED


class AtomicKind(IntEnum):
    """AtomicOps of PCI Express."""

    FETCH_ADD = lib.IEMU_FETCH_ADD
    SWAP = lib.IEMU_SWAP
    COMPARE_SWAP = lib.IEMU_COMPARE_SWAP


class MessageKind(IntEnum):
    """What the core leaves to Python."""

    INTERRUPT = lib.IEMU_MESSAGE_INTERRUPT
    UNIT = lib.IEMU_MESSAGE_UNIT
    BAR_WRITE = lib.IEMU_MESSAGE_BAR_WRITE
    BAR_READ = lib.IEMU_MESSAGE_BAR_READ


class Vendor(IntEnum):
    """Whose IOMMU a unit is."""

    VTD = lib.IEMU_VTD
    AMDVI = lib.IEMU_AMDVI


class Replacement(IntEnum):
    """Which line of a full cache set makes room."""

    LRU = lib.IEMU_LRU
    FIFO = lib.IEMU_FIFO
    RANDOM = lib.IEMU_RANDOM


class CacheId(IntEnum):
    """Caches of a unit."""

    IOTLB = lib.IEMU_CACHE_IOTLB
    CONTEXT = lib.IEMU_CACHE_CONTEXT
    PAGING = lib.IEMU_CACHE_PAGING
    INTERRUPT = lib.IEMU_CACHE_INTERRUPT


class IotlbLookup(IntEnum):
    """How the IOTLB is looked up (VT-d 9.2)."""

    BY_REQUESTER = lib.IEMU_BY_REQUESTER
    BY_DOMAIN = lib.IEMU_BY_DOMAIN


class Reset(IntEnum):
    """Depth of a unit's reset."""

    WARM = lib.IEMU_RESET_WARM
    POWER_ON = lib.IEMU_RESET_POWER_ON


class InvalidationState(IntEnum):
    """State of the oldest invalidation that is not complete."""

    IDLE = lib.IEMU_INVALIDATION_IDLE
    SUBMITTED = lib.IEMU_INVALIDATION_SUBMITTED
    IN_PROGRESS = lib.IEMU_INVALIDATION_IN_PROGRESS


class TableLevel(IntEnum):
    """Tables above the paging levels 1..6 (1 is the level of 4 KiB leaves)."""

    UNKNOWN = lib.IEMU_LEVEL_UNKNOWN
    CONTEXT = lib.IEMU_LEVEL_CONTEXT
    ROOT = lib.IEMU_LEVEL_ROOT
    REGISTER = lib.IEMU_LEVEL_REGISTER


class Owed(IntFlag):
    """Invalidations that software owed and did not do."""

    NONE = 0
    CONTEXT_GLOBAL = lib.IEMU_OWED_CONTEXT_GLOBAL
    CONTEXT_DEVICE = lib.IEMU_OWED_CONTEXT_DEVICE
    IOTLB_GLOBAL = lib.IEMU_OWED_IOTLB_GLOBAL
    IOTLB_DOMAIN = lib.IEMU_OWED_IOTLB_DOMAIN
    IOTLB_PAGE = lib.IEMU_OWED_IOTLB_PAGE


class TraceKind(IntEnum):
    """Kinds of trace events."""

    TRANSLATE = lib.IEMU_TRACE_TRANSLATE
    FAULT = lib.IEMU_TRACE_FAULT
    MMIO_READ = lib.IEMU_TRACE_MMIO_READ
    MMIO_WRITE = lib.IEMU_TRACE_MMIO_WRITE
    COMMAND = lib.IEMU_TRACE_COMMAND
    DMA = lib.IEMU_TRACE_DMA
    MESSAGE = lib.IEMU_TRACE_MESSAGE


class FieldAccess(IntEnum):
    """Access kinds of a register field."""

    RO = lib.IEMU_RO
    RW = lib.IEMU_RW
    WO = lib.IEMU_WO
    RW1C = lib.IEMU_RW1C
    RW1CS = lib.IEMU_RW1CS
    ROS = lib.IEMU_ROS
    RWL = lib.IEMU_RWL
    RW1S = lib.IEMU_RW1S


# ---- errors ------------------------------------------------------------------------------


class OverlapError(ValueError):
    """A memory region or register window overlaps another one."""


class NotRamError(ValueError):
    """A range of physical memory is not wholly RAM."""


class UnsealedError(ValueError):
    """A shared region's file can still shrink."""


class FullError(RuntimeError):
    """A fixed pool of the core is exhausted."""


class StateError(RuntimeError):
    """The operation is not possible in the present state."""


_ERRORS: dict[int, tuple[type[Exception], str]] = {
    lib.IEMU_E_ARGUMENT: (ValueError, "is outside its documented range"),
    lib.IEMU_E_NO_MEMORY: (MemoryError, "needs more memory than the host has"),
    lib.IEMU_E_OVERLAP: (OverlapError, "overlaps another region or register window"),
    lib.IEMU_E_NOT_RAM: (NotRamError, "is not wholly RAM"),
    lib.IEMU_E_FULL: (FullError, "does not fit in its fixed pool"),
    lib.IEMU_E_STATE: (StateError, "is not possible in the present state"),
    lib.IEMU_E_UNSEALED: (UnsealedError, "must be a file sealed against shrinking (F_SEAL_SHRINK)"),
}


def check(code: int, what: str) -> int:
    """Return `code` if it is no error, else raise what it stands for.

    Args:
        code: what a function of the core returned.
        what: the argument or operation, with its value and limit, as the message names it.
    """
    if code >= 0:
        return code
    exception, reason = _ERRORS[code]
    raise exception(f"{what} {reason}")


def require_range(name: str, value: int, last: int, first: int = 0) -> None:
    """Raise a ValueError that names the argument unless `first <= value <= last`."""
    if not first <= value <= last:
        raise ValueError(f"{name} must be in {first:#x}..{last:#x}, not {value:#x}")


# ---- exported tables ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegisterInfo:
    """One register of a vendor, as `registers.def` declares it.

    Attributes:
        index: row in the table.
        name: the specification's name.
        description: one line.
        offset: bytes, from the window's start if `base` is 0.
        width: bits.
        count: elements of an array register; 1 else.
        stride: bytes between elements.
        base: 0 fixed; 1 VT-d 16*ECAP.IRO; 2 VT-d 16*CAP.FRO.
    """

    index: int
    name: str
    description: str
    offset: int
    width: int
    count: int
    stride: int
    base: int


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field of a register.

    Attributes:
        index: row in the table.
        name: the specification's name.
        register: row of its register.
        high: highest bit, counted in the whole register.
        low: lowest bit.
        access: access kind.
        needs: capability expression; "" if the field is always there.
        reset: value after a power-on reset.
    """

    index: int
    name: str
    register: int
    high: int
    low: int
    access: FieldAccess
    needs: str
    reset: int

    @property
    def mask(self) -> int:
        """Bits of the field in its register."""
        return (1 << (self.high + 1)) - (1 << self.low)

    def extract(self, value: int) -> int:
        """Return the field's value in a register value."""
        return (value & self.mask) >> self.low


@dataclass(frozen=True, slots=True)
class FaultInfo:
    """One distinct cause of a fault: finer than the architectural code.

    Attributes:
        diagnostic: row in the table; 0 is "none".
        name: the specification's or the project's short name.
        condition: when it happens.
        section: where the specification says so.
        code: architectural code.
        qualified: VT-d: suppressed by FPD.
    """

    diagnostic: int
    name: str
    condition: str
    section: str
    code: int
    qualified: bool


def _text(pointer: Any) -> str:
    text: bytes = ffi.string(pointer)
    return text.decode()


@lru_cache
def registers(vendor: Vendor) -> tuple[RegisterInfo, ...]:
    """Return the register table of a vendor, in row order."""
    count = ffi.new("size_t *")
    rows = lib.iemu_registers(vendor, count)
    return tuple(
        RegisterInfo(
            i, _text(r.name), _text(r.description), r.offset, r.width, r.count, r.stride, r.base
        )
        for i, r in enumerate(rows[0 : count[0]])
    )


@lru_cache
def fields(vendor: Vendor) -> tuple[FieldInfo, ...]:
    """Return the register-field table of a vendor, in row order."""
    count = ffi.new("size_t *")
    rows = lib.iemu_fields(vendor, count)
    return tuple(
        FieldInfo(
            i, _text(f.name), f.reg, f.high, f.low, FieldAccess(f.access), _text(f.needs), f.reset
        )
        for i, f in enumerate(rows[0 : count[0]])
    )


@lru_cache
def faults(vendor: Vendor) -> tuple[FaultInfo, ...]:
    """Return the fault table of a vendor; row i is diagnostic i."""
    count = ffi.new("size_t *")
    rows = lib.iemu_faults(vendor, count)
    return tuple(
        FaultInfo(i, _text(f.name), _text(f.condition), _text(f.section), f.code, bool(f.qualified))
        for i, f in enumerate(rows[0 : count[0]])
    )


def _dtype(name: str) -> np.dtype[Any]:
    """Build the numpy dtype of a C struct of unsigned integers from what cffi knows of it."""
    ctype = ffi.typeof(name)
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    for field_name, field in ctype.fields:
        item = field.type.item if field.type.kind == "array" else field.type
        base = f"u{ffi.sizeof(item)}"  # the structs of results and events are all unsigned
        names.append(field_name)
        formats.append((base, field.type.length) if item is not field.type else base)
        offsets.append(field.offset)
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": ffi.sizeof(ctype)}
    )


RESULT_DTYPE = _dtype("struct iemu_result")
TRACE_DTYPE = _dtype("struct iemu_trace_event")


# ---- records -----------------------------------------------------------------------------


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
        require_range("address", self.address, _U64)
        require_range("length", self.length, 4096)
        require_range("requester", self.requester, _U16)
        request = ffi.new("struct iemu_request *")
        request.address = self.address
        request.length = self.length
        request.requester = self.requester
        request.access = self.access
        request.at = self.at
        request.pasid, request.flags = _pasid(self.pasid, self.flags)
        return request


def _pasid(pasid: int | None, flags: int) -> tuple[int, int]:
    if pasid is None:
        return 0, flags & ~lib.IEMU_HAS_PASID
    require_range("pasid", pasid, MAX_PASID)
    return pasid, flags | lib.IEMU_HAS_PASID


def _request(struct: Any) -> Request:
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


def _result(vendor: Vendor, struct: Any) -> Result:
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
    """One live entry of a unit's cache; see `struct iemu_cache_entry`."""

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
        entry: physical address of the entry that changed; 0: unknown.
        before: its quadword when it was cached.
        after: its quadword now.
        owed: the invalidations that software did not do.
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


# ---- handles -----------------------------------------------------------------------------


class Region:
    """RAM between guard pages.

    Args:
        size: bytes, a multiple of 4096, at least 4096.
        fd: file that is mapped shared and sealed against shrinking; -1: private zeroed memory.
        offset: first byte of the file, a multiple of 4096.

    Raises:
        ValueError: if size or offset is outside its range.
        UnsealedError: if the file can still shrink.
        MemoryError: if the host has no memory left.
    """

    def __init__(self, size: int, fd: int = -1, offset: int = 0) -> None:
        if size < 4096 or size % 4096:
            raise ValueError(f"size must be a multiple of 4096, at least 4096, not {size:#x}")
        if offset < 0 or offset % 4096:
            raise ValueError(f"offset must be a multiple of 4096, not {offset:#x}")
        error = ffi.new("int *")
        handle = lib.iemu_region_create(size, fd, offset, error)
        if not handle:
            check(error[0], f"region of {size:#x} bytes")
        self.size = size
        self.handle = ffi.gc(handle, lib.iemu_region_release)

    @property
    def array(self) -> NDArray[np.uint8]:
        """The memory as bytes; the view keeps the region alive."""
        host = ffi.cast("uint8_t *", lib.iemu_region_host(self.handle))
        # The destructor of this pointer does nothing: it is there to hold the region's handle.
        owner = ffi.gc(host, _Keep(self.handle), size=0)
        return np.frombuffer(ffi.buffer(owner, self.size), dtype=np.uint8)


class _Keep:
    """A destructor that does nothing but hold what must live as long."""

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def __call__(self, _: object) -> None:
        pass


class CoreMachine:
    """Physical memory, virtual time, transactions in flight, the outbox and the units.

    Args:
        transactions: requests in flight at once, 1..4096.
        messages: capacity of the outbox, 64..65536.
        trace_events: capacity of the trace ring, 0 (off) or a power of two up to 2**24.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self, transactions: int = 256, messages: int = 1024, trace_events: int = 0
    ) -> None:
        require_range("transactions", transactions, 4096, 1)
        require_range("messages", messages, 65536, 64)
        require_range("trace_events", trace_events, 1 << 24)
        if trace_events & (trace_events - 1):
            raise ValueError(f"trace_events must be 0 or a power of two, not {trace_events}")
        config = ffi.new("struct iemu_machine_config *", (transactions, messages, trace_events))
        error = ffi.new("int *")
        handle = lib.iemu_machine_create(config, error)
        if not handle:
            check(error[0], "machine")
        # One finalizer frees units and ports as well, so that the order in which the garbage
        # collector meets the handles of a cycle does not matter.
        weakref.finalize(self, lib.iemu_machine_destroy, handle).atexit = False
        self.handle = handle
        self.trace_events = trace_events
        self.units: list[CoreUnit] = []
        self.waiting: dict[Port, None] = {}  # ports with transfers in flight, in their order
        self._batch = 64
        self._messages = ffi.new("struct iemu_message[]", self._batch)

    # Physical memory.

    def map(self, base: int, region: Region) -> None:
        """Place RAM at `base` (page aligned).

        Raises:
            OverlapError: if something is there.
        """
        require_range("base", base, _U64)
        check(lib.iemu_memory_map(self.handle, base, region.handle), f"RAM at {base:#x}")

    def map_bar(self, base: int, size: int, owner: int) -> None:
        """Place a window at `base`, whose accesses go to the outbox with `owner`."""
        require_range("base", base, _U64)
        require_range("size", size, _U64, 1)
        code = lib.iemu_memory_map_bar(self.handle, base, size, owner)
        check(code, f"BAR window {base:#x}+{size:#x}")

    def unmap(self, base: int) -> None:
        """Remove the RAM or window that starts at `base`.

        Raises:
            ValueError: if none starts there.
        """
        require_range("base", base, _U64)
        check(lib.iemu_memory_unmap(self.handle, base), f"base {base:#x} (nothing starts there)")

    def read(self, address: int, length: int) -> bytes:
        """Read RAM as a CPU does.

        Raises:
            NotRamError: if any byte is not RAM.
        """
        require_range("address", address, _U64)
        require_range("length", length, _U64)
        buffer = ffi.new("char[]", length)
        check(lib.iemu_memory_read(self.handle, address, buffer, length), _range(address, length))
        data: bytes = ffi.unpack(buffer, length)
        return data

    def write(self, address: int, data: BytesLike) -> None:
        """Write RAM as a CPU does, all or nothing.

        Raises:
            NotRamError: if any byte is not RAM.
        """
        require_range("address", address, _U64)
        source = ffi.from_buffer(data)
        length = len(source)
        check(lib.iemu_memory_write(self.handle, address, source, length), _range(address, length))

    def arm_store(self, trigger: int, target: int, value: int) -> None:
        """Store `value` (8 bytes) at `target` once a unit has fetched the granule at `trigger`.

        Raises:
            FullError: if 16 stores are armed.
            ValueError: if `target` is not a multiple of 8.
        """
        require_range("trigger", trigger, _U64)
        require_range("target", target, _U64)
        require_range("value", value, _U64)
        code = lib.iemu_memory_arm_store(self.handle, trigger, target, value)
        check(code, f"store armed at {target:#x}")

    # Virtual time.

    @property
    def now(self) -> int:
        """Virtual time in ns."""
        time: int = lib.iemu_clock_now(self.handle)
        return time

    def advance_to(self, time: int) -> None:
        """Run every event due up to `time` ns, then set the clock there; it never goes back."""
        require_range("time", time, _U64)
        lib.iemu_clock_advance_to(self.handle, time)

    @property
    def next_event(self) -> int | None:
        """Time of the core's next event in ns; None if nothing is scheduled."""
        time: int = lib.iemu_clock_next(self.handle)
        return None if time == _U64 else time

    # Outbox.

    def take_messages(self) -> list[Message]:
        """Take up to 64 messages, oldest first."""
        count = lib.iemu_outbox_take(self.handle, self._messages, self._batch)
        return [_message(self._messages[i]) for i in range(count)]

    @property
    def outbox_size(self) -> int:
        """Number of messages waiting."""
        size: int = lib.iemu_outbox_size(self.handle)
        return size

    def answer(self, token: int, data: bytes | None) -> None:
        """Answer a BAR read with data of its size, or None for an Unsupported Request."""
        size = 0 if data is None else len(data)
        pointer = ffi.NULL if data is None else data
        check(lib.iemu_outbox_answer(self.handle, token, pointer, size), f"token {token}")

    # Units and routes.

    def create_vtd(self, config: Mapping[str, Any]) -> CoreUnit:
        """Create a VT-d unit from the values of `struct iemu_vtd_config`."""
        return self._create("struct iemu_vtd_config *", config, lib.iemu_vtd_create, Vendor.VTD)

    def create_amdvi(self, config: Mapping[str, Any]) -> CoreUnit:
        """Create an AMD-Vi unit from the values of `struct iemu_amdvi_config`."""
        return self._create(
            "struct iemu_amdvi_config *", config, lib.iemu_amdvi_create, Vendor.AMDVI
        )

    def _create(
        self, ctype: str, config: Mapping[str, Any], create: Callable[..., Any], vendor: Vendor
    ) -> CoreUnit:
        try:
            struct = ffi.new(ctype, dict(config))
        except OverflowError as error:
            raise ValueError(f"unit configuration: {error}") from None
        error_code = ffi.new("int *")
        handle = create(self.handle, struct, error_code)
        if not handle:
            unit = struct.unit
            check(error_code[0], f"{vendor.name} unit at {unit.base:#x}+{unit.window:#x}")
        unit_handle = CoreUnit(self, handle, vendor)
        self.units.append(unit_handle)
        return unit_handle

    def route(self, segment: int, first: int, last: int, unit: CoreUnit | None) -> None:
        """Send requesters `first`..`last` of `segment` through `unit`; None: untranslated."""
        require_range("segment", segment, _U16)
        require_range("first", first, _U16)
        require_range("last", last, _U16, first)
        handle = ffi.NULL if unit is None else unit.handle
        code = lib.iemu_route(self.handle, segment, first, last, handle)
        check(code, f"route of {segment:04x}:{first:#06x}..{last:#06x}")

    def routed_unit(self, segment: int, requester: int) -> CoreUnit | None:
        """Return the unit that a requester is routed to."""
        require_range("segment", segment, _U16)
        require_range("requester", requester, _U16)
        handle = lib.iemu_routed_unit(self.handle, segment, requester)
        return self.units[lib.iemu_unit_number(handle)] if handle else None

    def create_port(self, segment: int, requester: int) -> Port:
        """Return a new port whose requests carry `requester`."""
        return Port(self, segment, requester)

    # Trace.

    def trace(self, on: bool) -> None:
        """Switch the trace ring.

        Raises:
            StateError: if the machine was made without one.
        """
        if on and not self.trace_events:
            raise StateError("tracing needs a machine made with trace_events > 0")
        lib.iemu_trace_enable(self.handle, on)

    def trace_read(self) -> NDArray[Any]:
        """Return a copy of the trace ring, oldest event first."""
        events = np.empty(self.trace_events, dtype=TRACE_DTYPE)
        if not self.trace_events:
            return events
        target = ffi.from_buffer("struct iemu_trace_event[]", events, require_writable=True)
        return events[: lib.iemu_trace_read(self.handle, target, len(events))]


def _range(address: int, length: int) -> str:
    return f"range {address:#x}+{length:#x}"


def _message(struct: Any) -> Message:
    return Message(
        kind=MessageKind(struct.kind),
        time=struct.time,
        address=struct.address,
        data=bytes(ffi.buffer(struct.data, min(struct.size, len(struct.data)))),
        size=struct.size,
        segment=struct.segment,
        requester=struct.requester,
        owner=struct.owner,
        token=struct.token,
    )


class CoreUnit:
    """One IOMMU of a machine; made by `CoreMachine.create_vtd` or `create_amdvi`."""

    def __init__(self, machine: CoreMachine, handle: Any, vendor: Vendor) -> None:
        self.machine = machine
        self.handle = handle
        self.vendor = vendor
        self.number: int = lib.iemu_unit_number(handle)

    def __repr__(self) -> str:
        return f"<CoreUnit {self.number} {self.vendor.name}>"

    def mmio_read(self, offset: int, size: int) -> int:
        """Read a register; 0 for a size or alignment that the hardware does not take."""
        value: int = lib.iemu_mmio_read(self.handle, offset, size)
        return value

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write a register; dropped for a size or alignment that the hardware does not take."""
        lib.iemu_mmio_write(self.handle, offset, size, value)

    def translate(self, request: Request) -> Result:
        """Translate one request with every side effect: caches fill, faults are recorded."""
        result = ffi.new("struct iemu_result *")
        lib.iemu_translate(self.handle, request.struct(), result)
        return _result(self.vendor, result)

    def translate_batch(self, request: Request, addresses: NDArray[np.uint64]) -> NDArray[Any]:
        """Translate `request` at every address.

        Args:
            request: everything but the address.
            addresses: shape (n,), uint64, contiguous.

        Returns:
            Shape (n,), of `RESULT_DTYPE`: the fields of `struct iemu_result`.
        """
        if addresses.dtype != np.uint64 or addresses.ndim != 1:
            raise ValueError(
                f"addresses must be a one-dimensional uint64 array, not {addresses.ndim} "
                f"dimensions of {addresses.dtype}"
            )
        addresses = np.ascontiguousarray(addresses)
        results = np.empty(len(addresses), dtype=RESULT_DTYPE)
        if len(addresses):
            lib.iemu_translate_batch(
                self.handle,
                request.struct(),
                ffi.from_buffer("uint64_t[]", addresses),
                ffi.from_buffer("struct iemu_result[]", results, require_writable=True),
                len(addresses),
            )
        return results

    def reset(self, kind: Reset = Reset.WARM) -> None:
        """Reset the unit."""
        lib.iemu_unit_reset(self.handle, kind)

    def step(self) -> bool:
        """Move the invalidation machine by one state; False if there was nothing to do."""
        moved: bool = lib.iemu_unit_step(self.handle)
        return moved

    @property
    def invalidation_state(self) -> InvalidationState:
        """State of the oldest invalidation that is not complete."""
        return InvalidationState(lib.iemu_unit_invalidation_state(self.handle))

    def set_timing(self, timing: Mapping[str, int]) -> None:
        """Set the latencies from the values of `struct iemu_timing`."""
        lib.iemu_unit_set_timing(self.handle, ffi.new("struct iemu_timing *", dict(timing)))

    def entries(self, cache: CacheId) -> list[CacheEntry]:
        """Return the live entries of one cache."""
        rows = ffi.new("struct iemu_cache_entry[]", 1)
        count = lib.iemu_unit_entries(self.handle, cache, rows, 0)
        rows = ffi.new("struct iemu_cache_entry[]", max(count, 1))
        count = min(count, lib.iemu_unit_entries(self.handle, cache, rows, count))
        return [_cache_entry(rows[i]) for i in range(count)]

    def counters(self) -> dict[str, int]:
        """Return every counter by name; VT-d performance event names where there is one."""
        rows = ffi.new("struct iemu_counter[]", 1)
        count = lib.iemu_unit_counters(self.handle, rows, 0)
        rows = ffi.new("struct iemu_counter[]", max(count, 1))
        count = min(count, lib.iemu_unit_counters(self.handle, rows, count))
        return {_text(rows[i].name): rows[i].value for i in range(count)}

    def watch(self, on: bool) -> None:
        """Switch the stale-use detector."""
        check(lib.iemu_unit_watch(self.handle, on), "stale-use detector")

    def stale_uses(self) -> tuple[list[StaleUse], int]:
        """Take every report of the detector, oldest first, and the number of lost ones."""
        lost = ffi.new("uint64_t *")
        rows = ffi.new("struct iemu_stale_use[]", 64)
        uses: list[StaleUse] = []
        total_lost = 0
        while True:
            count = lib.iemu_unit_stale_uses(self.handle, rows, 64, lost)
            uses.extend(self._stale_use(rows[i]) for i in range(count))
            total_lost += lost[0]
            if count < 64:
                return uses, total_lost

    def _stale_use(self, struct: Any) -> StaleUse:
        return StaleUse(
            request=_request(struct.request),
            cached=_result(self.vendor, struct.cached),
            fresh=_result(self.vendor, struct.fresh),
            time=struct.time,
            cache=CacheId(struct.cache),
            level=struct.level,
            entry=struct.entry,
            before=struct.before,
            after=struct.after,
            owed=Owed(struct.owed),
        )

    def has_field(self, field: int) -> bool:
        """Whether a row of the field table is there in this unit's configuration."""
        there: bool = lib.iemu_unit_has_field(self.handle, field)
        return there

    def register_offset(self, register: int) -> int:
        """Return the offset of a row of the register table in this unit's window."""
        offset: int = lib.iemu_unit_register_offset(self.handle, register)
        return offset


def _cache_entry(struct: Any) -> CacheEntry:
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


_SUCCESS = Completion()
_SMALL = 4096  # bytes of the buffer that reads of this size and less share
_dma_read = lib.iemu_dma_read
_dma_write = lib.iemu_dma_write
_unpack = ffi.unpack


@dataclass(slots=True)
class _InFlight:
    completion: Completion
    buffer: Any
    length: int  # bytes to read; 0 for a write
    on_done: Callable[[Completion], None] | None


class Port:
    """Where one PCI function's requests enter the fabric.

    A transfer that passes at once returns a finished `Completion`; one that is in flight
    returns a pending one, which `poll` fills in. `blocked` is the status that every new
    transfer gets while the function must not send; None: it may. A transfer that runs past the
    end of the 64-bit address space is an Unsupported Request.
    """

    def __init__(self, machine: CoreMachine, segment: int, requester: int) -> None:
        require_range("segment", segment, _U16)
        require_range("requester", requester, _U16)
        error = ffi.new("int *")
        handle = lib.iemu_port_create(machine.handle, segment, requester, error)
        if not handle:
            check(error[0], f"port of {segment:04x}:{requester:#06x}")
        self.machine = machine
        self.segment = segment
        self.requester = requester
        self.blocked: Status | None = None
        self._handle = handle
        self._buffer = ffi.new("char[]", _SMALL)
        self._in_flight: dict[int, _InFlight] = {}

    def __repr__(self) -> str:
        state = "" if self.blocked is None else f", {self.blocked.name}"
        return f"<Port {self.segment:04x}:{self.requester:#06x}{state}>"

    def read(
        self, address: int, length: int, on_done: Callable[[Completion], None] | None = None
    ) -> Completion:
        """Read memory: untranslated, no PASID.

        Args:
            address: IOVA, 64 bits.
            length: bytes, 0..16 MiB; 0 is a zero-length read.
            on_done: called with the completion once it is there, before the return of this
                method if the read passes at once.

        Raises:
            ValueError: if address or length is outside its range.
        """
        if self.blocked is not None:
            return self._refused(self.blocked, address, on_done)
        if length <= _SMALL:
            buffer = self._buffer
        else:
            require_range("length", length, MAX_TRANSFER)
            buffer = ffi.new("char[]", length)
        try:
            status = _dma_read(self._handle, address, buffer, length)
        except OverflowError:
            raise _overflow(address, length) from None
        if status:
            return self._unfinished(status, address, length, length, on_done)
        completion = Completion(_unpack(buffer, length))
        if on_done is not None:
            on_done(completion)
        return completion

    def write(
        self, address: int, data: BytesLike, on_done: Callable[[Completion], None] | None = None
    ) -> Completion:
        """Write memory: untranslated, no PASID.

        Args:
            address: IOVA, 64 bits.
            data: 1 byte..16 MiB.
            on_done: called with the completion once it is there, before the return of this
                method if the write passes at once.

        Raises:
            ValueError: if address or the length of data is outside its range.
        """
        if self.blocked is not None:
            return self._refused(self.blocked, address, on_done)
        if type(data) is not bytes:
            data = ffi.from_buffer(data)
        length = len(data)
        try:
            status = _dma_write(self._handle, address, data, length)
        except OverflowError:
            raise _overflow(address, length) from None
        if status:
            if not 0 < length <= MAX_TRANSFER:
                require_range("length", length, MAX_TRANSFER, 1)
            return self._unfinished(status, address, length, 0, on_done)
        if on_done is not None:
            on_done(_SUCCESS)
        return _SUCCESS

    def transfer(
        self,
        access: Access,
        address: int,
        data: BytesLike | int,
        *,
        pasid: int | None = None,
        at: AddressType = AddressType.UNTRANSLATED,
        flags: RequestFlag = RequestFlag.NONE,
        posted: bool = False,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Read or write memory with any attributes of a request.

        Args:
            access: READ or WRITE.
            address: IOVA, or host physical address if `at` is TRANSLATED.
            data: what is written, or the number of bytes to read; at most 16 MiB.
            pasid: 20 bits; None: no PASID prefix.
            at: address type.
            flags: further attributes.
            posted: a write whose outcome nobody will ask for.
            on_done: called with the completion once it is there.

        Raises:
            ValueError: if an argument is outside its range.
        """
        if access is Access.READ:
            if not isinstance(data, int):
                raise ValueError("data of a read must be the number of bytes to read")
            require_range("length", data, MAX_TRANSFER)
            length = data
            buffer = ffi.new("char[]", max(length, 1))
        elif access is Access.WRITE:
            if isinstance(data, int):
                raise ValueError("data of a write must be bytes")
            buffer = ffi.from_buffer(data)
            length = len(buffer)
            require_range("length", length, MAX_TRANSFER, 1)
        else:
            raise ValueError(f"access must be READ or WRITE, not {access!r}")
        reads = access is Access.READ
        return self._transfer(
            buffer, length, reads, on_done, access, address, pasid, at, flags, posted=posted
        )

    def atomic(
        self,
        kind: AtomicKind,
        address: int,
        operand: int,
        compare: int | None = None,
        *,
        size: int = 8,
        pasid: int | None = None,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Do an AtomicOp; the completion's data is the old value, little endian.

        Args:
            kind: FETCH_ADD, SWAP or COMPARE_SWAP.
            address: IOVA, a multiple of `size`.
            operand: what is added, or swapped in.
            compare: COMPARE_SWAP only: swapped in if memory holds this.
            size: bytes, 4 or 8.
            pasid: 20 bits; None: no PASID prefix.
            on_done: called with the completion once it is there.

        Raises:
            ValueError: if an argument is outside its range.
        """
        if size not in (4, 8):
            raise ValueError(f"size must be 4 or 8, not {size}")
        if address % size:
            raise ValueError(f"address must be a multiple of {size}, not {address:#x}")
        limit = (1 << 8 * size) - 1
        require_range("operand", operand, limit)
        operands = operand.to_bytes(size, "little")
        if (kind is AtomicKind.COMPARE_SWAP) != (compare is not None):
            raise ValueError("compare belongs to COMPARE_SWAP, and to nothing else")
        if compare is not None:
            require_range("compare", compare, limit)
            operands = compare.to_bytes(size, "little") + operands
        buffer = ffi.new("char[]", operands.ljust(16, b"\0"))
        at, flags = AddressType.UNTRANSLATED, RequestFlag.NONE
        return self._transfer(
            buffer, size, True, on_done, Access.ATOMIC, address, pasid, at, flags, atomic=kind
        )

    def _transfer(
        self,
        buffer: Any,
        length: int,
        reads: bool,
        on_done: Callable[[Completion], None] | None,
        access: Access,
        address: int,
        pasid: int | None,
        at: AddressType,
        flags: RequestFlag,
        *,
        posted: bool = False,
        atomic: int = 0,
    ) -> Completion:
        require_range("address", address, _U64)
        if self.blocked is not None:
            return self._refused(self.blocked, address, on_done)
        transfer = ffi.new("struct iemu_transfer *")
        transfer.address = address
        transfer.length = length
        transfer.pasid, transfer.flags = _pasid(pasid, flags)
        transfer.access = access
        transfer.at = at
        transfer.atomic = atomic
        transfer.posted = posted
        details = ffi.new("struct iemu_completion *")
        status = lib.iemu_dma(self._handle, transfer, buffer, details)
        if status == lib.IEMU_PENDING and posted:
            return _SUCCESS
        if status:
            return self._unfinished(status, address, length, length if reads else 0, on_done)
        completion = Completion(_unpack(buffer, length)) if reads else _SUCCESS
        if on_done is not None:
            on_done(completion)
        return completion

    def _refused(
        self, status: Status, address: int, on_done: Callable[[Completion], None] | None
    ) -> Completion:
        """Return the completion of a transfer that was not sent."""
        completion = Completion(b"", CompletionDetails(status, address, 0, self.machine.now))
        if on_done is not None:
            on_done(completion)
        return completion

    def _unfinished(
        self,
        status: int,
        address: int,
        length: int,
        expected: int,
        on_done: Callable[[Completion], None] | None,
    ) -> Completion:
        """Return the completion of the last transfer, which failed or is in flight.

        `expected` is the number of bytes that will come back.
        """
        if status < 0:
            # A guest may tell a device any address: what runs past 2**64 is no user's mistake.
            if address + length > _U64:
                return self._refused(Status.UNSUPPORTED_REQUEST, address, on_done)
            check(status, f"transfer of {_range(address, length)}")
        struct = ffi.new("struct iemu_completion *")
        lib.iemu_dma_last(self._handle, struct)
        completion = Completion(b"", self._details(status, struct))
        if status == lib.IEMU_PENDING:
            buffer = ffi.new("char[]", max(expected, 16))
            self._in_flight[struct.token] = _InFlight(completion, buffer, expected, on_done)
            self.machine.waiting[self] = None
        elif on_done is not None:
            on_done(completion)
        return completion

    def _details(self, status: int, struct: Any) -> CompletionDetails:
        cause = None
        if struct.diagnostic:
            unit = self.machine.routed_unit(self.segment, self.requester)
            if unit is not None:
                cause = faults(unit.vendor)[struct.diagnostic]
        return CompletionDetails(
            status=Status(status),
            address=struct.address,
            done=struct.done,
            time=struct.time,
            fault=struct.fault,
            diagnostic=struct.diagnostic,
            recorded=bool(struct.recorded),
            cause=cause,
        )

    def poll(self) -> int:
        """Fill in the completions that have arrived; return how many."""
        arrived = 0
        struct = ffi.new("struct iemu_completion *")
        for token, transfer in list(self._in_flight.items()):
            status = check(
                lib.iemu_dma_take(self._handle, token, transfer.buffer, struct), f"token {token}"
            )
            if status == lib.IEMU_PENDING:
                continue
            del self._in_flight[token]
            arrived += 1
            completion = transfer.completion
            if status == lib.IEMU_DONE:
                completion.data = _unpack(transfer.buffer, transfer.length)
            completion.details = self._details(status, struct)
            if transfer.on_done is not None:
                transfer.on_done(completion)
        if not self._in_flight:
            self.machine.waiting.pop(self, None)
        return arrived

    def set_latency(self, fabric: int, memory: int) -> None:
        """Set the latencies to the IOMMU and from there to memory, in ns."""
        require_range("fabric", fabric, _U64 >> 1)
        require_range("memory", memory, _U64 >> 1)
        lib.iemu_port_set_latency(self._handle, fabric, memory)

    def set_requester(self, requester: int) -> None:
        """Set the requester ID with which later requests reach the IOMMU."""
        require_range("requester", requester, _U16)
        if self._handle is not None:
            lib.iemu_port_set_requester(self._handle, requester)
        self.requester = requester

    @property
    def in_flight(self) -> tuple[int, int]:
        """Transactions in the fabric (untranslated), and translated but not yet landed."""
        if self._handle is None:
            return 0, 0
        fabric, translated = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        lib.iemu_port_in_flight(self._handle, fabric, translated)
        return fabric[0], translated[0]

    def remove(self) -> None:
        """Remove the function by surprise (pci 8).

        Nothing new is sent. What was sent still arrives and is translated, its completions are
        discarded: the pending `Completion`s become REMOVED, and nobody is called.
        """
        if self._handle is None:
            return
        lib.iemu_port_remove(self._handle)
        self.blocked = Status.REMOVED
        for transfer in self._in_flight.values():
            address, now = transfer.completion.details, self.machine.now
            where = 0 if address is None else address.address
            transfer.completion.details = CompletionDetails(Status.REMOVED, where, 0, now)
        self._in_flight.clear()
        self.machine.waiting.pop(self, None)

    def destroy(self) -> None:
        """Remove the function and free the port on the C side; later calls are refused."""
        if self._handle is not None:
            self.remove()
            lib.iemu_port_destroy(self._handle)
            self._handle = None


def _overflow(address: int, length: int) -> ValueError:
    name, value, last = "length", length, MAX_TRANSFER
    if not 0 <= address <= _U64:
        name, value, last = "address", address, _U64
    return ValueError(f"{name} must be in 0x0..{last:#x}, not {value:#x}")
