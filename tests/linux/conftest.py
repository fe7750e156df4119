"""Fixtures of the tests of what Linux does."""

import pytest
from swiotlb_bed import POOL, SIZE

from iommu_emu import Machine
from iommu_emu.linux.swiotlb import Swiotlb


@pytest.fixture
def memory():
    return Machine(4 << 20).memory


@pytest.fixture
def pool(memory):
    return Swiotlb(memory, POOL, SIZE)
