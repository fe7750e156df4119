"""DMA: in the core, from a Python device model, and to a page that is mapped for it alone."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize("name", ["dma_read_64_hot", "dma_read_4k_hot"])
def test_read(run: Callable[[str], None], name: str) -> None:
    run(name)


@pytest.mark.parametrize("name", ["map_dma_unmap_0", "map_dma_unmap_512"])
def test_map_dma_unmap(run: Callable[[str], None], name: str) -> None:
    run(name)


def test_python(run: Callable[[str], None]) -> None:
    run("python_dma_64")
