"""One QEMU a configuration, for all tests of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from iommu_emu.differential import Pair
from iommu_emu.qemu import Qemu


@pytest.fixture(scope="session")
def pair(qemu: Qemu) -> Iterator[Callable[[str], Pair]]:
    """Both sides of a configuration: `pair("q35")`."""
    pairs: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in pairs:
            pairs[name] = Pair(name, qemu.argv)
        return pairs[name]

    yield get
    for each in pairs.values():
        each.close()
