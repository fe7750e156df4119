"""Files that commands write."""

from __future__ import annotations

from pathlib import Path


def require_writable(path: Path) -> None:
    """Raise OSError now if a file cannot be written later; leave no new one behind."""
    new = not path.exists()
    with path.open("ab"):
        pass
    if new:
        path.unlink()
