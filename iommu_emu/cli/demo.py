"""`iommu-emu demo`: an IOMMU at work, and a driver's mistake caught."""

from __future__ import annotations

import argparse
import json

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from iommu_emu.acpi import AcpiError, platforms
from iommu_emu.cli import source
from iommu_emu.demo import Step, tell
from iommu_emu.machine import Machine

DEFAULTS = {"vtd": "laptop-thunderbolt", "amdvi": "desktop-amdvi"}

DESCRIPTION = """\
Brings an emulated machine up from an ACPI table, lets a device do what it may and what it may
not, and shows what happens when a driver forgets an invalidation. Takes a second or two.

examples:
  iommu-emu demo                                   on a laptop with a Thunderbolt port (VT-d)
  iommu-emu demo --iommu amdvi                     on an AMD desktop
  iommu-emu demo server-4-unit                     on another built-in platform
  iommu-emu demo /sys/firmware/acpi/tables/DMAR    on the machine that your firmware describes

exit codes: 0 done, 2 the table cannot be understood or serves no device
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="see an IOMMU at work, and a driver's mistake caught",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "table",
        nargs="?",
        metavar="TABLE",
        help=source.HELP,
    )
    parser.add_argument(
        "--iommu",
        choices=sorted(DEFAULTS),
        help="whose IOMMU, if no table is named (default: vtd)",
    )
    parser.add_argument("--json", action="store_true", help="the same story for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tell the story; returns the exit code."""
    named = arguments.table is not None
    name = arguments.table if named else DEFAULTS[arguments.iommu or "vtd"]
    try:
        if named and arguments.iommu:
            raise ValueError("--iommu chooses a platform only where no table is named")
        machine = _machine(name)
        if arguments.json:
            steps = [_plain(step) for step in tell(machine)]
            print(json.dumps({"table": name, "steps": steps}, indent=2))
        else:
            _print(name, machine)
    except BrokenPipeError:
        raise
    except (AcpiError, ValueError, OSError) as error:
        return source.refuse("demo", name, error)
    return 0


def _machine(name: str) -> Machine:
    if source.is_platform(name):
        return Machine.from_platform(name)
    return Machine.from_acpi(source.read(name))


def _plain(step: Step) -> dict[str, object]:
    return {
        "title": step.title,
        "text": step.text,
        "facts": step.facts,
        "verdict": step.verdict,
        "good": step.good,
    }


def _print(name: str, machine: Machine) -> None:
    console = Console(highlight=False)
    title = "a table from standard input" if name == "-" else name
    if source.is_platform(name):
        title = platforms.load(name).title
    for number, step in enumerate(tell(machine), 1):
        if number == 1:  # a machine that no device can be attached to has no story
            head = Text(title, justify="center")
            console.print(Panel(head, title="iommu-emu demo", style="bold"))
        _print_step(console, number, step)


def _print_step(console: Console, number: int, step: Step) -> None:
    mark, style = {None: ("•", "cyan"), True: ("✔", "green"), False: ("✘", "red")}[step.good]
    console.print(f"\n[bold]{number}. {step.title}[/bold]")
    console.print(Text(step.text), style="dim")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for fact, value in step.facts.items():
        facts.add_row(Text(f"   {fact}", style="cyan"), Text(value))
    console.print(facts)
    console.print(Text(f"{mark} {step.verdict}", style=style))
