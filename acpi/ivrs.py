"""The IVRS table: AMD's report of its IOMMUs (AMD IOMMU specification 5.2)."""

# ruff: noqa: RUF009 - flag_set returns a dataclass field, which the rule does not see

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import IntFlag
from typing import ClassVar, NamedTuple

from construct import Int8ul, Int16ul

from iommu_emu.acpi.header import Table
from iommu_emu.acpi.layout import Computed, Typed, blob, flag_set, string, u8, u16, u32, u64
from iommu_emu.acpi.text import BDF, HEX, UID, bit_fields, named


class IvhdFlags(IntFlag):
    """Flags of an IVHD block; bits 6 and 7 are reserved in types 11h and 40h (5.2.2)."""

    HT_TUN_EN = 1
    PASS_PW = 2
    RES_PASS_PW = 4
    ISOC = 8
    IOTLB_SUP = 16
    COHERENT = 32
    PREF_SUP = 64
    PPR_SUP = 128


class IvmdFlags(IntFlag):
    """Flags of an IVMD block (5.2.3)."""

    UNITY = 1
    READ = 2
    WRITE = 4
    EXCLUSION_RANGE = 8


IV_INFO = bit_fields(
    {
        "EFRSup": (0, 0),
        "DmaRemapOptIn": (1, 1),
        "GVASize": (5, 7),
        "PASize": (8, 14),
        "VASize": (15, 21),
        "HtAtsResv": (22, 22),
    }
)
_COUNTERS = {"PNCounters": (13, 16), "PNBanks": (17, 22), "MsiNumPPR": (23, 27)}
INFO = bit_fields({"MsiNum": (0, 4), "UnitID": (8, 12)})
FEATURES = bit_fields(
    {
        "XTSup": (0, 0),
        "NXSup": (1, 1),
        "GTSup": (2, 2),
        "GLXSup": (3, 4),
        "IASup": (5, 5),
        "GASup": (6, 6),
        "HESup": (7, 7),
        "PASmax": (8, 12),
        **_COUNTERS,
        "GATS": (28, 29),
        "HATS": (30, 31),
    }
)
ATTRIBUTES = bit_fields({"HATDis": (0, 0), **_COUNTERS})
SETTING = bit_fields(
    {
        "INITPass": (0, 0),
        "EIntPass": (1, 1),
        "NMIPass": (2, 2),
        "SysMgt": (4, 5),
        "LINT0Pass": (6, 6),
        "LINT1Pass": (7, 7),
    }
)

ENTRY_NAMES = {
    0x00: "PAD4",
    0x01: "ALL",
    0x02: "SELECT",
    0x03: "START_RANGE",
    0x04: "END_RANGE",
    0x40: "PAD8",
    0x42: "ALIAS_SELECT",
    0x43: "ALIAS_START_RANGE",
    0x46: "EXT_SELECT",
    0x47: "EXT_START_RANGE",
    0x48: "SPECIAL",
    0xF0: "ACPI_HID",
}
(PAD4, ALL, SELECT, START_RANGE, END_RANGE, PAD8, *_) = ENTRY_NAMES
(*_, ALIAS_SELECT, ALIAS_START_RANGE, EXT_SELECT, EXT_START_RANGE, SPECIAL, ACPI_HID) = ENTRY_NAMES
STARTS = (START_RANGE, ALIAS_START_RANGE, EXT_START_RANGE)
VARIETY_NAMES = {1: "IOAPIC", 2: "HPET"}

_ENTRY = named(ENTRY_NAMES)
_HID_FIXED_SIZE = 22


@dataclass(kw_only=True)
class Entry(Typed):
    """A device entry of an IVHD block (5.2.2); used as it is for unknown types.

    The two upper bits of the type tell its length: 4, 8, 16 or 32 bytes. F0h tells its own.
    """

    names: ClassVar[dict[int, str]] = ENTRY_NAMES

    type: int = u8(0, _ENTRY)

    @property
    def length(self) -> int:
        """Length in bytes, header included."""
        return self.measure()

    @classmethod
    def claimed_length(cls, data: bytes, start: int, end: int) -> int:
        """Return the length that the type, or the UID length of F0h, stands for."""
        number = data[start]
        if number != ACPI_HID:
            return 4 << (number >> 6)
        uid_length = data[start + _HID_FIXED_SIZE - 1] if end - start >= _HID_FIXED_SIZE else 0
        return _HID_FIXED_SIZE + uid_length

    @classmethod
    def is_padding(cls, data: bytes, start: int, end: int) -> bool:
        """Take up to three zeros at the end of the block as padding: no entry is that short."""
        return end - start < 4 and not any(data[start:end])


