"""What comes out of a scenario: one row for each policy and attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from iommu_emu.timeline import TimelineEvent

__all__ = ["FOREVER", "Costs", "Outcome", "Row", "ScenarioResult"]

FOREVER = -1  # a window that nothing closes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attack achieved.

    Attributes:
        leaked: bytes of others that the device got to know.
        corrupted: bytes of others that it changed.
        window: ns of virtual time, from the moment when the memory was no longer the device's
            to the last access that got through; 0: none did; `FOREVER`: nothing ends it.
        dmas: accesses that got through.
        hung: whether the host stopped.
    """

    leaked: int = 0
    corrupted: int = 0
    window: int = 0
    dmas: int = 0
    hung: bool = False

    @property
    def blocked(self) -> bool:
        """Whether the attacker got nothing."""
        return not (self.leaked or self.corrupted or self.hung)


@dataclass(kw_only=True)
class Costs:
    """What protection costs under a workload.

    Attributes:
        operations: pairs of map and unmap.
        map_ns: modelled virtual time of a map, mean, ns.
        unmap_ns: modelled virtual time of an unmap, mean, ns.
        measured_map_ns: host time of a map in the emulator, mean, ns; differs from run to run.
        measured_unmap_ns: the same of an unmap.
        copied: bytes copied through bounce buffers.
        descriptors: commands or descriptors put on the unit's queue.
        invalidations: how many of them were invalidations.
        lock_wait_ns: virtual time that CPUs waited for locks, or for a unit that was busy with
            the invalidations of others, mean a pair, ns.
        gbps: data that the CPUs could move in virtual time, Gb/s, were the line no limit; 0: none
            is moved, or nothing takes time.
        frames: pages of 4 KiB that tables (and scratch pages) took meanwhile, and keep.
        others: what other pairs cost that are done and undone as often as devices come and go, or
            by somebody else, by what they are; for them, "map" and "unmap" above stand for those.
    """

    operations: int = 0
    map_ns: float = 0.0
    unmap_ns: float = 0.0
    measured_map_ns: float = 0.0
    measured_unmap_ns: float = 0.0
    copied: int = 0
    descriptors: int = 0
    invalidations: int = 0
    lock_wait_ns: float = 0.0
    gbps: float = 0.0
    frames: int = 0
    others: dict[str, Costs] = field(default_factory=dict)


@dataclass(kw_only=True)
class Row:
    """One policy under one attack.

    Attributes:
        policy: its name.
        attack: its name.
        outcome: what the attacker got.
        refused: what the system would not do, with its reason; "" if nothing.
        stale_uses: cached translations used that the tables no longer say.
        descriptors: commands or descriptors put on the unit's queue.
        invalidations: how many of them were invalidations.
        copied: bytes copied through bounce buffers.
        faults: fault records, as an administrator sees them.
        log: lines of the kernel's log.
        story: what happened and why, sentence by sentence.
        timeline: every event that was kept.
        timeline_dropped: how many were not.
    """

    policy: str
    attack: str
    outcome: Outcome
    timeline: Sequence[TimelineEvent] = ()
    timeline_dropped: int = 0
    refused: str = ""
    stale_uses: int = 0
    descriptors: int = 0
    invalidations: int = 0
    copied: int = 0
    faults: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ScenarioResult:
    """Result table of a scenario.

    Attributes:
        scenario: its name.
        iommu: "vtd" or "amdvi".
        seed: of everything random in it.
        timing: name of the timing model.
        policies: what each does, by name.
        rows: by policy, then attack.
        costs: by policy; empty if the scenario has no workload.
    """

    scenario: str
    iommu: str
    seed: int
    timing: str
    policies: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    costs: dict[str, Costs] = field(default_factory=dict)
