"""deferred-invalidation: what the scenario's story rests on, beside expectations.toml."""

import pytest

from iommu_emu import policies, timing_model
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.laboratory import IOMMUS, Laboratory
from iommu_emu.scenarios.runner import choose, run, workload_pool
from iommu_emu.timeline import EventKind

SCENARIO = registry.load("deferred-invalidation")


@pytest.fixture(params=IOMMUS)
def iommu(request):
    return request.param


def row_of(attack, policy, iommu="vtd"):
    (row,) = run(SCENARIO, choose(SCENARIO, [policy]), iommu=iommu, attacks=[attack]).rows
    return row


@pytest.mark.parametrize(
    ("policy", "window", "dmas"),
    [
        ("linux-strict", 0, 0),
        ("linux-lazy", 9_900_000, 100),
        ("linux-legacy-250", 9_900_000, 100),
        ("linux-lazy-single", 990_000_000, 100),
    ],
)
def test_window_is_as_long_as_the_queue_waits(iommu, policy, window, dmas):
    row = row_of("read-after-unmap", policy, iommu)
    assert (row.outcome.window, row.outcome.dmas, row.stale_uses) == (window, dmas, dmas)


def test_window_ends_with_a_fault_that_is_logged(iommu):
    row = row_of("read-after-unmap", "linux-lazy", iommu)
    assert len(row.faults) == 1
    assert row.faults[0] in row.log


def test_window_is_seen_on_the_timeline():
    events = row_of("read-after-unmap", "linux-lazy").timeline
    unmap = next(event for event in events if event.kind is EventKind.UNMAP)
    reuse = next(event for event in events if event.kind is EventKind.REUSE)
    flush = next(event for event in events if event.kind is EventKind.FLUSH)
    assert unmap.text == "to-device of nic, to be flushed later"
    assert reuse.text == "memory of nic goes to sshd"
    assert (unmap.time, reuse.time, flush.time) == (0, 0, 10_000_000)


def test_proposal_1_frees_coherent_memory_after_the_flush():
    outcome = row_of("coherent-after-free", "lazy-coherent-only").outcome
    assert (outcome.leaked, outcome.window) == (0, 9_900_000)


def test_proposal_2_is_lazy_for_who_asks_only():
    assert row_of("read-after-unmap", "lazy-opt-in").outcome.leaked == 4096
    mate = row_of("group-mate", "lazy-opt-in")
    assert mate.outcome.blocked
    assert mate.story[-1] == (
        "The domain has a flush queue, but for unmaps that ask for it; these do not."
    )


def test_proposal_of_private_memory_does_not_help_the_devices_own_users():
    assert row_of("read-after-unmap", "lazy-device-private").outcome.leaked == 0
    assert row_of("own-reuse", "lazy-device-private").outcome.leaked == 4096


def test_attribute_of_one_device_is_the_whole_groups():
    row = row_of("group-mate", "lazy-attribute")
    assert row.outcome.leaked == 4096
    assert row.story[-1] == (
        "A group has one domain, and strictness is the domain's: the card is lazy as well."
    )


@pytest.mark.parametrize(("policy", "leaked"), [("linux-lazy", 0), ("lazy-attribute", 4096)])
def test_impostor_inherits_an_attribute_but_not_a_port(policy, leaked):
    assert row_of("impostor", policy).outcome.leaked == leaked


@pytest.fixture(scope="module", params=IOMMUS)
def costs(request):
    names = ("linux-strict", "linux-lazy", "lazy-coherent-only", "fast-and-safe", "shadow-copy")
    timing = timing_model.load()
    made = {}
    for name in names:
        laboratory = Laboratory(
            request.param,
            policies.load(name),
            timing=timing,
            cpus=1,
            pool_size=workload_pool(1),
        )
        made[name] = SCENARIO.workload(laboratory)
    return made


def test_lazy_unmaps_cost_less_because_they_invalidate_less(costs):
    strict, lazy = costs["linux-strict"], costs["linux-lazy"]
    assert strict.invalidations == strict.operations
    assert lazy.invalidations < strict.invalidations / 100
    assert lazy.unmap_ns < strict.unmap_ns / 2


def test_proposal_1_saves_nothing_where_every_buffer_is_mapped(costs):
    strict, coherent = costs["linux-strict"], costs["lazy-coherent-only"]
    assert coherent.unmap_ns == strict.unmap_ns
    assert coherent.invalidations == strict.invalidations


def test_fast_and_safe_invalidates_a_batch_at_once(costs):
    assert 0 < costs["fast-and-safe"].invalidations < costs["linux-strict"].invalidations / 10


def test_shadow_copy_copies_every_buffer_and_invalidates_nothing(costs):
    shadow = costs["shadow-copy"]
    assert (shadow.invalidations, shadow.copied) == (0, 2048 * shadow.operations)
