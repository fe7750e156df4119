"""`iommu-emu guest`: a real kernel on an emulated IOMMU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from iommu_emu.cli.arguments import seconds
from iommu_emu.cli.console import console, refusal
from iommu_emu.cli.files import require_writable
from iommu_emu.cli.signals import ended_by_signals
from iommu_emu.guest import (
    Broken,
    GuestError,
    Options,
    Session,
    break_mapping,
    choose_kernel,
)
from iommu_emu.guest.break_mapping import PHASES as BREAK_PHASES
from iommu_emu.guest.check import LAZY, POLICIES, STRICT
from iommu_emu.guest.console import Line
from iommu_emu.guest.session import PHASES
from iommu_emu.pci.address import format_requester
from iommu_emu.qemu import KERNELS, NotAvailable, PackageError, QemuError, find_kernel
from iommu_emu.recording import RecordingError
from iommu_emu.vtd.presets import PRESETS

DEFAULT_KERNEL = "trixie"

DESCRIPTION = """\
Runs an unmodified Linux kernel in QEMU, on an IOMMU of ours. The kernel finds it in an ACPI table
of ours and drives what is behind it: two NVMe disks and a device that does what it wants.
"""
LINUX = """\
Boots Linux in QEMU (software emulation, no root, no /dev/kvm) on an emulated VT-d unit, and checks
inside the guest:
  - the disk: reads and writes with checksums, flush; unbind and bind of the driver
  - a second disk, unplugged and plugged in again while the guest runs
  - DMA to addresses that nobody mapped: what the kernel prints is held against what we recorded
  - a device claimed for user space through VFIO: its buffer mapped, used, unmapped, used again
  - the window of deferred invalidation: a device that keeps using what was unmapped
The report shows what the guest's kernel said beside what the emulator saw. It takes 5 to 15 s.

Interrupt remapping stays off: the guest's I/O APIC is QEMU's and not behind our unit.

The kernel: Linux 4.15 or later with a serial console, INTEL_IOMMU and an initial RAM disk built in,
NVMe built in or as a module. Without VFIO, that part is "not run" and the rest is checked.

policies:
  strict       an unmapped page is flushed from the IOTLB at once (iommu.strict=1)
  lazy         within 10 ms, all together (iommu.strict=0); Debian's default
  passthrough  nothing is translated for the kernel's own drivers (iommu=pt): no faults there
"""
EXAMPLES = """\
examples:
  iommu-emu guest linux --break                 break a mapping, see the kernel's own message
  iommu-emu guest linux                         Linux 6.12, strict
  iommu-emu guest linux --kernel bookworm --policy lazy
  iommu-emu guest linux --kernel /boot/vmlinuz-$(uname -r) --console
  iommu-emu guest linux --kernel ./bzImage --modules ./lib/modules/7.2.0 --json report.json

