import pytest

from iommu_emu.pci.config_space import ConfigSpace
from iommu_emu.pci.function import Bar, Function


@pytest.fixture
def config():
    return ConfigSpace()


def test_config_unwritable_bits_keep_their_value(config):
    config.set(0x40, 4, 0x1234_5678)
    config.allow(0x40, 4, 0x0000_FF00)
    config.write(0x40, 4, 0xFFFF_FFFF)
    assert config.read(0x40, 4) == 0x1234_FF78


def test_config_write_1_clears_a_clearable_bit(config):
    config.set(0x40, 2, 0x0101)
    config.allow(0x40, 2, 0, clearable=0x0101)
    config.write(0x40, 2, 0x0100)
    assert config.read(0x40, 2) == 0x0001


def test_config_byte_write_touches_one_byte(config):
    config.allow(0x40, 4, 0xFFFF_FFFF)
    config.write(0x41, 1, 0xAB)
    assert config.read(0x40, 4) == 0xAB00


@pytest.mark.parametrize(("offset", "size"), [(0x41, 2), (0x42, 4), (0x1000, 4), (0, 8)])
def test_config_read_that_hardware_does_not_take_gives_all_ones(config, offset, size):
    assert config.read(offset, size) == (1 << 8 * size) - 1


def test_config_capabilities_come_in_the_order_they_were_added(config):
    config.add_capability(0x10, bytes(10))
    config.add_capability(0x05, bytes(8))
    assert list(config.capabilities()) == [(0x10, 0x40), (0x05, 0x4C)]


def test_config_capability_sets_the_status_bit(config):
    config.add_capability(0x05, bytes(8))
    assert config.read(0x06, 2) == 0x0010


def test_config_capability_list_ends_with_0(config):
    config.add_capability(0x05, bytes(8))
    assert config.read(0x41, 1) == 0


def test_config_capability_that_does_not_fit_is_refused(config):
    config.add_capability(0x10, bytes(180))
    with pytest.raises(ValueError, match=r"0x5 \(62 bytes\) does not fit at 0xf8"):
        config.add_capability(0x05, bytes(60))


def test_config_extended_capabilities_start_at_100h_and_are_linked(config):
    config.add_extended_capability(0x0D, bytes(4))
    config.add_extended_capability(0x0F, bytes(4))
    assert list(config.extended_capabilities()) == [(0x0D, 0x100), (0x0F, 0x108)]


def test_config_find_returns_none_for_what_is_not_there(config):
    assert (config.find(0x05), config.find_extended(0x0D)) == (None, None)


def test_config_observer_is_called_after_a_write_to_its_range(config):
    seen = []
    config.allow(0x40, 4, 0xFF)
    config.observe(0x40, 2, lambda: seen.append(config.read(0x40, 1)))
    config.write(0x40, 4, 0x12)
    config.write(0x44, 4, 0x34)
    assert seen == [0x12]


def function(*bars: Bar) -> Function:
    return Function("f", vendor_id=0x1234, device_id=1, class_code=0xFF0000, bars=bars)


def test_bar_of_32_bits_tells_its_size():
    config = function(Bar(0, 1 << 16)).config
    config.write(0x10, 4, 0xFFFF_FFFF)
    assert config.read(0x10, 4) == 0xFFFF_0000


def test_bar_of_64_bits_tells_its_size_and_kind():
    config = function(Bar(2, 1 << 33, wide=True, prefetchable=True)).config
    config.write(0x18, 4, 0xFFFF_FFFF)
    config.write(0x1C, 4, 0xFFFF_FFFF)
    assert (config.read(0x18, 4), config.read(0x1C, 4)) == (0xC, 0xFFFF_FFFE)


def test_bar_that_is_not_there_reads_0():
    config = function().config
    config.write(0x10, 4, 0xFFFF_FFFF)
    assert config.read(0x10, 4) == 0


def test_bar_of_64_bits_takes_the_next_index():
    with pytest.raises(ValueError, match="BAR 1 of f overlaps another BAR"):
        function(Bar(0, 4096, wide=True), Bar(1, 4096))


@pytest.mark.parametrize(
    ("index", "size", "wide", "message"),
    [
        (6, 4096, False, r"BAR index must be in 0\.\.5, not 6"),
        (5, 4096, True, r"BAR index must be in 0\.\.4, not 5"),
        (0, 5000, False, "BAR size must be a power of two"),
        (0, 1 << 32, False, "BAR size must be a power of two"),
    ],
)
def test_bar_refuses_what_pci_has_not(index, size, wide, message):
    with pytest.raises(ValueError, match=message):
        Bar(index, size, wide)
