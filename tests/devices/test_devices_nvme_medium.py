"""What a namespace is stored in."""

import os

import pytest

from iommu_emu.devices.nvme import FileMedium, RamMedium

PAGE = 4096


@pytest.fixture(params=["ram", "file"])
def medium(request, tmp_path):
    """Sixteen pages of either kind, filled with ones."""
    if request.param == "ram":
        medium = RamMedium(16 * PAGE)
        medium.write(0, b"\xff" * medium.size)
        yield medium
        return
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * 16 * PAGE)
    with FileMedium(path) as medium:
        yield medium


def test_medium_counts_blocks(medium):
    assert (medium.size, medium.block_size, medium.blocks) == (16 * PAGE, 512, 128)


def test_medium_keeps_what_is_written(medium):
    medium.write(PAGE - 3, b"across")
    medium.flush()
    assert medium.read(PAGE - 4, 8) == b"\xffacross\xff"


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 16 * PAGE), (512, 512), (512, 3 * PAGE), (PAGE, PAGE)]
)
def test_medium_zeroes_exactly_a_range(medium, offset, length):
    medium.zero(offset, length)
    expected = b"\xff" * offset + bytes(length) + b"\xff" * (16 * PAGE - offset - length)
    assert medium.read(0, medium.size) == expected


def test_medium_zeroes_without_the_hosts_help(medium, monkeypatch):
    monkeypatch.setattr(medium, "discard", lambda offset, length: False)
    medium.zero(512, 3 * PAGE)
    assert medium.read(0, 4 * PAGE) == b"\xff" * 512 + bytes(3 * PAGE) + b"\xff" * (PAGE - 512)


def test_medium_in_ram_takes_memory_when_it_is_written():
    medium = RamMedium(1 << 40)
    medium.write((1 << 40) - 512, b"x" * 512)
    assert medium.read((1 << 40) - 512, 512) == b"x" * 512


def test_medium_file_gives_space_back(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * 64 * PAGE)
    with FileMedium(path) as medium:
        before = os.stat(path).st_blocks
        if not medium.discard(0, 32 * PAGE):
            pytest.skip("this file system cannot punch holes")
        assert os.stat(path).st_blocks < before
        assert medium.read(0, 33 * PAGE) == bytes(32 * PAGE) + b"\xff" * PAGE


def test_medium_file_keeps_its_size(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * PAGE))
    with FileMedium(path) as medium:
        medium.zero(0, 4 * PAGE)
    assert path.stat().st_size == 4 * PAGE


@pytest.mark.parametrize("block_size", [0, 520, 1024])
def test_medium_refuses_a_block_size(block_size):
    with pytest.raises(ValueError, match=rf"^block_size must be 512 or 4096, not {block_size}$"):
        RamMedium(PAGE, block_size=block_size)


@pytest.mark.parametrize("size", [0, -512, 1000])
def test_medium_refuses_a_size(size):
    with pytest.raises(ValueError, match=r"^size must be a multiple of the block size of 512"):
        RamMedium(size)


def test_medium_refuses_more_than_the_host_can_address():
    with pytest.raises(MemoryError, match=r"^no room for a medium of"):
        RamMedium(1 << 62)


def test_medium_refuses_a_file_that_is_no_whole_number_of_blocks(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"odd")
    with pytest.raises(ValueError, match=r"disk: size must be a multiple of .* not 3$"):
        FileMedium(path)


def test_medium_refuses_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match=r"must be a regular file or a block device$"):
            FileMedium(tmp_path / name)


def test_medium_needs_its_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        FileMedium(tmp_path / "missing")


def test_medium_has_its_file_to_itself(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    with FileMedium(path), pytest.raises(OSError, match="somebody else has it open"):
        FileMedium(path, read_only=True)
    with FileMedium(path, read_only=True), FileMedium(path, read_only=True) as second:
        assert second.read_only


def test_medium_says_what_it_is(tmp_path):
    assert repr(RamMedium(512)) == "<RamMedium of 512 bytes, blocks of 512>"
