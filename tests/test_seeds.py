"""docs/seeds.md names what exists, and its outcomes are those of expectations.toml."""

import argparse
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from iommu_emu import policies, timing_model
from iommu_emu.cli import demo
from iommu_emu.cli import scenario as command
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.expectations import built_in
from iommu_emu.scenarios.laboratory import Laboratory
from iommu_emu.scenarios.runner import attacks_of, choose

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "seeds.md").read_text()
ENTRIES = dict(re.findall(r"^- \*\*([A-E]\d+)\*\* (.*?)(?=^- \*\*|^## |\Z)", TEXT, re.M | re.S))
COMMAND = re.compile(r"`iommu-emu ([^`]+)`")
NODE = re.compile(r"`pytest ([^`]+)`")
OUTCOME = re.compile(
    r"`([\w-]+)` against `([\w-]+)`(?: on (VT-d|AMD-Vi))?: "
    r"(blocked|refused|the host hangs|(?:\d+ bytes leaked, )?\d+ bytes (?:leaked|corrupted))"
)
VENDORS = {"VT-d": ["vtd"], "AMD-Vi": ["amdvi"], "": ["vtd", "amdvi"]}


def parse(words):
    parser = argparse.ArgumentParser(prog="iommu-emu")
    commands = parser.add_subparsers(required=True)
    for module in (command, demo):
        module.add_parser(commands)
    return parser.parse_args(shlex.split(words))


def shown(entry):
    """Return the pairs of attack and policy that an entry's commands run."""
    pairs = set()
    for words in COMMAND.findall(entry):
        arguments = parse(words)
        if arguments.run is not command.run_scenarios:
            continue
        scenario = registry.load(arguments.name)
        for policy in choose(scenario, arguments.policy):
            attacks = {attack.name for attack in attacks_of(scenario, policy)}
            chosen = set(arguments.attack) or attacks
            assert chosen <= {attack.name for attack in scenario.attacks}
            pairs |= {(attack, policy.name) for attack in chosen & attacks}
    return pairs


@cache
def costs_of(policy, cpus):
    timing = timing_model.load("linux")
    laboratory = Laboratory("vtd", policies.load(policy), timing=timing, cpus=cpus)
    return registry.load("deferred-invalidation").workload(laboratory)


def test_seeds_numbers_its_entries_without_a_gap():
    for letter in "ABCDE":
        numbers = [int(key[1:]) for key in ENTRIES if key[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("key", ENTRIES)
def test_seeds_entry_is_shown_by_something(key):
    assert COMMAND.search(ENTRIES[key]) or NODE.search(ENTRIES[key])


@pytest.mark.parametrize("words", sorted(set(COMMAND.findall(TEXT))))
def test_seeds_command_is_one(words):
    arguments = parse(words)
    if arguments.run is command.run_scenarios:
        assert choose(registry.load(arguments.name), arguments.policy)


@pytest.mark.parametrize("node", sorted(set(NODE.findall(TEXT))))
def test_seeds_test_is_one(node):
    path, _, name = node.partition("::")
    text = (ROOT / path).read_text()
    assert not name or re.search(rf"^def {name}\(", text, re.M)


def test_seeds_outcomes_are_all_understood():
    assert len(OUTCOME.findall(TEXT)) == TEXT.count("` against `")


@pytest.mark.parametrize("key", ENTRIES)
def test_seeds_outcomes_are_of_what_the_entry_runs(key):
    named = {(attack, policy) for attack, policy, _, _ in OUTCOME.findall(ENTRIES[key])}
    assert named - shown(ENTRIES[key]) == set()


@pytest.mark.parametrize(
    ("attack", "policy", "vendor", "outcome"), sorted(set(OUTCOME.findall(TEXT)))
)
def test_seeds_outcome_is_what_is_expected(attack, policy, vendor, outcome):
    for iommu in VENDORS[vendor]:
        expected = built_in().of(policy, attack, iommu)
        assert expected is not None
        assert ("refused" if expected.refused else str(expected)) == outcome


@pytest.mark.parametrize(
    ("key", "policy", "cpus", "words"),
    [
        ("A1", "linux-strict", 1, lambda costs: f"10 Gb/s to {10 * costs.gbps:.0f} % in strict"),
        ("A1", "linux-strict", 1, lambda costs: f"25 Gb/s to {4 * costs.gbps:.0f},"),
        ("A1", "linux-lazy", 1, lambda costs: f"to {min(100, 10 * costs.gbps):.0f} % in lazy mode"),
        ("A1", "linux-strict", 4, lambda costs: f"fills {4 * costs.gbps:.0f} % of the faster"),
        ("A2", "linux-strict", 4, lambda costs: f"takes {costs.unmap_ns / 1000:.2f} µs strictly"),
        ("A2", "linux-lazy", 4, lambda costs: f"and {costs.unmap_ns:.0f} ns lazily"),
    ],
)
def test_seeds_costs_are_those_of_the_model(key, policy, cpus, words):
    assert words(costs_of(policy, cpus)) in ENTRIES[key]
