"""A machine whose unit is driven by our small driver, with what watches a guest."""

from types import SimpleNamespace

import pytest

from iommu_emu import Machine
from iommu_emu.devices import MaliciousDevice
from iommu_emu.guest.observer import TRACE_EVENTS, Observer
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


@pytest.fixture
def machine():
    return Machine(4 << 20, trace_events=TRACE_EVENTS)


@pytest.fixture
def watched(machine):
    """A device in a domain, and the observer."""
    unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000))
    device = machine.attach(MaliciousDevice(), "00:05.0")
    observer = Observer(machine, unit)
    driver = VtdDriver(machine, unit, range(0x10_0000, 0x20_0000))
    driver.start()
    domain = driver.create_domain()
    driver.attach(domain, device.address)
    return SimpleNamespace(
        machine=machine, unit=unit, device=device, observer=observer, driver=driver, domain=domain
    )
