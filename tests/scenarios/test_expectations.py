"""One truth: what each policy must do to each attack, and what every scenario comes to."""

from collections import Counter

import pytest

from iommu_emu import policies
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.expectations import Expectation, built_in, check, parse
from iommu_emu.scenarios.laboratory import IOMMUS
from iommu_emu.scenarios.result import FOREVER, Outcome, Row
from iommu_emu.scenarios.runner import attacks_of, choose, run

SCENARIOS = registry.table()


def row(refused="", **outcome):
    return Row(
        policy="linux-lazy",
        attack="attack",
        outcome=Outcome(**outcome),
        refused=refused,
    )


def deviations(text, row, iommu="vtd"):
    return check(row, iommu, parse(f"[linux-lazy]\nattack = {text}"))


@pytest.mark.parametrize("iommu", IOMMUS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario_comes_to_what_is_expected(scenario, iommu):
    result = run(scenario, iommu=iommu, attacks=[attack.name for attack in scenario.attacks])
    found = {(row.policy, row.attack): check(row, iommu) for row in result.rows}
    assert {pair: differs for pair, differs in found.items() if differs} == {}


def test_expectations_are_of_attacks_that_are_run():
    run_pairs = {
        (policy.name, attack.name)
        for scenario in SCENARIOS
        for policy in choose(scenario)
        for attack in attacks_of(scenario, policy)
    }
    assert set(built_in().pairs()) == run_pairs


def test_every_attack_has_a_name_of_its_own():
    names = Counter(attack.name for scenario in SCENARIOS for attack in scenario.attacks)
    assert [name for name, times in names.items() if times > 1] == []


def test_every_policy_is_in_a_scenario():
    used = {name for scenario in SCENARIOS for name in scenario.policies}
    assert set(policies.names()) - used == set()


def test_same_seed_gives_the_same_rows():
    scenario = registry.load("bounce-buffer")
    chosen = choose(scenario, ["bounce-whole-lazy"])
    attacks = ["sub-page-read", "write-after-check"]
    rows = [run(scenario, chosen, seed=seed, attacks=attacks).rows for seed in (1, 1)]
    for first, second in zip(*rows, strict=True):
        assert first.timeline == second.timeline
        assert (first.outcome, first.story, first.log) == (
            second.outcome,
            second.story,
            second.log,
        )


def test_blocked_allows_nothing():
    assert deviations('"blocked"', row()) == []
    assert deviations('"blocked"', row(leaked=1)) == ["leaked 1, not 0"]
    assert deviations('"blocked"', row(hung=True)) == ["hung True, not False"]
    assert deviations('"blocked"', row(window=5)) == ["window 5 ns, not at most 0 ns"]
    assert deviations('"blocked"', row(refused="-EPERM: no")) == ["refused: -EPERM: no"]


def test_bytes_are_exact_and_windows_at_most():
    text = "{ leaked = 64, window = 10_000 }"
    assert deviations(text, row(leaked=64, window=9_999)) == []
    assert deviations(text, row(leaked=63, window=10_001)) == [
        "leaked 63, not 64",
        "window 10001 ns, not at most 10000 ns",
    ]
    assert deviations(text, row(leaked=64, window=FOREVER)) == [
        "window forever, not at most 10000 ns"
    ]


def test_window_that_is_expected_must_be_there():
    text = "{ window = 10_000 }"
    assert deviations(text, row(window=1)) == []
    assert deviations(text, row()) == ["window 0 ns, not at most 10000 ns"]


def test_windows_can_be_endless_or_just_end():
    assert deviations('{ window = "forever" }', row(window=FOREVER)) == []
    assert deviations('{ window = "forever" }', row(window=7)) == ["window 7 ns, not forever"]
    assert deviations('{ window = "bounded" }', row(window=10**12)) == []
    assert deviations('{ window = "bounded" }', row(window=FOREVER)) == [
        "window forever, not bounded"
    ]


def test_number_of_accesses_is_a_limit_if_there_is_one():
    assert deviations("{ leaked = 1 }", row(leaked=1, dmas=500)) == []
    assert deviations("{ leaked = 1, dmas = 4 }", row(leaked=1, dmas=5)) == [
        "5 accesses got through, not 4 at most"
    ]


def test_refusal_must_be_for_the_reason():
    text = '{ refused = "1:1 mapping" }'
    assert deviations(text, row(refused="-EINVAL: must keep the 1:1 mapping")) == []
    assert deviations(text, row(refused="-EPERM: no")) == [
        "refused for '-EPERM: no', not for '1:1 mapping'"
    ]


def test_vendors_can_differ():
    text = '{ leaked = 8, window = "forever", amdvi = { leaked = 4 } }'
    assert deviations(text, row(leaked=8, window=FOREVER), "vtd") == []
    assert deviations(text, row(leaked=4, window=FOREVER), "amdvi") == []
    assert deviations('{ leaked = 8, amdvi = "blocked" }', row(), "amdvi") == []


def test_attack_without_a_line_is_a_deviation():
    assert check(row(), "vtd", parse("")) == ["expectations.toml says nothing about it"]


def test_expectation_in_a_few_words():
    assert str(Expectation()) == "blocked"
    assert str(Expectation(leaked=4, corrupted=2)) == "4 bytes leaked, 2 bytes corrupted"
    assert str(Expectation(hung=True)) == "the host hangs"
    assert str(Expectation(refused="1:1")) == "refused: 1:1"
    assert str(Expectation(refused="1:1", leaked=4)) == "refused: 1:1, 4 bytes leaked"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "no TOML: "),
        ("a = 1", "a: must be a table of attacks, not 1"),
        ("[a]\nb = 1", 'a.b: must be "blocked" or a table, not 1'),
        ("[a]\nb = {leaks = 1}", "a.b: key must be one of leaked, corrupted, .*, not 'leaks'"),
        ("[a]\nb = {leaked = -1}", "a.b: leaked must be a whole number of at least 0, not -1"),
        ("[a]\nb = {leaked = true}", "a.b: leaked must be a whole number of at least 0, not True"),
        ('[a]\nb = {window = "long"}', 'a.b: window must be ns, "forever" or "bounded", not'),
        ("[a]\nb = {hung = 1}", "a.b: hung must be true or false, not 1"),
        ('[a]\nb = {refused = ""}', "a.b: refused must be a part of the reason, not ''"),
        ("[a]\nb = {vtd = 1}", 'a.b: vtd must be "blocked" or a table, not 1'),
        ("[a]\nb = {amdvi = {x = 1}}", "a.b: key must be one of"),
    ],
)
def test_file_with_a_mistake_names_its_place(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
