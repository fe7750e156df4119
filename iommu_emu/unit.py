"""What every IOMMU unit has: registers by name, caches, counters, the stale-use detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from iommu_emu import core
from iommu_emu.core import (
    CACHES,
    Access,
    AddressType,
    CacheEntry,
    CacheId,
    CoreUnit,
    FieldAccess,
    FieldInfo,
    InvalidationState,
    IotlbLookup,
    RegisterInfo,
    Request,
    RequestFlag,
    Reset,
    Result,
    StaleUse,
    Vendor,
)
from iommu_emu.geometry import Geometry, preset
from iommu_emu.timing import IMMEDIATE, Timing

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

MAX_WINDOW = 1 << 24  # bytes of a register window
_WRITTEN_BACK = (FieldAccess.RW, FieldAccess.RWL)


@dataclass(frozen=True, kw_only=True)
class UnitConfig:
    """What a unit of either vendor is configured with; vendors add capabilities.

    Attributes:
        base: physical address of the register window, a multiple of its size.
        window: bytes of the register window, a power of two in 4096..2**24.
        host_address_width: bits of a physical address, 32..52.
        geometry: shape of the caches; a preset's name is taken as well.
        timing: latencies of invalidations.
        iotlb_lookup: how the IOTLB is looked up.
        fetch_granule: bits of a table entry that are read as one, 64, 128 or 256.

    Raises:
        ValueError: if a value is outside its range.
    """

    base: int
    window: int = 4096
    host_address_width: int = 39
    geometry: Geometry = field(default_factory=lambda: preset("default"))
    timing: Timing = IMMEDIATE
    iotlb_lookup: IotlbLookup = IotlbLookup.BY_REQUESTER
    fetch_granule: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.geometry, str):
            object.__setattr__(self, "geometry", preset(self.geometry))
        if not 4096 <= self.window <= MAX_WINDOW or self.window & (self.window - 1):
            raise ValueError(
                f"window must be a power of two in 0x1000..{MAX_WINDOW:#x}, not {self.window:#x}"
            )
        if self.base % self.window or not 0 <= self.base < 1 << 64:
            raise ValueError(
                f"base must be a multiple of window ({self.window:#x}) in 64 bits, "
                f"not {self.base:#x}"
            )
        if not 32 <= self.host_address_width <= 52:
            raise ValueError(f"host_address_width must be in 32..52, not {self.host_address_width}")
        if self.fetch_granule not in (64, 128, 256):
            raise ValueError(f"fetch_granule must be 64, 128 or 256, not {self.fetch_granule}")

    def unit_parameters(self) -> dict[str, Any]:
        """Return the values of `struct iemu_unit_config`."""
        return {
            "base": self.base,
            "window": self.window,
            "host_address_width": self.host_address_width,
            "iotlb_lookup": int(self.iotlb_lookup),
            "fetch_granule": self.fetch_granule,
            "geometry": self.geometry.parameters(),
            "timing": self.timing.parameters(),
        }


@lru_cache
def _register_names(vendor: Vendor) -> dict[str, RegisterInfo]:
    return {register.name: register for register in core.registers(vendor)}


@lru_cache
def _field_names(vendor: Vendor) -> dict[tuple[int, str], FieldInfo]:
    return {(row.register, row.name): row for row in core.fields(vendor)}


class Unit:
    """One IOMMU of a machine; vendors derive from it.

    Args:
        machine: the machine that the unit belongs to; the unit registers itself there.
        unit_core: the unit's handle on the C core.
        config: what the unit was configured with.
        segment: PCI segment that it serves.
    """

    def __init__(
        self, machine: Machine, unit_core: CoreUnit, config: UnitConfig, segment: int = 0
    ) -> None:
        self.machine = machine
        self.core = unit_core
        self.config = config
        self.segment = segment
        self.vendor = unit_core.vendor
        self.number = unit_core.number
        self.lost_stale_uses = 0
        machine.register_unit(self)

    @property
    def base(self) -> int:
        """Physical address of the register window."""
        return self.config.base

    @property
    def window(self) -> int:
        """Bytes of the register window."""
        return self.config.window

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} at {self.base:#x}, segment {self.segment}>"

    # Registers.

    def register(self, name: str) -> RegisterInfo:
        """Return the table row of a register.

        Raises:
            ValueError: if the vendor has no register of this name.
        """
        try:
            return _register_names(self.vendor)[name]
        except KeyError:
            raise ValueError(f"{self.vendor.name} has no register {name!r}") from None

    def field_info(self, register: str, name: str) -> FieldInfo:
        """Return the table row of a field.

        Raises:
            ValueError: if the register has no field of this name.
        """
        row = self.register(register)
        try:
            return _field_names(self.vendor)[row.index, name]
        except KeyError:
            raise ValueError(f"register {register} has no field {name!r}") from None

    def offset(self, name: str, index: int = 0) -> int:
        """Return the offset of a register in the window; `index` counts an array's elements."""
        row = self.register(name)
        if not 0 <= index < row.count:
            raise ValueError(f"index of {name} must be in 0..{row.count - 1}, not {index}")
        return self.core.register_offset(row.index) + index * row.stride

    def read(self, name: str, index: int = 0) -> int:
        """Read a whole register by name; a 128-bit one in two accesses, low half first."""
        offset, width = self.offset(name, index), self.register(name).width
        if width <= 64:
            return self.core.mmio_read(offset, width // 8)
        low = self.core.mmio_read(offset, 8)
        return low | self.core.mmio_read(offset + 8, 8) << 64

    def write(self, name: str, value: int, index: int = 0) -> None:
        """Write a whole register by name; a 128-bit one in two accesses, low half first.

        Raises:
            ValueError: if the value does not fit the register.
        """
        offset, width = self.offset(name, index), self.register(name).width
        core.require_range(f"value of {name}", value, (1 << width) - 1)
        if width <= 64:
            self.core.mmio_write(offset, width // 8, value)
        else:
            self.core.mmio_write(offset, 8, value & (1 << 64) - 1)
            self.core.mmio_write(offset + 8, 8, value >> 64)
        self.machine.service()  # a drain may have made transfers of devices land

    def field(self, register: str, name: str, index: int = 0) -> int:
        """Read one field of a register."""
        return self.field_info(register, name).extract(self.read(register, index))

    def write_field(self, register: str, name: str, value: int, index: int = 0) -> None:
        """Write one field: the read-write fields beside it are written back, all others as 0.

        So a write-1-to-clear field clears nothing but itself.

        Raises:
            ValueError: if the value does not fit the field.
        """
        info = self.field_info(register, name)
        core.require_range(f"{register}.{name}", value, info.mask >> info.low)
        kept = 0
        for other in core.fields(self.vendor):
            if other.register == info.register and other.access in _WRITTEN_BACK:
                kept |= other.mask
        current = self.read(register, index) & kept & ~info.mask
        self.write(register, current | value << info.low, index)

    def describe(self) -> str:
        """Return every register with its fields that are not 0, for people."""
        lines = [repr(self)[1:-1]]
        for row in core.registers(self.vendor):
            rows = [f for f in core.fields(self.vendor) if f.register == row.index]
            present = [f for f in rows if self.core.has_field(f.index)]
            if rows and not present:
                continue
            for index in range(row.count):
                lines += self._describe(row, present, index)
        return "\n".join(lines)

    def _describe(self, row: RegisterInfo, present: list[FieldInfo], index: int) -> list[str]:
        offset = self.offset(row.name, index)
        if offset + row.width // 8 > self.window:
            return []
        value = self.read(row.name, index)
        name = row.name if row.count == 1 else f"{row.name}[{index}]"
        decoded = [f"{f.name}={f.extract(value):#x}" for f in present if f.extract(value)]
        text = f"  {offset:03x} {name:<12} {value:0{row.width // 4}x}"
        if value:
            text += f"  {' '.join(decoded)}"
        return [f"{text}  # {row.description}"] if index == 0 or value else []

    # Translation and invalidation.

    def translate(
        self,
        requester: int,
        address: int,
        *,
        access: Access = Access.READ,
        length: int = 4,
        at: AddressType = AddressType.UNTRANSLATED,
        pasid: int | None = None,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Result:
        """Translate one request as the unit would, with every side effect.

        Args:
            requester: requester ID, 16 bits.
            address: IOVA.
            access: READ, WRITE or ATOMIC.
            length: bytes; the request must not cross a 4 KiB page.
            at: address type.
            pasid: 20 bits; None: no PASID prefix.
            flags: further attributes.

        Raises:
            ValueError: if an argument is outside its range.
        """
        request = Request(address, length, requester, access, at, pasid, flags)
        return self.core.translate(request)

    def translate_batch(
        self,
        requester: int,
        addresses: NDArray[np.uint64],
        *,
        access: Access = Access.READ,
        length: int = 4,
        pasid: int | None = None,
    ) -> NDArray[Any]:
        """Translate one request at every address of an array.

        Args:
            requester: requester ID, 16 bits.
            addresses: shape (n,), uint64.
            access: READ, WRITE or ATOMIC.
            length: bytes; no request must cross a 4 KiB page.
            pasid: 20 bits; None: no PASID prefix.

        Returns:
            Shape (n,), a structured array with the fields of `struct iemu_result`.
        """
        request = Request(0, length, requester, access, pasid=pasid)
        return self.core.translate_batch(request, addresses)

    def reset(self, *, power_on: bool = False) -> None:
        """Reset the unit; sticky fields survive unless `power_on`."""
        self.core.reset(Reset.POWER_ON if power_on else Reset.WARM)

    def step(self) -> bool:
        """Move the invalidation machine by one state; False if there was nothing to do."""
        return self.core.step()

    @property
    def invalidation_state(self) -> InvalidationState:
        """State of the oldest invalidation that is not complete."""
        return self.core.invalidation_state

    def set_timing(self, timing: Timing) -> None:
        """Set the latencies of invalidations from now on."""
        self.core.set_timing(timing.parameters())

    # Introspection.

    def entries(self, cache: str | CacheId) -> list[CacheEntry]:
        """Return the live entries of a cache: "iotlb", "context", "paging" or "interrupt".

        Raises:
            ValueError: if there is no such cache.
        """
        names = {member.name.lower(): member for member in CacheId if member < CACHES}
        name = (cache if isinstance(cache, str) else cache.name).lower()
        if name not in names:
            raise ValueError(f"cache must be one of {', '.join(names)}, not {cache!r}")
        return self.core.entries(names[name])

    @property
    def counters(self) -> dict[str, int]:
        """Every counter by name; VT-d performance event names where there is one."""
        return self.core.counters()

    def watch(self, on: bool = True) -> None:
        """Switch the stale-use detector: each cache hit is compared with a fresh walk."""
        self.core.watch(on)

    def stale_uses(self) -> list[StaleUse]:
        """Take the reports of the detector, oldest first; `lost_stale_uses` counts lost ones."""
        uses, lost = self.core.stale_uses()
        self.lost_stale_uses += lost
        return uses
