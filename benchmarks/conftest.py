"""What the suites share: a benchmark of `iommu_emu.bench` and its floor, under pytest-benchmark."""

from collections.abc import Callable
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from iommu_emu.bench import BENCHMARKS

ROUNDS = 50


@pytest.fixture(params=["subject", "floor"])
def run(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Callable[[str], None]:
    """Return what runs a benchmark by name: the operation or its floor, grouped side by side.

    pytest-benchmark shows the time of one run of many operations; `extra_info` says how many,
    and what one of them takes.
    """

    def run(name: str) -> None:
        pair = BENCHMARKS[name].prepare()
        timed, other = pair.subject, pair.floor
        if request.param == "floor":
            timed, other = other, timed
        times: list[float] = []

        def take_turns() -> None:
            other()

        benchmark.group = f"{name}: {pair.operations} operations"
        benchmark.pedantic(
            lambda: times.append(timed()), setup=take_turns, rounds=ROUNDS, warmup_rounds=2
        )
        benchmark.extra_info["operations"] = pair.operations
        benchmark.extra_info["ns_per_operation"] = median(times)

    return run
