"""The demo tells the truth, on every built-in platform."""

import io
import json
import sys

import pytest

from iommu_emu import acpi
from iommu_emu.acpi import platforms
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.cli.main import main
from iommu_emu.core import Owed
from iommu_emu.demo import PACKET, SECRET, tell
from iommu_emu.machine import Machine
from iommu_emu.routing import Rule, RuleKind


@pytest.fixture(scope="module", params=platforms.names())
def steps(request):
    return list(tell(Machine.from_platform(request.param)))


def test_demo_reads_the_secret_before_the_unit_is_on(steps):
    assert steps[1].details["data"] == SECRET


def test_demo_blocks_a_device_without_a_domain(steps):
    assert not steps[2].details["completion"].ok
    assert len(steps[2].details["faults"]) == 1


def test_demo_delivers_legal_dma(steps):
    assert steps[3].details["arrived"] == PACKET


def test_demo_stops_the_overrun_at_the_page_edge(steps):
    assert steps[4].details["completion"].details.done == 16
    assert steps[4].details["faults"][0].address & ~0xFFF == 0x71000


def test_demo_leaks_through_the_stale_entry(steps):
    assert steps[5].details["data"] == SECRET


def test_demo_names_the_owed_invalidation(steps):
    assert steps[5].details["stale_uses"][0].owed == Owed.IOTLB_PAGE


def test_demo_blocks_after_the_invalidation(steps):
    assert not steps[6].details["completion"].ok


def test_demo_command_prints_seven_steps_as_json(capsys):
    assert main(["demo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [step["good"] for step in told["steps"]] == [None, False, True, True, True, False, True]


def test_demo_command_takes_a_table_from_a_file(tmp_path, capsys):
    table = tmp_path / "DMAR"
    table.write_bytes(_built("server-4-unit"))
    assert main(["demo", str(table)]) == 0
    assert "7. With the invalidation" in capsys.readouterr().out


def test_demo_command_takes_a_table_from_standard_input(monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO(_built("desktop-amdvi")))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["demo", "-", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 7


def test_demo_fault_of_amdvi_fits_in_a_line():
    steps = list(tell(Machine.from_platform("desktop-amdvi")))
    assert steps[6].facts["fault record"].endswith("reason 0x02 (IO_PAGE_FAULT): not mapped")


def test_demo_finds_a_device_that_the_table_names():
    machine = Machine()
    unit = AmdviUnit(machine, AmdviConfig(base=0xFEB8_0000))
    machine.rules = [Rule(unit, RuleKind.RANGE, first, first + 2) for first in (0x0000, 0x0058)]
    machine.topology_changed()
    assert next(tell(machine)).facts["our device"] == "a network card at 00:0b.0"


def test_demo_command_without_a_unit_prints_one_line(tmp_path, capsys):
    table = acpi.platforms.load("q35-vtd").table
    table.units()[0].base_address = 0
    path = tmp_path / "DMAR"
    path.write_bytes(acpi.build(table))
    assert main(["demo", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_demo_command_refuses_what_is_no_table(tmp_path, capsys):
    table = tmp_path / "DMAR"
    table.write_bytes(b"not a table")
    assert main(["demo", str(table)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def _built(name: str) -> bytes:
    from iommu_emu import acpi

    return acpi.build(platforms.load(name).table)
