"""Thousands of programs: QEMU and ours agree but for the known differences.

A failure prints the shrunk program; `iommu-emu diff --seed N --config NAME` shows it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from iommu_emu.differential import CONFIGURATIONS, OracleRun, Pair, configuration, format_program
from iommu_emu.differential.generator import generate, generate_exact, generate_partial
from iommu_emu.differential.vtd import register_names

# QEMU takes most of the time, and a sanitized core sees enough in a part of the programs.
SANITIZED = os.environ.get("IOMMU_EMU_SANITIZED") == "1"
PROGRAMS = 40 if SANITIZED else 350
EXACT_PROGRAMS = 15 if SANITIZED else 100
PARTIAL_PROGRAMS = 20 if SANITIZED else 150
PARTS = 2  # of each configuration, so that two workers share them evenly


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_programs_fully_invalidated_agree(
    name: str, part: int, pair: Callable[[str], Pair]
) -> None:
    both = pair(name)
    for seed in range(part, PROGRAMS, PARTS):
        operations = generate(seed, name).operations
        if both.run(operations).unexplained:
            small = both.shrink(operations)
            found = "\n".join(str(each) for each in both.run(small).unexplained)
            text = format_program(small, register_names())
            pytest.fail(f"seed {seed}:\n{text}\n{found}")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_programs_exactly_invalidated_agree(name: str, pair: Callable[[str], Pair]) -> None:
    both = pair(name)
    for seed in range(EXACT_PROGRAMS):
        operations = generate_exact(seed, name).operations
        found = both.run(operations, exact=True).unexplained
        if found:
            text = format_program(operations[: found[0].step + 1], register_names())
            pytest.fail(f"seed {seed}:\n{text}\n" + "\n".join(map(str, found)))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_programs_under_invalidated_give_answers_that_the_oracle_allows(name: str) -> None:
    held = OracleRun(configuration(name))
    for seed in range(PARTIAL_PROGRAMS):
        operations = generate_partial(seed, name).operations
        wrong = held.run(operations)
        assert wrong is None, format_program(operations[: wrong.step + 1], register_names())
    assert held.choices > PARTIAL_PROGRAMS // 4  # they do leave the oracle a choice
