"""The runner: a laboratory for each part, and what counts as an outcome."""

import gc
import weakref
from dataclasses import replace

import pytest
from results import ATTACKS, POLICIES

from iommu_emu import policies, timing_model
from iommu_emu.hung import HungError
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.policies import LinuxPolicy
from iommu_emu.refused import RefusedError
from iommu_emu.scenarios.result import Costs, Outcome
from iommu_emu.scenarios.runner import ScenarioError, attacks_of, choose, run
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import WORKLOADS

MINE = LinuxPolicy(name="mine", summary="Mine.", source="me")


def scenario(attack, workload=None, **more):
    return Scenario(
        name="made-up",
        title="Made up",
        question="What comes of it?",
        source="nowhere",
        policies=POLICIES,
        attacks=(Attack(name="attack", summary="It is tried.", run=attack, **more),),
        workload=workload,
    )


def raising(error):
    def attack(laboratory):
        raise error

    return attack


def test_each_part_has_a_machine_and_a_seed_of_its_own():
    seen = []

    def attack(laboratory):
        seen.append((laboratory.policy.name, laboratory.clock.now, laboratory.secret(8)))
        laboratory.clock.advance(5)
        return Outcome()

    made = scenario(attack)
    run(made)
    assert [(policy, now) for policy, now, _ in seen] == [(policy, 0) for policy in POLICIES]
    assert seen[0][2] != seen[1][2]
    run(made, choose(made, POLICIES[1:]))
    assert seen[2] == seen[1]  # whatever else is run


def test_result_does_not_keep_machines():
    machines = []

    def attack(laboratory):
        machines.append(weakref.ref(laboratory.machine))
        laboratory.say(f"{laboratory.linux.memory} is there.")
        return laboratory.outcome()

    result = run(scenario(attack))
    gc.collect()
    assert all(row.timeline for row in result.rows)
    assert [machine() for machine in machines] == [None, None]


def test_refusal_is_a_blocked_attack_with_its_reason():
    row = run(scenario(raising(RefusedError("EBUSY", "it is taken")))).rows[0]
    assert row.outcome.blocked
    assert row.refused == "-EBUSY: it is taken"


def test_host_that_hangs_is_an_outcome():
    row = run(scenario(raising(HungError("CPU 0 waits for ever")))).rows[0]
    assert row.outcome.hung
    assert row.story == ["The host hangs: CPU 0 waits for ever."]


def test_error_says_what_was_being_run():
    error = DmaMappingError("no room in the pool")
    with pytest.raises(ScenarioError, match=r"^linux-strict, attack: no room in the pool$"):
        run(scenario(raising(error)))
    with pytest.raises(ScenarioError, match=r"^linux-strict, workload: no room in the pool$"):
        run(scenario(lambda laboratory: Outcome(), workload=raising(error)))


def test_error_of_a_built_in_policy_stays_what_it_is():
    with pytest.raises(KeyError, match="oops"):
        run(scenario(raising(KeyError("oops"))))
    with pytest.raises(ScenarioError, match=r"^mine, attack: KeyError: 'oops'$"):
        run(scenario(raising(KeyError("oops"))), [MINE])


def test_attack_is_tried_against_the_policies_that_it_is_for():
    made = scenario(lambda laboratory: Outcome(), policies=("linux-lazy",))
    assert [row.policy for row in run(made).rows] == ["linux-lazy"]
    assert attacks_of(made, policies.load("linux-strict")) == []


def test_policy_of_ones_own_meets_every_attack_on_its_system():
    made = scenario(lambda laboratory: Outcome(), policies=("linux-lazy",))
    assert attacks_of(made, MINE) == list(made.attacks)
    made = scenario(lambda laboratory: Outcome(), policies=("xen-basic",))
    assert attacks_of(made, MINE) == []


def test_policy_of_ones_own_does_not_meet_attacks_on_devices_of_another_kind():
    made = scenario(lambda laboratory: Outcome(), policies=("linux-untrusted",))
    assert attacks_of(made, MINE) == []
    assert attacks_of(made, replace(MINE, external=True)) == list(made.attacks)


def test_workload_is_run_unless_attacks_are_chosen():
    made = scenario(lambda laboratory: Outcome(), workload=lambda laboratory: Costs(copied=3))
    assert [costs.copied for costs in run(made).costs.values()] == [3, 3]
    assert run(made, attacks=["attack"]).costs == {}


def test_progress_is_told_before_each_part():
    told = []
    made = scenario(lambda laboratory: Outcome(), workload=lambda laboratory: Costs())
    run(made, progress=lambda done, total, what: told.append((done, total, what)))
    assert told == [
        (0, 4, "linux-strict: attack"),
        (1, 4, "linux-lazy: attack"),
        (2, 4, "linux-strict: workload"),
        (3, 4, "linux-lazy: workload"),
    ]


def test_result_names_vendor_seed_and_timing():
    model = timing_model.load()
    result = run(scenario(lambda laboratory: Outcome()), None, "amdvi", 7, model)
    assert (result.iommu, result.seed, result.timing) == ("amdvi", 7, model.name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iommu": "smmu"}, "iommu must be one of vtd, amdvi, not 'smmu'"),
        ({"cpus": 0}, r"cpus must be in 1..32, not 0"),
        ({"cpus": 33}, r"cpus must be in 1..32, not 33"),
    ],
)
def test_run_refuses_what_it_cannot_do(arguments, message):
    made = scenario(ATTACKS[0].run)
    with pytest.raises(ValueError, match=message):
        run(made, **arguments)


def test_workload_by_name_is_for_linuxs_policies(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "map", lambda laboratory: Costs(copied=5))
    both = [policies.load("linux-strict"), policies.load("xen-none")]
    result = run(scenario(lambda laboratory: Outcome()), both, attacks=["attack"], workload="map")
    assert result.costs == {"linux-strict": Costs(copied=5)}


def test_workload_can_be_left_out():
    made = scenario(lambda laboratory: Outcome(), workload=lambda laboratory: Costs())
    assert run(made, workload="none").costs == {}


def test_workload_that_is_none_is_refused():
    with pytest.raises(ValueError, match="workload must be one of blocks, map, packets, none, not"):
        run(scenario(lambda laboratory: Outcome()), workload="disks")
