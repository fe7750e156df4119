"""Handle on an IOMMU unit of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iommu_emu._core import ffi, lib
from iommu_emu.core.enums import CacheId, InvalidationState, Owed, Reset, Vendor
from iommu_emu.core.errors import check
from iommu_emu.core.records import (
    CacheEntry,
    Request,
    Result,
    StaleUse,
    make_cache_entry,
    make_request,
    make_result,
)
from iommu_emu.core.tables import RESULT_DTYPE, text

if TYPE_CHECKING:
    from iommu_emu.core.machine import CoreMachine


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
        return make_result(self.vendor, result)

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
        return [make_cache_entry(rows[i]) for i in range(count)]

    def counters(self) -> dict[str, int]:
        """Return every counter by name; VT-d performance event names where there is one."""
        rows = ffi.new("struct iemu_counter[]", 1)
        count = lib.iemu_unit_counters(self.handle, rows, 0)
        rows = ffi.new("struct iemu_counter[]", max(count, 1))
        count = min(count, lib.iemu_unit_counters(self.handle, rows, count))
        return {text(rows[i].name): rows[i].value for i in range(count)}

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
            request=make_request(struct.request),
            cached=make_result(self.vendor, struct.cached),
            fresh=make_result(self.vendor, struct.fresh),
            time=struct.time,
            cache=CacheId(struct.cache),
            level=struct.level,
            entry=struct.entry,
            before=struct.before,
            after=struct.after,
            owed=Owed(struct.owed),
            invalidation=InvalidationState(struct.invalidation),
        )

    def has_field(self, field: int) -> bool:
        """Whether a row of the field table is there in this unit's configuration."""
        there: bool = lib.iemu_unit_has_field(self.handle, field)
        return there

    def register_offset(self, register: int) -> int:
        """Return the offset of a row of the register table in this unit's window."""
        offset: int = lib.iemu_unit_register_offset(self.handle, register)
        return offset
