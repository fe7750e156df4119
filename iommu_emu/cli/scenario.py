"""`iommu-emu scenario`: what operating systems do with an IOMMU, run and measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console as Terminal

from iommu_emu import policies, timing_model
from iommu_emu.cli.console import console, refusal
from iommu_emu.cli.files import named, require_writable
from iommu_emu.cli.scenario_tables import (
    WIDE,
    expectation_rows,
    expectations_table,
    inventory,
    inventory_tables,
    print_run,
)
from iommu_emu.cli.timing_table import timing_table
from iommu_emu.plugins import did_you_mean
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenario_report.chart import check_chart, draw
from iommu_emu.scenario_report.html import page
from iommu_emu.scenario_report.plain import plain, verdict
from iommu_emu.scenario_report.words import VENDORS
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.laboratory import IOMMUS
from iommu_emu.scenarios.runner import (
    MAX_CPUS,
    NO_WORKLOAD,
    Progress,
    ScenarioError,
    attacks_of,
    choose,
    run,
)
from iommu_emu.scenarios.scenario import Scenario
from iommu_emu.scenarios.workload import WORKLOADS

if TYPE_CHECKING:
    from iommu_emu.policies import Policy
    from iommu_emu.scenarios.result import ScenarioResult

DESCRIPTION = """\
Protection policies of Linux and Xen against attacks by devices: six scenarios, each from a
discussion among the kernels' developers. Every attack meets every policy on a fresh machine; the
result says what the device got, for how long, what protection cost, and what an administrator
would have seen.
"""
EXAMPLES = """\
examples:
  iommu-emu scenario list                                    scenarios, policies, devices
  iommu-emu scenario run deferred-invalidation               every policy, on VT-d
  iommu-emu scenario run bounce-buffer --iommu both --html report.html
  iommu-emu scenario run all --policy linux-lazy linux-strict
  iommu-emu scenario run bounce-buffer --policy ./mine.py    a policy of your own
  iommu-emu scenario expectations                            what each policy must do
"""
RUN = """\
Runs the attacks of a scenario, tells what happened and why, and prints three tables.

what the attacker got:
  outcome   blocked, refused (the system would not go along), or the bytes of others that leaked
            or were changed; blocked with a window: what the device reached was nobody else's
  window    virtual time from the moment when memory was no longer the device's to the last
            access that got through
  DMAs      accesses that got through after that moment
  stale     uses of a cached translation that the tables no longer say, one for each page
  faults    fault records: what an administrator sees; the first is shown with the story
  queued    commands or descriptors put on the IOMMU's queue; inval.: those that invalidate
  copied    bytes that went through bounce buffers
  expected  whether this is what expectations.toml says of the policy; "-" for one of your own

what a pair of map and unmap costs under a workload, by default the scenario's own:
  map, unmap   virtual time by the timing model; in parentheses the host's time in this emulator,
               which differs from run to run
  copied, inval., queued       as above
  lock         virtual time that CPUs waited for locks
  frames       pages of 4 KiB that tables, and Xen's scratch pages, took and keep
  Gb/s         data that the CPUs could move, and what share of a 10 or 25 Gb/s line that is
For Xen's policies it is a guest that gets a page and gives it back. Lines below a policy are other
pairs: user space maps and unmaps a page by VFIO, or a device is assigned and taken back, the first
time (when quarantine is made ready) and later.

in short, for each policy:
  let in       how many attacks got something
  at worst     the most that one got; for up to: the longest window of those that got something
  map + unmap  what a pair costs, virtual time

On a terminal of less than 120 columns, the tables leave out a part of this.

A policy of your own is a Python file that defines POLICY, as the files in iommu_emu/policies do;
a scenario of your own defines SCENARIO, as those in iommu_emu/scenarios do. Nothing is expected of
them.
"""
RUN_EXAMPLES = """\
examples:
  iommu-emu scenario run deferred-invalidation
  iommu-emu scenario run quarantine --iommu amdvi --policy xen-full
  iommu-emu scenario run all --attack type-change-while-bound
  iommu-emu scenario run all --iommu both --json results.json --html report.html
  iommu-emu scenario run bounce-buffer --workload blocks
  iommu-emu scenario run deferred-invalidation --plot costs.svg --timing ./my-server.toml

