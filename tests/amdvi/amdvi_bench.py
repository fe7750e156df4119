"""A small AMD-Vi machine that tests write tables into by hand."""

from __future__ import annotations

from typing import Any

from iommu_emu.amdvi.events import EventRecord
from iommu_emu.amdvi.features import Features
from iommu_emu.amdvi.structures import DeviceTableEntry, PageDirectoryEntry, PageTableEntry
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Access, AddressType, NotRamError, Request, RequestFlag, Result
from iommu_emu.machine import Machine
from iommu_emu.reference import amdvi as reference

BASE = 0xFEB8_0000
MEMORY = 1 << 20
DEVICES = 0x40000  # device table: 128 KiB, buses 0 to 15
DEVICE_PAGES = 32
COMMANDS = 0x1000
EVENTS = 0x2000
REQUESTER = 0x0310
ENTRY = 16
RING = 4096


class Bench:
    """One unit, enabled, whose device table, command buffer and event log lie at known places.

    Level n of the page table that `walk_to` builds is at `table(n)`.
    """

    def __init__(self, features: Features | None = None, **config: Any) -> None:
        self.machine = Machine(MEMORY)
        arguments = {"base": BASE, "features": features or Features()} | config
        self.unit = AmdviUnit(self.machine, AmdviConfig(**arguments))
        self.program()

    def program(self) -> None:
        """Program the registers as they are after reset."""
        self.tail = 0
        self.unit.write("DevTabBase", DEVICES | DEVICE_PAGES - 1)
        self.unit.write("CmdBufBase", COMMANDS | 8 << 56)
        self.unit.write("EvtLogBase", EVENTS | 8 << 56)
        self.enable()

    def enable(self, on: bool = True) -> None:
        """Switch the unit on, with event log and command buffer."""
        names = ("IommuEn", "EventLogEn", "CmdBufEn")
        control = sum(self.unit.field_info("Control", name).mask for name in names)
        self.unit.write("Control", control if on else 0)

    def write(self, address: int, data: bytes | int) -> None:
        """Write an entry, given as bytes or as a quadword."""
        raw = data if isinstance(data, bytes) else data.to_bytes(8, "little")
        self.machine.memory.write(address, raw)

    def device_entry(self, requester: int = REQUESTER, **values: int) -> None:
        """Write a device table entry; 4 levels, domain 5, all permissions if not told otherwise."""
        chosen = {"v": 1, "tv": 1, "mode": 4, "root": self.table(4), "ir": 1, "iw": 1}
        entry = DeviceTableEntry.build(**({**chosen, "domain_id": 5} | values))
        self.write(DEVICES + DeviceTableEntry.size * requester, entry)

    @staticmethod
    def table(level: int) -> int:
        """Return where the table of a level lies."""
        return 0x10000 + 0x1000 * level

    def entry(self, level: int, iova: int) -> int:
        """Return the address of an input address's entry at a level."""
        return self.table(level) + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    @staticmethod
    def pde(address: int, next_level: int, **values: int) -> int:
        """Return an entry that points to a table."""
        chosen = {"pr": 1, "ir": 1, "iw": 1, "next_level": next_level, "address": address}
        return PageDirectoryEntry.build_int(**(chosen | values))

    @staticmethod
    def pte(address: int, **values: int) -> int:
        """Return a leaf."""
        chosen = {"pr": 1, "ir": 1, "iw": 1, "address": address}
        return PageTableEntry.build_int(**(chosen | values))

    def walk_to(self, iova: int, leaf: int, level: int = 1, top: int = 4) -> None:
        """Link the tables from `top` down to `level`, and write a leaf there."""
        for above in range(top, level, -1):
            self.write(self.entry(above, iova), self.pde(self.table(above - 1), above - 1))
        self.write(self.entry(level, iova), leaf)

    def command(self, command: bytes) -> None:
        """Let the unit carry out a command."""
        self.write(COMMANDS + ENTRY * self.tail, command)
        self.tail = (self.tail + 1) % (RING // ENTRY)
        self.unit.write("CmdBufTail", ENTRY * self.tail)

    def read(self, address: int, length: int) -> bytes | None:
        """Read memory for the reference walker."""
        try:
            return self.machine.memory.read(address, length)
        except NotRamError:
            return None

    def walker(self) -> reference.Walker:
        """Return a reference walker over the unit's registers as they are."""
        return reference.Walker(reference.Unit.of(self.unit), self.read)

    def request(
        self,
        iova: int,
        access: Access = Access.READ,
        *,
        requester: int = REQUESTER,
        length: int = 4,
        at: AddressType = AddressType.UNTRANSLATED,
        pasid: int | None = None,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Request:
        """Return a request of the default requester."""
        return Request(iova, length, requester, access, at, pasid, flags)

    def take_events(self) -> list[bytes]:
        """Take what is in the event log."""
        head, tail = self.unit.read("EvtLogHead"), self.unit.read("EvtLogTail")
        events = []
        while head != tail:
            events.append(self.machine.memory.read(EVENTS + head, ENTRY))
            head = (head + ENTRY) % RING
        self.unit.write("EvtLogHead", head)
        return events

    def decode_events(self) -> list[EventRecord]:
        """Take what is in the event log, decoded."""
        return [EventRecord.decode(event) for event in self.take_events()]

    def translate(self, request: Request) -> Result:
        """Translate a request, and drop the event that it may leave."""
        result = self.unit.core.translate(request)
        self.take_events()
        return result

    def check(self, request: Request) -> Result:
        """Assert that unit and reference agree on a request, the event included."""
        expected = self.walker().walk(request)
        result = self.unit.core.translate(request)
        differences = expected.differences(result)
        assert not differences, differences
        wanted = []
        if expected.recorded:
            wanted = [reference.event(request, expected).to_bytes(ENTRY, "little").hex()]
        events = [event.hex() for event in self.take_events()]
        assert events == wanted, (expected, events, wanted)
        return result
