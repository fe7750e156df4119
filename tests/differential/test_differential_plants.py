"""Planted bugs: what a wrong unit would show is found, whatever the entries explain.

Each test falsifies our side of some dozens of comparisons and wants every one of them noticed, at
the operation where the bug first shows. Comparisons that ended before that place prove nothing,
and are left out.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count

import pytest

from iommu_emu.differential import Pair, arena, load, parse_program, vtd
from iommu_emu.differential.compare import Verdict, compare
from iommu_emu.differential.generator import generate
from iommu_emu.differential.observation import Observation, Step
from iommu_emu.differential.vtd import register_names

PLANTS = 12 if os.environ.get("IOMMU_EMU_SANITIZED") == "1" else 60
SEEDS = 5000  # the first
REGISTERS = 0x100  # bytes of the first part of a dump
RECORD = slice(REGISTERS, REGISTERS + 16)
FAULT_BIT = 1 << 127
STATUS, EVENT = 0x34, 0x38


class Planted:
    """A comparison that found nothing unexplained, to be falsified."""

    def __init__(self, both: Pair, seed: int) -> None:
        self.operations = generate(seed, both.name).operations
        self.verdict = both.run(self.operations)
        self.recording = both.recording
        self.ours = self.recording.observation
        self.qemu = both.theirs.replay(self.recording.accesses, self.recording.ending)
        self.rng = random.Random(seed)

    def judge(self, ours: Observation) -> Verdict:
        return compare(self.operations, ours, self.qemu, load(), vtd.ADAPTER)


@pytest.fixture
def plants(pair: Callable[[str], Pair]) -> Callable[[], Iterator[Planted]]:
    """Comparisons of ever new programs."""
    both = pair("q35")
    return lambda: (Planted(both, seed) for seed in count(SEEDS))


def rises(steps: list[Step], until: int) -> list[int]:
    """Return the steps at which a fault record appears."""
    records = [int.from_bytes(step.registers[RECORD], "little") for step in steps[:until]]
    return [
        n
        for n in range(1, len(records))
        if records[n] & FAULT_BIT and not records[n - 1] & FAULT_BIT
    ]


def with_record(step: Step, change: Callable[[int], int]) -> None:
    record = change(int.from_bytes(step.registers[RECORD], "little"))
    step.registers = step.registers[:REGISTERS] + record.to_bytes(16, "little")


def test_plant_of_a_flipped_register_bit_is_found(plants):
    places = [
        (offset, bit)
        for offset, size in register_names().registers.values()
        if offset < REGISTERS
        for bit in range(8 * size)
    ]
    missed, tried = [], 0
    for planted in plants():
        if planted.verdict.compared:
            tried += 1
            at = planted.rng.randrange(planted.verdict.compared)
            offset, bit = planted.rng.choice(places)
            ours = deepcopy(planted.ours)
            dump = bytearray(ours.steps[at].registers)
            dump[offset + bit // 8] ^= 1 << bit % 8
            ours.steps[at].registers = bytes(dump)
            if not planted.judge(ours).unexplained:
                missed.append((register_names().name(offset & ~3), bit, at))
        if tried >= PLANTS:
            break
    assert missed == []


def test_plant_of_a_swapped_fault_reason_is_found(plants):
    missed, tried = [], 0
    for planted in plants():
        for at in rises(planted.ours.steps, planted.verdict.compared):
            tried += 1
            ours = deepcopy(planted.ours)
            for step in ours.steps[at:]:
                with_record(step, lambda record: record ^ 1 << 96)
            if not planted.judge(ours).unexplained:
                missed.append((planted.operations[at], planted.ours.steps[at].causes))
        if tried >= PLANTS:
            break
    assert missed == []


def test_plant_of_a_missing_record_is_found(plants):
    missed, tried = [], 0
    for planted in plants():
        for at in rises(planted.ours.steps, planted.verdict.compared):
            tried += 1
            ours = deepcopy(planted.ours)
            before = ours.steps[at - 1].registers
            for step in ours.steps[at:]:
                dump = bytearray(step.registers)
                dump[RECORD] = before[RECORD]
                dump[STATUS : EVENT + 4] = before[STATUS : EVENT + 4]
                step.registers = bytes(dump)
            if not planted.judge(ours).unexplained:
                missed.append((planted.operations[at], planted.ours.steps[at].causes))
        if tried >= PLANTS:
            break
    assert missed == []


def test_plant_of_a_wrong_byte_of_memory_is_found(plants):
    missed, tried = [], 0
    for planted in plants():
        ended = not planted.verdict.diverged and planted.verdict.stale is None
        if ended:
            tried += 1
            ours = deepcopy(planted.ours)
            page = planted.rng.choice(arena.DATA[:8])
            at = page - arena.LOW + planted.rng.randrange(arena.PAGE)
            low = bytearray(ours.memory[0])
            low[at] ^= 0x80
            ours.memory = (bytes(low), *ours.memory[1:])
            if not planted.judge(ours).unexplained:
                missed.append(hex(page))
        if tried >= PLANTS:
            break
    assert missed == []


def test_plant_of_an_invalidation_that_does_nothing_is_found(pair, monkeypatch):
    """Descriptors that our unit takes for those of a domain nobody uses."""
    both, names = pair("q35"), register_names()
    program = """
        store 0x100000 0x102001 0x0
        store 0x102180 0x106001 0x102
        store 0x106000 0x107003
        store 0x107000 0x108003
        store 0x108000 0x109003
        store 0x109020 0x124003
        write IQA 8 0x130000
        write GCMD 4 0x4000000
        write RTADDR 8 0x100000
        write GCMD 4 0x44000000
        write GCMD 4 0x84000000
        invalidate queue
        dma-write a 0x4000 4
        store 0x109020 0x0
        invalidate queue
        dma-write a 0x4000 4
    """
    operations = parse_program(program, names)
    honest = both.ours.run(operations)
    seen = both.theirs.replay(honest.accesses, honest.ending)
    unused = 0x5555 << 16
    monkeypatch.setattr(
        vtd,
        "everything",
        lambda interrupts: ((0x21 | unused, 0), (0x22 | unused, 0), (0x4, 0), (0x65, arena.STATUS)),
    )
    falsified = both.ours.run(operations).observation
    verdict = compare(operations, falsified, seen, load(), vtd.ADAPTER)
    assert [(each.step, each.field) for each in verdict.unexplained][:1] == [(15, "stale")]
