"""A bench for the C core: one machine with RAM, one VT-d unit, and tables written by hand.

Offsets and bits are literals from the specification (VT-d 2, 4, 7), not taken from the core's own
tables, so that a wrong table cannot agree with itself.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from iommu_emu.vtd.capabilities import Capabilities

# Physical memory of the bench: 64 MiB of RAM at 0, the unit's registers, nothing else.
RAM = 64 << 20
BASE = 0xFED9_0000
ROOT_TABLE = 0x1000
QUEUE = 0x8000  # up to 128 pages below the context tables
CONTEXT_TABLES = 0x10_0000  # one page a bus
TABLES = 0x200_0000  # paging tables, allocated upwards; tests use the 30 MiB below as pages
HOLE = 0x1_0000_0000  # no RAM here, but below the host address width

DEVICE = 0x0010  # 00:02.0
OTHER = 0x0018  # 00:03.0

READ, WRITE, ATOMIC = Access.READ, Access.WRITE, Access.ATOMIC
R, W, RW = 1, 2, 3
PS = 1 << 7
SNP = 1 << 11

# Offset and bytes (VT-d 2.2); IVA, IOTLB and FRCD are placed by the capabilities.
REGISTERS = {
    "VER": (0x000, 4),
    "CAP": (0x008, 8),
    "ECAP": (0x010, 8),
    "GCMD": (0x018, 4),
    "GSTS": (0x01C, 4),
    "RTADDR": (0x020, 8),
    "CCMD": (0x028, 8),
    "FSTS": (0x034, 4),
    "FECTL": (0x038, 4),
    "FEDATA": (0x03C, 4),
    "FEADDR": (0x040, 4),
    "FEUADDR": (0x044, 4),
    "PMEN": (0x064, 4),
    "PLMBASE": (0x068, 4),
    "PLMLIMIT": (0x06C, 4),
    "PHMBASE": (0x070, 8),
    "PHMLIMIT": (0x078, 8),
    "IQH": (0x080, 8),
    "IQT": (0x088, 8),
    "IQA": (0x090, 8),
    "ICS": (0x09C, 4),
    "IECTL": (0x0A0, 4),
    "IEDATA": (0x0A4, 4),
    "IEADDR": (0x0A8, 4),
    "IEUADDR": (0x0AC, 4),
    "IQERCD": (0x0B0, 8),
    "IRTA": (0x0B8, 8),
}

# GCMD and GSTS (VT-d 2.4).
TE, SRTP, WBF, QIE, IRE, SIRTP, CFI = (1 << n for n in (31, 30, 27, 26, 25, 24, 23))
ONE_SHOT = SRTP | WBF | SIRTP

# FSTS (2.8), event control (2.9).
PFO, PPF, IQE, ICE, ITE = (1 << n for n in (0, 1, 4, 5, 6))
IM, IP = 1 << 31, 1 << 30

PASID = 1 << 40  # ECAP

GLOBAL, DOMAIN, SELECTIVE = 1, 2, 3

SMALL = CacheGeometry(64, 16)
GEOMETRY = Geometry("bench", "small enough to sweep", "tests", SMALL, SMALL, SMALL, SMALL)


def geometry(**caches: CacheGeometry) -> Geometry:
    """Return the bench's geometry with some caches of another shape."""
    shapes = {"iotlb": SMALL, "context": SMALL, "paging": SMALL, "interrupt": SMALL} | caches
    return Geometry("bench", "for one test", "tests", **shapes)


@dataclass(frozen=True)
class Record:
    """A fault recording register, decoded by hand (VT-d 2.10)."""

    raw: int

    @property
    def valid(self) -> bool:
        return bool(self.raw >> 127 & 1)

    @property
    def address(self) -> int:
        return self.raw & 0xFFFF_FFFF_FFFF_F000

    @property
    def requester(self) -> int:
        return self.raw >> 64 & 0xFFFF

    @property
    def code(self) -> int:
        return self.raw >> 96 & 0xFF

    @property
    def kind(self) -> tuple[int, int]:
        """(T1, T2): 00 write, 10 read, 11 AtomicOp."""
        return self.raw >> 126 & 1, self.raw >> 92 & 1

    @property
    def at(self) -> int:
        return self.raw >> 124 & 3