@dataclass(kw_only=True)
class DeviceEntry(Entry):
    """A device, one end of a range, or padding: 4 bytes.

    Attributes:
        device_id: 16-bit requester ID.
        setting: What goes into the device table entry: INITPass, EIntPass, NMIPass, SysMgt,
            LINT0Pass, LINT1Pass.
    """

    device_id: int = u16(0, BDF)
    setting: int = u8(0, SETTING)


@dataclass(kw_only=True)
class PadEntry(Entry):
    """Padding of 8 bytes; that of 4 bytes has the shape of a `DeviceEntry`."""

    type: int = u8(0x40, _ENTRY)
    reserved: bytes = blob(7)


@dataclass(kw_only=True)
class AliasEntry(DeviceEntry):
    """A device, or the start of a range, that appears on the bus as another one: 8 bytes.

    Attributes:
        source_device_id: The requester ID that the IOMMU sees.
    """

    reserved: int = u8()
    source_device_id: int = u16(0, BDF)
    reserved_2: int = u8()


@dataclass(kw_only=True)
class ExtendedEntry(DeviceEntry):
    """A device, or the start of a range, with extended settings: 8 bytes.

    Attributes:
        extended: 32 bits; bit 31 is ATSDisabled.
    """

    extended: int = u32(0, HEX)


@dataclass(kw_only=True)
class SpecialEntry(Entry):
    """An I/O APIC or HPET: 8 bytes.

    Attributes:
        handle: I/O APIC id or HPET number.
        source_device_id: The requester ID of its interrupts.
        variety: 1 I/O APIC, 2 HPET.
    """

    type: int = u8(0x48, _ENTRY)
    reserved: int = u16()
    setting: int = u8(0, SETTING)
    handle: int = u8()
    source_device_id: int = u16(0, BDF)
    variety: int = u8(1, named(VARIETY_NAMES))


@dataclass(kw_only=True)
class HidEntry(DeviceEntry):
    """A device that ACPI knows by its hardware ID: 22 bytes and the UID.

    Attributes:
        hid: Hardware ID, up to 8 characters.
        cid: Compatible ID, up to 8 characters.
        uid_format: 0 no UID, 1 integer (little-endian), 2 string.
        uid: The UID as stored, up to 255 bytes.
    """

    derived: ClassVar[tuple[str, ...]] = ("uid_value",)

    type: int = u8(0xF0, _ENTRY)
    hid: str = string(8)
    cid: str = string(8)
    uid_format: int = u8()
    uid_length = Computed(Int8ul, lambda entry: len(entry.uid))
    uid: bytes = field(default=b"", metadata={"text": UID})

    @property
    def uid_value(self) -> int | str | None:
        """The UID as its format says: None, an integer, or a string."""
        if self.uid_format == 1:
            return int.from_bytes(self.uid, "little")
        return self.uid.decode("latin-1") if self.uid_format == 2 else None

    def parse_tail(self, data: bytes, start: int, end: int) -> None:
        """Take what follows as the UID."""
        self.uid = data[start:end]

    def tail(self) -> bytes:
        """Return the UID."""
        return self.uid


Entry.registry = {
    **dict.fromkeys((PAD4, ALL, SELECT, START_RANGE, END_RANGE), DeviceEntry),
    **dict.fromkeys((ALIAS_SELECT, ALIAS_START_RANGE), AliasEntry),
    **dict.fromkeys((EXT_SELECT, EXT_START_RANGE), ExtendedEntry),
    PAD8: PadEntry,
    SPECIAL: SpecialEntry,
    ACPI_HID: HidEntry,
}


class Requesters(NamedTuple):
    """Requester IDs that an IVHD block assigns to its IOMMU.

    Attributes:
        first: First requester ID.
        last: Last requester ID, inclusive.
        alias: The requester ID that they appear as; None if they appear as themselves.
        setting: The setting byte for their device table entries.
        extended: The extended setting, 0 without one.
        entry: Where that is from: the start of a range, or the only entry.
    """

    first: int
    last: int
    alias: int | None
    setting: int
    extended: int
    entry: DeviceEntry


@dataclass(kw_only=True)
class Block(Typed):
    """A block of the table (5.2.1); used as it is for types that are not known."""

    names: ClassVar[dict[int, str]] = {
        **dict.fromkeys((0x10, 0x11, 0x40), "IVHD"),
        **dict.fromkeys((0x20, 0x21, 0x22, 0x23), "IVMD"),
    }

    type: int = u8(0, HEX)
    flags: int = u8(0, HEX)
    length = Computed(Int16ul, lambda block: block.measure())


