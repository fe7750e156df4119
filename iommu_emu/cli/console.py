"""The terminal that commands print on, and how they say what the system refused."""

from __future__ import annotations

import os

from rich.console import Console

PIPED_WIDTH = 160  # columns of output that another program reads: one line a record


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave a reader that has seen enough to `main`: rich would exit with 1, "findings"."""
        raise BrokenPipeError


def console() -> Console:
    """Return standard output for tables and trees: as wide as the terminal, or COLUMNS.

    Words in brackets are shown as they are: a name or a log may have some.
    """
    out = _Output(highlight=False, markup=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = PIPED_WIDTH
    return out


def refusal(error: OSError, name: str = "") -> str:
    """Return what the system said as "FILE: reason", without Python's error number.

    Args:
        error: what it refused.
        name: of what was worked on, where the error names no file.
    """
    about = error.filename or name
    return f"{about}: {error.strerror or error}" if about else str(error.strerror or error)
