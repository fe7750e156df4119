"""What a run comes to: for each policy, which attacks got something, and what protection costs."""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.scenarios.result import FOREVER, Outcome, Row, ScenarioResult
from iommu_emu.scenarios.scenario import Scenario

__all__ = ["Summary", "answer_of", "summarize"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One policy under all attacks that it met.

    Attributes:
        policy: its name.
        tried: number of attacks.
        let_in: those that got something.
        worst: the one that got most; None: none got anything.
        window: the longest of those that got something, as in `Outcome`.
        pair_ns: modelled time of a map and an unmap, ns; None: it was not measured.
        gbps: as in `Costs`.
    """

    policy: str
    tried: int
    let_in: tuple[str, ...] = ()
    worst: Row | None = None
    window: int = 0
    pair_ns: float | None = None
    gbps: float = 0.0


def summarize(result: ScenarioResult) -> list[Summary]:
    """Return a summary for each policy, in the order in which they were run."""
    return [_summary(result, policy) for policy in dict.fromkeys(r.policy for r in result.rows)]


def _summary(result: ScenarioResult, policy: str) -> Summary:
    rows = [row for row in result.rows if row.policy == policy]
    harmed = [row for row in rows if not row.outcome.blocked]
    windows = [row.outcome.window for row in harmed]
    costs = result.costs.get(policy)
    return Summary(
        policy=policy,
        tried=len(rows),
        let_in=tuple(row.attack for row in harmed),
        worst=max(harmed, key=lambda row: _harm(row.outcome), default=None),
        window=FOREVER if FOREVER in windows else max(windows, default=0),
        pair_ns=costs.map_ns + costs.unmap_ns if costs else None,
        gbps=costs.gbps if costs else 0.0,
    )


def _harm(outcome: Outcome) -> tuple[bool, int]:
    return outcome.hung, outcome.leaked + outcome.corrupted


def answer_of(scenario: Scenario, result: ScenarioResult) -> str:
    """Return a scenario's answer to its question; "" if this run did not try all it rests on."""
    policies = {row.policy for row in result.rows}
    attacks = {row.attack for row in result.rows}
    whole = policies.issuperset(scenario.policies) and attacks.issuperset(
        attack.name for attack in scenario.attacks
    )
    return scenario.answer if whole else ""
