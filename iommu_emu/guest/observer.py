"""What the emulator sees of a guest: register accesses, invalidations, DMA, faults, stale uses.

It reads the core's trace ring and stale-use detector, so nothing that is served waits for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iommu_emu import core
from iommu_emu.core import Access, FaultInfo, StaleUse, TraceKind, Vendor
from iommu_emu.machine import Machine
from iommu_emu.vtd.structures import DESCRIPTORS
from iommu_emu.vtd.unit import VtdUnit

TRACE_EVENTS = 1 << 15
MAX_KEPT = 1000  # faults, and stale uses, that are kept one by one
_GRANULARITY = {
    "ContextInvalidation": ("context, {}", ("reserved", "global", "domain", "device")),
    "IotlbInvalidation": ("IOTLB, {}", ("reserved", "global", "domain", "page")),
    "InterruptEntryInvalidation": ("interrupt entries, {}", ("global", "index")),
    "DeviceTlbInvalidation": ("device-TLB", ()),
    "WaitDescriptor": ("wait", ()),
}

__all__ = ["TRACE_EVENTS", "Observer", "SeenFault", "Traffic"]


@dataclass(frozen=True)
class SeenFault:
    """A fault that the unit found.

    Attributes:
        time: ns.
        requester: requester ID.
        address: of the request.
        access: READ, WRITE or ATOMIC.
        code: architectural fault reason.
        cause: the distinct cause.
    """

    time: int
    requester: int
    address: int
    access: Access
    code: int
    cause: FaultInfo

    @property
    def page(self) -> int:
        """Address as a fault record has it (VT-d 2.10)."""
        return self.address & ~0xFFF


@dataclass
class Traffic:
    """DMA of one requester: what reached memory, and what was translated or refused."""

    dmas: int = 0
    bytes: int = 0
    translations: int = 0
    refused: int = 0


@dataclass
class Observer:
    """Collects; `poll` has to be called often enough that the ring does not overflow.

    Args:
        machine: made with a trace ring.
        unit: the unit that is watched.

    Attributes:
        reads: register reads by register name.
        writes: register writes by register name.
        invalidations: descriptors carried out, by kind.
        faults: the first 1000.
        stale: the first 1000 uses of stale entries.
        traffic: by requester ID.
        fault_count: how many faults there were.
        stale_count: how many uses of stale entries there were.
        lost: trace events that were overwritten before they were read.
    """

    machine: Machine
    unit: VtdUnit
    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    invalidations: Counter[str] = field(default_factory=Counter)
    faults: list[SeenFault] = field(default_factory=list)
    stale: list[StaleUse] = field(default_factory=list)
    traffic: dict[int, Traffic] = field(default_factory=dict)
    fault_count: int = 0
    stale_count: int = 0
    lost: int = 0
    _next: int = 0
    _diagnostic: int = 0

    def __post_init__(self) -> None:
        self._names = _register_names(self.unit)
        self.machine.core.trace(True)
        self.unit.watch()

    def poll(self) -> None:
        """Take what is new."""
        self.take_stale()
        events = self.machine.core.trace_read()
        if not len(events):
            return
        first = int(events["sequence"][0])
        self.lost += max(0, first - self._next)
        new = events[max(0, self._next - first) :]
        self._next = first + len(events)
        kinds = new["kind"]
        self._count_traffic(new, kinds)
        for event in new[kinds == TraceKind.MMIO_READ]:
            self.reads[self._register(event)] += 1
        for event in new[kinds == TraceKind.MMIO_WRITE]:
            self.writes[self._register(event)] += 1
        for event in new[kinds == TraceKind.COMMAND]:
            self.invalidations[describe_descriptor(int(event["a"]), int(event["b"]))] += 1
        refused = (kinds == TraceKind.TRANSLATE) & (new["code"] != 0)
        for event in new[(kinds == TraceKind.FAULT) | refused]:
            self._take_fault(event)

    def take_stale(self) -> list[StaleUse]:
        """Return the stale uses since `poll` or this was called last; they count as seen."""
        uses = self.unit.stale_uses()
        self.stale_count += len(uses)
        self.stale += uses[: MAX_KEPT - len(self.stale)]
        return uses

    def _count_traffic(self, events: NDArray[Any], kinds: NDArray[Any]) -> None:
        for kind in (TraceKind.DMA, TraceKind.TRANSLATE):
            chosen = events[kinds == kind]
            for requester in np.unique(chosen["requester"]):
                own = chosen[chosen["requester"] == requester]
                traffic = self.traffic.setdefault(int(requester), Traffic())
                if kind is TraceKind.DMA:
                    traffic.dmas += len(own)
                    traffic.bytes += int(own["b"].sum())
                else:
                    traffic.translations += len(own)
                    traffic.refused += int((own["code"] != 0).sum())

    def _take_fault(self, event: Any) -> None:
        """Join a fault with the translation that it ends: the latter's event comes after it."""
        if event["kind"] == TraceKind.FAULT:
            self._diagnostic = int(event["a"])
            return
        self.fault_count += 1
        if len(self.faults) < MAX_KEPT:
            self.faults.append(
                SeenFault(
                    time=int(event["time"]),
                    requester=int(event["requester"]),
                    address=int(event["address"]),
                    access=Access(int(event["b"]) & 3),
                    code=int(event["code"]),
                    cause=core.faults(Vendor.VTD)[self._diagnostic],
                )
            )

    def _register(self, event: Any) -> str:
        offset = int(event["address"])
        return self._names.get(offset & ~3, f"reserved {offset:#x}")


def describe_descriptor(low: int, high: int) -> str:
    """Return the kind of an invalidation descriptor (VT-d 7.2): "IOTLB, page"."""
    structure = DESCRIPTORS.get(low & 0xF)
    if structure is None:
        return f"type {low & 0xF}"
    text, names = _GRANULARITY[structure.name]
    if not names:
        return text
    return text.format(names[structure.parse_int(low | high << 64).g])


def _register_names(unit: VtdUnit) -> dict[int, str]:
    """Return the name of the register at each 4 bytes of the window."""
    names: dict[int, str] = {}
    for row in core.registers(Vendor.VTD):
        count = unit.config.capabilities.fault_records if row.name == "FRCD" else row.count
        for index in range(count):
            start = unit.core.register_offset(row.index) + index * row.stride
            for offset in range(start, start + row.width // 8, 4):
                names.setdefault(offset, row.name)
    return names
