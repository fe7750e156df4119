"""Run a scenario: every attack against every policy, each in a laboratory of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from iommu_emu.hung import HungError
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.policies import registry
from iommu_emu.policies.policy import LinuxPolicy, Policy
from iommu_emu.refused import RefusedError
from iommu_emu.scenarios.laboratory import IOMMUS, POOL, Laboratory
from iommu_emu.scenarios.result import Costs, Outcome, Row, ScenarioResult
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import WORKLOADS, Workload
from iommu_emu.workloads import WorkloadError

if TYPE_CHECKING:
    from iommu_emu.timing_model import TimingModel

Progress = Callable[[int, int, str], None]
MAX_CPUS = 32
NO_WORKLOAD = "none"

__all__ = [
    "MAX_CPUS",
    "NO_WORKLOAD",
    "Progress",
    "ScenarioError",
    "attacks_of",
    "choose",
    "run",
    "workload_pool",
]


class ScenarioError(RuntimeError):
    """A policy cannot do what an attack or a workload needs; the message says which, and why."""


def choose(scenario: Scenario, names: Sequence[str] = ()) -> list[Policy]:
    """Return the policies to run a scenario with.

    Args:
        scenario: the scenario.
        names: names of policies, or paths of a user's own; none: the scenario's.

    Raises:
        ValueError: if there is no such policy, the scenario is not about its system, or a
            user's own has the name of another one.
        OSError: if a file cannot be read.
    """
    own = [registry.load(name) for name in scenario.policies]
    if not names:
        return own
    chosen = [registry.load(name) for name in dict.fromkeys(names)]
    kinds = {type(policy) for policy in own}
    for index, policy in enumerate(chosen):
        if any(policy.name == other.name for other in chosen[:index]):
            raise ValueError(f"two of the policies are called {policy.name}")
        if policy.name in registry.names() and policy is not registry.load(policy.name):
            raise ValueError(f"name of a policy of your own must not be {policy.name}: that is one")
        if type(policy) not in kinds:
            raise ValueError(
                f"scenario {scenario.name} is not about the system of policy {policy.name}; "
                f"its policies are {', '.join(scenario.policies)}"
            )
    return chosen


def attacks_of(scenario: Scenario, policy: Policy) -> list[Attack]:
    """Return the attacks of a scenario that make sense for a policy.

    A user's own policy meets all of them, but for those that are for another system alone, or
    only for devices that are trusted, or are not, where its own is the other kind.
    """
    if policy.name in registry.names():
        return [a for a in scenario.attacks if not a.policies or policy.name in a.policies]

    def is_for(attack: Attack) -> bool:
        kinds = {_kind(registry.load(name)) for name in attack.policies}
        return not kinds or _kind(policy) in kinds

    return [attack for attack in scenario.attacks if is_for(attack)]


def _kind(policy: Policy) -> tuple[type[Policy], bool]:
    return type(policy), isinstance(policy, LinuxPolicy) and policy.external


def run(
    scenario: Scenario,
    policies: Sequence[Policy] | None = None,
    iommu: str = "vtd",
    seed: int = 0,
    timing: TimingModel | None = None,
    *,
    cpus: int = 4,
    attacks: Collection[str] = (),
    workload: str | None = None,
    progress: Progress = lambda done, total, what: None,
) -> ScenarioResult:
    """Run a scenario.

    The same arguments give the same result, but for measured times.

    Args:
        scenario: what to run.
        policies: against what; None: the scenario's own policies.
        iommu: "vtd" or "amdvi".
        seed: of everything random.
        timing: what work costs; None: the model "linux".
        cpus: number of virtual CPUs, 1..32.
        attacks: names of the attacks to run; none: all.
        workload: what is measured of Linux's policies, one of `WORKLOADS`, or "none"; None: the
            scenario's own workload, or nothing if attacks are chosen.
        progress: called before each part, with the number of parts done and in all, and what
            comes next.

    Raises:
        ValueError: if an argument is outside its range.
        ScenarioError: if a policy cannot do what an attack or the workload needs.
    """
    if iommu not in IOMMUS:
        raise ValueError(f"iommu must be one of {', '.join(IOMMUS)}, not {iommu!r}")
    if not 1 <= cpus <= MAX_CPUS:
        raise ValueError(f"cpus must be in 1..{MAX_CPUS}, not {cpus}")
    if timing is None:
        from iommu_emu import timing_model

        timing = timing_model.load(timing_model.DEFAULT)
    chosen = choose(scenario) if policies is None else list(policies)
    result = ScenarioResult(
        scenario=scenario.name,
        iommu=iommu,
        seed=seed,
        timing=timing.name,
        policies={policy.name: policy.summary for policy in chosen},
    )

    def laboratory(policy: Policy, what: str, pool_size: int = POOL) -> Laboratory:
        own = f"{seed}/{scenario.name}/{policy.name}/{what}"  # no part depends on the others
        return Laboratory(iommu, policy, seed=own, timing=timing, cpus=cpus, pool_size=pool_size)

    tries = [
        (policy, attack)
        for policy in chosen
        for attack in attacks_of(scenario, policy)
        if not attacks or attack.name in attacks
    ]
    measure, measured = _workload(scenario, chosen, workload, attacks)
    total = len(tries) + len(measured)
    for done, (policy, attack) in enumerate(tries):
        progress(done, total, f"{policy.name}: {attack.name}")
        with _named(policy, attack.name):
            result.rows.append(_row(attack, laboratory(policy, attack.name)))
    for done, policy in enumerate(measured, len(tries)):
        progress(done, total, f"{policy.name}: workload")
        with _named(policy, "workload"):
            result.costs[policy.name] = measure(laboratory(policy, "workload", workload_pool(cpus)))
    return result


def _workload(
    scenario: Scenario, policies: Sequence[Policy], name: str | None, attacks: Collection[str]
) -> tuple[Workload, Sequence[Policy]]:
    """Return what measures, and the policies that are measured."""
    own = scenario.workload
    if name == NO_WORKLOAD or (name is None and (own is None or attacks)):
        return lambda laboratory: Costs(), ()
    if name is None:
        assert own is not None
        return own, policies
    if name not in WORKLOADS:
        known = ", ".join((*WORKLOADS, NO_WORKLOAD))
        raise ValueError(f"workload must be one of {known}, not {name!r}")
    return WORKLOADS[name], [policy for policy in policies if isinstance(policy, LinuxPolicy)]


def workload_pool(cpus: int) -> int:
    """Return the bytes of bounce buffers that a workload gets.

    Where slots wait for a flush, each CPU may hold back 255 of the largest frames' buffers. That
    is more than Linux's 64 MiB with 16 CPUs or so.
    """
    return max(4, 1 << (cpus - 1).bit_length()) * (8 << 20)


@contextmanager
def _named(policy: Policy, what: str) -> Iterator[None]:
    """Let an error say what was being run; of a user's own policy, whatever it is."""
    own = policy.name not in registry.names()
    try:
        yield
    except (DmaMappingError, WorkloadError) as error:
        raise ScenarioError(f"{policy.name}, {what}: {error}") from error
    except Exception as error:
        if own:
            reason = f"{type(error).__name__}: {error}"
            raise ScenarioError(f"{policy.name}, {what}: {reason}") from error
        raise


def _row(attack: Attack, laboratory: Laboratory) -> Row:
    try:
        outcome = attack.run(laboratory)
    except RefusedError as error:
        laboratory.refuse(error)
        outcome = Outcome()
    except HungError as error:
        laboratory.say(f"The host hangs: {error}.")
        outcome = laboratory.outcome(hung=True)
    return laboratory.row(attack.name, outcome)
