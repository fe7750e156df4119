"""The command `iommu-emu`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from iommu_emu import __version__

COMMANDS = (
    "demo",
    "acpi",
    "bench",
    "diff",
    "fetch",
    "guest",
    "qtest",
    "replay",
    "scenario",
    "serve",
)  # modules of iommu_emu.cli

DESCRIPTION = """\
A register-level, hardware-accurate emulator of Intel VT-d and AMD-Vi.

  iommu-emu demo                        see an IOMMU at work, and a driver's mistake caught
  iommu-emu acpi show q35-vtd           read a DMAR or IVRS table, from a file or built in
  iommu-emu acpi check FILE             what is odd in a firmware's table
  iommu-emu bench                       what a translation costs here, beside its floor
  iommu-emu diff                        the same programs on a real QEMU and on ours
  iommu-emu fetch                       QEMU and kernels for live guests, into the cache
  iommu-emu guest linux                 a real kernel on an emulated IOMMU, in QEMU
  iommu-emu qtest -machine q35 ...      a machine for QEMU's own tests, as QEMU offers it
  iommu-emu replay FILE                 play a recorded run again, and read what is in it
  iommu-emu scenario list               protection policies of kernels against attacks by devices
  iommu-emu serve --unit 0=unit.sock    an IOMMU and devices of ours in a QEMU of yours
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 findings, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog="iommu-emu",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"iommu-emu {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    words = sys.argv[1:] if arguments is None else arguments
    # Only the module of the command is imported: each brings what takes a while to load.
    named = [word for word in words[:1] if word in COMMANDS]
    for name in named or COMMANDS:
        import_module(f"iommu_emu.cli.{name}").add_parser(commands)
    chosen = parser.parse_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without our arrows gets a "?"
    try:
        return int(chosen.run(chosen))
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        with contextlib.suppress(io.UnsupportedOperation), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what is written at the exit
        return 0
    except KeyboardInterrupt:
        print("iommu-emu: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
