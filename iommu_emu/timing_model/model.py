"""What a timing model is: numbers with sources, and what the emulator makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from iommu_emu.meter import Work
from iommu_emu.timing import Timing

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["NUMBERS", "Certainty", "Number", "Row", "TimingModel"]

NUMBERS: dict[str, str] = {
    **{work.value: work.about for work in Work},
    "fabric": "a request's way from the device to the IOMMU",
    "memory": "from there to memory, and the completion's way back",
    "iotlb_miss": "a page walk that a request waits for",
    "device_tlb_timeout": "until a device-TLB's invalidation counts as lost",
    "packet": "everything else that a packet takes of a CPU",
    "block": "everything else that a block read takes of a CPU",
}
"""The numbers that a model has, and what each is about."""


class Certainty(Enum):
    """How sure a number is."""

    READ = "read"  # in the source that is named
    SECOND_HAND = "second-hand"  # in somebody's account of that source
    UNCHECKED = "unchecked"  # from memory of that source: look it up before relying on it
    CHOICE = "choice"  # nobody measured it


@dataclass(frozen=True)
class Number:
    """One number of a model.

    Attributes:
        value: in `unit`, 0 or more.
        unit: "ns" or "cycles".
        certainty: how sure it is.
        source: where it comes from, or why it was chosen.
    """

    value: float
    unit: str = "ns"
    certainty: Certainty = Certainty.CHOICE
    source: str = ""


_ZERO = Number(0)


class Row(NamedTuple):
    """A number as a table shows it.

    Attributes:
        name: of `NUMBERS`.
        about: what it is about.
        given: as it stands in the file, for example "92 cycles".
        ns: the same in nanoseconds.
        certainty: how sure it is; a value of `Certainty`.
        source: where it comes from, or why it was chosen.
    """

    name: str
    about: str
    given: str
    ns: float
    certainty: str
    source: str


@dataclass(frozen=True, eq=False)
class TimingModel:
    """Prices of work and latencies of hardware, by name; made by `load` or `parse`.

    Attributes:
        name: of the preset, or the file's path.
        title: one line for people.
        description: what it stands for.
        clock: of the CPUs, GHz; it makes time of cycles.
        numbers: by the names of `NUMBERS`; what is missing takes no time.
    """

    name: str
    title: str
    description: str = ""
    clock: float = 1.0
    numbers: Mapping[str, Number] = field(default_factory=dict)
    _prices: dict[Work, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._prices.update({work: self.ns(work.value) for work in Work})

    def __repr__(self) -> str:
        return f"<TimingModel {self.name}>"

    def ns(self, name: str) -> float:
        """Return a number in ns.

        Raises:
            KeyError: if no model has a number of this name.
        """
        if name not in NUMBERS:
            raise KeyError(name)
        number = self.numbers.get(name, _ZERO)
        return number.value / self.clock if number.unit == "cycles" else number.value

    def price(self, work: Work) -> float:
        """Return what a piece of work takes, ns."""
        return self._prices[work]

    def unit_timing(self) -> Timing:
        """Return the latencies of a unit's invalidation machine.

        The machine knows one latency for all invalidations, which is that of a page.
        """
        return Timing(
            invalidation=round(self.price(Work.INVALIDATE_PAGE)), wait=round(self.price(Work.WAIT))
        )

    def set_up(self, machine: Machine) -> None:
        """Give the units of a machine, and the ports that it has now, their latencies."""
        for unit in machine.units:
            unit.set_timing(self.unit_timing())
        for port in machine.ports:
            port.set_latency(round(self.ns("fabric")), round(self.ns("memory")))

    def rows(self) -> list[Row]:
        """Return every number, in the order of `NUMBERS`."""
        return [self._row(name, self.numbers.get(name, _ZERO)) for name in NUMBERS]

    def _row(self, name: str, number: Number) -> Row:
        given = f"{number.value:,.12g} {number.unit}"
        return Row(name, NUMBERS[name], given, self.ns(name), number.certainty.value, number.source)
