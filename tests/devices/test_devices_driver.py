"""What small software drivers share: MSI-X."""

import pytest

from iommu_emu.devices import Bar, Device
from iommu_emu.devices.driver import DeviceDriver

ADDRESS, DATA = 0xFEE0_1000, 0x50


class Signaller(Device):
    """A device with three vectors, whose table is not in BAR 0."""

    bar_layout = (Bar(0, 4096), Bar(2, 4096))
    msix_vectors = 3
    msix_bar = 2
    msix_table = 0x800


@pytest.fixture
def signaller(machine):
    return DeviceDriver(machine, machine.attach(Signaller()))


def sent(driver):
    """Return address and data of the message of each vector."""
    for vector in range(3):
        driver.device.interrupt(vector)
    return [(message.address, message.data) for message in driver.machine.interrupts]


def test_device_driver_has_every_vector_sent_with_data_of_its_own(signaller):
    signaller.use_msix(None, ADDRESS, DATA)
    assert sent(signaller) == [(ADDRESS, DATA), (ADDRESS, DATA + 1), (ADDRESS, DATA + 2)]


def test_device_driver_leaves_other_vectors_masked(signaller):
    signaller.use_msix(2, ADDRESS, DATA)
    assert sent(signaller) == [(ADDRESS, DATA), (ADDRESS, DATA + 1)]


def test_device_driver_rejects_vectors_that_are_not_there(signaller):
    with pytest.raises(ValueError, match=r"vectors must be in 0\.\.3, not 4"):
        signaller.use_msix(4)
    assert not signaller.device.msix.enabled


def test_device_driver_says_that_there_is_no_msix(machine):
    driver = DeviceDriver(machine, machine.attach(Device("plain")))
    with pytest.raises(RuntimeError, match="plain has no MSI-X"):
        driver.use_msix()
