import fcntl
import gc
import os

import numpy as np
import pytest

from iommu_emu.core import NotRamError, OverlapError, UnsealedError


@pytest.fixture
def sealed_file():
    fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8192)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    yield fd
    os.close(fd)


def test_memory_starts_as_zeros(machine):
    assert machine.memory.read(0x1000, 16) == bytes(16)


@pytest.mark.parametrize(("size", "value"), [(8, 0x81), (16, 0x8182), (32, 0x81828384)])
def test_memory_integers_are_little_endian(machine, size, value):
    getattr(machine.memory, f"write_u{size}")(0x100, value)
    assert machine.memory.read(0x100, size // 8) == value.to_bytes(size // 8, "little")


def test_memory_reads_back_64_bits_at_an_odd_address(machine):
    machine.memory.write_u64(0x101, 0x0123_4567_89AB_CDEF)
    assert machine.memory.read_u64(0x101) == 0x0123_4567_89AB_CDEF


def test_memory_write_refuses_a_value_that_does_not_fit(machine):
    with pytest.raises(ValueError, match=r"^value must be in 0x0\.\.0xff, not 0x100$"):
        machine.memory.write_u8(0, 256)


def test_memory_access_past_the_end_is_refused(machine):
    with pytest.raises(NotRamError, match=r"^range 0xffffc\+0x8 is not wholly RAM$"):
        machine.memory.read(0xFFFFC, 8)


def test_memory_write_past_the_end_writes_nothing(machine):
    with pytest.raises(NotRamError):
        machine.memory.write(0xFFFFC, b"12345678")
    assert machine.memory.read(0xFFFFC, 4) == bytes(4)


def test_memory_read_longer_than_all_ram_is_refused(machine):
    with pytest.raises(NotRamError, match="length must be at most 0x100000"):
        machine.memory.read(0, 1 << 50)


def test_memory_access_crosses_adjacent_regions(machine):
    machine.memory.add_ram(1 << 20, 4096)
    machine.memory.write((1 << 20) - 2, b"abcd")
    assert machine.memory.read((1 << 20) - 2, 4) == b"abcd"


def test_memory_overlap_is_refused(machine):
    with pytest.raises(OverlapError):
        machine.memory.add_ram(0xFF000, 4096)


def test_memory_base_must_be_aligned(machine):
    with pytest.raises(ValueError, match=r"^base must be a multiple of 4096, not 0x200100$"):
        machine.memory.add_ram(0x200100, 4096)


def test_memory_size_must_be_pages(machine):
    with pytest.raises(ValueError, match=r"^size must be a multiple of 4096, at least 4096"):
        machine.memory.add_ram(0x200000, 100)


def test_memory_view_writes_ram(machine):
    machine.memory.view(0x2000, 4)[:] = np.frombuffer(b"view", np.uint8)
    assert machine.memory.read(0x2000, 4) == b"view"


def test_memory_view_outside_a_region_is_refused(machine):
    with pytest.raises(NotRamError, match="is not inside one region"):
        machine.memory.view(0xFFFFF, 2)


def test_memory_view_outlives_removal_and_machine(machine):
    machine.memory.add_ram(0x200000, 4096)
    view = machine.memory.view(0x200000, 4096)
    view[:] = 7
    machine.memory.remove(0x200000)
    del machine
    gc.collect()
    assert view.sum() == 7 * 4096


def test_memory_removed_ram_is_gone(machine):
    machine.memory.remove(0)
    with pytest.raises(NotRamError):
        machine.memory.read(0, 1)


def test_memory_remove_where_nothing_starts_is_refused(machine):
    with pytest.raises(ValueError, match="base must be the start of RAM"):
        machine.memory.remove(0x1000)


def test_memory_shared_file_is_the_same_memory(machine, sealed_file):
    machine.memory.add_shared(0x200000, sealed_file, 4096, offset=4096)
    machine.memory.write(0x200000, b"shared")
    assert os.pread(sealed_file, 6, 4096) == b"shared"


def test_memory_unsealed_file_is_refused(machine):
    fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    try:
        with pytest.raises(UnsealedError, match="sealed against shrinking"):
            machine.memory.add_shared(0x200000, fd, 4096)
    finally:
        os.close(fd)
