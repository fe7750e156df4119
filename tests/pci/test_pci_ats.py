"""The ATS capability in configuration space (pci 3.1)."""

import pytest

from iommu_emu.devices import Device
from iommu_emu.machine import Machine
from iommu_emu.pci.ats import ATS_ID, Ats
from iommu_emu.pci.config_space import ConfigSpace

ENABLE = 1 << 15


class Accelerator(Device):
    ats = True


@pytest.fixture
def device():
    return Machine(1 << 20).attach(Accelerator(), "00:04.0")


def capability(device):
    return device.config.find_extended(ATS_ID)


def test_ats_is_an_extended_capability(device):
    assert capability(device) == 0x100
    assert device.config.read(0x100, 4) & 0xF_FFFF == 1 << 16 | ATS_ID


def test_ats_is_not_there_unless_the_model_says_so():
    assert Device().config.find_extended(ATS_ID) is None
    assert Device().ats_capability is None


@pytest.mark.parametrize(("depth", "field"), [(1, 1), (31, 31), (32, 0)])
def test_ats_queue_depth_of_32_reads_0(depth, field):
    config = ConfigSpace()
    Ats(config, queue_depth=depth)
    assert config.read(0x104, 2) & 0x1F == field


@pytest.mark.parametrize("depth", [0, 33])
def test_ats_refuses_another_queue_depth(depth):
    with pytest.raises(ValueError, match=r"^queue_depth must be in 1\.\.32, not \d+$"):
        Ats(ConfigSpace(), queue_depth=depth)


def test_ats_shows_page_alignment_and_global_invalidation(device):
    assert device.config.read(capability(device) + 4, 2) == 1 << 5 | 1 << 6


def test_ats_capability_register_is_read_only(device):
    device.config.write(capability(device) + 4, 2, 0xFFFF)
    assert device.config.read(capability(device) + 4, 2) == 1 << 5 | 1 << 6


def test_ats_control_takes_unit_and_enable_alone(device):
    device.config.write(capability(device) + 6, 2, 0xFFFF)
    assert device.config.read(capability(device) + 6, 2) == ENABLE | 0x1F


def test_ats_starts_disabled(device):
    assert not device.ats_capability.enabled


def test_ats_smallest_unit_is_4_kib_and_up(device):
    assert device.ats_capability.smallest_unit == 4096
    device.config.write(capability(device) + 6, 2, 2)
    assert device.ats_capability.smallest_unit == 16384


def test_ats_is_disabled_by_a_reset(device):
    device.ats_capability.enable()
    device.reset()
    assert device.config.read(capability(device) + 6, 2) == 0


def test_ats_keeps_its_unit_when_it_is_switched_off(device):
    device.config.write(capability(device) + 6, 2, ENABLE | 3)
    device.ats_capability.enable(False)
    assert device.config.read(capability(device) + 6, 2) == 3
