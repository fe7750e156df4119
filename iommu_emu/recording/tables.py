"""What a unit read or stored, told by the registers that lead there."""

from __future__ import annotations

from dataclasses import dataclass, field

from iommu_emu import core
from iommu_emu.amdvi.events import EventRecord
from iommu_emu.amdvi.structures import (
    COMMANDS,
    DeviceTableEntry,
    PageDirectoryEntry,
    PageTableEntry,
)
from iommu_emu.bitfields import Kind, Structure
from iommu_emu.core import CoreUnit, FieldInfo, RegisterInfo, Vendor
from iommu_emu.vtd.structures import (
    DESCRIPTORS,
    ContextEntry,
    RootEntry,
    SecondStagePage4K,
)

__all__ = ["RegisterNames", "UnitTables", "entry_text"]

PAGE = 4096


class RegisterNames:
    """Registers of one unit by their place in its window."""

    def __init__(self, unit: CoreUnit) -> None:
        self.vendor = unit.vendor
        self._fields: dict[int, list[FieldInfo]] = {}
        for info in core.fields(unit.vendor):
            if unit.has_field(info.index):
                self._fields.setdefault(info.register, []).append(info)
        self._words: dict[int, tuple[RegisterInfo, int, int]] = {}  # register, element, dword
        for row in core.registers(unit.vendor):
            start = unit.register_offset(row.index)
            for element in range(row.count):
                for word in range(row.width // 32):
                    at = start + element * row.stride + 4 * word
                    self._words.setdefault(at, (row, element, word))

    def text(self, offset: int, size: int, value: int) -> str:
        """Return an access as "GCMD 80000000 (TE)"."""
        place = self._words.get(offset)
        digits = f"{value:0{2 * size}x}"
        if place is None:
            return f"{offset:#05x} {digits}"
        row, element, word = place
        name = row.name if row.count == 1 else f"{row.name}[{element}]"
        if word or 8 * size < row.width:
            name += f"[{32 * word + 8 * size - 1}:{32 * word}]"
        shifted = value << 32 * word
        rows = self._fields.get(row.index, [])
        named = [_field_text(f, f.extract(shifted)) for f in rows if f.extract(shifted)]
        return f"{name} {digits}" + (f" ({', '.join(named)})" if named else "")


def _field_text(info: FieldInfo, value: int) -> str:
    return info.name if info.high == info.low else f"{info.name}={value:#x}"


def entry_text(structure: Structure, data: bytes) -> str:
    """Return an entry as its name and the fields that are not 0."""
    shown = []
    for declared, value in zip(structure, structure.parse(data).values(), strict=True):
        if not value or declared.kind in (Kind.CONSTANT, Kind.IGNORED):
            continue
        shown.append(declared.name if declared.width == 1 else f"{declared.name}={value:#x}")
    return " ".join([structure.name, *shown])


@dataclass
class UnitTables:
    """Where a unit's tables and rings are, as software has told it.

    Attributes:
        names: its registers.
        written: what was last written to each dword of the window.
    """

    names: RegisterNames
    written: dict[int, int] = field(default_factory=dict)

    def write(self, offset: int, size: int, value: int) -> None:
        """Follow a register write."""
        for at in range(offset, offset + size, 4):
            self.written[at] = value & 0xFFFF_FFFF
            value >>= 32

    def _value(self, register: str) -> int:
        row = next(r for r in core.registers(self.names.vendor) if r.name == register)
        return self.written.get(row.offset, 0) | self.written.get(row.offset + 4, 0) << 32

    def _inside(self, address: int, register: str, size: int) -> bool:
        base = self._value(register) & 0x000F_FFFF_FFFF_F000
        return bool(base) and base <= address < base + size

    def _ring(self, address: int, register: str) -> bool:  # AMD-Vi 2: 2^Len entries
        length = self._value(register) >> 56 & 0xF
        return length >= 8 and self._inside(address, register, 16 << length)

    def fetched(self, address: int, data: bytes) -> str | None:
        """Say what an entry is; None if it is not one of this unit's named tables."""
        if self.names.vendor is Vendor.VTD:
            return self._vtd(address, data)
        if len(data) == DeviceTableEntry.size:
            size = ((self._value("DevTabBase") & 0x1FF) + 1) * PAGE
            known = self._inside(address, "DevTabBase", size)
            return entry_text(DeviceTableEntry, data) if known else None
        if len(data) == 16 and self._ring(address, "CmdBufBase"):
            command = COMMANDS.get(data[7] >> 4)
            return entry_text(command, data) if command else f"command {data[7] >> 4:#x}"
        return None

    def _vtd(self, address: int, data: bytes) -> str | None:
        if len(data) != 16:
            return None
        if self._inside(address, "IQA", PAGE << (self._value("IQA") & 7)):
            kind = data[0] & 0xF | (data[1] & 0xE) << 3  # VT-d 7.1
            structure = DESCRIPTORS.get(kind)
            return entry_text(structure, data) if structure else f"descriptor of type {kind:#x}"
        if self._inside(address, "RTADDR", PAGE):
            return entry_text(RootEntry, data)
        if self._inside(address, "IRTA", 32 << (self._value("IRTA") & 0xF)):  # 2^(S+1) entries
            return "interrupt remapping table entry"
        return None

    def page_entry(self, data: bytes) -> str:
        """Say what an 8-byte entry of a page table holds."""
        value = int.from_bytes(data, "little")
        if self.names.vendor is Vendor.VTD:
            return entry_text(SecondStagePage4K, data).replace(SecondStagePage4K.name, "page entry")
        leaf = value >> 9 & 7 in (0, 7)  # AMD-Vi 5.1
        return entry_text(PageTableEntry if leaf else PageDirectoryEntry, data)

    def stored(self, address: int, data: bytes) -> str | None:
        """Say what was stored; None if it is not in this unit's log."""
        if self.names.vendor is Vendor.VTD or len(data) != 16:
            return None
        if not self._ring(address, "EvtLogBase"):
            return None
        try:
            event = EventRecord.decode(data)
        except ValueError as error:
            return str(error)
        return f"event {event}: {event.condition}"

    def anonymous(self, data: bytes) -> str:
        """Say what an entry is that no register leads to."""
        if len(data) == 8:
            return self.page_entry(data)
        if len(data) == 16 and self.names.vendor is Vendor.VTD:
            return entry_text(ContextEntry, data)
        return "entry"
