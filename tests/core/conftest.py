"""Fixtures of the core's tests; what they are made of is in core_bench.py."""

from __future__ import annotations

import pytest
from core_bench import Bench, ByQueue, ByRegister
from in_flight_bench import prepared


@pytest.fixture
def bench() -> Bench:
    """A unit that supports everything of legacy mode, not yet enabled."""
    return Bench()


@pytest.fixture
def unit() -> Bench:
    """An enabled unit where pages 0 to 15 of two functions are mapped (in_flight_bench)."""
    return prepared()


@pytest.fixture(params=[ByRegister, ByQueue], ids=["register", "queue"])
def way(request: pytest.FixtureRequest) -> type[ByRegister] | type[ByQueue]:
    """The two ways to invalidate; call it with a bench."""
    chosen: type[ByRegister] | type[ByQueue] = request.param
    return chosen
