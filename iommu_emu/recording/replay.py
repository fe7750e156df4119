"""Play a recording again, and compare what happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from iommu_emu.core import CoreMachine, RecordKind, ReplayOutcome, play
from iommu_emu.recording.format import Recording, RecordingError

__all__ = ["Divergence", "Replay", "replay"]


@dataclass(frozen=True)
class Divergence:
    """Where a replay went another way.

    Attributes:
        position: number of the first record that did not come out again, from 0.
        expected: that record, shape (1,); empty if the recording ends there.
        got: what came instead, shape (1,); empty if the call ended without it.
    """

    position: int
    expected: NDArray[Any]
    got: NDArray[Any]


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        recording: what was played.
        position: records that came out again.
        divergence: None if all that were played did.
        machine: as it was at the end, with its units, to be looked at. Its RAM is hollow: there
            is nothing to read in it.
    """

    recording: Recording
    position: int
    divergence: Divergence | None
    machine: CoreMachine

    @property
    def same(self) -> bool:
        """Whether everything came out again."""
        return self.divergence is None

    def counters(self) -> list[Mapping[str, int]]:
        """Return the counters of each unit."""
        return [unit.counters() for unit in self.machine.units]


def replay(recording: Recording, *, stop_at: int | None = None, trace_events: int = 0) -> Replay:
    """Play a recording on a machine of its own.

    Args:
        recording: what `read` returned.
        stop_at: number of the record in front of which to stop; None: play all.
        trace_events: capacity of that machine's trace ring, which is on then.

    Returns:
        The outcome; with `stop_at`, of the records in front of it.

    Raises:
        RecordingError: if a record is not one that can be played where it is.
        ValueError: if `stop_at` is outside the recording.
    """
    records = recording.records
    if stop_at is not None:
        if not 0 <= stop_at <= len(records):
            raise ValueError(f"stop_at must be in 0..{len(records)}, not {stop_at}")
        records = records[:stop_at]
        while len(records) and records["kind"][-1] == RecordKind.CONFIG:
            records = records[:-1]  # values without their unit
    machine = _machine(recording, trace_events)
    if not len(records):
        return Replay(recording, 0, None, machine)
    played = play(machine, records)
    if played.outcome is ReplayOutcome.NO_MEMORY:
        raise MemoryError("a replay needs more memory than the host has")
    position = played.position
    if played.outcome is ReplayOutcome.MALFORMED:
        raise RecordingError(f"record {position} is none that can be played there")
    divergence = None
    # What comes behind the last record of a part is not compared: it may be inside a call.
    if played.outcome is ReplayOutcome.DIVERGED and not (
        position == len(records) < len(recording.records)
    ):
        got = played.got[played.got["kind"] != 0]
        divergence = Divergence(position, records[position : position + 1], got)
    return Replay(recording, position, divergence, machine)


def _machine(recording: Recording, trace_events: int) -> CoreMachine:
    first = recording.records[:1]
    if not len(first) or first["kind"][0] != RecordKind.MACHINE:
        raise RecordingError("a recording begins with a record of its machine; this one does not")
    transactions, messages = (int(value) for value in first["value"][0][:2])
    try:
        machine = CoreMachine(transactions, messages, trace_events)
    except ValueError as error:
        raise RecordingError(f"record 0: {error}") from None
    if trace_events:
        machine.trace(True)
    return machine
