"""The results of scenarios as dictionaries, lists, numbers and strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from iommu_emu.policies import registry as policies
from iommu_emu.scenario_report.summary import Summary, answer_of, summarize
from iommu_emu.scenarios import registry as scenarios
from iommu_emu.scenarios.expectations import Expectation, Expectations, built_in, check
from iommu_emu.scenarios.result import FOREVER, Row, ScenarioResult
from iommu_emu.scenarios.scenario import Scenario
from iommu_emu.timeline import TimelineEvent

__all__ = ["Verdict", "plain", "verdict"]

Verdict = list[str] | None
"""How a row differs from what is expected; None: nothing is.

Nothing is expected of a user's own policy or scenario, nor where a scenario is run with a policy
that is not one of its own.
"""


def verdict(result: ScenarioResult, row: Row, expectations: Expectations | None = None) -> Verdict:
    """Hold a row against expectations.toml.

    Args:
        result: the row's.
        row: what happened.
        expectations: the file; None: the built-in one.
    """
    if row.policy not in policies.names() or result.scenario not in scenarios.names():
        return None
    known = expectations or built_in()
    unknown = known.of(row.policy, row.attack, result.iommu) is None
    if unknown and row.policy not in scenarios.load(result.scenario).policies:
        return None
    return check(row, result.iommu, known)


def plain(
    runs: Sequence[tuple[Scenario, ScenarioResult]], expectations: Expectations | None = None
) -> dict[str, Any]:
    """Return everything that is known of some runs.

    Args:
        runs: each scenario with its result.
        expectations: what they are held against; None: the built-in expectations.
    """
    known = expectations or built_in()
    return {"results": [_result(scenario, result, known) for scenario, result in runs]}


def _result(scenario: Scenario, result: ScenarioResult, known: Expectations) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "title": scenario.title,
        "question": scenario.question,
        "source": scenario.source,
        "iommu": result.iommu,
        "seed": result.seed,
        "timing": result.timing,
        "policies": result.policies,
        "attacks": {attack.name: attack.summary for attack in scenario.attacks},
        "rows": [_row(result, row, known) for row in result.rows],
        "costs": {policy: asdict(costs) for policy, costs in result.costs.items()},
        "summary": [_summary(summary) for summary in summarize(result)],
        "answer": answer_of(scenario, result),
    }


def _row(result: ScenarioResult, row: Row, known: Expectations) -> dict[str, Any]:
    outcome = row.outcome
    return {
        "policy": row.policy,
        "attack": row.attack,
        "blocked": outcome.blocked,
        "leaked": outcome.leaked,
        "corrupted": outcome.corrupted,
        "hung": outcome.hung,
        "window_ns": _window(outcome.window),
        "dmas": outcome.dmas,
        "expected": _expected(known.of(row.policy, row.attack, result.iommu)),
        "deviations": verdict(result, row, known),
        "refused": row.refused,
        "stale_uses": row.stale_uses,
        "descriptors": row.descriptors,
        "invalidations": row.invalidations,
        "copied": row.copied,
        "faults": row.faults,
        "log": row.log,
        "story": row.story,
        "timeline": _events(row.timeline),
        "timeline_dropped": row.timeline_dropped,
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "policy": summary.policy,
        "tried": summary.tried,
        "let_in": list(summary.let_in),
        "worst": summary.worst.attack if summary.worst else None,
        "window_ns": _window(summary.window),
        "pair_ns": summary.pair_ns,
        "gbps": summary.gbps,
    }


def _expected(expectation: Expectation | None) -> dict[str, Any] | None:
    if expectation is None:
        return None
    keys = asdict(expectation)
    keys["window_ns"] = keys.pop("window")
    return keys


def _window(window: int) -> int | str:
    return "forever" if window == FOREVER else window


def _events(timeline: Sequence[TimelineEvent]) -> list[dict[str, Any]]:
    return [
        {
            "time": event.time,
            "kind": event.kind.value,
            "lane": event.lane,
            "text": event.text,
            "address": event.address,
            "size": event.size,
            "duration": event.duration,
        }
        for event in timeline
    ]
