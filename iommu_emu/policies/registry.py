"""Policies by name, and a user's own from a file."""

from __future__ import annotations

from typing import TypeGuard

from iommu_emu.plugins import Plugins
from iommu_emu.policies.policy import Policy

__all__ = ["load", "names", "table"]


def _is_policy(found: object) -> TypeGuard[Policy]:
    return isinstance(found, Policy)


_POLICIES = Plugins(
    "policy",
    "iommu_emu.policies",
    "POLICY",
    "a LinuxPolicy or XenPolicy",
    _is_policy,
    machinery=("policy", "registry"),
)


def names() -> tuple[str, ...]:
    """Return the names of all built-in policies, sorted."""
    return _POLICIES.names


def table() -> list[Policy]:
    """Return all built-in policies, by name."""
    return _POLICIES.table()


def load(name: str) -> Policy:
    """Return a policy.

    Args:
        name: one of `names()`, or the path of a Python file that defines `POLICY`; it is run.

    Raises:
        ValueError: if there is no such policy, or the file cannot be run or defines none.
        OSError: if the file cannot be read.
    """
    return _POLICIES.load(name)
