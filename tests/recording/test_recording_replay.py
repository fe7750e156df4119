"""Replaying a recording: what diverges, where it stops, what people and programs are told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from iommu_emu.cli.main import main
from iommu_emu.core import RECORD_DTYPE, RecordKind
from iommu_emu.recording import Recording, RecordingError, describe, read, replay
from iommu_emu.recording.format import Writer

DATA = Path(__file__).with_name("data")
DEMO = DATA / "demo-vtd.iemu"


@pytest.fixture
def recording() -> Recording:
    """A demo's recording, to be changed."""
    original = read(DEMO)
    return dataclasses.replace(original, records=original.records.copy())


def first(recording: Recording, kind: RecordKind) -> int:
    return int(np.flatnonzero(recording.records["kind"] == kind)[0])


def write(path: Path, recording: Recording) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, recording.version, recording.notes)
        writer.write(recording.records)
        writer.finish(recording.end)
    return path


# ---- divergence -------------------------------------------------------------------------------


def test_replay_names_the_record_that_was_changed(recording: Recording) -> None:
    at = first(recording, RecordKind.TRANSLATED)
    before = recording.records[at : at + 1].copy()
    recording.records["value"][at, 1] ^= np.uint64(0x1000)
    outcome = replay(recording)
    assert not outcome.same
    assert outcome.divergence is not None
    assert outcome.position == outcome.divergence.position == at
    assert outcome.divergence.expected.tobytes() == recording.records[at : at + 1].tobytes()
    assert outcome.divergence.got.tobytes() == before.tobytes()


def test_replay_names_an_effect_that_did_not_come(recording: Recording) -> None:
    at = first(recording, RecordKind.STORE)
    records = np.insert(recording.records, at, recording.records[at])
    outcome = replay(dataclasses.replace(recording, records=records))
    assert outcome.divergence is not None
    assert outcome.position == at + 1
    assert len(outcome.divergence.got) == 0


def test_replay_names_an_effect_behind_the_end(recording: Recording) -> None:
    at = first(recording, RecordKind.TRANSLATED)
    outcome = replay(dataclasses.replace(recording, records=recording.records[:at]))
    assert outcome.divergence is not None
    assert len(outcome.divergence.expected) == 0
    assert outcome.divergence.got["kind"][0] == RecordKind.TRANSLATED


def test_replay_refuses_a_record_that_is_none(recording: Recording) -> None:
    at = first(recording, RecordKind.MMIO_WRITE)
    recording.records["kind"][at] = 200
    outcome = replay(recording)
    assert outcome.position == at  # an effect of no kind did not come
    recording.records["kind"][at] = 50
    with pytest.raises(RecordingError, match=f"record {at} is none that can be played"):
        replay(recording)


# ---- a part -----------------------------------------------------------------------------------


def test_replay_stops_anywhere(recording: Recording) -> None:
    for stop in range(1, len(recording) + 1):
        outcome = replay(recording, stop_at=stop)
        assert outcome.same
        inside_unit = recording.records["kind"][stop - 1] == RecordKind.CONFIG
        assert outcome.position == (2 if inside_unit else stop)


def test_replay_stopped_in_front_of_a_change(recording: Recording) -> None:
    at = first(recording, RecordKind.MESSAGE)
    recording.records["value"][at, 0] ^= np.uint64(1)
    assert replay(recording, stop_at=at).same
    assert not replay(recording, stop_at=at + 1).same


def test_replay_stop_is_inside_the_recording(recording: Recording) -> None:
    with pytest.raises(ValueError, match=r"stop_at must be in 0\.\.156, not 157"):
        replay(recording, stop_at=157)


# ---- for people ---------------------------------------------------------------------------------


def shown(name: str) -> str:
    recording = read(DATA / f"{name}.iemu")
    return "\n".join(describe(recording, replay(recording).machine.units))


def test_describe_names_registers_and_fields() -> None:
    text = shown("demo-vtd")
    assert "unit 0 GCMD <- 84000000 (TE, QIE)" in text
    assert "unit 0 FRCD[1][127:64] = 8000000500000008 (SID=0x8, FR=0x5, F)" in text


def test_describe_decodes_what_a_vtd_unit_read() -> None:
    text = shown("demo-vtd")
    assert "RootEntry p ctp=0x104000" in text
    assert "ContextEntry p ssptptr=0x103000 aw=0x2 did=0x2" in text
    assert "page entry r w address=0xa00000" in text
    assert "IotlbInvalidation g=0x2 dw dr did=0x2" in text
    assert "WaitDescriptor sw status_data=0x2 status_address=0x102000" in text


