"""Fixtures of the VT-d tests."""

from collections.abc import Callable

import pytest
from vtd_bench import Bench


@pytest.fixture
def bench() -> Bench:
    """A bench with everything that this version implements."""
    return Bench()


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """Makes benches with other capabilities."""
    return Bench
