"""The q35 that qtest sees: memory map, configuration space, reset."""

import pytest

from iommu_emu.core import StateError, Status
from iommu_emu.devices import Edu, IommuTestdev
from iommu_emu.pci.topology import Bridge
from iommu_emu.qtest.q35 import Q35

BAR = 0xE000_0000
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
ENABLE = 1 << 31
EDU = 4 << 3
MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def board():
    return Q35(16 * MIB)


@pytest.fixture
def edu(board):
    return board.attach(Edu(), EDU)


def config_read(board, devfn, offset, size=4):
    board.ports.write(CONFIG_ADDRESS, 4, ENABLE | devfn << 8 | offset & 0xFC)
    return board.ports.read(CONFIG_DATA + offset % 4, size)


def config_write(board, devfn, offset, value, size=4):
    board.ports.write(CONFIG_ADDRESS, 4, ENABLE | devfn << 8 | offset & 0xFC)
    board.ports.write(CONFIG_DATA + offset % 4, size, value)


@pytest.mark.parametrize(
    ("memory", "ranges"),
    [
        (1 * MIB, [(0, 0xC0000)]),
        (128 * MIB, [(0, 0xC0000), (MIB, 127 * MIB)]),
        (2815 * MIB, [(0, 0xC0000), (MIB, 2814 * MIB)]),
        (2816 * MIB, [(0, 0xC0000), (MIB, 2047 * MIB), (4 * GIB, 768 * MIB)]),
    ],
)
def test_q35_memory_map(memory, ranges):
    assert Q35(memory).machine.memory.ranges == ranges


def test_q35_memory_below_4_gib_can_be_less():
    ranges = [(0, 0xC0000), (MIB, MIB), (4 * GIB, 6 * MIB)]
    assert Q35(8 * MIB, 2 * MIB).machine.memory.ranges == ranges


def test_q35_reads_0_and_drops_writes_where_nothing_is(board):
    board.write(0xF_FFFC, b"\x11" * 8)
    assert board.read(0xF_FFFC, 8) == bytes(4) + b"\x11" * 4


def test_q35_range_past_the_address_space_reads_0(board):
    assert board.read((1 << 64) - 4, 8) == bytes(8)


def test_q35_interrupt_range_reads_ones(board):
    assert board.read(0xFEDF_FFFF, 2) == b"\0\xff"
    assert board.read(0xFEEF_FFFF, 2) == b"\xff\0"


def test_q35_range_is_cut_where_something_else_begins(board, edu):
    edu.place_bar(0, 16 * MIB)
    edu.config.write(0x04, 2, 2)
    board.write(16 * MIB - 4, b"abcd\1\2\3\4efgh")
    assert board.read(16 * MIB - 4, 4) == b"abcd"
    assert board.read(16 * MIB + 0x2A, 10) == bytes(2) + b"\xff" * 8
    assert board.read(17 * MIB - 2, 4) == bytes(4)


def test_q35_device_request_where_nothing_is_is_unsupported(board, edu):
    edu.config.write(0x04, 2, 4)
    assert edu.dma.read(0xD000_0000, 4).status is Status.UNSUPPORTED_REQUEST


def test_q35_fixed_functions(board):
    assert config_read(board, 0x00, 0x00) == 0x29C0_8086
    assert config_read(board, 0xF8, 0x00) == 0x2918_8086
    assert config_read(board, 0xFA, 0x00) == 0x2922_8086
    assert config_read(board, 0xFB, 0x00) == 0x2930_8086
    assert config_read(board, 0x08, 0x00) == 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("offset", "size", "value"), [(0, 4, 0x11E8_1234), (2, 2, 0x11E8), (1, 1, 0x12), (3, 1, 0x11)]
)
def test_q35_configuration_ports_take_every_size(board, edu, offset, size, value):
    assert config_read(board, EDU, offset, size) == value


def test_q35_configuration_ports_take_the_low_bits_of_the_address(board, edu):
    board.ports.write(CONFIG_ADDRESS, 4, ENABLE | EDU << 8 | 2)
    assert board.ports.read(CONFIG_DATA, 2) == 0x11E8


def test_q35_configuration_data_needs_the_enable_bit(board, edu):
    board.ports.write(CONFIG_ADDRESS, 4, EDU << 8)
    assert board.ports.read(CONFIG_DATA, 4) == 0xFFFF_FFFF


def test_q35_leaves_bars_and_command_to_software(board, edu):
    assert config_read(board, EDU, 0x04, 2) == 0
    assert config_read(board, EDU, 0x10) == 0


