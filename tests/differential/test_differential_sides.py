"""The two sides by themselves: what QEMU offers, and what becomes of a QEMU that dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iommu_emu.differential import CONFIGURATIONS, Pair, configuration, parse_program
from iommu_emu.differential.ours import Ours
from iommu_emu.differential.vtd import register_names

READS = "read VER 4\nread CAP 8\nread ECAP 8\n"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration_has_the_capabilities_of_qemu(name: str, pair: Callable[[str], Pair]) -> None:
    both = pair(name)
    verdict = both.run(parse_program(READS, register_names()))
    assert verdict.unexplained == []
    version, cap, ecap = (step.results[0] for step in both.recording.observation.steps)
    capabilities = configuration(name).capabilities
    assert (version, cap, ecap) == (0x10, capabilities.cap, capabilities.ecap)


@pytest.mark.parametrize(("address", "overwritten"), [(0x10_6000, True), (0x12_5000, False)])
def test_ours_notes_that_a_device_has_written_a_table(address: int, overwritten: bool) -> None:
    program = parse_program(f"dma-write a {address:#x} 4\n", register_names())
    (step,) = Ours(configuration("q35")).run(program).observation.steps
    assert step.overwritten is overwritten


def test_theirs_begins_each_program_afresh(pair: Callable[[str], Pair]) -> None:
    both = pair("bridges")
    program = parse_program(
        """
        renumber port 9
        write GCMD 4 0x80000000
        invalidate registers
        dma-write b 0x4000 4
        dma-read edu2 0x8000 4
        """,
        register_names(),
    )
    recording = both.ours.run(program)
    first = both.theirs.replay(recording.accesses, recording.ending)
    assert both.theirs.replay(recording.accesses, recording.ending) == first


def test_theirs_tries_again_when_something_has_ended_qemu(qemu) -> None:
    with Pair("q35", qemu.argv) as both:
        both.theirs.process.kill()
        assert both.run(parse_program(READS, register_names())).unexplained == []
        assert both.theirs.starts == 2


def test_theirs_takes_a_death_for_what_is_seen_if_it_happens_again(qemu, monkeypatch) -> None:
    program = parse_program(READS, register_names())
    with Pair("q35", qemu.argv) as both:
        monkeypatch.setattr(
            "iommu_emu.qtest.client_process.QemuProcess.reset",
            lambda process: process.kill() or process.monitor("info status"),
        )
        found = both.run(program).unexplained
        monkeypatch.undo()
        assert [(each.step, each.field) for each in found] == [(0, "abort")]
        assert "SIGKILL" in found[0].detail
        assert both.run(program).unexplained == []