@dataclass
class Table:
    """A second-stage table (VT-d 4.8) whose entries are written one by one."""

    bench: Bench
    root: int
    levels: int

    def entry(self, iova: int, level: int) -> int:
        """Return where the entry of `level` for `iova` is; tables above it are made."""
        table = self.root
        for above in range(self.levels, level, -1):
            at = table + 8 * (iova >> 12 + 9 * (above - 1) & 0x1FF)
            entry = self.bench.peek(at)
            if not entry & RW:
                entry = self.bench.table() | RW
                self.bench.poke(at, entry)
            table = entry & 0x000F_FFFF_FFFF_F000
        return table + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    def set(self, iova: int, level: int, value: int) -> int:
        """Write the entry of `level` for `iova`; return its address."""
        at = self.entry(iova, level)
        self.bench.poke(at, value)
        return at

    def map(self, iova: int, output: int, bits: int = RW, level: int = 1) -> int:
        """Write a leaf; return its address."""
        return self.set(iova, level, output | bits | (PS if level > 1 else 0))


class Bench:
    """One machine, one unit at BASE that serves segment 0.

    Named capabilities are arguments of `Capabilities`; `pasid` adds ECAP.PASID, which the core
    knows and the Python configuration does not offer yet.
    """

    def __init__(
        self,
        *,
        major: int = 1,
        minor: int = 0,
        haw: int = 39,
        window: int = 0x2000,
        shape: Geometry = GEOMETRY,
        timing: Timing = IMMEDIATE,
        lookup: IotlbLookup = IotlbLookup.BY_REQUESTER,
        granule: int = 128,
        compress: bool = False,
        protected_shift: int = 21,
        device_tlb: bool = False,
        pasid: bool = False,
        timeout: int = 0,
        transactions: int = 64,
        messages: int = 1024,
        trace_events: int = 0,
        **capabilities: Any,
    ) -> None:
        self.capabilities = Capabilities(
            **({"fault_offset": 0x400, "iotlb_offset": 0x300} | capabilities),
            device_tlbs=device_tlb,
        )
        self.machine = CoreMachine(transactions, messages, trace_events)
        self.ram = Region(RAM)
        self.machine.map(0, self.ram)
        self.config = {
            "unit": {
                "base": BASE,
                "window": window,
                "host_address_width": haw,
                "iotlb_lookup": int(lookup),
                "fetch_granule": granule,
                "geometry": shape.parameters(),
                "timing": timing.parameters(),
            },
            "cap": self.capabilities.cap,
            "ecap": self.capabilities.ecap | pasid * PASID,
            "major": major,
            "minor": minor,
            "compress_faults": compress,
            "protected_shift": protected_shift,
            "invalidation_timeout": timeout,
        }
        self.unit: CoreUnit = self.machine.create_vtd(self.config)
        self.machine.route(0, 0, 0xFFFF, self.unit)
        self.tail = 0
        self._next_table = TABLES

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

    def place(self, name: str, index: int = 0) -> tuple[int, int]:
        """Return offset and size of a register; FRCD as its low quadword."""
        if name == "IVA":
            return self.capabilities.iotlb_offset, 8
        if name == "IOTLB":
            return self.capabilities.iotlb_offset + 8, 8
        if name == "FRCD":
            return self.capabilities.fault_offset + 16 * index, 8
        return REGISTERS[name]

    def read(self, name: str) -> int:
        return self.unit.mmio_read(*self.place(name))

    def write(self, name: str, value: int) -> None:
        self.unit.mmio_write(*self.place(name), value)

    def command(self, bit: int, on: bool = True) -> None:
        """Give one global command the way that software must (VT-d 2.4)."""
        state = self.read("GSTS") & ~ONE_SHOT
        self.write("GCMD", state | bit if on else state & ~bit)

    def status(self, bit: int) -> bool:
        return bool(self.read("GSTS") & bit)

    def set_root(self, rtaddr: int = ROOT_TABLE) -> None:
        self.write("RTADDR", rtaddr)
        self.command(SRTP)

    def enable(self) -> None:
        """Latch the root table and switch translation on."""
        self.set_root()
        self.command(TE)

    # ---- tables ---------------------------------------------------------------------------

    def root_entry(self, bus: int) -> int:
        return ROOT_TABLE + 16 * bus

    def context_entry(self, requester: int = DEVICE) -> int:
        return CONTEXT_TABLES + 0x1000 * (requester >> 8) + 16 * (requester & 0xFF)

    def set_context(self, requester: int, low: int, high: int) -> None:
        """Write a context entry, and the root entry that leads to it."""
        bus = requester >> 8
        self.poke(self.root_entry(bus), CONTEXT_TABLES + 0x1000 * bus | 1, 0)
        self.poke(self.context_entry(requester), low, high)

    def attach(
        self,
        requester: int = DEVICE,
        *,
        domain: int = 1,
        levels: int = 4,
        table: Table | None = None,
        tt: int = 0,
        fpd: bool = False,
    ) -> Table:
        """Give a requester a second-stage table: a new one, or a shared one."""
        table = table or Table(self, self.table(), levels)
        low = table.root | tt << 2 | fpd << 1 | 1
        self.set_context(requester, low, domain << 8 | table.levels - 2)
        return table

    # ---- requests -------------------------------------------------------------------------

    def translate(
        self,
        address: int,
        access: Access = READ,
        requester: int = DEVICE,
        *,
        length: int = 4,
        at: AddressType = AddressType.UNTRANSLATED,
        pasid: int | None = None,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Result:
        return self.unit.translate(Request(address, length, requester, access, at, pasid, flags))

    def reads(self, address: int, requester: int = DEVICE) -> int | None:
        """Return the physical address that a read reaches; None for a fault."""
        result = self.translate(address, READ, requester)
        return result.address if result.ok else None

    def fault(self, address: int, access: Access = READ, requester: int = DEVICE) -> int:
        """Return the architectural fault code of a request; 0: none."""
        return self.translate(address, access, requester).fault

    def port(self, requester: int = DEVICE, segment: int = 0) -> Port:
        return self.machine.create_port(segment, requester)

    def counter(self, name: str) -> int:
        return self.unit.counters()[name]

    # ---- faults and messages ----------------------------------------------------------------

    def record(self, index: int) -> Record:
        offset, _ = self.place("FRCD", index)
        low, high = self.unit.mmio_read(offset, 8), self.unit.mmio_read(offset + 8, 8)
        return Record(high << 64 | low)

    def records(self) -> list[Record]:
        """Return the valid fault records in the order of their registers."""
        every = (self.record(i) for i in range(self.capabilities.fault_records))
        return [record for record in every if record.valid]

    def clear_record(self, index: int) -> None:
        """Write 1 to F, in the top dword alone (VT-d 2.10)."""
        self.unit.mmio_write(self.place("FRCD", index)[0] + 12, 4, 1 << 31)

    def clear_records(self) -> None:
        for index in range(self.capabilities.fault_records):
            self.clear_record(index)

    def messages(self, kind: MessageKind | None = None) -> list[Message]:
        taken = self.machine.take_messages()
        return [m for m in taken if kind is None or m.kind is kind]

    # ---- invalidation -----------------------------------------------------------------------

    def enable_queue(self, size: int = 0) -> None:
        """Switch on a queue of 2**size pages at QUEUE."""
        self.tail = 0
        self.write("IQT", 0)
        self.write("IQA", QUEUE | size)
        self.command(QIE)

    def put(self, *descriptors: tuple[int, int]) -> None:
        """Write descriptors behind the tail, without the doorbell."""
        size = 0x1000 << (self.read("IQA") & 7)
        for low, high in descriptors:
            self.poke((self.read("IQA") & ~0xFFF) + self.tail, low, high)
            self.tail = (self.tail + 16) % size

    def submit(self, *descriptors: tuple[int, int]) -> None:
        """Write descriptors behind the tail and ring the doorbell."""
        self.put(*descriptors)
        self.write("IQT", self.tail)

    @property
    def queue_error(self) -> int | None:
        """IQERCD.IQEI if FSTS.IQE is set, else None."""
        return self.read("IQERCD") & 0xF if self.read("FSTS") & IQE else None


# ---- descriptors (VT-d 7.2) -----------------------------------------------------------------


def context_descriptor(g: int, did: int = 0, sid: int = 0, fm: int = 0) -> tuple[int, int]:
    return 1 | g << 4 | did << 16 | sid << 32 | fm << 48, 0


def iotlb_descriptor(
    g: int, did: int = 0, address: int = 0, am: int = 0, ih: int = 0, dw: int = 0, dr: int = 0
) -> tuple[int, int]:
    return 2 | g << 4 | dw << 6 | dr << 7 | did << 16, address | ih << 6 | am


def device_descriptor(sid: int, address: int = 0, size: int = 0, mip: int = 0) -> tuple[int, int]:
    return 3 | mip << 16 | sid << 32, address | size


def interrupt_descriptor(g: int = 0, index: int = 0, im: int = 0) -> tuple[int, int]:
    return 4 | g << 4 | im << 27 | index << 32, 0


def wait_descriptor(
    *, interrupt: int = 0, write: int = 0, fence: int = 0, address: int = 0, data: int = 0
) -> tuple[int, int]:
    return 5 | interrupt << 4 | write << 5 | fence << 6 | data << 32, address


# ---- the two ways to invalidate -------------------------------------------------------------


class ByRegister:
    """CCMD and IOTLB commands (VT-d 2.6, 2.7)."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def context(self, g: int, did: int = 0, sid: int = 0, fm: int = 0) -> None:
        self.bench.write("CCMD", 1 << 63 | g << 61 | fm << 32 | sid << 16 | did)

    def iotlb(
        self,
        g: int,
        did: int = 0,
        address: int = 0,
        am: int = 0,
        ih: int = 0,
        dw: int = 0,
        dr: int = 0,
    ) -> None:
        self.bench.write("IVA", address | ih << 6 | am)
        self.bench.write("IOTLB", 1 << 63 | g << 60 | dr << 49 | dw << 48 | did << 32)


class ByQueue:
    """Descriptors 1 and 2 (VT-d 7.2)."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.enable_queue()

    def context(self, g: int, did: int = 0, sid: int = 0, fm: int = 0) -> None:
        self.bench.submit(context_descriptor(g, did, sid, fm))

    def iotlb(
        self,
        g: int,
        did: int = 0,
        address: int = 0,
        am: int = 0,
        ih: int = 0,
        dw: int = 0,
        dr: int = 0,
    ) -> None:
        self.bench.submit(iotlb_descriptor(g, did, address, am, ih, dw, dr))


def bits(*ranges: int | tuple[int, int]) -> list[int]:
    """Expand bit numbers and (high, low) pairs, as the specification writes them."""
    found: list[int] = []
    for item in ranges:
        high, low = item if isinstance(item, tuple) else (item, item)
        found.extend(range(low, high + 1))
    return found


def without(all_bits: Iterable[int], taken: Iterable[int]) -> list[int]:
    removed = set(taken)
    return [n for n in all_bits if n not in removed]
