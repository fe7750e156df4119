"""A chart of what protection costs beside what it leaves open, by matplotlib if it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from iommu_emu.scenario_report.words import VENDORS, duration
from iommu_emu.scenarios.result import FOREVER, Row, ScenarioResult
from iommu_emu.scenarios.scenario import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
_STYLES = {"vtd": ("#0b62c4", "o"), "amdvi": ("#c2410c", "s")}
_NEVER, _FOREVER = 1e4, 1e10  # ns: where a window of 0, and one without end, are drawn
_WIDTH = 0.35  # of a bar; lines are 1 apart
_TICKS = (1e5, 1e6, 1e7, 1e8, 1e9)

__all__ = ["SUFFIXES", "check_chart", "draw"]


def check_chart(path: Path, scenarios: Sequence[Scenario]) -> None:
    """Raise unless a chart of these scenarios can be drawn into a file of this name.

    Raises:
        ValueError: if it cannot; the message says why, and what to do.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a chart's name must end in {', '.join(SUFFIXES)}")
    if not any(scenario.workload for scenario in scenarios):
        names = ", ".join(scenario.name for scenario in scenarios)
        raise ValueError(f"{path}: {names} measures no costs that a chart could show")
    if find_spec("matplotlib") is None:
        raise ValueError("charts need matplotlib: pip install 'iommu-emu[plot]'")


def draw(path: Path, runs: Sequence[tuple[Scenario, ScenarioResult]]) -> None:
    """Draw costs and windows, a line a policy: the cheapest first.

    On the left is the modelled time of a map and of an unmap, on the right the longest window of
    the attacks that got something. A hollow mark stands for attacks that did not: the device
    reached nothing of others in that time.

    Args:
        path: PNG, SVG or PDF, by its suffix.
        runs: each scenario with its result; those without costs are left out.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = {scenario.name: scenario for scenario, result in runs if result.costs}
    heights = [1.5 + 0.45 * len(_policies(name, runs)) for name in shown]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    fields = figure.subplots(len(shown), 2, squeeze=False, sharey="row", height_ratios=heights)
    for (left, right), scenario in zip(fields, shown.values(), strict=True):
        policies = _policies(scenario.name, runs)
        results = [result for _, result in runs if result.scenario == scenario.name]
        for number, result in enumerate(results):
            offset = (number - (len(results) - 1) / 2) * _WIDTH
            places = {policy: index + offset for index, policy in enumerate(policies)}
            _draw_costs(left, result, places)
            _draw_windows(right, result, places)
        left.set_title(scenario.title, loc="left")
        left.set_yticks(range(len(policies)), policies)
        left.invert_yaxis()
        left.set_xlabel("a map and an unmap, modelled, ns")
        right.set_xlabel("longest window of an attack")
        right.set_xscale("log")
        right.set_xlim(_NEVER / 3, _FOREVER * 3)
        right.set_xticks(
            [_NEVER, *_TICKS, _FOREVER], ["none", *map(duration, _TICKS), "forever"], rotation=30
        )
        right.minorticks_off()
        right.grid(alpha=0.3)
    # Outside: inside, it would be in front of one bar or another.
    handles = [handle for axes in fields[0] for handle in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=144)


def _policies(scenario: str, runs: Sequence[tuple[Scenario, ScenarioResult]]) -> list[str]:
    """Return the policies of a scenario whose costs are known, the cheapest first."""
    costs: dict[str, float] = {}
    for _, result in runs:
        if result.scenario == scenario:
            for policy, cost in result.costs.items():
                costs.setdefault(policy, cost.map_ns + cost.unmap_ns)
    return sorted(costs, key=costs.__getitem__)


def _draw_costs(axes: Axes, result: ScenarioResult, places: Mapping[str, float]) -> None:
    colour, _ = _STYLES[result.iommu]
    vendor = VENDORS[result.iommu]
    across = [places[policy] for policy in result.costs]
    maps = [costs.map_ns for costs in result.costs.values()]
    unmaps = [costs.unmap_ns for costs in result.costs.values()]
    axes.barh(across, maps, _WIDTH, color=colour, label=f"{vendor}: map")
    axes.barh(across, unmaps, _WIDTH, maps, color=colour, alpha=0.45, label=f"{vendor}: unmap")


def _draw_windows(axes: Axes, result: ScenarioResult, places: Mapping[str, float]) -> None:
    colour, marker = _STYLES[result.iommu]
    vendor = VENDORS[result.iommu]
    for harmful, fill, label in (
        (True, "full", f"{vendor}: window"),
        (False, "none", f"{vendor}: to nothing of others"),
    ):
        points = [
            (_position(rows), places[policy])
            for policy in result.costs
            if (rows := _widest(result, policy)) and harmful is not rows[0].outcome.blocked
        ]
        windows, across = zip(*points, strict=True) if points else ((), ())
        axes.plot(windows, across, marker, fillstyle=fill, color=colour, label=label)


def _widest(result: ScenarioResult, policy: str) -> list[Row]:
    """Return the attacks on a policy that got something, or if none did, all of them."""
    rows = [row for row in result.rows if row.policy == policy]
    return [row for row in rows if not row.outcome.blocked] or rows


def _position(rows: Sequence[Row]) -> float:
    windows = [row.outcome.window for row in rows]
    if FOREVER in windows:
        return _FOREVER
    return min(max(_NEVER, *windows, 0), _FOREVER)