exit codes: 0 everything is as expected; 1 something is not; 2 bad input
"""

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `scenario`."""
    parser = subparsers.add_parser(
        "scenario",
        help="protection policies of kernels against attacks by devices",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    listing = commands.add_parser(
        "list",
        help="what there is",
        description="Lists scenarios, policies, malicious devices and timing models.",
    )
    listing.add_argument("--json", action="store_true", help="the lists, for programs")
    listing.set_defaults(run=run_list)
    timing = commands.add_parser(
        "timing",
        help="what a timing model says that work costs, and where each number is from",
        description="Shows a timing model: each number with its source.",
    )
    timing.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        default=timing_model.DEFAULT,
        help=f"a built-in model or a TOML file (default: {timing_model.DEFAULT})",
    )
    timing.add_argument("--json", action="store_true", help="the numbers, for programs")
    timing.set_defaults(run=run_timing)
    expectations = commands.add_parser(
        "expectations",
        help="what each policy must do to each attack",
        description="Shows expectations.toml: what each attack gets from each policy.",
    )
    expectations.add_argument("--json", action="store_true", help="the table, for programs")
    expectations.set_defaults(run=run_expectations)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a scenario",
        description=RUN,
        epilog=RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", metavar="NAME", help="a scenario (`scenario list`), `all`, or your own file"
    )
    parser.add_argument(
        "--iommu", choices=(*IOMMUS, "both"), default="vtd", help="whose IOMMU (default: vtd)"
    )
    parser.add_argument(
        "--policy",
        metavar="POLICY",
        action="extend",
        nargs="+",
        default=[],
        help="only these, by name or your own file (default: the scenario's)",
    )
    parser.add_argument(
        "--attack",
        metavar="ATTACK",
        action="extend",
        nargs="+",
        default=[],
        help="only these, and no workload (default: all of the scenario)",
    )
    parser.add_argument(
        "--workload",
        choices=(*WORKLOADS, NO_WORKLOAD),
        help="what is measured for Linux's policies: blocks (an NVMe controller reads), map (maps "
        "and unmaps alone), packets (network controllers receive), or none (default: the "
        "scenario's own)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of everything random (default: 0)"
    )
    parser.add_argument(
        "--timing",
        metavar="MODEL",
        default=timing_model.DEFAULT,
        help=f"timing model, by name or your own TOML file (default: {timing_model.DEFAULT})",
    )
    parser.add_argument(
        "--cpus", metavar="N", type=_cpus, default=4, help="virtual CPUs, 1..32 (default: 4)"
    )
    parser.add_argument("--json", metavar="FILE", help="everything, `-` for standard output")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="a page with timelines to zoom; one file"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="costs beside windows: .png, .svg or .pdf"
    )
    parser.set_defaults(run=run_scenarios)


def _cpus(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_CPUS:
        raise argparse.ArgumentTypeError(f"must be in 1..{MAX_CPUS}, not {text}")
    return value


def run_scenarios(arguments: argparse.Namespace) -> int:
    """Run scenarios; returns the exit code."""
    try:
        chosen = _chosen(arguments)
        model = timing_model.load(arguments.timing)
        _check_outputs(arguments, [scenario for scenario, _ in chosen])
    except (OSError, ValueError) as error:
        return _refuse(error)
    iommus = IOMMUS if arguments.iommu == "both" else (arguments.iommu,)
    runs: list[tuple[Scenario, ScenarioResult]] = []
    try:
        with _progress() as (note, say):
            for scenario, against in chosen:
                for iommu in iommus:
                    say(f"{scenario.name} on {VENDORS[iommu]}")
                    result = run(
                        scenario,
                        against,
                        iommu,
                        arguments.seed,
                        model,
                        cpus=arguments.cpus,
                        attacks=arguments.attack,
                        workload=arguments.workload,
                        progress=note,
                    )
                    runs.append((scenario, result))
        _write(arguments, runs)
    except BrokenPipeError:
        raise
    except (OSError, ScenarioError) as error:
        return _refuse(error)
    if arguments.json != "-":
        for scenario, result in runs:
            print_run(console(), scenario, result)
    rows = [(result, row) for _, result in runs for row in result.rows]
    return 1 if any(verdict(result, row) for result, row in rows) else 0


def _chosen(arguments: argparse.Namespace) -> list[tuple[Scenario, list[Policy]]]:
    """Return scenarios with their policies; of `all`, those that policies and attacks are for.

    Raises:
        ValueError: if a name is unknown, or nothing would be run.
        OSError: if a file cannot be read.
    """
    every = arguments.name == "all"
    scenarios = registry.table() if every else [registry.load(arguments.name)]
    _check_attacks(arguments.attack, scenarios)
    for name in arguments.policy:
        policies.load(name)
    chosen = []
    for scenario in scenarios:
        names = [n for n in arguments.policy if not every or _is_for(scenario, n)]
        against = choose(scenario, names) if names or not arguments.policy else []
        tried = {attack.name for policy in against for attack in attacks_of(scenario, policy)}
        if against and (not arguments.attack or tried & set(arguments.attack)):
            chosen.append((scenario, against))
    if not chosen:
        raise ValueError("nothing to run: these attacks are not tried against these policies")
    _check_workload(arguments.workload, [policy for _, against in chosen for policy in against])
    return chosen


def _check_workload(name: str | None, policies: list[Policy]) -> None:
    """Raise ValueError unless a workload, if it is chosen, is for one of the policies."""
    if name in WORKLOADS and not any(isinstance(policy, LinuxPolicy) for policy in policies):
        listed = ", ".join(dict.fromkeys(policy.name for policy in policies))
        raise ValueError(
            f"--workload {name} is work for drivers of Linux, and Xen's policies ({listed}) have "
            "none: leave it out"
        )


def _is_for(scenario: Scenario, name: str) -> bool:
    """Whether a scenario is run with a policy where all are run: its own, or a user's."""
    if name in policies.names():
        return name in scenario.policies
    return type(policies.load(name)) in {type(policies.load(own)) for own in scenario.policies}


def _attacks(scenario: Scenario) -> list[str]:
    return [attack.name for attack in scenario.attacks]


def _check_attacks(names: list[str], scenarios: list[Scenario]) -> None:
    """Raise ValueError unless each of these attacks is one of a scenario's."""
    known = [attack for scenario in scenarios for attack in _attacks(scenario)]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"attack must be one of {', '.join(known)}, not {name!r}{hint}")


