"""Timing models by name, and a user's own from a file."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from iommu_emu.plugins import did_you_mean
from iommu_emu.timing_model.file import TimingModelError, parse
from iommu_emu.timing_model.model import TimingModel

DEFAULT = "linux"
MAX_SIZE = 1 << 20  # bytes of a file

__all__ = ["DEFAULT", "load", "names"]


@cache
def names() -> tuple[str, ...]:
    """Return the names of all built-in models, sorted."""
    files = (resources.files("iommu_emu.timing_model") / "presets").iterdir()
    return tuple(sorted(file.name[:-5] for file in files if file.name.endswith(".toml")))


def load(name: str = DEFAULT) -> TimingModel:
    """Return a timing model.

    Args:
        name: one of `names()`, or the path of a TOML file, which ends in ".toml".

    Raises:
        TimingModelError: if there is no such model, or the file is none.
        OSError: if the file cannot be read.
    """
    if name.endswith(".toml"):
        return parse(_read(Path(name)), name, _preset)
    return _preset(name)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise TimingModelError(f"{path}: must have at most {MAX_SIZE} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TimingModelError(f"{path}: no TOML: {error}") from error


@cache
def _preset(name: str) -> TimingModel:
    if name not in names():
        hint = did_you_mean(name, names()) or ", or a file ending in .toml"
        raise TimingModelError(
            f"timing model must be one of {', '.join(names())}, not {name!r}{hint}"
        )
    file = resources.files("iommu_emu.timing_model") / "presets" / f"{name}.toml"
    return parse(file.read_text("utf-8"), name, _preset)
