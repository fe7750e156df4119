"""What each policy must do to each attack: one truth, in expectations.toml, for all who ask.

    [linux-lazy]
    read-after-unmap = { leaked = 2048, window = 10_500_000 }
    write-before-map = "blocked"
    quarantined-read = { leaked = 64, window = "forever", amdvi = { leaked = 0 } }

An attack is `"blocked"`, or a table of what it gets; what is not named in it is 0:

    leaked, corrupted   bytes, exactly
    window              ns of virtual time at most, and more than none; or "forever", or
                        "bounded": it ends, no matter when
    dmas                accesses that get through, at most; not named: any number
    hung                true: the host stops
    refused             part of the reason for which the system does not do it
    vtd, amdvi          a table of what differs on that vendor's IOMMU
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from iommu_emu.scenarios.result import FOREVER, Outcome, Row

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

__all__ = ["Expectation", "Expectations", "built_in", "check", "parse"]

_VENDORS = ("vtd", "amdvi")
_WINDOWS = ("forever", "bounded")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What an attack gets; see the module's text.

    Attributes:
        leaked: bytes, exactly.
        corrupted: bytes, exactly.
        window: ns at most, and not 0 unless this is; or "forever" or "bounded".
        dmas: accesses that get through, at most; None: any number.
        hung: whether the host stops.
        refused: part of the reason for which the system does not do it; "": it does.
    """

    leaked: int = 0
    corrupted: int = 0
    window: int | str = 0
    dmas: int | None = None
    hung: bool = False
    refused: str = ""

    @property
    def blocked(self) -> bool:
        """Whether the attacker gets nothing."""
        return not (self.leaked or self.corrupted or self.hung)

    def __str__(self) -> str:
        """Return it in a few words."""
        if self.hung:
            return "the host hangs"
        parts = [f"refused: {self.refused}"] if self.refused else []
        parts += [
            f"{count} bytes {what}"
            for count, what in ((self.leaked, "leaked"), (self.corrupted, "corrupted"))
            if count
        ]
        return ", ".join(parts) or "blocked"

    def deviations(self, row: Row) -> list[str]:
        """Return in words how a row differs; nothing if it is as expected."""
        outcome = row.outcome
        found = [
            f"{name} {got}, not {wanted}"
            for name, got, wanted in (
                ("leaked", outcome.leaked, self.leaked),
                ("corrupted", outcome.corrupted, self.corrupted),
                ("hung", outcome.hung, self.hung),
            )
            if got != wanted
        ]
        found += self._window(outcome)
        if self.dmas is not None and outcome.dmas > self.dmas:
            found.append(f"{outcome.dmas} accesses got through, not {self.dmas} at most")
        if self.refused and self.refused not in row.refused:
            found.append(f"refused for {row.refused!r}, not for {self.refused!r}")
        if row.refused and not self.refused:
            found.append(f"refused: {row.refused}")
        return found

    def _window(self, outcome: Outcome) -> list[str]:
        got = "forever" if outcome.window == FOREVER else f"{outcome.window} ns"
        if isinstance(self.window, int):
            fits = min(self.window, 1) <= outcome.window <= self.window
            wanted = f"at most {self.window} ns"
        else:
            fits = (outcome.window == FOREVER) is (self.window == "forever")
            wanted = self.window
        return [] if fits else [f"window {got}, not {wanted}"]


class Expectations:
    """What is expected, by policy and attack.

    Args:
        table: by vendor, policy and attack.
    """

    def __init__(self, table: Mapping[tuple[str, str, str], Expectation]) -> None:
        self._table = dict(table)

    def of(self, policy: str, attack: str, iommu: str) -> Expectation | None:
        """Return what is expected; None: nothing is."""
        return self._table.get((iommu, policy, attack))

    def pairs(self) -> list[tuple[str, str]]:
        """Return every policy and attack that something is expected of, sorted."""
        return sorted({(policy, attack) for _, policy, attack in self._table})


def parse(text: str) -> Expectations:
    """Read a file of expectations.

    Raises:
        ValueError: if it is none; the message names the policy, attack and key.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"no TOML: {error}") from error
    table = {}
    for policy, attacks in document.items():
        if not isinstance(attacks, dict):
            raise ValueError(f"{policy}: must be a table of attacks, not {attacks!r}")
        for attack, value in attacks.items():
            for iommu in _VENDORS:
                try:
                    table[iommu, policy, attack] = _expectation(value, iommu)
                except ValueError as error:
                    raise ValueError(f"{policy}.{attack}: {error}") from None
    return Expectations(table)


@cache
def built_in() -> Expectations:
    """Return the expectations of the built-in policies."""
    return parse((files("iommu_emu.scenarios") / "expectations.toml").read_text(encoding="utf-8"))


def check(row: Row, iommu: str, expectations: Expectations | None = None) -> list[str]:
    """Return in words how a row differs from what is expected; nothing if it does not.

    Args:
        row: what happened.
        iommu: "vtd" or "amdvi".
        expectations: whose; None: the built-in ones.
    """
    expected = (expectations or built_in()).of(row.policy, row.attack, iommu)
    if expected is None:
        return ["expectations.toml says nothing about it"]
    return expected.deviations(row)


def _expectation(value: Any, iommu: str) -> Expectation:
    if value == "blocked":
        return Expectation()
    if not isinstance(value, dict):
        raise ValueError(f'must be "blocked" or a table, not {value!r}')
    common = {key: item for key, item in value.items() if key not in _VENDORS}
    special = value.get(iommu, {})
    if special == "blocked":
        return Expectation()
    if not isinstance(special, dict):
        raise ValueError(f'{iommu} must be "blocked" or a table, not {special!r}')
    keys = {**common, **special}
    for key, item in keys.items():
        _check(key, item)
    return Expectation(**keys)


def _check(key: str, value: Any) -> None:
    known = [field.name for field in fields(Expectation)]
    if key not in known:
        raise ValueError(f"key must be one of {', '.join((*known, *_VENDORS))}, not {key!r}")
    if key == "refused":
        if not isinstance(value, str) or not value:
            raise ValueError(f"refused must be a part of the reason, not {value!r}")
    elif key == "hung":
        if not isinstance(value, bool):
            raise ValueError(f"hung must be true or false, not {value!r}")
    elif key == "window" and isinstance(value, str):
        if value not in _WINDOWS:
            raise ValueError(f'window must be ns, "forever" or "bounded", not {value!r}')
    elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} must be a whole number of at least 0, not {value!r}")
