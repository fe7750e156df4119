"""Notes on an operation: what was special about it, beside the faults that it met.

Entries can be as narrow as a note: "a wait whose status address is no RAM", "a hit in the IOTLB".
Everything here is read from registers, memory and the reference walk, not from the unit's inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from iommu_emu.core import Access, NotRamError, Request
from iommu_emu.differential import arena
from iommu_emu.differential.descriptors import ERROR_RESERVED, ERROR_TYPE, oddity
from iommu_emu.differential.program import (
    Dma,
    Interrupt,
    Invalidate,
    Operation,
    RegisterRead,
    RegisterWrite,
    Submit,
)
from iommu_emu.machine import Machine
from iommu_emu.reference import INTERRUPT_BASE, INTERRUPT_LAST, LEVEL_CONTEXT
from iommu_emu.reference.vtd import Unit, Walker
from iommu_emu.vtd.unit import VtdUnit

DESCRIPTOR = 16
PAGE = arena.PAGE
PASS_THROUGH = 2
MOST_DESCRIPTORS = 520  # that are looked at in one operation: more than two pages have
SHV, REMAPPABLE = 1 << 3, 1 << 4

__all__ = ["Notes"]


class Notes:
    """Takes notes on the operations of one program.

    Args:
        machine: ours.
        unit: its unit.
    """

    def __init__(self, machine: Machine, unit: VtdUnit) -> None:
        self._machine = machine
        self._unit = unit
        self._capabilities = unit.capabilities
        self._head = 0
        self._tail = 0
        self._hits = 0
        self._stood_still = False

    def begin(self) -> None:
        """Note where the queue stands before an operation."""
        self._head = self._unit.read("IQH")
        self._tail = self._unit.read("IQT")
        self._hits = self._hit_count()
        self._stood_still = bool(self._unit.field("FSTS", "IQE"))

    def take(self, operation: Operation, requester: int, root: int) -> list[str]:
        """Return the notes on an operation that has just been carried out.

        Args:
            operation: which.
            requester: of the device that acted, if one did.
            root: RTADDR as it was latched.
        """
        found: list[str] = []
        if isinstance(operation, RegisterWrite | Submit | Invalidate):
            found += self._queue_notes(root)
        if self._stood_still:
            found.append("queue: stood still with an error")
        if root >> 10 & 3:
            found.append("root: not legacy mode")
        found += self._event_notes()
        if isinstance(operation, RegisterRead | RegisterWrite):
            found += _access_notes(operation)
        elif isinstance(operation, Dma):
            found += self._transfer_notes(operation, requester, root)
        elif isinstance(operation, Interrupt):
            found += self._interrupt_notes(operation)
        return list(dict.fromkeys(found))

    # ---- the queue ------------------------------------------------------------------------

    def _queue_notes(self, root: int) -> Iterator[str]:
        """Yield what is odd between the old head and the new tail."""
        if not self._unit.field("GSTS", "QIES") and not self._head:
            return
        iqa, tail = self._unit.read("IQA"), self._unit.read("IQT")
        base, size = iqa & ~0xFFF, PAGE << (iqa & 7)
        mode = root >> 10 & 3
        if tail >= size:
            yield "IQEI 1: tail beyond the queue"
            return
        if self._head == tail:
            return
        if iqa & 0x800:
            yield "IQEI 6: tail of odd alignment" if tail & 16 else "IQEI 5: 256-bit descriptors"
            return
        if mode:
            # Scalable and abort mode want 256-bit descriptors; the other is reserved (7.1, 7.6).
            yield "IQEI 7: reserved translation table mode"
            return
        at = self._head
        for _ in range(min(size // DESCRIPTOR, MOST_DESCRIPTORS)):
            if at == tail or at >= size:
                return
            text = self._descriptor_note(base + at)
            if text:
                yield text
            at = (at + DESCRIPTOR) % size

    def errors(self, operation: Operation, root: int) -> tuple[int, ...]:
        """Return what IQERCD.IQEI may be, by what the queue stands at (VT-d 7.6).

        While everything is invalidated, errors come and go.
        """
        noted = [note for note in self._queue_notes(root) if note.startswith("IQEI")]
        found = tuple(int(note[5]) for note in noted)
        if isinstance(operation, Invalidate):
            return (*found, ERROR_TYPE, ERROR_RESERVED)
        self._head = self._unit.read("IQH")
        standing = next(iter(self._queue_notes(root)), "")
        return (int(standing[5]),) if standing.startswith("IQEI") else found

    def _descriptor_note(self, address: int) -> str:
        if not self._is_ram(address):
            return "IQEI 2: descriptor is not in RAM"
        data = self._machine.memory.read(address, DESCRIPTOR)
        low, high = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
        odd = oddity(low, high, self._capabilities, self._is_ram)
        if odd is None:
            return ""
        return f"IQEI {odd.error}: {odd.text}" if odd.error else f"descriptor: {odd.text}"

    def _is_ram(self, address: int) -> bool:
        try:
            self._machine.memory.read(address, 4)
        except NotRamError:
            return False
        return True

    def _event_notes(self) -> Iterator[str]:
        """Yield which events would send their message elsewhere than to an APIC."""
        for event in ("FE", "IE"):
            address = self._unit.read(f"{event}ADDR") & ~0xFFFFF
            if not self._unit.field(f"{event}CTL", "IM") and address != INTERRUPT_BASE:
                yield f"{event}ADDR: outside FEEx_xxxxh"

    # ---- transfers --------------------------------------------------------------------------

    def _transfer_notes(self, dma: Dma, requester: int, root: int) -> Iterator[str]:
        if self._hit_count() > self._hits:
            yield "iotlb: hit"
        registers = replace(Unit.of(self._unit), root_table=root)
        walker = Walker(registers, self._read)
        if root >> self._unit.config.host_address_width:
            yield "root: above the host address width"
        for address in {dma.address, dma.address + dma.length - 1 & (1 << 64) - 1}:
            request = Request(address, 1, requester, Access.WRITE if dma.write else Access.READ)
            answer = walker.walk(request)
            if answer.failure is not None and not answer.recorded and self._reports():
                yield f"suppressed: {answer.name}"
            last = answer.visited[-1] if answer.visited else None
            if last is not None and last.level in (2, 3) and last.value & 0x80:
                size = 1 << 12 + 9 * (last.level - 1)
                page = last.value & ((1 << 52) - 1) & ~(size - 1)
                if page <= INTERRUPT_LAST and page + size > INTERRUPT_BASE:
                    yield "leaf: large, and reaches into FEEx_xxxxh"
            context = next((v.value for v in answer.visited if v.level == LEVEL_CONTEXT), 0)
            if context & 1 and context >> 2 & 3 == PASS_THROUGH:
                levels = (context >> 64 & 7) + 2
                known = levels in self._capabilities.levels
                if known and levels != max(self._capabilities.levels):
                    yield "context: pass-through with a smaller address width"
                if (context & (1 << 64) - 1) >> self._unit.config.host_address_width:
                    yield "context: pass-through with a table above the host address width"

    def _reports(self) -> bool:
        return bool(self._unit.field("GSTS", "TES"))

    def _read(self, address: int, length: int) -> bytes | None:
        try:
            return self._machine.memory.read(address, length)
        except NotRamError:
            return None

    def _hit_count(self) -> int:
        return self._unit.counters["iotlb_hit"]

    # ---- interrupts -------------------------------------------------------------------------

    def _interrupt_notes(self, interrupt: Interrupt) -> Iterator[str]:
        if not interrupt.address & REMAPPABLE or not self._unit.field("GSTS", "IRES"):
            return
        index = interrupt.address >> 5 & 0x7FFF | (interrupt.address >> 2 & 1) << 15
        if interrupt.address & SHV:
            index += interrupt.data & 0xFFFF
        if index >> 16:
            yield "interrupt: index of 17 bits"
        table = self._unit.read("IRTA") & ~0xFFF
        data = self._read(table + 16 * index, 16)
        if data is None:
            return
        low, high = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")
        if high >> 18 & 3 == 2:
            yield "irte: source by bus range"
        if high >> 18 & 3 == 3:
            yield "irte: reserved source validation"
        if low >> 15 & 1:
            yield "irte: posted format"
        if low >> 5 & 7 in (3, 6):
            yield "irte: reserved delivery mode"
        if not self._unit.read("IRTA") >> 11 & 1 and low >> 32 & 0xFFFF_00FF:
            yield "irte: reserved destination bits"


def _access_notes(operation: RegisterRead | RegisterWrite) -> Iterator[str]:
    if operation.offset % operation.size:
        yield "access: not aligned"