def test_describe_decodes_what_an_amdvi_unit_read_and_logged() -> None:
    text = shown("demo-amdvi")
    assert "DeviceTableEntry v tv mode=0x4 root=0x303000 ir iw domain_id=0x2" in text
    assert "PageTableEntry pr address=0xa00000 ir iw" in text
    assert "InvalidateDevtabEntry device_id=0x8" in text
    assert "CompletionWait s store_address=0x302000 store_data=0x2" in text
    assert "event 00:01.0 IO_PAGE_FAULT address 0x71000 flags rw: not mapped" in text


def test_describe_says_why_a_request_was_refused() -> None:
    assert "00:01.0 0x71000: fault 0x05 LGN.2: write, entry not present" in shown("demo-vtd")


def test_describe_tells_the_time_of_a_qtest_run() -> None:
    (line,) = [line for line in shown("qtest-edu").splitlines() if "FSTS" in line]
    assert line.split()[1] == "600000.000"


def test_describe_a_range(recording: Recording) -> None:
    units = replay(recording).machine.units
    lines = list(describe(recording, units, 20, 22))
    assert [line.split()[0] for line in lines] == ["20", "21", "22"]
    assert list(describe(recording, units))[20:23] == lines


def test_describe_has_a_line_for_whatever_a_file_says(recording: Recording) -> None:
    units = replay(recording).machine.units
    random = np.random.default_rng(3)
    built = recording.records[: first(recording, RecordKind.MMIO_WRITE)]
    raw = random.integers(0, 256, size=48 * 3000, dtype=np.uint8)
    records = np.concatenate([built, raw.view(RECORD_DTYPE)])
    kinds = [*RecordKind, 0, 200]
    records["kind"][len(built) :] = random.choice(kinds, size=3000)
    records["size"][len(built) :] &= 63
    lines = list(describe(dataclasses.replace(recording, records=records), units))
    assert len(lines) == len(records)
    assert all(line.isprintable() for line in lines)


# ---- the command ------------------------------------------------------------------------------


def test_replay_command_prints_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(DATA / "trixie-strict.iemu")]) == 0
    out = capsys.readouterr().out
    assert "QEMU emulator version" in out
    assert "vtd, base 0xfed90000, cap 0x" in out
    assert "records came out again" in out


def test_replay_command_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(DEMO), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["same"], result["position"], result["end"]) == (True, 156, "closed")
    assert result["counts"]["dma"] == 6
    assert result["counters"][0]["faults_recorded"] == 3


def test_replay_command_shows_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(DEMO), "--show", "59..62"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["59", "60", "61", "62"]
    assert main(["replay", str(DEMO), "--show", "150..", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["shown"]) == 6


def test_replay_command_stops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(DEMO), "--stop-at", "60"]) == 0
    assert "the first 60 records came out again" in capsys.readouterr().out


def test_replay_command_tells_a_divergence(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = first(recording, RecordKind.TRANSLATED)
    recording.records["value"][at, 1] += np.uint64(1)
    file = str(write(tmp_path / "changed", recording))
    assert main(["replay", file]) == 1
    out = capsys.readouterr().out
    assert f"diverged at record {at} of 156" in out
    assert "recorded:  translated    00:01.0 0xa01000 -> 0xa01001" in out
    assert "replayed:  translated    00:01.0 0xa01000 -> 0xa01000" in out
    assert main(["replay", file, "--json"]) == 1
    divergence = json.loads(capsys.readouterr().out)["divergence"]
    assert divergence["position"] == at
    assert "0xa01001" in divergence["expected"]


def test_replay_command_tells_that_another_version_recorded(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording.records["value"][first(recording, RecordKind.MMIO_READ), 1] ^= np.uint64(1)
    other = dataclasses.replace(recording, version="0.0.1")
    assert main(["replay", str(write(tmp_path / "old", other))]) == 1
    assert "recorded by iommu-emu 0.0.1" in capsys.readouterr().out


def test_replay_command_prints_no_control_characters_of_a_file(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = dataclasses.replace(recording, notes={"[bold]\x1b[2J": "\x1b]0;x\x07[/]"})
    assert main(["replay", str(write(tmp_path / "hostile", hostile))]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]?[2J" in out


@pytest.mark.parametrize(
    "arguments",
    [["--stop-at", "999"], ["--stop-at", "-1"]],
)
def test_replay_command_refuses_a_stop_that_there_is_not(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(DEMO), *arguments]) == 2
    assert "stop_at must be in 0..156" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["5..3", "a..b", "", "-1..3", "1...3"])
def test_replay_command_refuses_a_range_that_is_none(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(DEMO), f"--show={text}"])
    assert ended.value.code == 2
    assert "must" in capsys.readouterr().err


def test_replay_command_of_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "missing")]) == 2
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "text").write_text("hello")
    assert main(["replay", str(tmp_path / "text")]) == 2
    assert "no recording" in capsys.readouterr().err
