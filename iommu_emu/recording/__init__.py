"""Record what a machine went through, and replay it without its guest, exactly.

    with recording(machine, "boot.iemu", notes={"kernel": "6.12"}):
        ...  # a guest boots, a test runs
    outcome = replay(read("boot.iemu"))
    assert outcome.same, outcome

A recording holds every call that can change the machine (register accesses, DMA, time, topology)
and what came of it: each table entry and descriptor that a unit read, what it stored, its
messages, translations with their faults. It holds no contents of RAM beyond that, so replaying
needs no guest, no QEMU and no memory: it feeds the recorded reads and compares all the rest. Two
replays of one file are the same bit for bit.
"""

from iommu_emu.recording.describe import describe
from iommu_emu.recording.format import MAX_RECORDS, Recording, RecordingError, read
from iommu_emu.recording.recorder import Recorder, recording
from iommu_emu.recording.replay import Divergence, Replay, replay

__all__ = [
    "MAX_RECORDS",
    "Divergence",
    "Recorder",
    "Recording",
    "RecordingError",
    "Replay",
    "describe",
    "read",
    "recording",
    "replay",
]
