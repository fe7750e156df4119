"""A bench for the AMD-Vi core: one machine with RAM, one unit, and tables written by hand.

Offsets and bits are literals from the specification (AMD-Vi 3, 4, 5, 9, 10), not taken from the
core's own tables, so that a wrong table cannot agree with itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iommu_emu.core import (
    Access,
    AddressType,
    CoreMachine,
    CoreUnit,
    IotlbLookup,
    Message,
    MessageKind,
    Port,
    Region,
    Request,
    RequestFlag,
    Result,
)
from iommu_emu.geometry import CacheGeometry, Geometry
from iommu_emu.timing import IMMEDIATE, Timing

# Physical memory of the bench: 64 MiB of RAM at 0, the unit's registers, nothing else.
RAM = 64 << 20
BASE = 0xFEB8_0000
COMMANDS = 0x1_0000
EVENTS = 0x2_0000
STORE = 0x3_0000  # where COMPLETION_WAIT stores
INTERRUPTS = 0x4_0000  # interrupt table
DEVICE_TABLE = 0x20_0000
TABLES = 0x60_0000  # paging tables, allocated upwards
HOLE = 0x1_0000_0000  # no RAM here

DEVICE = 0x0010  # 00:02.0
OTHER = 0x0018  # 00:03.0

READ, WRITE, ATOMIC = Access.READ, Access.WRITE, Access.ATOMIC
R, W, RW = 1, 2, 3

REGISTERS = {
    "DevTabBase": (0x0000, 8),
    "CmdBufBase": (0x0008, 8),
    "EvtLogBase": (0x0010, 8),
    "Control": (0x0018, 8),
    "ExclBase": (0x0020, 8),
    "ExclLimit": (0x0028, 8),
    "EFR": (0x0030, 8),
    "MsiCapHdr": (0x0158, 4),
    "MsiAddrLow": (0x015C, 4),
    "MsiAddrHigh": (0x0160, 4),
    "MsiData": (0x0164, 4),
    "CmdBufHead": (0x2000, 8),
    "CmdBufTail": (0x2008, 8),
    "EvtLogHead": (0x2010, 8),
    "EvtLogTail": (0x2018, 8),
    "Status": (0x2020, 8),
}

# Control (3.4), Status (3.6), EFR (3.5).
IOMMU_EN, EVENT_LOG_EN, EVENT_INT_EN, COM_WAIT_INT_EN, CMD_BUF_EN = (
    1 << n for n in (0, 2, 3, 4, 12)
)
RUNNING = IOMMU_EN | EVENT_LOG_EN | CMD_BUF_EN
OVERFLOW, EVENT_INT, COM_WAIT_INT, EVENT_RUN, CMD_RUN = (1 << n for n in range(5))
PREFETCH_SUP, INVALIDATE_ALL_SUP, MSI_MMIO_SUP = 1 << 0, 1 << 6, 1 << 46
HATS_5, HATS_6, HATS_NONE = 1 << 10, 2 << 10, 3 << 10
EVERYTHING = PREFETCH_SUP | INVALIDATE_ALL_SUP | HATS_6 | MSI_MMIO_SUP

# Event codes and flags (10.1).
ILLEGAL_DTE, PAGE_FAULT, DTE_ERROR, TABLE_ERROR, ILLEGAL_COMMAND, COMMAND_ERROR = range(1, 7)
INVALIDATION_TIMEOUT, INVALID_REQUEST = 7, 8
GN, NX, US, INT, PR, RW_FLAG, PE, RZ, TR, MASTER_ABORT = (1 << n for n in range(10))

SMALL = CacheGeometry(64, 16)
GEOMETRY = Geometry("bench", "small enough to sweep", "tests", SMALL, SMALL, SMALL, SMALL)

MSI = (0x1_FEE0_1000, 0x4041)

EVERYTHING_ADDRESS = 0x7FFF_FFFF_FFFF_F000


@dataclass(frozen=True)
class Event:
    """An event log entry, decoded by hand (10.1)."""

    low: int
    address: int

    @property
    def code(self) -> int:
        return self.low >> 60

    @property
    def flags(self) -> int:
        return self.low >> 48 & 0xFFF

    @property
    def device(self) -> int:
        return self.low & 0xFFFF

    @property
    def domain(self) -> int:
        return self.low >> 32 & 0xFFFF


@dataclass
class Table:
    """A host page table (5) whose entries are written one by one."""

    bench: Amdvi
    root: int
    levels: int

    def entry(self, iova: int, level: int) -> int:
        """Return where the entry of `level` for `iova` is; tables above it are made."""
        table = self.root
        for above in range(self.levels, level, -1):
            at = table + 8 * (iova >> 12 + 9 * (above - 1) & 0x1FF)
            entry = self.bench.peek(at)
            if not entry & 1:
                entry = pde(self.bench.table(), above - 1)
                self.bench.poke(at, entry)
            table = entry & 0x000F_FFFF_FFFF_F000
        return table + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    def set(self, iova: int, level: int, value: int) -> int:
        """Write the entry of `level` for `iova`; return its address."""
        at = self.entry(iova, level)
        self.bench.poke(at, value)
        return at

    def map(self, iova: int, output: int, permissions: int = RW, shift: int = 12) -> int:
        """Write a leaf of 2**shift bytes (only the entry that `iova` uses); return its address."""
        level = (shift - 12) // 9 + 1
        return self.set(iova, level, pte(output, permissions, shift))


def pde(table: int, next_level: int, permissions: int = RW) -> int:
    return 1 | next_level << 9 | table | permissions << 61


def pte(output: int, permissions: int = RW, shift: int = 12) -> int:
    """A leaf; sizes that are no level's own are encoded with NextLevel 7 (5.3)."""
    if (shift - 12) % 9 == 0:
        return 1 | output | permissions << 61
    ones = (1 << shift - 1) - 0x1000
    return 1 | 7 << 9 | output | ones | permissions << 61


