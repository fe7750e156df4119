"""Handle on a machine of the core."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iommu_emu._core import ffi, lib
from iommu_emu.core.enums import MessageKind, Vendor
from iommu_emu.core.errors import U16, U64, StateError, check, range_text, require_range
from iommu_emu.core.port import BytesLike, Port
from iommu_emu.core.records import Message
from iommu_emu.core.region import Region
from iommu_emu.core.tables import TRACE_DTYPE
from iommu_emu.core.unit import CoreUnit


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
        self.transactions = transactions
        self.trace_events = trace_events
        self.units: list[CoreUnit] = []
        self.waiting: dict[Port, None] = {}  # ports with transfers in flight, in their order
        self.before_messages: Callable[[], None] | None = None  # each time they are taken
        self._batch = 64
        self._messages = ffi.new("struct iemu_message[]", self._batch)

    # Physical memory.

    def map(self, base: int, region: Region) -> None:
        """Place RAM at `base` (page aligned).

        Raises:
            OverlapError: if something is there.
        """
        require_range("base", base, U64)
        check(lib.iemu_memory_map(self.handle, base, region.handle), f"RAM at {base:#x}")

    def map_bar(self, base: int, size: int, owner: int) -> None:
        """Place a window at `base`, whose accesses go to the outbox with `owner`."""
        require_range("base", base, U64)
        require_range("size", size, U64, 1)
        code = lib.iemu_memory_map_bar(self.handle, base, size, owner)
        check(code, f"BAR window {base:#x}+{size:#x}")

    def unmap(self, base: int) -> None:
        """Remove the RAM or window that starts at `base`.

        Raises:
            ValueError: if none starts there.
        """
        require_range("base", base, U64)
        check(lib.iemu_memory_unmap(self.handle, base), f"base {base:#x} (nothing starts there)")

    def read(self, address: int, length: int) -> bytes:
        """Read RAM as a CPU does.

        Raises:
            NotRamError: if any byte is not RAM.
        """
        require_range("address", address, U64)
        require_range("length", length, U64)
        buffer = ffi.new("char[]", length)
        code = lib.iemu_memory_read(self.handle, address, buffer, length)
        if code:
            check(code, range_text(address, length))
        data: bytes = ffi.unpack(buffer, length)
        return data

    def write(self, address: int, data: BytesLike) -> None:
        """Write RAM as a CPU does, all or nothing.

        Raises:
            NotRamError: if any byte is not RAM.
        """
        require_range("address", address, U64)
        source = ffi.from_buffer(data)
        code = lib.iemu_memory_write(self.handle, address, source, len(source))
        if code:
            check(code, range_text(address, len(source)))

    def arm_store(self, trigger: int, target: int, value: int) -> None:
        """Store `value` (8 bytes) at `target` once a unit has fetched the granule at `trigger`.

        Raises:
            FullError: if 16 stores are armed.
            ValueError: if `target` is not a multiple of 8.
        """
        require_range("trigger", trigger, U64)
        require_range("target", target, U64)
        require_range("value", value, U64)
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
        require_range("time", time, U64)
        lib.iemu_clock_advance_to(self.handle, time)

    @property
    def next_event(self) -> int | None:
        """Time of the core's next event in ns; None if nothing is scheduled."""
        time: int = lib.iemu_clock_next(self.handle)
        return None if time == U64 else time

    # Outbox.

    def take_messages(self, most: int = 64) -> list[Message]:
        """Take up to `most` messages, 1..64, oldest first."""
        if self.before_messages is not None:
            self.before_messages()
        count = lib.iemu_outbox_take(self.handle, self._messages, min(most, self._batch))
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
        require_range("segment", segment, U16)
        require_range("first", first, U16)
        require_range("last", last, U16, first)
        handle = ffi.NULL if unit is None else unit.handle
        code = lib.iemu_route(self.handle, segment, first, last, handle)
        check(code, f"route of {segment:04x}:{first:#06x}..{last:#06x}")

    def routed_unit(self, segment: int, requester: int) -> CoreUnit | None:
        """Return the unit that a requester is routed to."""
        require_range("segment", segment, U16)
        require_range("requester", requester, U16)
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
