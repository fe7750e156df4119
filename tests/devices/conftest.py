"""What the NVMe tests share: machines with a controller, with and without an IOMMU before it."""

import pytest
from nvme_bed import Bed


@pytest.fixture
def nvme():
    """A controller without an IOMMU before it, enabled, with I/O queue pair 1."""
    return Bed().ready()


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    """A controller behind an IOMMU of either vendor, enabled, with I/O queue pair 1."""
    return Bed(request.param).ready()
