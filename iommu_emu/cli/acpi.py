"""`iommu-emu acpi`: show, check and build the ACPI tables that describe IOMMUs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table as Columns
from rich.text import Text

from iommu_emu import acpi
from iommu_emu.acpi.view import render
from iommu_emu.cli import source
from iommu_emu.cli.console import console

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}

DESCRIPTION = """\
Look into the ACPI tables by which firmware describes IOMMUs: DMAR (Intel VT-d) and IVRS (AMD-Vi).
On Linux they are in /sys/firmware/acpi/tables.
"""
EXIT_CODES = """
exit codes:
  0  done
  1  check found errors
  2  the input cannot be understood; one line on standard error says where and why
"""
EXAMPLES = {
    "acpi": "iommu-emu acpi show laptop-thunderbolt",
    "show": "iommu-emu acpi show /sys/firmware/acpi/tables/DMAR --json",
    "check": "iommu-emu acpi check /sys/firmware/acpi/tables/IVRS",
    "build": "iommu-emu acpi show --toml q35-vtd > my.toml; iommu-emu acpi build my.toml my.bin",
    "list": "iommu-emu acpi list",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `acpi` and its commands; the chosen one is in the argument `run`."""
    parser = _add(subparsers, "acpi", "show, check and build DMAR and IVRS tables", DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    show = _add(commands, "show", "print what is in a table")
    show.add_argument("file", metavar="FILE", help=source.HELP)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="every field, for programs")
    form.add_argument("--toml", action="store_true", help="a description that `build` reads")
    show.add_argument(
        "--ignore-checksum", action="store_true", help="show a table with a wrong checksum"
    )
    show.set_defaults(run=_guard(_show))

    check = _add(
        commands,
        "check",
        "judge a table",
        "List what firmware got wrong: severity, offset, a stable code, the reason and the "
        "section of the specification. Errors mislead software that believes the table; warnings "
        "are against the specification; notes are unusual.",
    )
    check.add_argument("file", metavar="FILE", help=source.HELP)
    check.add_argument("--json", action="store_true", help="a list of findings, for programs")
    check.set_defaults(run=_guard(_check))

    build = _add(
        commands,
        "build",
        "build a table from a description",
        "Build the bytes of a table from a TOML description; lengths and checksum are computed.",
    )
    build.add_argument("description", metavar="DESCRIPTION.toml", help="`-` for standard input")
    build.add_argument("out", metavar="OUT", help="where the bytes go, `-` for standard output")
    build.set_defaults(run=_guard(_build))

    platforms = _add(commands, "list", "list the built-in platforms")
    platforms.set_defaults(run=_guard(_list))


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    description: str = "",
) -> argparse.ArgumentParser:
    return subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {EXAMPLES[name]}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _guard(command: Callable[[Any], int]) -> Callable[[argparse.Namespace], int]:
    """Turn bad input into one line on standard error and exit code 2."""

    def run(args: argparse.Namespace) -> int:
        try:
            return command(args)
        except BrokenPipeError:
            raise
        except (acpi.AcpiError, OSError) as error:
            name = getattr(args, "file", getattr(args, "description", "output"))
            return source.refuse("acpi", name, error)

    return run


def _read(name: str) -> bytes:
    """Return the bytes of a file, standard input, or a built-in platform's table."""
    if source.is_platform(name):
        return acpi.build(acpi.platforms.load(name).table)
    return source.read(name)


def _show(args: argparse.Namespace) -> int:
    table = acpi.parse(_read(args.file), strict=not args.ignore_checksum)
    if args.json:
        print(json.dumps(acpi.to_dict(table), indent=2))
    elif args.toml:
        print(acpi.to_toml(table), end="")
    else:
        console().print(render(table))
    return 0


def _check(args: argparse.Namespace) -> int:
    findings = acpi.check(acpi.parse(_read(args.file), strict=False))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        out = console()
        for finding in findings:
            line = Text(f"{finding.offset:#06x} ").append(
                f"{finding.severity:7}", style=STYLES[finding.severity]
            )
            line.append(f" {finding.code}: {finding.reason} ({finding.section})")
            out.print(line, soft_wrap=True)
        counts = [sum(f.severity == level for f in findings) for level in STYLES]
        out.print("errors {}, warnings {}, notes {}".format(*counts), highlight=False)
    return 1 if any(finding.severity == "error" for finding in findings) else 0


def _build(args: argparse.Namespace) -> int:
    data = (
        sys.stdin.buffer.read() if args.description == "-" else Path(args.description).read_bytes()
    )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise acpi.AcpiError(f"no UTF-8 text: {error.reason}", error.start) from error
    table = acpi.build(acpi.from_toml(text))
    if args.out == "-":
        sys.stdout.buffer.write(table)
    else:
        Path(args.out).write_bytes(table)
    return 0


def _list(args: argparse.Namespace) -> int:
    columns = Columns(box=None, pad_edge=False)
    for heading in ("name", "table", "what it is"):
        columns.add_column(heading)
    for name in acpi.platforms.names():
        platform = acpi.platforms.load(name)
        columns.add_row(name, platform.table.signature, platform.title)
    console().print(columns)
    return 0
