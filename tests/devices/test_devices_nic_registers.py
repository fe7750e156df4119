"""The ring NIC: identity and registers."""

import pytest
from nic_bed import ADDRESS, RX, TX

from iommu_emu.devices.nic import Register
from iommu_emu.devices.nic.controller import MAX_FRAME


def test_nic_is_an_ethernet_controller(bare_nic):
    assert bare_nic.machine.config_read(ADDRESS, 8, 4) >> 8 == 0x020000
    assert bare_nic.machine.config_read(ADDRESS, 0, 4) == 0x4E43_1234


def test_nic_limit_register_is_the_longest_frame(bare_nic):
    assert bare_nic.driver.read(Register.LIMIT) == MAX_FRAME


def test_nic_ring_base_has_64_bits_and_multiples_of_16(bare_nic):
    bare_nic.machine.mmio_write(bare_nic.nic.bar_address(0) + TX, 8, 0x1234_5678_9ABC_DEFF)
    value = bare_nic.machine.mmio_read(bare_nic.nic.bar_address(0) + TX, 8)
    assert value == 0x1234_5678_9ABC_DEF0


@pytest.mark.parametrize("register", [Register.BASE_LOW, Register.BASE_HIGH, Register.SIZE])
def test_nic_ring_registers_are_locked_while_the_ring_is_on(nic, register):
    before = nic.driver.read(RX + register)
    nic.driver.write(RX + register, 0x40)
    assert nic.driver.read(RX + register) == before


@pytest.mark.parametrize("size", [1, 2])
def test_nic_takes_no_accesses_of_less_than_4_bytes(bare_nic, size):
    at = bare_nic.nic.bar_address(0) + RX + Register.SIZE
    bare_nic.machine.mmio_write(at, size, 0x11)
    assert bare_nic.driver.read(RX + Register.SIZE) == 0
    bare_nic.driver.write(RX + Register.SIZE, 0x22)
    assert bare_nic.machine.mmio_read(at, size) == 0


@pytest.mark.parametrize("offset", [0x14, 0xFC, 0x114, 0x1FC, 0x214, 0xFFC])
def test_nic_reads_0_where_no_register_is(bare_nic, offset):
    bare_nic.driver.write(offset, 0xFFFF_FFFF)
    assert bare_nic.driver.read(offset) == 0
