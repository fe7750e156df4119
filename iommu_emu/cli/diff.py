"""`iommu-emu diff`: the same programs on a real QEMU and on ours, compared."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from iommu_emu.cli.arguments import seconds
from iommu_emu.cli.console import console, refusal
from iommu_emu.cli.signals import ended_by_signals
from iommu_emu.differential.campaign import Campaign, Failure
from iommu_emu.differential.configurations import CONFIGURATIONS
from iommu_emu.differential.document import document
from iommu_emu.qemu.errors import NotAvailable, PackageError, QemuError
from iommu_emu.qemu.find import find_qemu
from iommu_emu.qtest.client import QtestError

MAX_SEED = (1 << 31) - 1

DESCRIPTION = """\
Generates programs (tables legal and broken, register writes, invalidation descriptors, DMA,
interrupts, faults), runs each on QEMU's intel-iommu and on this project's unit of the same
capabilities, and compares registers, fault records, outcomes and memory after each operation.
Most programs invalidate everything after each change; one in four does exactly what software
owes (VT-d 9.4). One in eight is under-invalidated: it runs on our unit alone, and every answer
must be one that the stale-entry oracle allows.

A difference is explained by an entry of docs/differences-from-qemu.md, or it is reported: shrunk
to a small program, in a form that can be pasted into a test.

examples:
  iommu-emu diff                                a minute over every configuration
  iommu-emu diff --seconds 3600 --keep found    an hour; each difference into a file of its own
  iommu-emu diff --seed 42 --config q35         the programs from seed 42 on, one configuration
  iommu-emu diff --document                     the document of the known differences

exit codes: 0 nothing unexplained; 1 unexplained differences; 2 bad input, or no QEMU
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `diff`."""
    parser = subparsers.add_parser(
        "diff",
        help="the same programs on a real QEMU and on ours, compared",
        description=DESCRIPTION,
        epilog="configurations:\n"
        + "\n".join(f"  {each.name:<15} {each.description}" for each in CONFIGURATIONS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds", type=seconds, default=60.0, metavar="N", help="how long (default: 60)"
    )
    parser.add_argument(
        "--programs", type=_number, metavar="N", help="how many, at most (default: any number)"
    )
    parser.add_argument(
        "--seed", type=_number, metavar="N", help="of the first program (default: any)"
    )
    parser.add_argument(
        "--config",
        action="append",
        choices=list(CONFIGURATIONS),
        metavar="NAME",
        help="a configuration, several times for several (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="the summary, for programs")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="write each unexplained program to a file here"
    )
    parser.add_argument(
        "--document", action="store_true", help="print docs/differences-from-qemu.md and stop"
    )
    parser.set_defaults(run=run)


def _number(text: str) -> int:
    value = int(text, 0)
    if not 0 <= value <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be in 0..{MAX_SEED}, not {text}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Compare and report; returns the exit code."""
    if arguments.document:
        print(document(), end="")
        return 0
    names = list(dict.fromkeys(arguments.config or CONFIGURATIONS))
    seed = random.randrange(MAX_SEED) if arguments.seed is None else arguments.seed
    try:
        with ended_by_signals():
            qemu = find_qemu()
            if arguments.keep is not None:
                arguments.keep.mkdir(parents=True, exist_ok=True)
            with Campaign(names, qemu.argv, seed) as campaign:
                _run(campaign, arguments.seconds, arguments.programs)
                result = {"qemu": qemu.build, **plain(campaign)}
    except (NotAvailable, PackageError, QemuError, QtestError) as error:
        print(f"iommu-emu diff: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"iommu-emu diff: {refusal(error)}", file=sys.stderr)
        return 2
    if arguments.keep is not None:
        for failure in campaign.failures:
            name = f"{failure.configuration}-{failure.seed}.txt"
            (arguments.keep / name).write_text(_as_text(failure))
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _report(campaign, qemu.build)
    return 1 if campaign.failures else 0


def _run(campaign: Campaign, duration: float, programs: int | None) -> None:
    progress = Console(stderr=True)
    with progress.status("starting") as status:

        def show(now: Campaign) -> None:
            rate = now.programs / now.seconds if now.seconds else 0.0
            status.update(
                f"{now.programs} programs, {rate:.0f} a second, "
                f"{len(now.failures)} unexplained differences (from seed {now.seed})"
            )

        try:
            campaign.run(duration, programs, show)
        except KeyboardInterrupt:
            progress.print("interrupted; what follows is the summary so far")


def plain(campaign: Campaign) -> dict[str, Any]:
    """Return a campaign as `--json` prints it."""
    return {
        "configurations": list(campaign.names),
        "seed": campaign.seed,
        "seconds": round(campaign.seconds, 2),
        "programs": campaign.programs,
        "under_invalidated": campaign.partial,
        "exactly_invalidated": campaign.exact,
        "operations_compared": campaign.compared,
        "operations_behind_a_divergence": campaign.skipped,
        "ended_at_a_stale_entry": campaign.stale,
        "qemu_restarts": campaign.restarts,
        "operations": dict(campaign.coverage.operations.most_common()),
        "faults": dict(campaign.coverage.faults.most_common()),
        "descriptors": dict(campaign.coverage.descriptors.most_common()),
        "explained": dict(campaign.explained.most_common()),
        "unexplained": [
            {
                "configuration": each.configuration,
                "seed": each.seed,
                "times": each.times,
                "findings": each.findings,
                "program": each.program.splitlines(),
            }
            for each in campaign.failures
        ],
    }


def _report(campaign: Campaign, build: str) -> None:
    out = console()
    rate = campaign.programs / campaign.seconds if campaign.seconds else 0.0
    out.print(
        f"{campaign.programs} programs in {campaign.seconds:.1f} s ({rate:.0f} a second), "
        f"{campaign.exact} of them exactly invalidated, {campaign.partial} under-invalidated; "
        f"from seed {campaign.seed}"
    )
    out.print(
        f"{campaign.compared} operations compared with {build}; "
        f"{campaign.skipped} came behind a known divergence"
    )
    for title, counted in (
        ("operation", campaign.coverage.operations),
        ("descriptor", campaign.coverage.descriptors),
        ("fault", campaign.coverage.faults),
        ("known difference (programs)", campaign.explained),
    ):
        table = Table(box=None, pad_edge=False)
        table.add_column(title, no_wrap=True)
        table.add_column("times", justify="right")
        for name, times in counted.most_common():
            table.add_row(name, str(times))
        out.print(table)
    if campaign.restarts:
        out.print(f"QEMU ended and was started again {campaign.restarts} times")
    for failure in campaign.failures:
        head = Text.assemble(("\nunexplained", "bold red"), f", {failure.times} times:")
        out.print(head)
        out.print(_as_text(failure), end="")
    if not campaign.failures:
        out.print("no unexplained difference")


def _as_text(failure: Failure) -> str:
    comments = [f"configuration {failure.configuration}, seed {failure.seed}", *failure.findings]
    return "".join(f"# {line}\n" for line in comments) + failure.program
