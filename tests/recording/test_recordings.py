"""The recordings in data/ replay: a demo, a qtest run, a guest of each kernel and policy.

They are made by make_recordings.py; a change of the emulator that shows here has changed what a
real kernel would see.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iommu_emu.core import MessageKind, Outcome, RecordKind
from iommu_emu.recording import Recording, describe, read, replay

DATA = Path(__file__).with_name("data")
GUESTS = [
    f"{kernel}-{policy}"
    for kernel in ("bookworm", "trixie", "trixie-backports")
    for policy in ("strict", "lazy")
]
NAMES = ["demo-vtd", "demo-amdvi", "qtest-edu", *GUESTS]


def load(name: str) -> Recording:
    return read(DATA / f"{name}.iemu")


def faults(recording: Recording) -> int:
    chosen = recording.records["kind"] == RecordKind.TRANSLATED
    return int(np.sum(recording.records["size"][chosen] >= Outcome.UNSUPPORTED))


@pytest.mark.parametrize("name", NAMES)
def test_recordings_replay(name: str) -> None:
    recording = load(name)
    outcome = replay(recording)
    assert outcome.same, "\n".join(
        describe(recording, outcome.machine.units, outcome.position - 9, outcome.position)
    )
    assert outcome.position == len(recording)


@pytest.mark.parametrize("name", ["demo-amdvi", "qtest-edu", "trixie-lazy"])
def test_recordings_replay_twice_with_the_same_trace(name: str) -> None:
    recording = load(name)
    first, second = (replay(recording, trace_events=1 << 17).machine for _ in range(2))
    assert np.array_equal(first.trace_read(), second.trace_read())
    assert len(first.trace_read()) > 20


@pytest.mark.parametrize("name", NAMES)
def test_recordings_are_small(name: str) -> None:
    assert (DATA / f"{name}.iemu").stat().st_size < 200_000


@pytest.mark.parametrize("name", GUESTS)
def test_recordings_of_guests_say_what_ran(name: str) -> None:
    notes = load(name).notes
    assert notes["policy"] == name.rpartition("-")[2]
    assert str(notes["qemu"]).startswith("QEMU emulator version 1")
    assert int(str(notes["kernel"]).split(".")[0]) >= 6


@pytest.mark.parametrize("name", GUESTS)
def test_recordings_of_guests_hold_faults_and_their_interrupts(name: str) -> None:
    recording = load(name)
    assert faults(recording) >= 3
    messages = recording.records[recording.records["kind"] == RecordKind.MESSAGE]
    assert MessageKind.UNIT in messages["size"]
    (counters,) = replay(recording).counters()
    assert counters["faults_recorded"] == faults(recording)


@pytest.mark.parametrize("kernel", ["bookworm", "trixie", "trixie-backports"])
def test_recordings_lazy_invalidates_less_often_for_each_unmap(kernel: str) -> None:
    """Strict flushes pages one by one, lazy whole domains (VT-d 7.2: G=3 and G=2)."""

    def granularities(name: str) -> list[int]:
        recording = load(name)
        rows = recording.records
        descriptors = rows[(rows["kind"] == RecordKind.FETCH) & (rows["size"] == 2)]
        low = descriptors["value"][:, 1].astype(np.uint64)
        iotlb = low[(low & np.uint64(0xE0F)) == 2]
        return [int(np.sum((iotlb >> np.uint64(4) & np.uint64(3)) == g)) for g in (1, 2, 3)]

    _, strict_domain, strict_page = granularities(f"{kernel}-strict")
    _, lazy_domain, lazy_page = granularities(f"{kernel}-lazy")
    assert strict_page > 20 * (lazy_page + 1)
    assert lazy_domain >= strict_domain


def test_recordings_there_are_no_others() -> None:
    assert sorted(path.stem for path in DATA.iterdir()) == sorted(NAMES)
