"""What the tests of devices share: machines, with and without an IOMMU before the device."""

import nic_bed
import pytest
from nvme_bed import Bed

from iommu_emu import Machine
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


@pytest.fixture
def machine():
    return Machine(4 << 20)


@pytest.fixture
def driver(machine):
    """A unit before every device, translating, and nothing attached to any domain."""
    unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000))
    driver = VtdDriver(machine, unit, range(0x10_0000, 0x20_0000))
    driver.start()
    return driver


@pytest.fixture
def nvme():
    """A controller without an IOMMU before it, enabled, with I/O queue pair 1."""
    return Bed().ready()


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    """A controller behind an IOMMU of either vendor, enabled, with I/O queue pair 1."""
    return Bed(request.param).ready()


@pytest.fixture
def bare_nic():
    """A NIC without an IOMMU before it, switched off."""
    return nic_bed.Bed()


@pytest.fixture
def nic():
    """A NIC without an IOMMU before it, started by its driver."""
    return nic_bed.Bed().ready()


@pytest.fixture(params=["vtd", "amdvi"])
def guarded_nic(request):
    """A NIC behind an IOMMU of either vendor, started by its driver."""
    return nic_bed.Bed(request.param).ready()


@pytest.fixture
def slow_nic(guarded_nic):
    """The same, whose DMAs take 150 ns each."""
    guarded_nic.nic.dma.set_latency(nic_bed.FABRIC, nic_bed.TO_MEMORY)
    return guarded_nic
