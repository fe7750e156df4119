"""bounce-buffer: what the scenario's story rests on, beside expectations.toml."""

import pytest

from iommu_emu import policies, timing_model
from iommu_emu.linux.swiotlb import Swiotlb
from iommu_emu.scenarios import registry
from iommu_emu.scenarios.laboratory import IOMMUS, Laboratory
from iommu_emu.scenarios.runner import choose, run, workload_pool

SCENARIO = registry.load("bounce-buffer")


def rows(attack, *names, cpus=4):
    result = run(SCENARIO, choose(SCENARIO, names), cpus=cpus, attacks=[attack])
    return {row.policy: row for row in result.rows}


@pytest.fixture(scope="module", params=IOMMUS)
def costs(request):
    names = ("linux-strict", "bounce-head-tail", "linux-untrusted", "bounce-whole-lazy")
    timing = timing_model.load()
    return {
        name: SCENARIO.workload(
            Laboratory(
                request.param,
                policies.load(name),
                timing=timing,
                cpus=1,
                pool_size=workload_pool(1),
            )
        )
        for name in names
    }


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        ("linux-strict", "Its buffer begins at 0x200 there."),
        ("bounce-head-tail", "it begins at 0x200, as in its own page."),
        ("linux-untrusted", "it begins at 0x0, the start of a slot."),
    ],
)
def test_device_sees_the_offset_in_the_page_or_in_the_slot(policy, where):
    row = rows("sub-page-read", policy)[policy]
    assert where in " ".join(row.story)


def test_copies_go_in_at_the_map_and_out_at_the_unmap():
    read, written = (
        rows(attack, "linux-untrusted")["linux-untrusted"].copied
        for attack in ("sub-page-read", "sub-page-write")
    )
    assert (read, written) == (512, 2 * 512)


def test_head_and_tail_copy_less_than_the_whole():
    copied = {
        policy: row.copied
        for policy, row in rows(
            "unaligned-read-after-free", "linux-strict", "bounce-head-tail", "linux-untrusted"
        ).items()
    }
    assert copied == {
        "linux-strict": 0,
        "bounce-head-tail": 3 * 4096 - 2 * 4096,
        "linux-untrusted": 3 * 4096,
    }


def test_what_overruns_a_buffer_lands_where_its_policy_says():
    end = {
        policy: row.story[-1]
        for policy, row in rows(
            "ring-overrun", "linux-strict", "linux-untrusted", "permanent"
        ).items()
    }
    assert end == {
        "linux-strict": "Behind the last buffer, in the same page, they overwrite a key.",
        "linux-untrusted": "They stay in the page of the buffer's copy: only the frame is copied "
        "out of it.",
        "permanent": "The memory around the buffers is the device's alone: they reach nothing "
        "else.",
    }


def test_overrun_is_not_copied_out():
    """Eleven buffers are mapped and eight frames taken, all of 256 bytes."""
    copied = rows("ring-overrun", "linux-untrusted")["linux-untrusted"].copied
    assert copied == (11 + 8) * 256


def test_slots_would_leak_if_padding_were_not_cleared(monkeypatch):
    map_slots = Swiotlb.map

    def without_clearing(self, *arguments, zero_padding, **more):
        return map_slots(self, *arguments, **more)

    monkeypatch.setattr(Swiotlb, "map", without_clearing)
    row = rows("slot-leftovers", "linux-untrusted")["linux-untrusted"]
    assert row.outcome.leaked == 512 - 128


@pytest.mark.parametrize("cpus", [1, 4])
def test_slots_that_wait_for_the_flush_go_to_nobody_even_if_the_pool_is_full(cpus):
    row = rows("slot-reuse", "bounce-whole-lazy", cpus=cpus)["bounce-whole-lazy"]
    assert row.outcome.blocked
    assert row.outcome.dmas == 100


def test_switch_that_turns_bouncing_off_is_in_the_log():
    log = rows("sub-page-read", "linux-nobounce")["linux-nobounce"].log
    assert any("No bounce buffer" in line for line in log)


def test_stale_uses_are_seen_in_the_window_only():
    found = {
        policy: row.stale_uses
        for policy, row in rows("aligned-read-after-free", "linux-strict", "linux-lazy").items()
    }
    assert found["linux-strict"] == 0
    assert found["linux-lazy"] == 100  # one a try, every 100 µs for 10 ms


def test_bouncing_costs_copies_and_head_and_tail_fewer(costs):
    copied = {policy: each.copied // each.operations for policy, each in costs.items()}
    # Buffers of 10 KiB: two whole pages and a half one; copied in, and out again.
    assert copied["linux-strict"] == 0
    assert copied["bounce-head-tail"] == 2 * 2048
    assert copied["linux-untrusted"] == copied["bounce-whole-lazy"] == 2 * 10240


def test_copying_all_of_it_pays_off_where_it_allows_to_flush_lazily(costs):
    assert costs["bounce-whole-lazy"].invalidations < costs["linux-untrusted"].invalidations / 10
    time = {policy: each.map_ns + each.unmap_ns for policy, each in costs.items()}
    assert time["linux-untrusted"] > time["bounce-head-tail"] > time["linux-strict"]
    assert time["linux-untrusted"] > time["bounce-whole-lazy"]
