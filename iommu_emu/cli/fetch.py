"""`iommu-emu fetch`: QEMU and kernels into the per-user cache."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

from iommu_emu.cli.console import console, refusal
from iommu_emu.cli.signals import ended_by_signals
from iommu_emu.qemu import COMPONENTS, cache, errors, find
from iommu_emu.qemu.apt import OnProgress

OLDEST = ".".join(map(str, find.OLDEST[:2]))

DESCRIPTION = f"""\
Puts QEMU and Linux kernels into a per-user cache, from Debian's signed packages: what live
guests and the tests against a real QEMU need. No root is needed, nothing is installed, every
checkout of this user shares it. It takes about a minute, once; without --update, what is there
already is left as it is.

components (default: all of them):
{chr(10).join(f"  {each.name:17} {each.title}" for each in COMPONENTS.values())}

where things are:
  $XDG_CACHE_HOME/iommu-emu or ~/.cache/iommu-emu; remove the folder to be rid of it all

environment:
  IOMMU_EMU_QEMU           a QEMU {OLDEST} or later to use instead; then comes
                           a recent qemu-system-x86_64 on PATH, and last the cache's
  IOMMU_EMU_DEBIAN_MIRROR  where packages come from (default: http://deb.debian.org/debian)
  http_proxy               and apt's own proxy settings are used as well

examples:
  iommu-emu fetch                       everything
  iommu-emu fetch qemu                  what differential tests need
  iommu-emu fetch trixie --update       look for a newer Linux 6.12
  iommu-emu fetch --list                what is there, and which QEMU runs use

exit codes: 0 done; 1 not fetched, and why; 2 no such component
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `fetch`."""
    parser = subparsers.add_parser(
        "fetch",
        help="QEMU and kernels for live guests, into the cache",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "components",
        nargs="*",
        metavar="COMPONENT",
        help=f"{', '.join(COMPONENTS)} (default: all)",
    )
    parser.add_argument("--list", action="store_true", help="fetch nothing, say what is there")
    parser.add_argument("--update", action="store_true", help="look for newer packages as well")
    parser.add_argument("--json", action="store_true", help="the result, for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fetch or list; returns the exit code."""
    names = list(dict.fromkeys(arguments.components or COMPONENTS))
    try:
        for name in names:
            cache.component_named(name)
    except ValueError as error:
        print(f"iommu-emu fetch: {error}", file=sys.stderr)
        return 2
    if not arguments.list:
        try:
            with ended_by_signals(), _shown() as progress:
                cache.fetch(names, update=arguments.update, progress=progress)
        except errors.Unreachable as error:
            print(f"iommu-emu fetch: not run: {error}", file=sys.stderr)
            return 1
        except errors.PackageError as error:
            print(f"iommu-emu fetch: {error}", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"iommu-emu fetch: {refusal(error)}", file=sys.stderr)
            return 1
    _report(names, as_json=arguments.json)
    return 0


@contextlib.contextmanager
def _shown() -> Iterator[OnProgress]:
    """Show progress on standard error: a bar on a terminal, else a line a step."""
    out = Console(stderr=True, highlight=False)
    if not out.is_terminal:
        last = ""

        def line(what: str, done: float | None) -> None:
            nonlocal last
            if what != last:
                out.print(what, soft_wrap=True)
                last = what

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=out, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def bar(what: str, done: float | None) -> None:
            bars.update(task, description=what, total=None if done is None else 1.0)
            bars.update(task, completed=done or 0.0)

        yield bar


def _report(names: list[str], *, as_json: bool) -> None:
    present = {}
    for name in names:
        with contextlib.suppress(errors.NotAvailable):
            present[name] = cache.read_manifest(name)
    if as_json:
        components = {
            name: {
                "version": find.component_version(name),
                "mirror": manifest.mirror,
                "fetched": manifest.fetched,
                "bytes": manifest.size,
                "packages": {package.name: package.version for package in manifest.packages},
            }
            for name, manifest in present.items()
        }
        folder = str(cache.cache_folder())
        report = {"folder": folder, "qemu_in_use": _qemu_in_use(), "components": components}
        print(json.dumps(report, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("component", "what", "version", "fetched"):
        table.add_column(heading, overflow="fold")
    table.add_column("MiB", justify="right")
    for name in names:
        component = COMPONENTS[name]
        if name in present:
            manifest = present[name]
            version = find.component_version(name)
            cells = (version, manifest.fetched[:10], f"{manifest.size / 2**20:.0f}")
        else:
            cells = ("-", "no", f"({component.download_mib} to load)")
        table.add_row(name, component.title, *cells)
    out = console()
    out.print(table)
    out.print(f"folder: {cache.cache_folder()}", soft_wrap=True)
    out.print(f"QEMU in use: {_qemu_in_use() or 'none'}", soft_wrap=True)


def _qemu_in_use() -> str | None:
    """Return the QEMU that runs of now would use, and where it comes from."""
    try:
        return find.versions().get("qemu")
    except errors.QemuError as error:
        return str(error)
