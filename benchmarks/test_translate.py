"""Translations: IOTLB hits and misses, one by one and in a numpy batch."""

from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    "name",
    ["translate_hit_1", "translate_hit_512", "translate_miss_65536", "translate_miss_1m"],
)
def test_translate(run: Callable[[str], None], name: str) -> None:
    run(name)


def test_batch(run: Callable[[str], None]) -> None:
    run("batch_translate")
