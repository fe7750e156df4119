"""`iommu-emu bench`: what the core's operations cost here, beside their floors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from iommu_emu.bench import BENCHMARKS, Benchmark, Measurement, measure, met, select
from iommu_emu.cli.console import console

DESCRIBED = 100  # columns from which on the table says what each operation is

DESCRIPTION = """\
Measures what the operations of an emulated VT-d unit cost on this machine: translations that
hit or miss the IOTLB, DMA, invalidations, faults, register reads, and the calls from Python.

how to read it:
  ns      median nanoseconds of one operation
  floor   the same for the least C code that could be right for that operation: a bare
          set-associative lookup, a bare 4-level walk, a memcpy (csrc/bench/floors.c); compiled
          with the same flags, run in turns with the operation by the same loop
  ratio   ns / floor: nanoseconds drift from machine to machine and with its load, ratios hardly
  target  what this project holds itself to: nanoseconds were set on a server with an AMD EPYC;
          a ratio to the floor (2.5x), or to another benchmark of the same run, holds anywhere
  met     whether every target of the line is reached here

Run it on an idle machine; a busy neighbour shows in the misses first, which live in the caches
that cores share. --json prints [{name, ns, floor_ns, ratio}].

examples:
  iommu-emu bench
  iommu-emu bench --filter 'translate_*' --seconds 3
  iommu-emu bench --json > today.json

exit codes: 0 done, whether targets are met or not; 2 no benchmark has such a name
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="what a translation costs here, beside its floor",
        description=DESCRIPTION,
        epilog=f"benchmarks: {', '.join(BENCHMARKS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="the numbers, for programs")
    parser.add_argument(
        "--filter", metavar="PATTERN", default="", help="only names that match or contain it"
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=10.0,
        metavar="N",
        help="time to measure, for all together; more steadies the medians (default: 10)",
    )
    parser.set_defaults(run=run)


def seconds(text: str) -> float:
    """Parse a number of seconds; argparse names this function in its message."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    try:
        chosen = select(arguments.filter)
    except ValueError as error:
        print(f"iommu-emu bench: {error}", file=sys.stderr)
        return 2
    progress = Console(stderr=True)
    with progress.status("preparing") as status:
        measurements = list(measure(chosen, arguments.seconds, status.update))
    if arguments.json:
        print(json.dumps([plain(measurement) for measurement in measurements], indent=2))
    else:
        out = console()
        out.print(_table(measurements, described=out.width >= DESCRIBED))
    return 0


def plain(measurement: Measurement) -> dict[str, str | float]:
    """Return a measurement as `--json` prints it."""
    return {
        "name": measurement.name,
        "ns": round(measurement.ns, 2),
        "floor_ns": round(measurement.floor_ns, 2),
        "ratio": round(measurement.ratio, 3),
    }


def _table(measurements: Sequence[Measurement], *, described: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    for heading in ("ns", "floor", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("target", overflow="fold")
    table.add_column("met", no_wrap=True)
    if described:
        table.add_column("what one operation is", overflow="fold")
    for measurement in measurements:
        benchmark = BENCHMARKS[measurement.name]
        reached = met(measurement, measurements)
        cells: list[str | Text] = [
            measurement.name,
            f"{measurement.ns:.1f}",
            f"{measurement.floor_ns:.1f}",
            f"{measurement.ratio:.2f}",
            _target(benchmark),
            Text("yes", "green") if reached else Text("no", "bold red"),
            benchmark.description,
        ]
        table.add_row(*cells[: len(table.columns)])
    return table


def _target(benchmark: Benchmark) -> str:
    parts = [f"{benchmark.target_ns:g} ns"]
    if benchmark.target_ratio is not None:
        parts.append(f"{benchmark.target_ratio:g}x")
    if benchmark.relative is not None:
        parts.append(f"{benchmark.relative[1]:g}x {benchmark.relative[0]}")
    return ", ".join(parts)
