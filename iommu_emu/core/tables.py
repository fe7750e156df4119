"""What the core exports: registers, fields, faults, and the layout of its structs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from iommu_emu._core import ffi, lib
from iommu_emu.core.enums import FieldAccess, Vendor


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
        qualified: the device's own entry can suppress it (VT-d FPD, AMD-Vi SA and SE).
    """

    diagnostic: int
    name: str
    condition: str
    section: str
    code: int
    qualified: bool


def text(pointer: Any) -> str:
    """Return a C string."""
    string: bytes = ffi.string(pointer)
    return string.decode()


@lru_cache
def registers(vendor: Vendor) -> tuple[RegisterInfo, ...]:
    """Return the register table of a vendor, in row order."""
    count = ffi.new("size_t *")
    rows = lib.iemu_registers(vendor, count)
    return tuple(
        RegisterInfo(
            i, text(r.name), text(r.description), r.offset, r.width, r.count, r.stride, r.base
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
            i,
            text(f.name),
            f.reg,
            f.high,
            f.low,
            FieldAccess(f.access),
            text(f.needs),
            f.reset,
        )
        for i, f in enumerate(rows[0 : count[0]])
    )


@lru_cache
def faults(vendor: Vendor) -> tuple[FaultInfo, ...]:
    """Return the fault table of a vendor; row i is diagnostic i."""
    count = ffi.new("size_t *")
    rows = lib.iemu_faults(vendor, count)
    return tuple(
        FaultInfo(i, text(f.name), text(f.condition), text(f.section), f.code, bool(f.qualified))
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
    layout: Any = {  # numpy's stubs disagree from version to version about this form
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "itemsize": ffi.sizeof(ctype),
    }
    dtype: np.dtype[Any] = np.dtype(layout)
    return dtype


RESULT_DTYPE = _dtype("struct iemu_result")
TRACE_DTYPE = _dtype("struct iemu_trace_event")
RECORD_DTYPE = _dtype("struct iemu_record")
