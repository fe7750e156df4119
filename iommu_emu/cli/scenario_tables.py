"""How `iommu-emu scenario` shows what there is and what came out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from textwrap import fill
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from iommu_emu import policies, timing_model
from iommu_emu.devices import malicious
from iommu_emu.scenario_report.plain import Verdict, verdict
from iommu_emu.scenario_report.summary import Summary, answer_of, summarize
from iommu_emu.scenario_report.words import VENDORS, duration, outcome_words, window_words
from iommu_emu.scenarios import expectations, registry
from iommu_emu.scenarios.result import Costs, Row, ScenarioResult
from iommu_emu.scenarios.scenario import Scenario
from iommu_emu.scenarios.workload import LINES

__all__ = [
    "WIDE",
    "expectation_rows",
    "expectations_table",
    "inventory",
    "inventory_tables",
    "print_run",
]

READABLE = 100  # columns of a paragraph
WIDE = 120  # columns from which on the tables say everything
Inventory = dict[str, list[dict[str, Any]]]


# ---- what there is -------------------------------------------------------------------------------


def inventory() -> Inventory:
    """Return scenarios, policies, malicious devices and timing models, for programs."""
    return {
        "scenarios": [
            {
                "name": scenario.name,
                "title": scenario.title,
                "question": scenario.question,
                "source": scenario.source,
                "policies": list(scenario.policies),
                "attacks": {attack.name: attack.summary for attack in scenario.attacks},
            }
            for scenario in registry.table()
        ],
        "policies": [
            {
                "name": policy.name,
                "summary": policy.summary,
                "source": policy.source,
                "objection": policy.objection,
            }
            for policy in policies.table()
        ],
        "devices": [
            {"name": name, "summary": _first_line(malicious.load(name))}
            for name in malicious.names()
        ],
        "timing_models": [
            {"name": name, "title": timing_model.load(name).title} for name in timing_model.names()
        ],
    }


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def inventory_tables() -> Group:
    """Return the same for people."""
    found = inventory()
    return Group(
        _list("scenarios", _named(found["scenarios"], "title")),
        _list("policies", _named(found["policies"], "summary")),
        _list("malicious devices", _named(found["devices"], "summary")),
        _list("timing models", _named(found["timing_models"], "title")),
    )


def _named(things: list[dict[str, Any]], what: str) -> list[tuple[str, str]]:
    return [(thing["name"], thing[what]) for thing in things]


def _list(heading: str, things: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", show_header=False)
    table.title = Text(f"\n{heading}", "bold")
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, text in things:
        table.add_row(f"  {name}", Text(text))
    return table


def expectation_rows() -> list[dict[str, Any]]:
    """Return what is expected of every policy and attack, by vendor, for programs."""
    known = expectations.built_in()
    return [
        {
            "policy": policy,
            "attack": attack,
            **{
                iommu: asdict(expected)
                for iommu in VENDORS
                if (expected := known.of(policy, attack, iommu)) is not None
            },
        }
        for policy, attack in known.pairs()
    ]


def expectations_table() -> Table:
    """Return the same for people."""
    known = expectations.built_in()
    table = Table(box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("attack", no_wrap=True)
    for vendor in VENDORS.values():
        table.add_column(f"on {vendor}", overflow="fold")
    for policy, pairs in groupby(known.pairs(), key=lambda pair: pair[0]):
        shown: str = policy
        for _, attack in pairs:
            cells = [known.of(policy, attack, iommu) for iommu in VENDORS]
            table.add_row(shown, attack, *(_expected(cell) for cell in cells))
            shown = ""
        table.add_section()
    return table


def _expected(expected: expectations.Expectation | None) -> Text:
    if expected is None:
        return Text("-")
    return Text(str(expected), "green" if expected.blocked else "yellow")


# ---- what came out -------------------------------------------------------------------------------


def print_run(out: Console, scenario: Scenario, result: ScenarioResult) -> None:
    """Print stories and tables of one run."""
    out.print(Text.assemble("\n", (scenario.title, "bold"), f" ({VENDORS[result.iommu]})"))
    out.print(_indented(scenario.question, 0, out.width), style="dim")
    run_with = {row.policy for row in result.rows} | result.costs.keys()
    about = [(name, text) for name, text in result.policies.items() if name in run_with]
    out.print(_list("policies", about))
    for attack in scenario.attacks:
        rows = [row for row in result.rows if row.attack == attack.name]
        if not rows:
            continue
        out.print(Text.assemble("\n", (attack.name, "bold cyan"), f"  {attack.summary}"))
        for names, row in _told_alike(rows):
            mark, style = ("✔", "green") if row.outcome.blocked else ("✘", "red")
            out.print(_indented(f"{mark} {names}", 2, out.width), style=style)
            out.print(_indented(" ".join(row.story), 4, out.width))
            if row.refused:
                out.print(_indented(f"refused: {row.refused}", 4, out.width), style="dim")
            for line in _seen(row):
                out.print(_indented(f"log: {line}", 4, out.width), style="dim")
    out.print()
    wide = out.width >= WIDE
    out.print(_outcomes(result, wide=wide))
    if result.costs:
        out.print()
        out.print(_costs(result, wide=wide))
    out.print()
    out.print(_in_short(summarize(result)))
    if answer := answer_of(scenario, result):
        out.print()
        out.print(_indented(answer, 0, out.width))
    _print_deviations(out, result)


def _indented(text: str, indent: int, width: int) -> Text:
    """Return a paragraph with a margin, wrapped: rich would pad its lines with spaces."""
    margin = " " * indent
    width = min(width, READABLE)
    return Text(
        fill(
            text,
            width,
            initial_indent=margin,
            subsequent_indent=margin,
            break_on_hyphens=False,
        )
    )


def _told_alike(rows: list[Row]) -> Iterator[tuple[str, Row]]:
    """Yield the policies whose stories are the same, joined, with one of their rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.outcome.blocked, row.refused, *row.story), []).append(row)
    for group in groups.values():
        yield ", ".join(row.policy for row in group), group[0]