def test_q35_bar_is_sized_and_placed_by_ports(board, edu):
    config_write(board, EDU, 0x10, 0xFFFF_FFFF)
    assert config_read(board, EDU, 0x10) == 0xFFF0_0000
    config_write(board, EDU, 0x10, BAR)
    config_write(board, EDU, 0x04, 2, 2)
    assert board.read(BAR, 4) == (0x0100_00ED).to_bytes(4, "little")


def test_q35_ecam_is_off_after_reset(board):
    assert config_read(board, 0, 0x60) == 0xB000_0000
    assert board.read(0xB000_0000, 4) == bytes(4)


@pytest.mark.parametrize(
    ("value", "size"), [(0xB000_0001, 256), (0xB000_0003, 128), (0xB000_0005, 64)]
)
def test_q35_ecam_length(board, value, size):
    config_write(board, 0, 0x60, value)
    assert board.read(0xB000_0000, 4) == bytes.fromhex("8680c029")
    edge = 0xB000_0000 + size * MIB
    board.machine.memory.add_ram(edge, 4096)
    assert board.read(edge - 4, 8) == b"\xff" * 4 + bytes(4)


def test_q35_reserved_ecam_length_decodes_nothing(board):
    config_write(board, 0, 0x60, 0xB000_0007)
    assert board.read(0xB000_0000, 4) == bytes(4)


def test_q35_ecam_writes_reach_configuration_space(board, edu):
    config_write(board, 0, 0x60, 0xB000_0001)
    board.write(0xB000_0000 + (EDU << 12) + 0x10, BAR.to_bytes(8, "little"))
    assert board.read(0xB000_0000 + (EDU << 12) + 0x10, 4) == BAR.to_bytes(4, "little")


def test_q35_conventional_function_has_256_bytes_of_configuration_space(board, edu):
    config_write(board, 0, 0x60, 0xB000_0001)
    assert board.read(0xB000_0000 + (EDU << 12) + 0xFC, 8) == bytes(4) + b"\xff" * 4


def test_q35_block_is_read_in_aligned_accesses(board):
    testdev = board.attach(IommuTestdev(), EDU)
    testdev.place_bar(0, BAR)
    testdev.config.write(0x04, 2, 2)
    board.write(BAR + 4, bytes(range(1, 9)))
    assert board.read(BAR + 4, 8) == bytes(range(1, 9))
    assert board.read(BAR + 2, 6) == bytes(2) + bytes(range(1, 5))


def test_q35_place_is_taken_once(board, edu):
    with pytest.raises(StateError, match="slot 4 function 0 not available for iommu-testdev"):
        board.attach(IommuTestdev(), EDU)


def test_q35_reset_keeps_memory_and_nothing_else(board, edu):
    board.write(0x1000, b"kept")
    config_write(board, 0, 0x60, 0xB000_0001)
    config_write(board, EDU, 0x10, BAR)
    board.reset()
    assert board.read(0x1000, 4) == b"kept"
    assert board.ports.read(CONFIG_ADDRESS, 4) == 0
    assert config_read(board, 0, 0x60) == 0xB000_0000
    assert config_read(board, EDU, 0x10) == 0


def test_q35_bridge_is_numbered_by_software_until_reset(board):
    port = board.attach(Bridge("port"), 3 << 3)
    edu = board.attach(Edu(), 0, under=port)
    assert config_read(board, 0x100, 0x00) == 0xFFFF_FFFF
    config_write(board, 3 << 3, 0x18, 0x0001_0100)
    assert config_read(board, 0x100, 0x00) == 0x11E8_1234
    assert edu.dma.requester == 0x100
    board.reset()
    assert config_read(board, 0x100, 0x00) == 0xFFFF_FFFF


def test_q35_chipset_bars_can_be_placed_until_reset(board):
    config_write(board, 0xFA, 0x24, 0xFFFF_FFFF)
    assert config_read(board, 0xFA, 0x24) == 0xFFFF_F000
    board.reset()
    assert (config_read(board, 0xFA, 0x24), config_read(board, 0xFA, 0x20)) == (0, 1)


def test_q35_reset_register_resets(board):
    resets = []
    board.ports.on_reset = lambda: resets.append(None)
    board.ports.write(0xCF9, 1, 0x0A)
    assert (board.ports.read(0xCF9, 1), resets) == (0x0A, [])
    board.ports.write(0xCF9, 1, 0x0E)
    assert resets == [None]


def test_q35_fw_cfg_tells_the_memory(board):
    board.ports.write(0x510, 2, 3)
    assert bytes(board.ports.read(0x511, 1) for _ in range(8)) == (16 * MIB).to_bytes(8, "little")
    assert board.ports.read(0x511, 1) == 0


def test_q35_keeps_no_interrupts(board, edu):
    edu.config.write(0x04, 2, 4)
    edu.send_message(0xFEE0_0000, 0x31)
    assert board.machine.interrupts == []
