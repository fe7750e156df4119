import pytest

from iommu_emu.pci.config_space import ConfigSpace
from iommu_emu.pci.msi import Msi, Msix

ADDRESS = 0xFEE0_1000


@pytest.fixture
def sent():
    return []


@pytest.fixture
def config():
    return ConfigSpace()


@pytest.fixture
def msi(config, sent):
    msi = Msi(config, 4, lambda *message: sent.append(message))
    config.write(0x44, 4, ADDRESS)
    config.write(0x4C, 2, 0x4143)
    config.write(0x42, 2, 1 | 2 << 4)  # enabled, four vectors
    return msi


@pytest.fixture
def msix(config, sent):
    msix = Msix(config, 3, lambda *message: sent.append(message), bar=0, table=0x800)
    for vector in range(3):
        msix.write(0x800 + 16 * vector, 8, ADDRESS)
        msix.write(0x808 + 16 * vector, 8, 0x50 + vector)
    config.write(0x42, 2, 0x8000)
    return msix


def test_msi_replaces_the_low_data_bits_by_the_vector(msi, sent):
    msi.notify(2)
    assert sent == [(ADDRESS, 0x4142)]


def test_msi_with_one_vector_enabled_sends_every_vector_as_it(msi, config, sent):
    config.write(0x42, 2, 1)
    msi.notify(2)
    assert sent == [(ADDRESS, 0x4143)]


def test_msi_disabled_sends_nothing_and_says_so(msi, config, sent):
    config.write(0x42, 2, 0)
    assert not msi.notify(0)
    assert sent == []


def test_msi_masked_becomes_pending(msi, config, sent):
    config.write(0x50, 4, 0b0010)
    msi.notify(1)
    assert (sent, config.read(0x54, 4)) == ([], 0b0010)


def test_msi_unmasked_sends_what_is_pending_once(msi, config, sent):
    config.write(0x50, 4, 0b0010)
    msi.notify(1)
    msi.notify(1)
    config.write(0x50, 4, 0)
    assert (sent, config.read(0x54, 4)) == ([(ADDRESS, 0x4141)], 0)


def test_msi_capability_tells_64_bits_masks_and_vectors(msi, config):
    config.write(0x42, 2, 0)
    assert config.read(0x42, 2) == 1 << 8 | 1 << 7 | 2 << 1


def test_msi_reset_disables_it(msi):
    msi.reset()
    assert not msi.enabled


@pytest.mark.parametrize("vectors", [0, 3, 64])
def test_msi_vectors_must_be_a_power_of_two(config, vectors):
    with pytest.raises(ValueError, match=f"power of two in 1..32, not {vectors}"):
        Msi(config, vectors, lambda *_: None)


@pytest.mark.parametrize(("written", "read"), [(0x71, 0x21), (0x31, 0x21), (0x11, 0x11)])
def test_msi_enables_no_more_vectors_than_it_is_capable_of(msi, config, written, read):
    config.write(0x42, 2, written)
    assert config.read(0x42, 2) & 0x71 == read


def test_msi_without_masks_ends_before_them(config, sent):
    msi = Msi(config, 1, lambda *message: sent.append(message), maskable=False)
    assert config.read(0x42, 2) == 1 << 7
    assert config.add_capability(0x01, bytes(6)) == 0x50
    config.set(0x50, 8, 0xFFFF_FFFF_FFFF_FFFF)
    config.write(0x42, 2, 1)
    assert msi.notify(0)
    assert (sent, msi.pending) == ([(0, 0)], 0)


def test_msi_refuses_a_vector_that_it_has_not(msi):
    with pytest.raises(ValueError, match=r"^vector must be in 0\.\.3, not 4$"):
        msi.notify(4)


def test_msix_sends_its_table_entry(msix, sent):
    msix.notify(1)
    assert sent == [(ADDRESS, 0x51)]


def test_msix_entries_start_masked(config, sent):
    msix = Msix(config, 1, lambda *message: sent.append(message), bar=0)
    config.write(0x42, 2, 0x8000)
    msix.notify(0)
    assert (sent, msix.pending) == ([], 1)


def test_msix_function_mask_holds_back_every_vector(msix, config, sent):
    config.write(0x42, 2, 0xC000)
    msix.notify(0)
    msix.notify(2)
    config.write(0x42, 2, 0x8000)
    assert sent == [(ADDRESS, 0x50), (ADDRESS, 0x52)]


def test_msix_pending_bits_are_readable_and_not_writable(msix):
    msix.write(0x80C, 4, 1)
    msix.notify(0)
    msix.write(0x830, 8, 0)
    assert msix.read(0x830, 8) == 1


def test_msix_table_keeps_reserved_bits_0(msix):
    msix.write(0x800, 4, 0xFFFF_FFFF)
    msix.write(0x80C, 4, 0xFFFF_FFFF)
    assert (msix.read(0x800, 4), msix.read(0x80C, 4)) == (0xFFFF_FFFC, 1)


@pytest.mark.parametrize(("offset", "size"), [(0x801, 4), (0x804, 8), (0x800, 2)])
def test_msix_table_takes_only_aligned_4_or_8_bytes(msix, offset, size):
    before = msix.read(0x800, 8)
    msix.write(offset, size, 0)
    assert msix.read(0x800, 8) == before


def test_msix_disabled_says_so(msix, config):
    config.write(0x42, 2, 0)
    assert not msix.notify(0)


def test_msix_covers_table_and_pending_bits_of_its_bar(msix):
    covered = [msix.covers(0, 0x7FF), msix.covers(0, 0x800), msix.covers(0, 0x837)]
    assert [*covered, msix.covers(0, 0x838), msix.covers(1, 0x800)] == [
        False,
        True,
        True,
        False,
        False,
    ]
