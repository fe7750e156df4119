"""Reference walk of AMD-Vi host (v1) tables: device table entry, then the page table.

Where the sheet names several orders, permissions are accumulated over the walk and tested at its
end, as on VT-d, so that both vendors follow one rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iommu_emu import reference
from iommu_emu.amdvi.structures import (
    DeviceTableEntry,
    DevTabHardwareError,
    IllegalDevTableEntry,
    InvalidateDevtabEntry,
    InvalidateIommuAll,
    InvalidateIommuPages,
    InvalidateIotlbPages,
    InvalidDeviceRequest,
    IoPageFault,
    PageDirectoryEntry,
    PageTabHardwareError,
    PageTableEntry,
)
from iommu_emu.core import Access, AddressType, Outcome, Request
from iommu_emu.reference import (
    LEVEL_CONTEXT,
    READ_WRITE,
    Answer,
    Failure,
    Leaf,
    MemoryRead,
    Node,
    in_interrupt_range,
    nothing,
    pass_through,
)
from iommu_emu.reference.oracle import Oracle

if TYPE_CHECKING:
    from iommu_emu.amdvi.unit import AmdviUnit

__all__ = ["Context", "Unit", "Walker", "event", "invalidate", "walk"]

ENTRY_SIZE = 32
LARGEST_PAGE = 51  # bits: the largest size that NextLevel 7 encodes (AMD-Vi 5.2)

# Event flags, bits 59:48 of an event counted from 48 (AMD-Vi 10.1).
PR, RW, PE, RZ, TR = 0x10, 0x20, 0x40, 0x80, 0x100
MASTER_ABORT = 1 << 9

# Special ranges of HyperTransport (AMD-Vi 7.1).
HT_INTERRUPT_RESERVED = range(0xFD_0000_0000, 0xFD_F800_0000)
HT_INTERRUPT = range(0xFD_F800_0000, 0xFD_F900_0000)
HT_SYSTEM_MANAGEMENT = range(0xFD_F910_0000, 0xFD_F920_0000)
HT_PORT_IO = range(0xFD_FC00_0000, 0xFD_FE00_0000)

ILLEGAL_DTE = IllegalDevTableEntry["code"].value
PAGE_FAULT = IoPageFault["code"].value
DTE_ERROR = DevTabHardwareError["code"].value
TABLE_ERROR = PageTabHardwareError["code"].value
INVALID_REQUEST = InvalidDeviceRequest["code"].value


def page_fault(detail: str, flags: int = 0) -> Failure:
    """Return an IO_PAGE_FAULT with the flags that its cause sets."""
    return Failure(PAGE_FAULT, "IO_PAGE_FAULT", flags=flags, detail=detail)


def illegal_entry(detail: str, flags: int = 0) -> Failure:
    """Return an ILLEGAL_DEV_TABLE_ENTRY."""
    return Failure(ILLEGAL_DTE, "ILLEGAL_DEV_TABLE_ENTRY", False, flags=flags, detail=detail)


def invalid_request(kind: int, flags: int = 0) -> Failure:
    """Return an INVALID_DEVICE_REQUEST of a type in AMD-Vi 10.2."""
    return Failure(INVALID_REQUEST, "INVALID_DEVICE_REQUEST", False, flags=flags | kind << 9)


def hardware_error(code: int, name: str, address: int) -> Failure:
    """Return the event for a table entry at `address` that cannot be read."""
    return Failure(code, name, False, flags=MASTER_ABORT, address=address)


@dataclass(frozen=True)
class Unit:
    """What a walk depends on besides memory.

    Attributes:
        enabled: Control.IommuEn.
        device_table: base address in DevTabBase.
        device_table_size: bytes of the device table, (Size + 1) * 4 KiB.
        highest_level: deepest page table in EFR.HATS: 4, 5 or 6; 0 if v1 is not supported.
        np_cache: not-present entries are cached.
        exclusion: first and last address of the exclusion range, or None.
        exclude_all: it is for every device (ExclBase.Allow).
        device_tlb: the capability has IotlbSup.
    """

    device_table: int
    device_table_size: int = 1 << 21
    enabled: bool = True
    highest_level: int = 6
    np_cache: bool = False
    exclusion: tuple[int, int] | None = None
    exclude_all: bool = False
    device_tlb: bool = False

    @classmethod
    def of(cls, unit: AmdviUnit) -> Unit:
        """Return what the registers of a unit say now."""
        exclusion = None
        if unit.field("ExclBase", "ExEn"):
            limit = unit.read("ExclLimit") & ~0xFFF | 0xFFF
            exclusion = (unit.field("ExclBase", "Base") << 12, limit)
        return cls(
            device_table=unit.field("DevTabBase", "Base") << 12,
            device_table_size=unit.field("DevTabBase", "Size") + 1 << 12,
            enabled=bool(unit.field("Control", "IommuEn")),
            highest_level=4 + unit.field("EFR", "HATS"),
            np_cache=unit.config.np_cache,
            exclusion=exclusion,
            exclude_all=bool(unit.field("ExclBase", "Allow")),
            device_tlb=unit.config.device_tlbs,
        )


@dataclass(frozen=True)
class Context(reference.Context):
    """What a device-table cache remembers of a device table entry."""

    valid: bool
    translation_valid: bool
    mode: int
    table: int
    permissions: Access
    excluded: bool
    io_control: int
    system_management: int
    device_tlb: bool


class Walker(reference.Walker[Context]):
    """The steps of an AMD-Vi walk.

    Args:
        unit: registers.
        read: reads physical memory.
    """

    def __init__(self, unit: Unit, read: MemoryRead) -> None:
        super().__init__(read)
        self.unit = unit

    def admit(self, request: Request) -> Answer | None:
        """Answer what needs no table: interrupt messages, and all while the unit is off.

        What becomes of a message is the matter of AMD-Vi 12, not of a walk.
        """
        untranslated = request.at is AddressType.UNTRANSLATED and request.pasid is None
        if untranslated and request.access is Access.WRITE and is_interrupt(request.address):
            return Answer(Outcome.INTERRUPT, request.address)
        asks = request.at is AddressType.TRANSLATION_REQUEST
        misused = asks and (request.access & Access.WRITE or not self.unit.enabled)
        if misused or request.at is AddressType.RESERVED:
            return Answer(Outcome.UNSUPPORTED, failure=Failure(0, "AT"))  # pci 6
        return None if self.unit.enabled else pass_through(request)

    def context(self, requester: int) -> Context | Failure:
        """Read the device table entry (AMD-Vi 4.1, 4.4)."""
        if ENTRY_SIZE * requester >= self.unit.device_table_size:
            return page_fault("device-table-size")
        address = self.unit.device_table + ENTRY_SIZE * requester
        data = self.fetch(LEVEL_CONTEXT, address, ENTRY_SIZE)
        if data is None:
            return hardware_error(DTE_ERROR, "DEV_TAB_HARDWARE_ERROR", address)
        entry = DeviceTableEntry.parse(data)
        value = int.from_bytes(data, "little")
        low, high = value & (1 << 128) - 1, value >> 128 << 128
        # Reserved without the features that define them (AMD-Vi 15).
        conditional = sum(DeviceTableEntry[name].mask for name in ("had", "cxl", "sats"))
        reserved = low & (DeviceTableEntry.reserved_mask | conditional) if entry.v else 0
        if entry.iv:
            guest = DeviceTableEntry["guest_paging_mode"].mask | DeviceTableEntry["hptmode"].mask
            reserved |= high & (DeviceTableEntry.reserved_mask | guest)
        if reserved:
            return illegal_entry("reserved", RZ)
        if entry.v and entry.tv and entry.mode > self.unit.highest_level:
            return illegal_entry("mode")
        if entry.v and entry.ioctl == 3:
            return illegal_entry("ioctl")
        if entry.iv and (entry.intctl == 3 or entry.inttablen > 11):
            return illegal_entry("interrupts")
        return Context(
            domain=entry.domain_id,
            suppressed=bool(entry.sa),
            valid=bool(entry.v),
            translation_valid=bool(entry.tv),
            mode=entry.mode,
            table=entry.root,
            permissions=Access(entry.ir | entry.iw << 1),
            excluded=bool(entry.ex),
            io_control=entry.ioctl,
            system_management=entry.sysmgt,
            device_tlb=bool(entry.i),
        )

    def enter(self, context: Context, request: Request) -> Node | Leaf | Failure | Answer:
        """Apply the device table entry to this request (AMD-Vi 4.3, 7.1, 3.7)."""
        allowed = self.unit.device_tlb and context.device_tlb and context.valid
        if request.at is AddressType.TRANSLATED:
            return pass_through(request) if allowed else invalid_request(1)
        asks = request.at is AddressType.TRANSLATION_REQUEST
        if asks and not (allowed and context.translation_valid):
            return invalid_request(0, TR)
        special = None
        if request.pasid is None:
            special = _special_translation(request) if asks else self._special(context, request)
        if special is not None:
            return special
        if not context.valid:
            return pass_through(request)
        if not context.translation_valid:
            return page_fault("translation-not-valid")
        if self._excluded(context, request.address):
            passed = pass_through(request)
            # What a device may not cache, because registers can change it (AMD-Vi 3.7).
            return replace(passed, page_shift=12, untranslated=True) if asks else passed
        if request.pasid is not None:
            return page_fault("pasid")
        if context.mode == 0:
            return Leaf(request.address & ~0xFFF, 12, READ_WRITE)
        if request.address >> 12 + 9 * context.mode:
            return page_fault("address-width")
        return Node(context.mode, context.table, READ_WRITE, top=True)

    def _excluded(self, context: Context, address: int) -> bool:
        if self.unit.exclusion is None:
            return False
        first, last = self.unit.exclusion
        return first <= address <= last and (self.unit.exclude_all or context.excluded)

    def _special(self, context: Context, request: Request) -> Failure | Answer | None:
        """Return the answer in the special address ranges; None: as anywhere (AMD-Vi 7.1)."""
        address = request.address
        posted = request.access is Access.WRITE
        if is_interrupt(address):
            return invalid_request(0)
        if not context.valid:
            return None
        if address in HT_INTERRUPT_RESERVED:
            return invalid_request(6 if posted else 0)
        if address in HT_SYSTEM_MANAGEMENT:
            refused = invalid_request(3 if posted else 4)
            return self._control(context, request, (refused, True, refused, False))
        if address in HT_PORT_IO:
            return self._control(context, request, (invalid_request(2), True, False))
        return None

    @staticmethod
    def _control(
        context: Context, request: Request, choices: tuple[Failure | bool, ...]
    ) -> Failure | Answer | None:
        """Apply IoCtl or SysMgt: a refusal, True to forward, False to translate (AMD-Vi 7.2)."""
        in_ports = request.address in HT_PORT_IO
        choice = choices[context.io_control if in_ports else context.system_management]
        if isinstance(choice, Failure):
            return choice
        if choice:
            return pass_through(request)
        return None if context.translation_valid else invalid_request(7)

    def step(self, node: Node, address: int) -> Node | Leaf | Failure:
        """Read one entry: fetch, PR, level, reserved, skipped bits (AMD-Vi 5.2)."""
        shift = 12 + 9 * (node.level - 1)
        entry_address = node.table + 8 * (address >> shift & 0x1FF)
        data = self.fetch(node.level, entry_address, 8)
        if data is None:
            return hardware_error(TABLE_ERROR, "PAGE_TAB_HARDWARE_ERROR", entry_address)
        value = int.from_bytes(data, "little")
        entry = PageDirectoryEntry.parse(data)
        if not entry.pr:
            return page_fault("not-present")
        permissions = node.permissions & Access(entry.ir | entry.iw << 1)
        if entry.next_level in (0, 7):
            return self._leaf(node.level, value, permissions)
        if entry.next_level >= node.level:
            return page_fault("level", PR)
        if value & PageDirectoryEntry.reserved_mask:
            return page_fault("reserved", PR | RZ)
        below = 12 + 9 * entry.next_level
        if address & ((1 << shift) - 1) >> below << below:
            return page_fault("skipped-bits", PR)
        return Node(entry.next_level, entry.address, permissions)

    def _leaf(self, level: int, value: int, permissions: Access) -> Leaf | Failure:
        shift = 12 + 9 * (level - 1)
        entry = PageTableEntry.parse_int(value)
        if level == 6:
            return page_fault("level", PR)
        if entry.next_level == 7:
            # AMD-Vi 5.3: the lowest 0 bit from bit 12 up is half the size.
            ones = entry.address | 0xFFF
            encoded = (~ones & ones + 1).bit_length()
            if not shift < encoded < min(shift + 9, LARGEST_PAGE + 1):
                return page_fault("page-size", PR)
            shift = encoded
        if value & PageTableEntry.reserved_mask:
            return page_fault("reserved", PR | RZ)
        return Leaf(
            entry.address >> shift << shift, shift, permissions, bool(entry.fc), bool(entry.u)
        )

    def finish(self, context: Context, end: Leaf | Failure, request: Request) -> Answer:
        """Check permissions at the end of a walk (AMD-Vi 5.2 step 6)."""
        if isinstance(end, Failure):
            return self.fail(request, context, end)
        # Page structures are cached by domain, the device's own permissions are not (AMD-Vi 13).
        permissions = end.permissions & context.permissions
        if request.at is AddressType.TRANSLATION_REQUEST:
            return self._completion(context, end, request, permissions)
        if request.access & ~permissions:
            return self.fail(request, context, page_fault("permission", PR | PE))
        return Answer(
            Outcome.MEMORY,
            end.output(request.address),
            end.shift,
            permissions,
            context.domain,
            end.snoop,
        )

    @staticmethod
    def _completion(context: Context, end: Leaf, request: Request, permissions: Access) -> Answer:
        """Return what a translation completion grants (AMD-Vi 8)."""
        if not permissions:
            return nothing(context.domain)
        return Answer(
            Outcome.MEMORY,
            end.output(request.address),
            end.shift,
            permissions,
            context.domain,
            end.snoop,
            end.untranslated,
        )

    def fail(self, request: Request, context: Context | None, found: Failure) -> Answer:
        """Return the answer to a faulting request: target abort (AMD-Vi 4.3, 10.3)."""
        if request.at is AddressType.TRANSLATION_REQUEST:
            if found.code == PAGE_FAULT:  # no translation: no event either (AMD-Vi 8, 10.3)
                return nothing(context.domain if context else 0)
            found = replace(found, flags=found.flags | TR)
        suppressed = context is not None and context.suppressed
        return Answer(
            Outcome.ABORTED,
            domain=context.domain if context else 0,
            failure=found,
            recorded=not (found.qualified and suppressed),
        )


def _special_translation(request: Request) -> Failure | None:
    """Return the failure of a translation request in the special ranges (AMD-Vi 8, 10.2)."""
    address = request.address
    special = (HT_INTERRUPT_RESERVED, HT_SYSTEM_MANAGEMENT, HT_PORT_IO)
    if is_interrupt(address) or any(address in there for there in special):
        return invalid_request(1, TR)
    return None


def is_interrupt(address: int) -> bool:
    """Whether a posted write to an address is an interrupt message (AMD-Vi 7.1)."""
    return in_interrupt_range(address) or address in HT_INTERRUPT


def walk(unit: Unit, read: MemoryRead, request: Request) -> Answer:
    """Translate one request without any cache.

    Args:
        unit: registers.
        read: reads physical memory, None where there is no RAM.
        request: what arrives.

    Returns:
        The only right answer if every cache is empty.
    """
    return Walker(unit, read).walk(request)


def invalidate(oracle: Oracle[Context], command: bytes) -> None:
    """Tell the oracle what a command covers (AMD-Vi 9.2).

    Args:
        oracle: of the unit that carried it out.
        command: 16 bytes; those that invalidate neither device table entries nor translations
            are none of the oracle's business. INVALIDATE_IOTLB_PAGES: the device has answered.
    """
    opcode = command[7] >> 4
    if opcode == InvalidateDevtabEntry["opcode"].value:
        entry = InvalidateDevtabEntry.parse(command)
        oracle.invalidate_context(requester=entry.device_id)
    elif opcode == InvalidateIommuPages["opcode"].value:
        entry = InvalidateIommuPages.parse(command)
        first, last = invalidated_range(entry.s, entry.address)
        oracle.invalidate_iotlb(
            domain=entry.domain_id, first=first, last=last, keep_tables=not entry.pde
        )
    elif opcode == InvalidateIotlbPages["opcode"].value:
        entry = InvalidateIotlbPages.parse(command)
        first, last = invalidated_range(entry.s, entry.address)
        oracle.invalidate_device_tlb(entry.device_id, first, last)
    elif opcode == InvalidateIommuAll["opcode"].value:
        oracle.invalidate_all()


def invalidated_range(sized: int, address: int) -> tuple[int, int]:
    """Return the first and last input address that a command covers (AMD-Vi 9.2)."""
    if not sized:
        return address, address | 0xFFF
    ones = address | 0xFFF
    half = ~ones & ones + 1  # the lowest 0 bit is half the size
    if half >> 52 or half == 0:
        return 0, (1 << 64) - 1
    return address & ~(2 * half - 1), address | 2 * half - 1


def event(request: Request, answer: Answer) -> int:
    """Return the 128-bit event log entry of a recorded fault (AMD-Vi 10.1)."""
    assert answer.failure is not None
    flags = answer.failure.flags
    if request.access & Access.WRITE and answer.fault != INVALID_REQUEST:
        flags |= RW
    value = request.requester | answer.failure.code << 60 | flags << 48
    if answer.fault in (PAGE_FAULT, TABLE_ERROR):
        value |= answer.domain << 32
    address = request.address if answer.failure.address is None else answer.failure.address
    low_bits = {ILLEGAL_DTE: 2, DTE_ERROR: 4, TABLE_ERROR: 3}.get(answer.fault, 0)
    return value | (address >> low_bits << low_bits) << 64
