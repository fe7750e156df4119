"""What software does to the unit: invalidations, fault handling, register reads."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("name", ["inval_page_0", "inval_page_1024", "wait_descriptor"])
def test_queue(run: Callable[[str], None], name: str) -> None:
    run(name)


def test_fault(run: Callable[[str], None]) -> None:
    run("fault")


def test_mmio_read(run: Callable[[str], None]) -> None:
    run("mmio_read")
