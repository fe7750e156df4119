"""`iommu-emu replay`: play a recording again, and read what is in it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iommu_emu import __version__
from iommu_emu.cli.console import console, refusal
from iommu_emu.core import CoreUnit
from iommu_emu.recording import Recording, RecordingError, Replay, describe, read, replay
from iommu_emu.recording.describe import describe_one

_IDENTITY = ("base", "cap", "ecap", "efr", "major")
CONTEXT = 8  # records shown in front of a divergence

DESCRIPTION = """\
Plays a recording (of `iommu-emu guest`, `serve` or `qtest` with --record, or of a Python program)
on the emulator as it is now, without guest, QEMU or memory contents: what the unit read then is
given to it again, and everything that it does is compared: register values, translations, faults,
stores, messages, completions.

It prints what the recording holds and whether all of it came out again; if not, the first record
that did not, and what came instead. --show prints the records themselves: each register access
with its fields, each table entry, descriptor and command that the unit read, each fault with its
reason. Effects are indented below the call that caused them.

examples:
  iommu-emu replay boot.iemu
  iommu-emu replay boot.iemu --show 100..160
  iommu-emu replay boot.iemu --show .. | grep -i fault
  iommu-emu replay boot.iemu --stop-at 5000 --json

exit codes: 0 everything came out again; 1 it did not; 2 no recording, or a damaged one
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `replay`."""
    parser = subparsers.add_parser(
        "replay",
        help="play a recording again, and read what is in it",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="the recording")
    parser.add_argument("--json", action="store_true", help="the result, for programs")
    parser.add_argument(
        "--stop-at",
        type=int,
        metavar="N",
        help="play the records in front of record N only (default: all)",
    )
    parser.add_argument(
        "--show",
        type=positions,
        metavar="FROM..TO",
        help='print these records, the first is 0: "100..160", "100..", "..50", "100"',
    )
    parser.set_defaults(run=run)


def positions(text: str) -> tuple[int, int | None]:
    """Parse a range of records; argparse names this function in its message."""
    first, dots, last = text.partition("..")
    try:
        start = int(first) if first else 0
        end = (int(last) if last else None) if dots else start
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like 100..160, not {text!r}") from None
    if not text or start < 0 or (end is not None and end < start):
        raise argparse.ArgumentTypeError(f"must be a range that ascends from 0, not {text!r}")
    return start, end


def run(arguments: argparse.Namespace) -> int:
    """Play, print; returns the exit code."""
    try:
        with Console(stderr=True).status("reading the recording"):
            recording = read(arguments.file)
            outcome = replay(recording, stop_at=arguments.stop_at)
    except OSError as error:
        print(f"iommu-emu replay: {refusal(error)}", file=sys.stderr)
        return 2
    except RecordingError as error:
        print(f"iommu-emu replay: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"iommu-emu replay: {error} (--stop-at)", file=sys.stderr)
        return 2
    shown = iter(()) if arguments.show is None else _shown(outcome, *arguments.show)
    if arguments.json:
        plain = _plain(outcome)
        if arguments.show is not None:
            plain["shown"] = [line.strip() for line in shown]
        print(json.dumps(plain, indent=2))
    elif arguments.show is not None:
        for line in shown:
            print(line)
    else:
        _print_summary(recording, outcome)
    if not arguments.json:
        _print_result(outcome)
    return 0 if outcome.same else 1


def _shown(outcome: Replay, first: int, last: int | None) -> Iterator[str]:
    return describe(outcome.recording, outcome.machine.units, first, last)


def _plain(outcome: Replay) -> dict[str, Any]:
    """Return the result as `--json` prints it."""
    recording, divergence = outcome.recording, outcome.divergence
    result: dict[str, Any] = {
        "iommu_emu": __version__,
        "recorded_by": recording.version,
        "notes": recording.notes,
        "records": len(recording),
        "end": recording.end,
        "duration_ns": recording.duration,
        "counts": recording.counts(),
        "units": recording.units(),
        "same": outcome.same,
        "position": outcome.position,
        "counters": outcome.counters(),
    }
    if divergence is not None:
        units = outcome.machine.units
        result["divergence"] = {
            "position": divergence.position,
            "expected": _one(divergence.expected, units),
            "got": _one(divergence.got, units),
        }
    return result


def _one(records: NDArray[Any], units: Sequence[CoreUnit]) -> str | None:
    """Return the record as a line; None if there is none."""
    return describe_one(records, units) if len(records) else None


def _print_summary(recording: Recording, outcome: Replay) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("recorded by", _plain_text(f"iommu-emu {recording.version}"))
    for name, note in recording.notes.items():
        table.add_row(_plain_text(name), _plain_text(note))
    ended = "" if recording.end == "closed" else f", ended by its {recording.end}"
    seconds = f"{recording.duration / 1e9:.6f} s of virtual time"
    table.add_row("records", f"{len(recording)}, {seconds}{ended}")
    for name, count in recording.counts().items():
        table.add_row(f"  {name.replace('_', ' ')}", str(count))
    for number, config in enumerate(recording.units()):
        shown = (f"{name} {config[name]:#x}" for name in _IDENTITY if name in config)
        table.add_row(f"unit {number}", f"{config['vendor']}, {', '.join(shown)}")
    for unit, counters in zip(outcome.machine.units, outcome.counters(), strict=True):
        counted = ", ".join(f"{name} {value}" for name, value in counters.items() if value)
        table.add_row(f"  counted {unit.number}", counted or "nothing")
    console().print(table)


def _print_result(outcome: Replay) -> None:
    divergence, total = outcome.divergence, len(outcome.recording)
    if divergence is None:
        played = f"all {total}" if outcome.position == total else f"the first {outcome.position}"
        print(f"replayed: {played} records came out again")
        return
    units, position = outcome.machine.units, divergence.position
    print(f"diverged at record {position} of {total}; before it:")
    for line in _shown(outcome, max(0, position - CONTEXT), position - 1):
        print(line)
    print(f"recorded:  {_one(divergence.expected, units) or 'nothing more'}")
    print(f"replayed:  {_one(divergence.got, units) or 'nothing: the call ended'}")
    if outcome.recording.version != __version__:
        by = _plain_text(outcome.recording.version)
        print(f"recorded by iommu-emu {by}, this is {__version__}: it may have changed")


def _plain_text(value: object) -> Text:
    """Return what a file says as text that no terminal takes for commands."""
    return Text("".join(c if c.isprintable() else "?" for c in str(value)))
