"""Files that commands write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_writable(path: Path) -> None:
    """Raise OSError now if a file cannot be written later; leave no new one behind."""
    new = not path.exists()
    with path.open("ab"):
        pass
    if new:
        path.unlink()


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Let an OSError say which file it is about: that of a write does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
