"""Under-invalidated programs: our unit's answers held to the stale-entry oracle.

Programs that change tables without invalidating everything have more than one right answer, and
QEMU gives just one of them. So they run on our unit alone, and each of its answers has to be one
that the oracle allows (see `reference.oracle`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from iommu_emu.core import Access, NotRamError, Request
from iommu_emu.differential import arena
from iommu_emu.differential.configurations import Configuration
from iommu_emu.differential.ours import Ours
from iommu_emu.differential.program import Dma, Operation, RegisterWrite, format_operation
from iommu_emu.differential.vtd import register_names
from iommu_emu.reference import vtd as reference
from iommu_emu.reference.oracle import Oracle
from iommu_emu.vtd.structures import ContextInvalidation, IotlbInvalidation

DESCRIPTOR = 16
CLEARED = 0xFFFFFFFF

__all__ = ["OracleRun", "WrongAnswer"]


@dataclass(frozen=True)
class WrongAnswer:
    """An answer that the oracle does not allow.

    Attributes:
        step: index of the operation.
        operation: its text.
        differences: from each allowed answer.
    """

    step: int
    operation: str
    differences: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operation}: {' / '.join(self.differences)}"


class OracleRun:
    """Runs programs on our unit beside the oracle.

    A transfer counts for its first page, and fault records are cleared after each.

    Attributes:
        choices: answers so far for which the oracle allowed more than one.

    Args:
        configuration: of the unit.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._ours = Ours(configuration)
        self._unit = self._ours.unit
        self.choices = 0

    def run(self, operations: Sequence[Operation]) -> WrongAnswer | None:
        """Run a program and return the first answer that is not allowed, if any is."""
        ours = self._ours
        ours.begin()
        self._unit.watch(False)
        oracle = Oracle(self._walker(), negative=self._unit.capabilities.caching_mode)
        for number, operation in enumerate(operations):
            if isinstance(operation, Dma):
                wrong = self._transfer(oracle, operation)
                if wrong:
                    text = format_operation(operation, register_names())
                    return WrongAnswer(number, text, wrong)
                continue
            head = self._unit.read("IQH")
            ours.perform(operation, number)
            if isinstance(operation, RegisterWrite):
                self._follow_registers(oracle, operation)
            for descriptor in self._carried_out(head):
                reference.invalidate(
                    oracle,
                    descriptor,
                    guest_address_width=self._unit.capabilities.guest_address_width,
                )
        return None

    def _transfer(self, oracle: Oracle[reference.Context], dma: Dma) -> tuple[str, ...]:
        """Translate the first page of a transfer; return the differences if the answer is wrong."""
        request = Request(
            dma.address,
            min(dma.length, arena.PAGE - dma.address % arena.PAGE),
            self._ours.machine.fabric.requester(self._ours.functions[dma.device]),
            Access.WRITE if dma.write else Access.READ,
        )
        oracle.walker = self._walker()
        allowed = oracle.allowed(request)
        self.choices += len(allowed) > 1
        result = self._unit.core.translate(request)
        self._unit.write("FRCD", CLEARED << 96)
        self._unit.write("FSTS", CLEARED)
        differences = [answer.differences(result) for answer in allowed]
        return () if [] in differences else tuple("; ".join(each) for each in differences)

    def _walker(self) -> reference.Walker:
        registers = replace(reference.Unit.of(self._unit), root_table=self._ours.commands.root)
        return reference.Walker(registers, self._read)

    def _read(self, address: int, length: int) -> bytes | None:
        try:
            return self._ours.machine.memory.read(address, length)
        except NotRamError:
            return None

    def _follow_registers(self, oracle: Oracle[reference.Context], write: RegisterWrite) -> None:
        """Tell the oracle what a command by register has invalidated."""
        name = register_names().name(write.offset).partition("+")[0]
        command = self._unit.read(name) if name in ("CCMD", "IOTLB") else 0
        if name == "GCMD" and write.value >> 30 & 1 and self._unit.field("CAP", "ESRTPS"):
            oracle.invalidate_all()
        elif name == "CCMD" and command >> 59 & 3 and not command >> 63:
            granularity, source = command >> 59 & 3, self._written("CCMD")
            entry = ContextInvalidation.build(
                g=granularity, did=command & 0xFFFF, sid=source >> 16 & 0xFFFF, fm=source >> 32 & 3
            )
            reference.invalidate(oracle, entry)
        elif name == "IOTLB" and command >> 57 & 3 and not command >> 63:
            address = self._written("IVA")
            entry = IotlbInvalidation.build(
                g=command >> 57 & 3,
                did=command >> 32 & 0xFFFF,
                am=address & 0x3F,
                ih=address >> 6 & 1,
                addr=address & ~0xFFF,
            )
            width = self._unit.capabilities.guest_address_width
            reference.invalidate(oracle, entry, guest_address_width=width)

    def _written(self, name: str) -> int:
        """Return what was last written to a register that reads 0."""
        offset, _ = register_names().registers[name]
        low, high = (self._ours.written.get(offset + at, 0) for at in (0, 4))
        return low | high << 32

    def _carried_out(self, head: int) -> Iterator[bytes]:
        """Yield the descriptors that the queue has passed since its head was at `head`."""
        iqa, now = self._unit.read("IQA"), self._unit.read("IQH")
        size = arena.PAGE << (iqa & 7)
        while head != now and head < size:
            data = self._read((iqa & ~0xFFF) + head, DESCRIPTOR)
            if data is not None:
                yield data
            head = (head + DESCRIPTOR) % size
