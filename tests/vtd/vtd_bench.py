"""A small VT-d machine that tests write tables into by hand."""

from __future__ import annotations

from typing import Any

from iommu_emu.core import Access, AddressType, NotRamError, Request, RequestFlag, Result
from iommu_emu.machine import Machine
from iommu_emu.reference import vtd as reference
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.faults import FaultRecord
from iommu_emu.vtd.structures import ContextEntry, RootEntry
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BASE = 0xFED9_0000
MEMORY = 1 << 20
ROOT = 0x1000
CONTEXT = 0x2000
REQUESTER = 0x0310


class Bench:
    """One unit whose tables lie at known places; nothing is set up but the root pointer.

    Level n of the page table that `walk_to` builds is at `table(n)`.
    """

    def __init__(self, capabilities: Capabilities | None = None, **config: Any) -> None:
        self.machine = Machine(MEMORY)
        chosen = capabilities or Capabilities()
        arguments = {"base": BASE, "capabilities": chosen, "host_address_width": 46} | config
        self.unit = VtdUnit(self.machine, VtdConfig(**arguments))
        self.set_root(ROOT)
        self.enable()

    def enable(self, on: bool = True) -> None:
        """Switch translation on or off."""
        self.unit.write("GCMD", (1 << 31 if on else 0))

    def set_root(self, value: int) -> None:
        """Latch a root table pointer."""
        kept = self.unit.read("GSTS") & 0x96FF_FFFF
        self.unit.write("RTADDR", value)
        self.unit.write("GCMD", kept | 1 << 30)

    def write(self, address: int, data: bytes | int) -> None:
        """Write an entry, given as bytes or as a quadword."""
        raw = data if isinstance(data, bytes) else data.to_bytes(8, "little")
        self.machine.memory.write(address, raw)

    def root_entry(self, requester: int = REQUESTER, **values: int) -> None:
        """Write a root entry; present with the context table unless told otherwise."""
        entry = RootEntry.build(**({"p": 1, "ctp": CONTEXT} | values))
        self.write(ROOT + 16 * (requester >> 8), entry)

    def context_entry(self, requester: int = REQUESTER, **values: int) -> None:
        """Write a context entry; 4 levels at `table(4)` in domain 5 unless told otherwise."""
        chosen = {"p": 1, "aw": 2, "did": 5, "ssptptr": self.table(4)} | values
        self.write(CONTEXT + 16 * (requester & 0xFF), ContextEntry.build(**chosen))

    @staticmethod
    def table(level: int) -> int:
        """Return where the table of a level lies."""
        return 0x10000 + 0x1000 * level

    def entry(self, level: int, iova: int) -> int:
        """Return the address of an input address's entry at a level."""
        return self.table(level) + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    def walk_to(self, iova: int, leaf: int, level: int = 1, top: int = 4) -> None:
        """Link the tables from `top` down to `level`, and write a leaf there."""
        for above in range(top, level, -1):
            self.write(self.entry(above, iova), self.table(above - 1) | 3)
        self.write(self.entry(level, iova), leaf)

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
        zero_length: bool = False,
        flags: RequestFlag = RequestFlag.NONE,
    ) -> Request:
        """Return a request of the default requester."""
        flags |= RequestFlag.ZERO_LENGTH if zero_length else RequestFlag.NONE
        return Request(iova, length, requester, access, at, pasid, flags)

    def translate(self, request: Request) -> Result:
        """Translate a request, and drop the fault record that it may leave."""
        result = self.unit.core.translate(request)
        self.clear_faults()
        return result

    def clear_faults(self) -> list[FaultRecord]:
        """Take the fault records and clear them."""
        records = self.unit.fault_records()
        for record in records:
            self.unit.write("FRCD", 1 << 127, record.index)
        self.unit.write("FSTS", 1)
        return records

    def check(self, request: Request) -> Result:
        """Assert that unit and reference agree on a request, the fault record included."""
        expected = self.walker().walk(request)
        result = self.unit.core.translate(request)
        records = self.clear_faults()
        differences = expected.differences(result)
        assert not differences, differences
        raw = [record.raw for record in records]
        wanted = []
        if expected.recorded:
            wanted = [reference.fault_record(reference.Unit.of(self.unit), request, expected)]
        if expected.fault == 0x29:  # FI is undefined (VT-d 10.7)
            mask = ~((1 << 64) - 1)
            raw, wanted = [value & mask for value in raw], [value & mask for value in wanted]
        assert [f"{value:032x}" for value in raw] == [f"{value:032x}" for value in wanted]
        return result