def dte(
    *,
    v: int = 1,
    tv: int = 1,
    mode: int = 0,
    root: int = 0,
    permissions: int = RW,
    domain: int = 1,
    low: int = 0,
    iv: int = 0,
    intctl: int = 0,
    high: int = 0,
) -> int:
    """Return a device table entry; `low` and `high` are ORed in, over all 256 bits."""
    first = v | tv << 1 | mode << 9 | root | permissions << 61
    return first | domain << 64 | iv << 128 | intctl << 188 | low | high


class Amdvi:
    """One machine, one AMD-Vi unit at BASE that serves segment 0."""

    def __init__(
        self,
        *,
        efr: int = EVERYTHING,
        np_cache: bool = False,
        device_tlbs: bool = False,
        shape: Geometry = GEOMETRY,
        timing: Timing = IMMEDIATE,
        lookup: IotlbLookup = IotlbLookup.BY_REQUESTER,
        granule: int = 256,
        messages: int = 1024,
        window: int = 0x4000,
        trace_events: int = 0,
        on: bool = True,
    ) -> None:
        self.machine = CoreMachine(64, messages, trace_events)
        self.ram = Region(RAM)
        self.machine.map(0, self.ram)
        self.config: dict[str, Any] = {
            "unit": {
                "base": BASE,
                "window": window,
                "host_address_width": 48,
                "iotlb_lookup": int(lookup),
                "fetch_granule": granule,
                "geometry": shape.parameters(),
                "timing": timing.parameters(),
            },
            "efr": efr,
            "device_id": 0x0002,
            "np_cache": np_cache,
            "iotlb_sup": device_tlbs,
        }
        self.unit: CoreUnit = self.machine.create_amdvi(self.config)
        self.machine.route(0, 0, 0xFFFF, self.unit)
        self._next_table = TABLES
        if on:
            self.start()

    # ---- memory ---------------------------------------------------------------------------

    def peek(self, address: int) -> int:
        return int.from_bytes(self.machine.read(address, 8), "little")

    def poke(self, address: int, *quadwords: int) -> None:
        data = b"".join(value.to_bytes(8, "little") for value in quadwords)
        self.machine.write(address, data)

    def table(self) -> int:
        """Return a page of zeros that nothing uses yet."""
        self._next_table += 0x1000
        return self._next_table - 0x1000

    # ---- registers ------------------------------------------------------------------------

    def read(self, name: str) -> int:
        return self.unit.mmio_read(*REGISTERS[name])

    def write(self, name: str, value: int) -> None:
        self.unit.mmio_write(*REGISTERS[name], value)

    def status(self, bit: int) -> bool:
        return bool(self.read("Status") & bit)

    def start(self, control: int = RUNNING, *, length: int = 8) -> None:
        """Point the unit at a whole device table and two rings of 2**length entries; switch on."""
        self.write("DevTabBase", DEVICE_TABLE | 0x1FF)
        self.write("CmdBufBase", COMMANDS | length << 56)
        self.write("EvtLogBase", EVENTS | length << 56)
        self.write("Control", control)

    def arm_msi(self) -> None:
        self.write("MsiAddrLow", MSI[0] & 0xFFFF_FFFF)
        self.write("MsiAddrHigh", MSI[0] >> 32)
        self.write("MsiData", MSI[1])
        self.write("MsiCapHdr", 1 << 16)

    # ---- tables ---------------------------------------------------------------------------

    @staticmethod
    def dte_address(device: int = DEVICE) -> int:
        return DEVICE_TABLE + 32 * device

    def set_dte(self, value: int, device: int = DEVICE) -> None:
        self.machine.write(self.dte_address(device), value.to_bytes(32, "little"))

    def attach(
        self,
        device: int = DEVICE,
        *,
        domain: int = 1,
        levels: int = 4,
        table: Table | None = None,
        permissions: int = RW,
        **fields: Any,
    ) -> Table:
        """Give a device a host page table: a new one, or a shared one."""
        table = table or Table(self, self.table(), levels)
        entry = dte(
            mode=table.levels, root=table.root, domain=domain, permissions=permissions, **fields
        )
        self.set_dte(entry, device)
        return table

    # ---- requests -------------------------------------------------------------------------

    def translate(
        self,
        address: int,
        access: Access = READ,
        device: int = DEVICE,
        *,
        length: int = 4,
        at: AddressType = AddressType.UNTRANSLATED,
        pasid: int | None = None,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Result:
        return self.unit.translate(Request(address, length, device, access, at, pasid, flags))

    def reads(self, address: int, device: int = DEVICE) -> int | None:
        """Return the physical address that a read reaches; None for a fault."""
        result = self.translate(address, READ, device)
        return result.address if result.ok else None

    def port(self, device: int = DEVICE) -> Port:
        return self.machine.create_port(0, device)

    def counter(self, name: str) -> int:
        return self.unit.counters()[name]

    # ---- commands ---------------------------------------------------------------------------

    def submit(self, *commands: tuple[int, int]) -> None:
        """Write commands behind the tail and ring the doorbell."""
        base = self.read("CmdBufBase")
        size, tail = 16 << (base >> 56 & 0xF), self.read("CmdBufTail")
        for low, high in commands:
            self.poke((base & 0x000F_FFFF_FFFF_F000) + tail, low, high)
            tail = (tail + 16) % size
        self.write("CmdBufTail", tail)

    # ---- events and messages ------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Take the events from the log, as software does."""
        size = 16 << (self.read("EvtLogBase") >> 56 & 0xF)
        head, tail = self.read("EvtLogHead"), self.read("EvtLogTail")
        taken = []
        while head != tail:
            taken.append(Event(self.peek(EVENTS + head), self.peek(EVENTS + head + 8)))
            head = (head + 16) % size
        self.write("EvtLogHead", head)
        return taken

    def event(self) -> Event:
        """Take the one event that is in the log."""
        (event,) = self.events()
        return event

    def messages(self, kind: MessageKind = MessageKind.UNIT) -> list[Message]:
        return [m for m in self.machine.take_messages() if m.kind is kind]

    def units_messages(self) -> list[tuple[int, int]]:
        """Address and data of the unit's own messages."""
        return [(m.address, int.from_bytes(m.data, "little")) for m in self.messages()]


# ---- commands (9.1) ---------------------------------------------------------------------------


def completion_wait(
    *, s: int = 0, i: int = 0, address: int = STORE, data: int = 0
) -> tuple[int, int]:
    return 1 << 60 | s | i << 1 | address, data


def invalidate_devtab(device: int = DEVICE) -> tuple[int, int]:
    return 2 << 60 | device, 0


def invalidate_pages(
    domain: int = 1, address: int = 0, *, s: int = 0, pde: int = 0
) -> tuple[int, int]:
    return 3 << 60 | domain << 32, address | pde << 1 | s


def invalidate_domain(domain: int = 1) -> tuple[int, int]:
    return invalidate_pages(domain, EVERYTHING_ADDRESS, s=1, pde=1)


def invalidate_device_tlb(
    device: int = DEVICE, address: int = 0, *, s: int = 0, most: int = 0, queue: int | None = None
) -> tuple[int, int]:
    queue = device if queue is None else queue
    return 4 << 60 | queue << 32 | most << 24 | device, address | s


def invalidate_interrupts(device: int = DEVICE) -> tuple[int, int]:
    return 5 << 60 | device, 0


def invalidate_all() -> tuple[int, int]:
    return 8 << 60, 0


def bits_of(*ranges: int | tuple[int, int]) -> int:
    """Return the mask of bit numbers and (high, low) pairs, as the specification writes them."""
    mask = 0
    for item in ranges:
        high, low = item if isinstance(item, tuple) else (item, item)
        mask |= (1 << high + 1) - (1 << low)
    return mask
