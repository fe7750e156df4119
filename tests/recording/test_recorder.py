"""Recording a machine into a file: when it may begin, how it ends, what it costs nobody."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.core import Journal, RecordKind, StateError
from iommu_emu.demo import tell
from iommu_emu.devices.malicious import MaliciousDevice
from iommu_emu.machine import Machine
from iommu_emu.recording import Recorder, RecordingError, read, recorder, recording, replay
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

FULL = Path("/dev/full")  # every write fails: no space left


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.iemu"


@pytest.fixture
def machine() -> Machine:
    return Machine.from_platform("q35-vtd")


@pytest.mark.parametrize("platform", ["q35-vtd", "q35-amdvi", "server-4-unit", "desktop-amdvi"])
def test_recorder_of_the_demo_replays(platform: str, path: Path) -> None:
    machine = Machine.from_platform(platform)
    with recording(machine, path):
        list(tell(machine))
    outcome = replay(read(path))
    assert outcome.same
    assert outcome.position > 100
    assert outcome.counters() == [unit.core.counters() for unit in machine.units]


@pytest.mark.parametrize("driver", [VtdDriver, AmdviDriver])
def test_recorder_of_a_driver_at_work_replays(driver: type[Any], path: Path) -> None:
    random = Random(5)
    platform = "q35-vtd" if driver is VtdDriver else "q35-amdvi"
    machine = Machine.from_platform(platform)
    device = machine.attach(MaliciousDevice("busy"))
    with recording(machine, path):
        software = driver(machine, machine.unit_of(device), range(0x10_0000, 0x90_0000))
        software.start()
        domain = software.create_domain(4)
        software.attach(domain, device.dma.requester)
        for turn in range(100):
            device.dma.set_latency(*random.choice([(0, 0), (300, 100)]))
            iova = random.randrange(1, 64) << 12
            domain.map(iova, random.randrange(0xA00, 0x1000) << 12, 0x1000)
            device.write(iova, bytes(64))
            device.read(iova - 0x1000, 64)
            machine.advance(random.randrange(300))
            domain.unmap(iova, 0x1000, invalidate=turn % 3 > 0)
            software.faults()
        domain.flush()
        machine.advance(10_000)
    recorded = read(path)
    outcome = replay(recorded)
    assert outcome.same
    assert outcome.counters()[0]["faults_recorded"] > 20
    assert recorded.counts()["store"] > 20


def test_recorder_keeps_the_configuration_of_the_units(path: Path) -> None:
    machine = Machine.from_platform("server-4-unit")
    with recording(machine, path):
        pass
    told = read(path).units()
    assert [unit["base"] for unit in told] == [unit.base for unit in machine.units]
    assert {unit["vendor"] for unit in told} == {"vtd"}
    config = machine.units[0].config
    assert told[0]["cap"] == machine.units[0].read("CAP")
    assert told[0]["iotlb.ways"] == config.geometry.parameters()[0]["ways"]


def test_recorder_whose_records_nobody_passed_on_says_so(
    machine: Machine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "Journal", partial(Journal, capacity=1024))
    begun = Recorder(machine, path)
    for _ in range(2000):
        machine.units[0].read("VER")
    with pytest.raises(RecordingError, match=r"too many waited .* Machine.service\(\)"):
        begun.close()
    recorded = read(path)
    assert (recorded.end, len(recorded)) == ("full", 1024)
    assert replay(recorded).same


def test_recorder_begun_before_the_units(path: Path) -> None:
    machine = Machine()
    with recording(machine, path):
        VtdUnit(machine, VtdConfig(base=0xFED9_0000))
        list(tell(machine))
    assert replay(read(path)).same


def test_recorder_with_device_latencies_and_timers(machine: Machine, path: Path) -> None:
    device = MaliciousDevice("slow")
    with recording(machine, path):
        machine.attach(device)
        device.dma.set_latency(300, 200)
        device.dma.write(0x1000, b"late")
        machine.clock.call_later(400, lambda: None)
        machine.advance(1000)
        machine.remove(device)
    recorded = read(path)
    assert recorded.counts()["dma_take"] == 1
    assert replay(recorded).same


def test_recorder_of_the_same_run_writes_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        machine = Machine.from_platform("q35-vtd")
        with recording(machine, file, notes={"seed": 7}):
            list(tell(machine))
    first, second = (file.read_bytes() for file in files)
    assert first == second


def test_recorder_changes_nothing_that_a_user_sees(machine: Machine, path: Path) -> None:
    with recording(machine, path):
        recorded = list(tell(machine))
    alone = list(tell(Machine.from_platform("q35-vtd")))
    assert [step.facts for step in recorded] == [step.facts for step in alone]


def test_recorder_notes(machine: Machine, path: Path) -> None:
    with recording(machine, path, notes={"kernel": "6.12", "seed": 7, "load": 0.5}):
        pass
    assert read(path).notes == {"kernel": "6.12", "seed": 7, "load": 0.5}


@pytest.mark.parametrize("notes", [{"a": ["list"]}, {"a": None}, {7: "x"}, {"a": "x" * (1 << 20)}])
def test_recorder_refuses_notes_that_are_not_plain(
    machine: Machine, path: Path, notes: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="notes"):
        Recorder(machine, path, notes=notes)
    assert not path.exists()
    Recorder(machine, path).close()  # nothing was begun


def test_recorder_refuses_a_machine_that_was_used(machine: Machine, path: Path) -> None:
    machine.units[0].write("FEDATA", 1)
    with pytest.raises(StateError, match="before the machine is used"):
        Recorder(machine, path)
    assert not path.exists()


def test_recorder_refuses_a_second_one(machine: Machine, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with recording(machine, path):
        with pytest.raises(StateError):
            Recorder(machine, other)
        assert not other.exists()
    assert replay(read(path)).same


def test_recorder_of_a_file_that_cannot_be_made(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Recorder(machine, tmp_path / "missing" / "run.iemu")
    Recorder(machine, tmp_path / "run.iemu").close()  # nothing was begun


def test_recorder_of_a_file_that_cannot_be_written_says_so(machine: Machine) -> None:
    recorder = Recorder(machine, FULL)
    list(tell(machine))
    with pytest.raises(RecordingError, match="No space left"):
        recorder.close()
    recorder.close()


def test_recorder_of_a_run_that_fails_is_whole(machine: Machine, path: Path) -> None:
    def run() -> None:
        with recording(machine, path):
            next(tell(machine))
            raise LookupError

    with pytest.raises(LookupError):
        run()
    assert replay(read(path)).same


def test_recorder_closed_twice(machine: Machine, path: Path) -> None:
    recorder = Recorder(machine, path)
    recorder.close()
    size = path.stat().st_size
    recorder.close()
    assert path.stat().st_size == size


def test_recorder_counts_its_records(machine: Machine, path: Path) -> None:
    with recording(machine, path) as recorder:
        before = recorder.records
        machine.units[0].read("VER")
        assert recorder.records == before + 1
    assert recorder.records == len(read(path))


def test_recorder_passes_records_on_while_it_runs(machine: Machine, path: Path) -> None:
    with recording(machine, path) as recorder:
        at_first = path.stat().st_size
        while recorder.records < 70_000:
            machine.units[0].read("VER")
        machine.service()
        recorder._file.flush()
        assert path.stat().st_size > at_first
    recorded = read(path)
    assert recorded.counts()["mmio_read"] > 69_000
    assert replay(recorded).same


def use(machine: Machine) -> None:
    for _ in range(100):
        machine.units[0].read("VER")
        machine.advance(10)


LIMITS: list[tuple[str, dict[str, int], Callable[[int], bool]]] = [
    ("limit", {"max_records": 99}, lambda count: 97 <= count <= 99),
    ("time", {"max_time": 500}, lambda count: 75 < count < 135),
]


@pytest.mark.parametrize(("end", "options", "right"), LIMITS, ids=["records", "time"])
def test_recorder_limit_ends_it_cleanly(
    machine: Machine,
    path: Path,
    end: str,
    options: dict[str, int],
    right: Callable[[int], bool],
) -> None:
    with recording(machine, path, **options):
        use(machine)
    recorded = read(path)
    assert recorded.end == end
    assert right(len(recorded))
    assert replay(recorded).same


@pytest.mark.parametrize("limit", ["max_records", "max_time"])
def test_recorder_limits_are_positive(machine: Machine, path: Path, limit: str) -> None:
    with pytest.raises(ValueError, match="must be in 0x1"):
        Recorder(machine, path, **{limit: 0})
    assert not path.exists()


def test_recorder_without_a_limit_says_closed(machine: Machine, path: Path) -> None:
    with recording(machine, path):
        use(machine)
    recorded = read(path)
    assert recorded.end == "closed"
    assert recorded.duration == 980  # from 10 to 990: the last advance moved only the clock
    assert recorded.records["kind"][0] == RecordKind.MACHINE


def test_recorder_example_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recording.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert (tmp_path / "run.iemu").exists()