def _check_outputs(arguments: argparse.Namespace, scenarios: list[Scenario]) -> None:
    """Raise before a long run what would be raised after it."""
    if arguments.plot is not None:
        if arguments.workload == NO_WORKLOAD or (arguments.attack and not arguments.workload):
            raise ValueError(f"{arguments.plot}: a chart shows costs: choose a --workload for it")
        check_chart(arguments.plot, scenarios)
    for name in (arguments.json, arguments.html, arguments.plot):
        if name is not None and name != "-":
            require_writable(Path(name))


def _write(arguments: argparse.Namespace, runs: list[tuple[Scenario, ScenarioResult]]) -> None:
    if arguments.json or arguments.html:
        report = plain(runs)
        if arguments.json == "-":
            print(json.dumps(report, indent=2))
        elif arguments.json:
            with named(arguments.json):
                Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
        if arguments.html:
            with named(arguments.html):
                arguments.html.write_text(page(report), encoding="utf-8")
    if arguments.plot:
        with named(arguments.plot):
            draw(arguments.plot, runs)


def run_list(arguments: argparse.Namespace) -> int:
    """List what there is; returns the exit code."""
    if arguments.json:
        print(json.dumps(inventory(), indent=2))
    else:
        console().print(inventory_tables())
    return 0


def run_timing(arguments: argparse.Namespace) -> int:
    """Show a timing model; returns the exit code."""
    try:
        model = timing_model.load(arguments.name)
    except (OSError, ValueError) as error:
        return _refuse(error)
    if arguments.json:
        print(json.dumps(_plain_timing(model), indent=2))
    else:
        out = console()
        out.print(timing_table(model, wide=out.width >= WIDE))
    return 0


def _plain_timing(model: timing_model.TimingModel) -> dict[str, Any]:
    return {"name": model.name, "rows": [row._asdict() for row in model.rows()]}


def run_expectations(arguments: argparse.Namespace) -> int:
    """Show what is expected; returns the exit code."""
    if arguments.json:
        print(json.dumps(expectation_rows(), indent=2))
    else:
        console().print(expectations_table())
    return 0


@contextmanager
def _progress() -> Iterator[tuple[Progress, Any]]:
    """Show on standard error what is being run, if that is a terminal."""
    terminal = Terminal(stderr=True, highlight=False)
    part = ""
    with terminal.status("starting") as status:

        def say(text: str) -> None:
            nonlocal part
            part = text

        def note(done: int, total: int, what: str) -> None:
            status.update(f"{part}: {done + 1} of {total}, {what}")

        yield note, say


def _refuse(error: Exception) -> int:
    text = refusal(error) if isinstance(error, OSError) else str(error)
    print(f"iommu-emu scenario: {text}", file=sys.stderr)
    return 2
