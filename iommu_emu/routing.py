"""Which unit serves which requester: rules as firmware tables say them, applied to the bus tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from iommu_emu.core import CoreMachine
from iommu_emu.pci.topology import Bridge, Fabric
from iommu_emu.unit import Unit

LAST_REQUESTER = 0xFFFF

__all__ = ["LAST_REQUESTER", "Rule", "RuleKind", "apply_rules"]


class RuleKind(IntEnum):
    """Kinds of rules, the more specific ones later: they win."""

    ALL = 0  # every requester of the segment (DRHD INCLUDE_PCI_ALL)
    RANGE = 1  # requester IDs first..last (IVHD)
    SUB_HIERARCHY = 2  # a bridge and everything below (device scope type 2)
    ENDPOINT = 3  # one function with its aliases, an I/O APIC or an HPET


@dataclass(frozen=True)
class Rule:
    """One rule: a unit serves some requesters of its segment.

    Attributes:
        unit: who serves.
        kind: what `first`, `last`, `start_bus` and `path` mean.
        first: first requester ID of a RANGE.
        last: last requester ID of a RANGE, inclusive.
        start_bus: bus of the first hop of a path.
        path: hops as (device, function), each on the secondary bus of the one before.
    """

    unit: Unit
    kind: RuleKind
    first: int = 0
    last: int = LAST_REQUESTER
    start_bus: int = 0
    path: tuple[tuple[int, int], ...] = ()

    def requesters(self, fabric: Fabric) -> list[tuple[int, int]]:
        """Return the requester IDs that the rule means now, as inclusive ranges.

        A path whose bridges are not all there means nobody; they may be plugged in later.
        """
        if self.kind in (RuleKind.ALL, RuleKind.RANGE):
            return [(self.first, self.last)]
        segment = self.unit.segment
        found = fabric.walk(segment, self.start_bus, self.path)
        if found is None:
            return []
        requester, function = found
        ranges = [(requester, requester)]
        if function is not None:
            ranges += [(alias, alias) for alias in fabric.aliases(function)]
        if self.kind is RuleKind.SUB_HIERARCHY and isinstance(function, Bridge):
            first, last = function.secondary_number, function.subordinate_number
            if 0 < first <= last:
                ranges.append((first << 8, last << 8 | 0xFF))
        return ranges


def apply_rules(rules: Iterable[Rule], fabric: Fabric, core: CoreMachine) -> None:
    """Route every requester of every segment; the more specific rule wins, then the later one."""
    ordered = sorted(rules, key=lambda rule: (rule.kind, len(rule.path)))
    for segment in sorted({rule.unit.segment for rule in ordered}):
        core.route(segment, 0, LAST_REQUESTER, None)
    for rule, (first, last) in _ranges(ordered, fabric):
        core.route(rule.unit.segment, first, last, rule.unit.core)


def _ranges(rules: Iterable[Rule], fabric: Fabric) -> Iterator[tuple[Rule, tuple[int, int]]]:
    for rule in rules:
        for requesters in rule.requesters(fabric):
            yield rule, requesters
