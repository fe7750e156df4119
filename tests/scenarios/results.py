"""Results made up for tests of what is done with results."""

from iommu_emu.clock import Clock
from iommu_emu.core import CoreMachine
from iommu_emu.scenarios.result import Costs, Outcome, Row, ScenarioResult
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.timeline import EventKind, Timeline

EVIL = "</script><script>document.title = 'evil'</script>"
POLICIES = ("linux-strict", "linux-lazy")
ATTACKS = tuple(
    Attack(name=name, summary=f"A device tries {name}.", run=lambda laboratory: Outcome())
    for name in ("read-after-unmap", "impostor")
)
SCENARIO = Scenario(
    name="made-up",
    title="Made up",
    question=f"What does a page make of {EVIL}?",
    source="nowhere",
    answer="Nobody knows.",
    policies=POLICIES,
    attacks=ATTACKS,
    workload=lambda laboratory: Costs(),
)


def timeline(events):
    """Return a timeline of so many events: maps, DMA, unmaps, and a flush for every 8 of them."""
    made = Timeline(Clock(CoreMachine(16, 64, 0)))
    made.add(EventKind.NOTE, "story", EVIL, time=0)
    for number in range(1, events):
        kinds = [EventKind.MAP, EventKind.DMA, EventKind.UNMAP]
        kind = kinds[number % 3] if number % 25 else EventKind.FLUSH
        lane = {EventKind.DMA: "nic", EventKind.FLUSH: "IOMMU"}.get(kind, f"CPU {number % 4}")
        address = (
            None if kind is EventKind.FLUSH else 0xFFFF_FFFF_FFFF_0000 + number // 3 % 8 * 4096
        )
        made.add(kind, lane, f"number {number}", address=address, size=4096, time=1000 * number)
    return made


def result(events=12, iommu="vtd"):
    """Return a result with one row for each policy and attack; the third has so many events."""
    outcomes = {"linux-lazy": Outcome(leaked=2048, window=9_000_000, dmas=90)}
    rows = [
        Row(
            policy=policy,
            attack=attack.name,
            outcome=outcomes.get(policy, Outcome()),
            timeline=timeline(
                events if policy == POLICIES[1] and attack is ATTACKS[0] else 12
            ).events,
            story=[f"{policy} meets {attack.name}.", EVIL],
            faults=["DMAR: [DMA Read NO_PASID] Request device [01:00.0]"],
        )
        for policy in POLICIES
        for attack in ATTACKS
    ]
    costs = {
        policy: Costs(operations=100, map_ns=200.0, unmap_ns=900.0 - 400 * number, copied=0)
        for number, policy in enumerate(POLICIES)
    }
    costs[POLICIES[0]].others["assign, deassign"] = Costs(operations=1, map_ns=1300.0, frames=5)
    return ScenarioResult(
        scenario=SCENARIO.name,
        iommu=iommu,
        seed=7,
        timing="linux",
        policies=dict.fromkeys(POLICIES, "Does something."),
        rows=rows,
        costs=costs,
    )
