"""Comparing what was seen on both sides, operation by operation.

Every field that differs has to be explained by an entry. One that was explained and has not
changed since on either side needs no second explanation. After an entry that says that the two
diverge the rest of a program is not compared; nor is it once a device has used a stale entry, or
might have, because software could not invalidate: that is the oracle's business. A stale entry
that is used although everything had been invalidated is a finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from iommu_emu.differential import arena
from iommu_emu.differential.adapter import Adapter
from iommu_emu.differential.entries import Entry, Finding
from iommu_emu.differential.observation import Observation, Step
from iommu_emu.differential.program import (
    Dma,
    Operation,
    RegisterRead,
    format_operation,
)

END = "end"

__all__ = ["Verdict", "compare"]


@dataclass
class Verdict:
    """What came of a comparison.

    Attributes:
        unexplained: findings of the first operation that no entry explains in full.
        explained: how often each entry explained something.
        compared: operations that were compared.
        diverged: name of the entry after which the comparison ended; empty if it did not.
        stale: operation at which a device used a stale entry, or might have; None if none did.
    """

    unexplained: list[Finding] = field(default_factory=list)
    explained: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    diverged: str = ""
    stale: int | None = None

    @property
    def signature(self) -> tuple[object, ...]:
        """What makes two unexplained differences the same, whatever the program around them."""
        return tuple(
            sorted((f.operation.split()[0], f.field, f.causes[-1:]) for f in self.unexplained)
        )


def compare(
    operations: Sequence[Operation],
    ours: Observation,
    qemu: Observation,
    entries: Sequence[Entry],
    adapter: Adapter,
    *,
    exact: bool = False,
) -> Verdict:
    """Compare two observations of one program.

    Args:
        operations: of the program.
        ours: our side, whole.
        qemu: QEMU's side, as far as it came.
        entries: the differences that are known.
        adapter: of the kind of unit.
        exact: software has invalidated all that it owed before every use of it; until a device
            overwrites a table.
    """
    verdict = Verdict()
    names = adapter.names
    carried: dict[str, tuple[int, int]] = {}
    differed: set[str] = set()
    for index, mine in enumerate(ours.steps):
        text = format_operation(operations[index], names)
        exact = exact and not mine.overwritten  # of that, software invalidates nothing
        clean = mine.clean or exact
        uncertain = isinstance(operations[index], Dma) and not clean
        if mine.stale or uncertain:
            verdict.stale = index
            if mine.stale and clean:
                detail = "an entry was used that had been invalidated"
                said = tuple(mine.causes)
                verdict.unexplained.append(Finding(index, text, "stale", 1, 0, said, detail))
            return verdict
        if index < len(qemu.steps):
            found = list(
                _step_findings(index, text, operations[index], mine, qemu.steps[index], adapter)
            )
        else:
            found = [Finding(index, text, "abort", 0, 1, tuple(mine.causes), qemu.died)]
        around = _Around(adapter, mine, ours.steps[index - 1] if index else None)
        if _judge(found, around, entries, carried, verdict):
            return verdict
        differed.update(each.field for each in found)
        verdict.compared += 1
    found = list(_end_findings(operations, ours, qemu, differed))
    last = ours.steps[-1] if ours.steps else None
    _judge(found, _Around(adapter, last, last), entries, carried, verdict)
    return verdict


@dataclass(frozen=True)
class _Around:
    """Our side around a finding; see `Surroundings`."""

    adapter: Adapter
    step: Step | None
    previous: Step | None

    def state(self, field: str) -> int:
        return self.adapter.value(self.step.registers, field) if self.step else 0

    def before(self, field: str) -> int:
        return self.adapter.value(self.previous.registers, field) if self.previous else 0

    def written(self, field: str) -> int:
        register, _, name = field.partition(".")
        names = self.adapter.names
        offset, size = names.registers[register]
        written = self.step.written if self.step else {}
        value = sum(written.get(offset + at, 0) << 8 * at for at in range(0, size, 4))
        return names.extract(register, name, value)

    def expected(self, field: str) -> tuple[int, ...]:
        return self.step.expected.get(field, ()) if self.step else ()


def _judge(
    found: list[Finding],
    around: _Around,
    entries: Sequence[Entry],
    carried: dict[str, tuple[int, int]],
    verdict: Verdict,
) -> bool:
    """Explain findings; True if the comparison is over."""
    fresh = [each for each in found if carried.get(each.field) != (each.ours, each.qemu)]
    diverged = ""
    for each in fresh:
        entry = _explanation(each, around, entries)
        if entry is None:
            verdict.unexplained.append(each)
        else:
            verdict.explained[entry.name] += 1
            diverged = diverged or (entry.name if entry.diverges else "")
    carried.clear()
    carried.update((each.field, (each.ours, each.qemu)) for each in found)
    verdict.diverged = diverged
    return bool(diverged or verdict.unexplained)


def _explanation(finding: Finding, around: _Around, entries: Sequence[Entry]) -> Entry | None:
    for entry in entries:
        if any(match.fits(finding, around) for match in entry.matches):
            return entry
    return None


def _step_findings(
    index: int, text: str, operation: Operation, mine: Step, theirs: Step, adapter: Adapter
) -> Iterator[Finding]:
    causes = tuple(mine.causes)
    # What a read of a register says is in the dump as well; if it says the same, once is enough.
    told = isinstance(operation, RegisterRead) and all(
        adapter.part(step.registers, operation.offset, operation.size)
        == step.results[0].to_bytes(operation.size, "little")
        for step in (mine, theirs)
    )
    if mine.results != theirs.results and not told:
        for number, (ours, qemu) in enumerate(zip(mine.results, theirs.results, strict=True)):
            if ours != qemu:
                yield Finding(index, text, f"result[{number}]", ours, qemu, causes)
    if mine.registers == theirs.registers:
        return
    at = 0
    for base, size in adapter.ranges:
        ours_dump, qemu_dump = mine.registers[at : at + size], theirs.registers[at : at + size]
        for each in adapter.names.differences(base, ours_dump, qemu_dump):
            yield Finding(index, text, each.field, each.ours, each.qemu, causes)
        at += size


def _end_findings(
    operations: Sequence[Operation], ours: Observation, qemu: Observation, differed: set[str]
) -> Iterator[Finding]:
    index = len(operations)
    causes = _causes_at_end(ours, differed)
    for (base, _), mine, theirs in zip(arena.REGIONS, ours.memory, qemu.memory, strict=True):
        if mine == theirs:
            continue
        for page in range(0, len(mine), arena.PAGE):
            if mine[page : page + arena.PAGE] != theirs[page : page + arena.PAGE]:
                yield _memory_finding(index, base, page, mine, theirs, causes)
    for vector in sorted(ours.vectors ^ qemu.vectors):
        here = vector in ours.vectors
        detail = f"{vector:#x} reached APIC 0 {'here' if here else 'in QEMU'} only"
        yield Finding(index, END, "vector", int(here), int(not here), causes, detail)


def _memory_finding(
    index: int, base: int, page: int, mine: bytes, theirs: bytes, causes: tuple[str, ...]
) -> Finding:
    """Report a page by its first byte that differs, or that no program can have left there."""
    different = [n for n in range(page, page + arena.PAGE) if mine[n] != theirs[n]]
    likely = arena.likely(base + page)
    unlikely = [n for n in different if likely and mine[n] not in likely]
    at = (unlikely or different)[0]
    detail = (
        f"at {base + at:#x} {mine[at : at + 8].hex()} here, {theirs[at : at + 8].hex()} in QEMU"
    )
    field = "memory.wrong" if unlikely else f"memory.{arena.kind(base + at)}"
    return Finding(index, END, field, mine[at], theirs[at], causes, detail)


def _causes_at_end(ours: Observation, differed: set[str]) -> tuple[str, ...]:
    """Return what may have kept a vector or a store from one side.

    That is all that was said of the program's operations, and which pending events differed.
    """
    causes = [f"{name} had differed" for name in sorted(differed) if name.endswith(".IP")]
    for step in ours.steps:
        causes += step.causes
    return tuple(dict.fromkeys(causes))
