"""Where the table that a command works on comes from, and how bad input is reported."""

from __future__ import annotations

import sys
from pathlib import Path

from iommu_emu.acpi import AcpiError, platforms
from iommu_emu.cli.console import refusal

HELP = "a DMAR or IVRS file, `-` for standard input, or a built-in platform (`acpi list`)"


def is_platform(name: str) -> bool:
    """Whether a name means a built-in platform; a file of that name comes first."""
    return name in platforms.names() and not Path(name).exists()


def read(name: str) -> bytes:
    """Return the bytes of a file or of standard input.

    Raises:
        AcpiError: if there is no such file.
        OSError: if it cannot be read.
    """
    if name == "-":
        return sys.stdin.buffer.read()
    if not name or not Path(name).exists():
        raise AcpiError("neither a file nor a built-in platform (see `iommu-emu acpi list`)")
    return Path(name).read_bytes()


def refuse(command: str, name: str, error: Exception) -> int:
    """Report bad input as one line on standard error; returns the exit code."""
    text = refusal(error, name) if isinstance(error, OSError) else f"{name}: {error}"
    print(f"iommu-emu {command}: {' '.join(text.split())}", file=sys.stderr)
    return 2
