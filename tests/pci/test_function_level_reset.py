"""Function Level Reset and phantom functions: what device capabilities and control make of them."""

import pytest

from iommu_emu import Device, Machine
from iommu_emu.pci.capabilities import Acs

DEVICE_CONTROL = 8
INITIATE, PHANTOMS = 1 << 15, 1 << 9


class Resettable(Device):
    flr = True
    acs_services = Acs.REQUEST_REDIRECT

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0

    def on_reset(self) -> None:
        self.resets += 1


@pytest.fixture
def device(machine: Machine) -> Resettable:
    return machine.attach(Resettable(), "00:05.0")


def control(device: Device, value: int) -> None:
    assert device.pcie is not None
    device.config.write(device.pcie + DEVICE_CONTROL, 2, value)


def test_flr_is_told_in_the_capability(device: Resettable):
    assert device.config.read(device.pcie + 4, 4) >> 28 == 1


def test_flr_resets_the_function(device: Resettable):
    control(device, INITIATE)
    assert (device.resets, device.config.read(4, 2)) == (1, 0)


def test_flr_bit_reads_0(device: Resettable):
    control(device, INITIATE | 0x10)
    assert device.config.read(device.pcie + DEVICE_CONTROL, 2) == 0x10


def test_flr_switches_access_control_services_off(device: Resettable):
    device.config.write(device.config.find_extended(0x0D) + 6, 2, Acs.REQUEST_REDIRECT)
    assert device.acs is Acs.REQUEST_REDIRECT
    control(device, INITIATE)
    assert device.acs is Acs.NONE


def test_flr_of_a_device_without_it_does_nothing(machine: Machine):
    device = machine.attach(Device(), "00:05.0")
    control(device, INITIATE)
    assert device.config.read(4, 2) == 0x0006


class Conventional(Device):
    port_type = None
    flr = True


def test_flr_needs_pci_express():
    with pytest.raises(ValueError, match="Conventional: flr and phantom_bits need PCI Express"):
        Conventional()


@pytest.mark.parametrize(
    ("bits", "place", "phantoms"),
    [
        (1, "00:05.0", [4]),
        (1, "00:05.3", [7]),
        (2, "00:05.1", [3, 5, 7]),
        (3, "00:05.0", [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_phantom_functions_differ_in_the_high_bits(
    machine: Machine, bits: int, place: str, phantoms: list[int]
):
    device = machine.attach(type("Phantoms", (Device,), {"phantom_bits": bits})(), place)
    assert device.phantoms == []
    control(device, PHANTOMS)
    assert device.phantoms == [0x28 + function for function in phantoms]


def test_phantom_bits_have_a_limit():
    with pytest.raises(ValueError, match=r"phantom_bits must be in 0\.\.3, not 4"):
        type("Phantoms", (Device,), {"phantom_bits": 4})()
