"""A laboratory in which work has its price."""

import pytest
from workload_bed import MODEL

from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import Laboratory


@pytest.fixture
def laboratory():
    """Return what makes a laboratory with a Linux kernel's command line."""

    def laboratory(parameters="", *, cpus=1, iommu="vtd", timing=MODEL, **fields):
        policy = LinuxPolicy(name="test", summary="", source="", parameters=parameters, **fields)
        return Laboratory(iommu, policy, timing=timing, cpus=cpus)

    return laboratory
