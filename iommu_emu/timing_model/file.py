"""Timing models as TOML files.

    title = "my server"
    extends = "linux"  # whatever is not named below is that model's
    clock = 2.4        # GHz; inherited cycles take this clock as well

    [invalidate_page]
    ns = 900
    source = "perf, kernel 6.12"
    certainty = "read"

A number is in `ns` or in `cycles`, and for `copy` and `zero` it is about one byte. Without a
source it is a choice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from iommu_emu.timing import MAX_LATENCY
from iommu_emu.timing_model.model import NUMBERS, Certainty, Number, TimingModel

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

UNITS = ("ns", "cycles")
KEYS = (*UNITS, "source", "certainty")
TEXTS = ("title", "description", "extends")
MIN_CLOCK, MAX_CLOCK = 0.1, 10.0  # GHz

__all__ = ["TimingModelError", "parse"]


class TimingModelError(ValueError):
    """A timing model that cannot be read; the message names file, key, value and limit."""


def parse(text: str, name: str, base: Callable[[str], TimingModel]) -> TimingModel:
    """Read a model.

    Args:
        text: TOML.
        name: of the model, and of the file in messages.
        base: returns the model that `extends` names.

    Raises:
        TimingModelError: if it is no TOML, or a key or value in it is not known.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have too many digits for Python
        reason = str(error) or type(error).__name__
        raise TimingModelError(f"{name}: no TOML: {reason}") from error
    return _Reader(name).model(table, base)


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name

    def error(self, key: str, problem: str) -> TimingModelError:
        return TimingModelError(f"{self.name}: {key}: {problem}")

    def model(self, table: dict[str, Any], base: Callable[[str], TimingModel]) -> TimingModel:
        texts = {key: table.pop(key) for key in TEXTS if key in table}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise self.error(key, f"must be a string, not {value!r}")
        inherited: dict[str, Number] = {}
        clock: Any = 1.0
        if "extends" in texts:
            try:
                extended = base(texts["extends"])
            except ValueError as error:
                raise self.error("extends", str(error)) from error
            inherited, clock = dict(extended.numbers), extended.clock
        clock = self.number("clock", table.pop("clock", clock), MIN_CLOCK, MAX_CLOCK, "GHz")
        for key, value in table.items():
            if key not in NUMBERS:
                known = ", ".join((*TEXTS, "clock", *NUMBERS))
                raise self.error(key, f"unknown; there are {known}")
            inherited[key] = self.priced(key, value)
        return TimingModel(
            name=self.name,
            title=texts.get("title", self.name),
            description=texts.get("description", ""),
            clock=clock,
            numbers=inherited,
        )

    def priced(self, key: str, table: Any) -> Number:
        if not isinstance(table, dict):
            raise self.error(key, f"must be a table such as {{ ns = 100 }}, not {table!r}")
        for name in table:
            if name not in KEYS:
                raise self.error(f"{key}.{name}", f"unknown; there are {', '.join(KEYS)}")
        given = [unit for unit in UNITS if unit in table]
        if len(given) != 1:
            raise self.error(key, "must have either ns or cycles")
        unit = given[0]
        value = self.number(f"{key}.{unit}", table[unit], 0, MAX_LATENCY, unit)
        source = table.get("source", "")
        if not isinstance(source, str):
            raise self.error(f"{key}.source", f"must be a string, not {source!r}")
        certainty = self.certainty(f"{key}.certainty", table.get("certainty", "choice"))
        if certainty is not Certainty.CHOICE and not source:
            raise self.error(key, f"without a source it must be a choice, not {certainty.value}")
        return Number(value, unit, certainty, source)

    def number(self, key: str, value: Any, least: float, most: float, unit: str) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not least <= value <= most:  # nor is NaN
            raise self.error(key, f"must be in {least:g}..{most:g} {unit}, not {value!r}")
        return float(value)

    def certainty(self, key: str, value: Any) -> Certainty:
        for certainty in Certainty:
            if certainty.value == value:
                return certainty
        known = ", ".join(certainty.value for certainty in Certainty)
        raise self.error(key, f"must be one of {known}, not {value!r}")