def _seen(row: Row) -> list[str]:
    """Return what an administrator sees first of an attack: a fault, or a host that hangs."""
    if row.outcome.hung:
        return row.log[-1:]
    more = f" (and {len(row.faults) - 1} more)" if len(row.faults) > 1 else ""
    return [line + more for line in row.faults[:1]]


def _outcomes(result: ScenarioResult, *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("attack and policy", no_wrap=True)
    table.add_column("outcome", overflow="fold")
    work = ("faults", "queued", "inval.", "copied") if wide else ()
    for heading in ("window", "DMAs", "stale", *work):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("expected", no_wrap=True)
    for attack in dict.fromkeys(row.attack for row in result.rows):
        table.add_row(Text(attack, "cyan"))
        for row in result.rows:
            if row.attack == attack:
                table.add_row(*_cells(result, row, wide=wide))
    return table


def _cells(result: ScenarioResult, row: Row, *, wide: bool) -> list[str | Text]:
    work = (len(row.faults), row.descriptors, row.invalidations, row.copied) if wide else ()
    return [
        f"  {row.policy}",
        Text(outcome_words(row), "green" if row.outcome.blocked else "red"),
        window_words(row.outcome.window),
        str(row.outcome.dmas),
        str(row.stale_uses),
        *map(str, work),
        _mark(verdict(result, row)),
    ]


def _mark(found: Verdict) -> Text:
    if found is None:
        return Text("-")
    return Text("no", "bold red") if found else Text("yes", "green")


def _costs(result: ScenarioResult, *, wide: bool) -> Table:
    lines = list(_cost_lines(result))
    moves = any(costs.gbps for _, costs in lines)
    keeps = any(costs.frames for _, costs in lines)
    table = Table(box=None, pad_edge=False)
    table.add_column("a pair costs", no_wrap=True)
    headings = ["map", "unmap", "copied", "inval.", *(["queued", "lock"] if wide else [])]
    headings += ["frames"] if keeps else []
    headings += ["Gb/s", *(f"of {line:g}" for line in LINES)] if moves else []
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, costs in lines:
        pairs = max(1, costs.operations)
        more = [_count(costs.descriptors / pairs), duration(costs.lock_wait_ns)]
        table.add_row(
            name,
            _time(costs.map_ns, costs.measured_map_ns, wide=wide),
            _time(costs.unmap_ns, costs.measured_unmap_ns, wide=wide),
            _count(costs.copied / pairs),
            _count(costs.invalidations / pairs),
            *(more if wide else ()),
            *([str(costs.frames)] if keeps else ()),
            *(_rates(costs.gbps) if moves else ()),
        )
    return table


def _cost_lines(result: ScenarioResult) -> Iterator[tuple[str, Costs]]:
    """Yield what each policy costs, followed by its other pairs."""
    for policy, costs in result.costs.items():
        yield policy, costs
        for name, other in costs.others.items():
            yield f"  {name}", other


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _rates(gbps: float) -> list[str]:
    if not gbps:
        return ["-"] * (1 + len(LINES))
    return [f"{gbps:.3g}", *(f"{min(1.0, gbps / line):.0%}" for line in LINES)]


def _time(modelled: float, measured: float, *, wide: bool) -> str:
    return duration(modelled) + (f" ({duration(measured)})" if wide else "")


def _in_short(summaries: list[Summary]) -> Table:
    """Return what each policy lets in, and what it costs."""
    priced = any(summary.pair_ns is not None for summary in summaries)
    moves = any(summary.gbps for summary in summaries)
    table = Table(box=None, pad_edge=False)
    table.add_column("in short", no_wrap=True)
    table.add_column("let in", justify="right", no_wrap=True)
    table.add_column("at worst", overflow="fold")
    table.add_column("for up to", justify="right", no_wrap=True)
    for heading in (*(["map + unmap"] if priced else []), *(["Gb/s"] if moves else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        style = "red" if summary.let_in else "green"
        price = "-" if summary.pair_ns is None else duration(summary.pair_ns)
        table.add_row(
            summary.policy,
            Text(f"{len(summary.let_in)} of {summary.tried}", style),
            Text(outcome_words(summary.worst) if summary.worst else "nothing", style),
            window_words(summary.window) if summary.worst else "",
            *([price] if priced else []),
            *([f"{summary.gbps:.3g}" if summary.gbps else "-"] if moves else []),
        )
    return table


def _print_deviations(out: Console, result: ScenarioResult) -> None:
    for row in result.rows:
        for deviation in verdict(result, row) or ():
            text = f"not as expected: {row.policy}, {row.attack}: {deviation}"
            out.print(Text(text, "bold red"))
