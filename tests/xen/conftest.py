"""Fixtures of the tests of what Xen does."""

import pytest
from xen_bed import Bed


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    return Bed(request.param)
