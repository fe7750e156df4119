"""Scenarios by name, and a user's own from a file."""

from __future__ import annotations

from typing import TypeGuard

from iommu_emu.plugins import Plugins
from iommu_emu.scenarios.scenario import Scenario

__all__ = ["load", "names", "table"]


def _is_scenario(found: object) -> TypeGuard[Scenario]:
    return isinstance(found, Scenario)


_SCENARIOS = Plugins(
    "scenario",
    "iommu_emu.scenarios",
    "SCENARIO",
    "a Scenario",
    _is_scenario,
    machinery=(
        "attempts",
        "expectations",
        "laboratory",
        "platform",
        "registry",
        "result",
        "runner",
        "scenario",
        "workload",
    ),
)


def names() -> tuple[str, ...]:
    """Return the names of all built-in scenarios, sorted."""
    return _SCENARIOS.names


def table() -> list[Scenario]:
    """Return all built-in scenarios, by name."""
    return _SCENARIOS.table()


def load(name: str) -> Scenario:
    """Return a scenario.

    Args:
        name: one of `names()`, or the path of a Python file that defines `SCENARIO`; it is run.

    Raises:
        ValueError: if there is no such scenario, or the file cannot be run or defines none.
        OSError: if the file cannot be read.
    """
    return _SCENARIOS.load(name)