exit codes: 0 every check passed; 1 one failed; 2 nothing was checked, and why
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `guest`."""
    parser = subparsers.add_parser(
        "guest",
        help="a real kernel on an emulated IOMMU, in QEMU",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_linux(commands)
    listing = commands.add_parser(
        "list",
        help="kernels that can be named",
        description="Lists the kernels that `guest linux --kernel` knows by name.",
    )
    listing.add_argument("--json", action="store_true", help="the list, for programs")
    listing.set_defaults(run=list_kernels)


def _add_linux(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    linux = commands.add_parser(
        "linux",
        help="boot Linux and check it",
        description=LINUX,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    linux.add_argument("--iommu", choices=("vtd",), default="vtd", help="default: vtd")
    linux.add_argument(
        "--kernel",
        metavar="KERNEL",
        default=DEFAULT_KERNEL,
        help=f"{', '.join(KERNELS)}, or the path of a bzImage (default: {DEFAULT_KERNEL})",
    )
    linux.add_argument(
        "--modules",
        metavar="DIR",
        type=Path,
        help="lib/modules/VERSION of a kernel given by path (default: found beside it)",
    )
    linux.add_argument(
        "--policy",
        choices=POLICIES,
        help=f"when unmapped pages are flushed (default: {STRICT}; with --break {LAZY})",
    )
    linux.add_argument(
        "--append", metavar="WORDS", default="", help="more of the kernel's command line"
    )
    linux.add_argument(
        "--unit",
        metavar="PRESET",
        default="default",
        choices=PRESETS,
        help=f"the IOMMU: {', '.join(PRESETS)} (default: default)",
    )
    linux.add_argument(
        "--break",
        dest="broken",
        action="store_true",
        help="instead of the check: break a live mapping, and show the kernel's fault message",
    )
    linux.add_argument("--json", metavar="FILE", help="the whole report, `-` for standard output")
    linux.add_argument("--record", metavar="FILE", type=Path, help="record the run, for `replay`")
    linux.add_argument("--console", action="store_true", help="show the guest's console live")
    linux.add_argument("--keep-log", metavar="FILE", type=Path, help="write the console to a file")
    linux.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=90.0,
        help="how long each phase may take (default: 90)",
    )
    linux.set_defaults(run=run_linux)


def run_linux(arguments: argparse.Namespace) -> int:
    """Run a guest; returns the exit code."""
    session: Session | None = None
    try:
        if arguments.json and arguments.json != "-":
            require_writable(Path(arguments.json))
        with ended_by_signals(), _shown(arguments) as (progress, on_line):
            session = Session(_options(arguments), progress, on_line)
            result = break_mapping(session) if arguments.broken else session.run()
        if arguments.json:
            _write_json(arguments.json, result.plain())
        if arguments.json != "-":
            shown = story(result) if isinstance(result, Broken) else result.render()
            console().print(shown)
        return 0 if result.ok else 1
    except BrokenPipeError:
        raise
    except (GuestError, NotAvailable, PackageError, QemuError, RecordingError) as error:
        print(f"iommu-emu guest: {error}", file=sys.stderr)
        if arguments.json and session is not None:
            _write_json(arguments.json, {"ok": False, "error": str(error), **session.plain()})
        return 2
    except OSError as error:
        print(f"iommu-emu guest: {refusal(error)}", file=sys.stderr)
        return 2


def _options(arguments: argparse.Namespace) -> Options:
    """Return what is to be run.

    Raises:
        GuestError: if it cannot be meant.
        NotAvailable: if the kernel is not in the cache.
    """
    policy = arguments.policy or (LAZY if arguments.broken else STRICT)
    if arguments.broken and policy != LAZY:
        raise GuestError(
            f"--break waits for the kernel to flush the domain: with --policy {LAZY} alone"
        )
    return Options(
        kernel=choose_kernel(arguments.kernel, arguments.modules),
        policy=policy,
        append=arguments.append,
        preset=arguments.unit,
        patience=arguments.timeout,
        record=arguments.record,
        phases=BREAK_PHASES if arguments.broken else PHASES,
    )


def list_kernels(arguments: argparse.Namespace) -> int:
    """List the kernels that have a name; returns the exit code."""
    kernels = [_described(name) for name in KERNELS]
    if arguments.json:
        print(json.dumps(kernels, indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "release", "state"):
        table.add_column(heading)
    for kernel in kernels:
        state = "in the cache" if kernel["image"] else f"run `iommu-emu fetch {kernel['name']}`"
        table.add_row(kernel["name"], kernel["release"] or "", state)
    console().print(table)
    return 0


def _described(name: str) -> dict[str, str | None]:
    try:
        kernel = find_kernel(name)
    except NotAvailable:
        return {"name": name, "release": None, "image": None}
    return {"name": name, "release": kernel.release, "image": str(kernel.image)}


def story(broken: Broken) -> Text:
    """Tell what `--break` did, in a dozen lines."""
    seen, disk = broken.seen, format_requester(broken.requester)
    text = Text()
    text.append(
        f"Linux {broken.versions.kernel} reads from its disk through our IOMMU.\n\n", "bold"
    )
    text.append("  we break   ", "cyan")
    text.append(
        f"the page table entry at {broken.entry:#x}, behind the disk's queue at IOVA"
        f" {broken.address:#x}:\n             {broken.before:#018x} becomes {broken.after:#018x},"
        " not present; the kernel does not know\n"
    )
    later = f"{broken.lasted_ms:.1f} ms later"
    if broken.stale_uses:
        times = "once" if broken.stale_uses == 1 else f"{broken.stale_uses} times"
        text.append("  and yet    ", "cyan")
        text.append(
            f"the disk gets through {times} more: the IOTLB still has it,"
            f" until the kernel's\n             next flush {later}\n\n"
        )
    else:
        text.append("  and then   ", "cyan")
        text.append(f"the disk's next fetch, {later}, finds no page\n\n")
    text.append("  Linux      ", "bold cyan")
    text.append(f"{broken.said.text}\n", "bold red")
    text.append("  iommu-emu  ", "bold cyan")
    text.append(
        f"{disk} {(seen.access.name or '').lower()} of {seen.address:#x}: fault {seen.code:#04x}"
        f" {seen.cause.name}, {seen.cause.condition} (VT-d {seen.cause.section})\n\n"
    )
    verdict = "Both name the same device, page and reason." if broken.ok else "They DISAGREE."
    text.append(verdict, "green" if broken.ok else "bold red")
    return text


# Around a run.


def _write_json(name: str, report: dict[str, Any]) -> None:
    text = json.dumps(report, indent=2)
    if name == "-":
        print(text)
    else:
        Path(name).write_text(text + "\n")


@contextmanager
def _shown(
    arguments: argparse.Namespace,
) -> Iterator[tuple[Callable[[str, float], None], Callable[[Line], None]]]:
    """Show progress and console on standard error, and keep the log."""
    terminal = Terminal(stderr=True, highlight=False)
    log: TextIO | None = None
    last = ""

    def on_line(line: Line) -> None:
        stamp = "" if line.time is None else f"[{line.time:12.6f}] "
        if arguments.console:
            terminal.print(Text(stamp + line.text), soft_wrap=True)
        if log is not None:
            log.write(f"{stamp}{line.text}\n")

    with terminal.status("starting") as status:

        def progress(what: str, seconds: float) -> None:
            nonlocal last
            if terminal.is_terminal:
                status.update(f"{what} {seconds:.0f} s")
            elif what != last:
                terminal.print(what)
            last = what

        if arguments.keep_log is None:
            yield progress, on_line
            return
        with arguments.keep_log.open("w") as log:
            yield progress, on_line