@dataclass(kw_only=True)
class Ivhd(Block):
    """An IOMMU and the devices behind it (5.2.2): what types 10h, 11h and 40h have in common.

    Attributes:
        device_id: Requester ID of the IOMMU itself.
        capability_offset: Of its capability block in its configuration space.
        base_address: Physical address of its registers.
        segment: PCI segment of the IOMMU and its devices.
        info: MsiNum and UnitID.
    """

    children: ClassVar[str] = "entries"
    child: ClassVar[type[Entry]] = Entry

    flags: IvhdFlags = flag_set(Int8ul, IvhdFlags)
    device_id: int = u16(0, BDF)
    capability_offset: int = u16(0, HEX)
    base_address: int = u64()
    segment: int = u16()
    info: int = u16(0, INFO)
    entries: list[Entry] = field(default_factory=list)

    def requesters(self) -> Iterator[Requesters]:
        """Resolve the entries to requester IDs, in their order; later ones win.

        A range takes setting and alias from its start. A start without an end and an end
        without a start assign nothing. An ALL entry stands for 0 to FFFFh. HID devices are
        requesters, too; I/O APICs and HPETs are in `specials`.
        """
        start: DeviceEntry | None = None
        for entry in self.entries:
            if not isinstance(entry, DeviceEntry):
                continue
            if entry.type in STARTS:
                start = entry
            elif entry.type == END_RANGE:
                if start is not None and start.device_id <= entry.device_id:
                    yield _requesters(start, start.device_id, entry.device_id)
                start = None
            elif entry.type == ALL:
                yield _requesters(entry, 0, 0xFFFF)
            elif entry.type != PAD4:
                yield _requesters(entry, entry.device_id, entry.device_id)

    def specials(self) -> list[SpecialEntry]:
        """Return the I/O APICs and HPETs."""
        return [entry for entry in self.entries if isinstance(entry, SpecialEntry)]

    def hid_devices(self) -> list[HidEntry]:
        """Return the devices known by their ACPI hardware ID."""
        return [entry for entry in self.entries if isinstance(entry, HidEntry)]


def _requesters(entry: DeviceEntry, first: int, last: int) -> Requesters:
    alias = entry.source_device_id if isinstance(entry, AliasEntry) else None
    extended = entry.extended if isinstance(entry, ExtendedEntry) else 0
    return Requesters(first, last, alias, entry.setting, extended, entry)


@dataclass(kw_only=True)
class Ivhd10(Ivhd):
    """IVHD of type 10h.

    Attributes:
        features: XTSup, NXSup, GTSup and so on, for software that trusts the table more than EFR.
    """

    type: int = u8(0x10, HEX)
    features: int = u32(0, FEATURES)


@dataclass(kw_only=True)
class Ivhd11(Ivhd):
    """IVHD of type 11h, and of 40h, which alone may have ACPI HID entries.

    Attributes:
        attributes: HATDis and the performance counters.
        efr: Image of the extended feature register.
        efr2: Image of the second extended feature register.
    """

    type: int = u8(0x11, HEX)
    attributes: int = u32(0, ATTRIBUTES)
    efr: int = u64()
    efr2: int = u64()


@dataclass(kw_only=True)
class Ivmd(Block):
    """Memory that devices must reach, or that is exempt from translation (5.2.3).

    Attributes:
        type: 20h all devices, 21h one, 22h a range of them; 23h is not defined everywhere.
        device_id: The device, or the first one of the range.
        last_device_id: The last one of the range, type 22h only.
        segment: PCI segment; reserved in older revisions.
        start_address: First byte.
        memory_length: In bytes; software rounds up to pages.
    """

    type: int = u8(0x20, HEX)
    flags: IvmdFlags = flag_set(Int8ul, IvmdFlags)
    device_id: int = u16(0, BDF)
    last_device_id: int = u16(0, BDF)
    segment: int = u16()
    reserved: bytes = blob(6)
    start_address: int = u64()
    memory_length: int = u64()


Block.registry = {
    0x10: Ivhd10,
    **dict.fromkeys((0x11, 0x40), Ivhd11),
    **dict.fromkeys((0x20, 0x21, 0x22, 0x23), Ivmd),
}


@dataclass(kw_only=True)
class Ivrs(Table):
    """The IVRS table (5.2.1).

    Attributes:
        iv_info: EFRSup, DMA remap opt-in, virtual and physical address sizes, HtAtsResv.
    """

    child: ClassVar[type[Block]] = Block

    signature: str = string(4, "IVRS")
    revision: int = u8(2)
    iv_info: int = u32(0, IV_INFO)
    reserved: bytes = blob(8)

    def blocks(self, understood: Collection[int] = (0x10, 0x11, 0x40)) -> list[Ivhd]:
        """Return one IVHD per IOMMU: the highest type of those that are understood.

        An IOMMU is a segment and a device ID; they come in the order of their first block.
        Several blocks of the same type describe the IOMMU together, and all of them are returned.
        """
        groups: dict[tuple[int, int], list[Ivhd]] = {}
        for block in self.find(Ivhd):
            if block.type in understood:
                groups.setdefault((block.segment, block.device_id), []).append(block)
        chosen: list[Ivhd] = []
        for group in groups.values():
            best = max(block.type for block in group)
            chosen += [block for block in group if block.type == best]
        return chosen
