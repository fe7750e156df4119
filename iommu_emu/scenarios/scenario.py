"""What a scenario is: attacks, and the policies that they are tried against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommu_emu.scenarios.result import Costs, Outcome

if TYPE_CHECKING:
    from iommu_emu.scenarios.laboratory import Laboratory

__all__ = ["Attack", "Scenario"]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack, tried in a laboratory of its own for each policy.

    Attributes:
        name: as in expectations.toml; unique among all scenarios.
        summary: what the attacker tries, in one sentence.
        run: does it; what happened and why goes to `Laboratory.say`.
        policies: names of the policies that it makes sense for; empty: all of the scenario.
    """

    name: str
    summary: str
    run: Callable[[Laboratory], Outcome]
    policies: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One scenario.

    Attributes:
        name: as on the command line.
        title: for people.
        question: what it answers.
        source: the discussion that it comes from.
        policies: names of the policies that it is run with by default.
        attacks: in the order in which they are told.
        answer: to the question, when all of them were tried against all of these policies, on
            either vendor; "": the table says it all.
        workload: measures what a policy costs; None: this scenario is not about that.
    """

    name: str
    title: str
    question: str
    source: str
    policies: tuple[str, ...]
    attacks: tuple[Attack, ...]
    answer: str = ""
    workload: Callable[[Laboratory], Costs] | None = None
