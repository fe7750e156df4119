"""`iommu-emu diff`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from installed_command import IOMMU_EMU

from iommu_emu.cli.main import main
from iommu_emu.differential import Campaign, parse_program
from iommu_emu.differential.document import document
from iommu_emu.differential.vtd import register_names
from iommu_emu.qtest.client import QtestError


def test_diff_summary_is_json(qemu, capsys):
    arguments = ["diff", "--programs", "20", "--seed", "3", "--config", "q35", "--json"]
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["qemu"] == qemu.build
    assert (summary["programs"], summary["seed"]) == (20, 3)
    assert (summary["under_invalidated"], summary["exactly_invalidated"]) == (2, 5)
    assert summary["operations"]["store"] > summary["operations"]["read"]
    assert sum(summary["faults"].values()) > 0
    assert summary["unexplained"] == []


def test_diff_reports_coverage_for_people(qemu, capsys):
    assert main(["diff", "--programs", "8", "--seed", "1", "--config", "39-bit"]) == 0
    shown = capsys.readouterr().out
    assert "8 programs in" in shown
    assert "dma-write" in shown
    assert shown.endswith("no unexplained difference\n")


def test_diff_ends_when_the_time_is_up(qemu, capsys):
    assert main(["diff", "--seconds", "0.001", "--seed", "1", "--config", "q35", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["programs"] >= 1  # and it has come to its end


def test_diff_keeps_what_is_unexplained(qemu, capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("iommu_emu.differential.pair.load", tuple)  # nothing is known
    arguments = ["diff", "--programs", "4", "--seed", "0", "--config", "q35"]
    assert main([*arguments, "--keep", str(tmp_path / "found")]) == 1
    assert "unexplained, " in capsys.readouterr().out
    kept = sorted((tmp_path / "found").iterdir())
    assert kept[0].name == "q35-0.txt"
    assert parse_program(kept[0].read_text(), register_names())


def test_diff_prints_the_document(capsys):
    assert main(["diff", "--document"]) == 0
    assert capsys.readouterr().out == document()


def test_diff_that_is_terminated_leaves_nothing(qemu, tmp_path: Path):
    command = [IOMMU_EMU, "diff", "--config", "q35"]
    with subprocess.Popen(
        [*command, "--seconds", "600"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(lambda: children(process.pid))
        started = children(process.pid)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
    assert list(tmp_path.iterdir()) == []


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_diff_names_the_program_at_which_qemu_went_silent(qemu, capsys, monkeypatch):
    def silent(pair, operations, exact=False):
        raise QtestError("no QMP message in 30 s")

    monkeypatch.setattr("iommu_emu.differential.pair.Pair.run", silent)
    assert main(["diff", "--programs", "1", "--seed", "5", "--config", "q35"]) == 2
    said = capsys.readouterr().err
    assert "QEMU of configuration q35, program of seed 5: no QMP message in 30 s" in said
    assert "--config q35 --seed 5 begins there" in said


def test_diff_without_a_usable_qemu_says_so(capsys, monkeypatch):
    monkeypatch.setenv("IOMMU_EMU_QEMU", "/nonexistent")
    assert main(["diff", "--seconds", "1"]) == 2
    assert "iommu-emu diff: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "must be in 0..2147483647, not -1"),
        (["--seconds", "0"], "must be more than 0, not 0"),
        (["--config", "q36"], "invalid choice: 'q36'"),
    ],
)
def test_diff_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["diff", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_campaign_counts_what_it_ran(qemu):
    with Campaign(["q35", "bridges"], qemu.argv, seed=6) as campaign:
        campaign.run(programs=6)
        assert (campaign.programs, campaign.partial, campaign.exact) == (6, 2, 0)
        assert campaign.compared + campaign.skipped > 0
        assert campaign.coverage.operations["store"] > 0
        assert campaign.restarts == 0
