"""What a run comes to."""

import pytest
from results import ATTACKS, SCENARIO, result

from iommu_emu.scenario_report.summary import answer_of, summarize
from iommu_emu.scenarios.result import FOREVER, Outcome


def test_summary_counts_what_got_through():
    strict, lazy = summarize(result())
    assert (strict.tried, strict.let_in, strict.worst, strict.window) == (2, (), None, 0)
    assert (lazy.tried, lazy.let_in) == (2, tuple(attack.name for attack in ATTACKS))
    assert lazy.window == 9_000_000


def test_summary_has_the_price_of_a_pair():
    assert [summary.pair_ns for summary in summarize(result())] == [1100.0, 700.0]
    free = result()
    free.costs.clear()
    assert summarize(free)[0].pair_ns is None


@pytest.mark.parametrize(
    ("outcome", "number", "window"),
    [
        (Outcome(leaked=1, corrupted=2048, window=FOREVER), 1, FOREVER),
        (Outcome(leaked=1, window=5), 0, 9_000_000),
        (Outcome(hung=True), 1, 9_000_000),
    ],
)
def test_worst_is_a_hang_or_the_most_bytes(outcome, number, window):
    made = result()
    rows = [row for row in made.rows if row.policy == "linux-lazy"]
    rows[1].outcome = outcome
    lazy = summarize(made)[1]
    assert lazy.worst is rows[number]
    assert lazy.window == window


def test_window_of_what_got_nothing_does_not_count():
    made = result()
    for row in made.rows:
        row.outcome = Outcome(window=FOREVER, dmas=3)
    assert [summary.window for summary in summarize(made)] == [0, 0]


def test_answer_needs_all_attacks_and_policies():
    assert answer_of(SCENARIO, result()) == "Nobody knows."
    for lacking in ("policy", "attack"):
        made = result()
        last = getattr(made.rows[-1], lacking)
        made.rows = [row for row in made.rows if getattr(row, lacking) != last]
        assert answer_of(SCENARIO, made) == ""
