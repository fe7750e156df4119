"""Page tables that drivers build, seen by the reference walkers: any mix of pages, both vendors."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommu_emu.amdvi.driver import HostFormat
from iommu_emu.amdvi.structures import DeviceTableEntry
from iommu_emu.core import Access, Outcome, Request
from iommu_emu.page_table import EntryFormat, FrameAllocator, PageTable
from iommu_emu.reference import Walker
from iommu_emu.reference import amdvi as amdvi_reference
from iommu_emu.reference import vtd as vtd_reference
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.driver import SecondStageFormat
from iommu_emu.vtd.structures import ContextEntry, RootEntry

SIZE = 1 << 24  # room for eight ranges of 1 GiB in 4 KiB pages
FRAMES = range(0x10_0000, SIZE)
LEVELS = 4
RW = Access.READ | Access.WRITE
PAGES = {12: 4096, 21: 1 << 21, 30: 1 << 30}


class Memory:
    """RAM from address 0 on."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data


def entry_format(vendor: str) -> EntryFormat:
    if vendor == "vtd":
        return SecondStageFormat(Capabilities(), 46)
    return HostFormat(6, 46)


def walker_over(vendor: str, memory: Memory, root: int) -> Walker:
    """Return a reference walker for requester 0 and a page table."""
    if vendor == "vtd":
        memory.write(0x1000, RootEntry.build(p=1, ctp=0x2000))
        memory.write(0x2000, ContextEntry.build(p=1, aw=LEVELS - 2, ssptptr=root, did=1))
        return vtd_reference.Walker(vtd_reference.Unit(root_table=0x1000), memory.read)
    memory.write(
        0x1000, DeviceTableEntry.build(v=1, tv=1, mode=LEVELS, root=root, ir=1, iw=1, domain_id=1)
    )
    return amdvi_reference.Walker(amdvi_reference.Unit(device_table=0x1000), memory.read)


def sees(walker: Walker, iova: int) -> tuple[int, Access] | None:
    """Return where an address goes and what is permitted, or None."""
    for access in (Access.READ, Access.WRITE):
        answer = walker.walk(Request(iova, access=access))
        if answer.outcome is Outcome.MEMORY:
            return answer.address, answer.permissions
    return None


ranges = st.tuples(
    st.sampled_from([0, 0x1000, 0x1F_F000, 0x20_0000, 0x3FE0_0000, 0x4000_0000, 0x7FFF_F000]),
    st.sampled_from([0x1000, 0x2000, 0x20_0000, 0x20_1000, 0x4000_0000, 0x4020_1000]),
    st.sampled_from([0, 0x1000, 0x20_0000, 0x4000_0000]),
)
steps = st.lists(
    st.tuples(
        ranges,
        st.sampled_from([RW, Access.READ, Access.WRITE]),
        st.sampled_from([None, [4096], [4096, 1 << 21]]),
        st.sampled_from(["map", "unmap", "unmap, keep tables"]),
    ),
    max_size=8,
)


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
@given(steps=steps)
@settings(max_examples=60, deadline=None)
def test_what_is_mapped_is_what_the_walker_sees(vendor, steps):
    memory = Memory()
    frames = FrameAllocator(memory, FRAMES)
    table = PageTable(memory, frames, entry_format(vendor), LEVELS)
    walker = walker_over(vendor, memory, table.root)
    probes = set()
    for (iova, size, physical), permissions, sizes, action in steps:
        probes |= {iova, iova + size - 4, max(iova - 4, 0), iova + size}
        if sizes == [4096]:
            size = min(size, 0x20_1000)
        try:
            if action == "map":
                table.map(iova, physical, size, permissions, sizes)
            else:
                keep = action != "unmap"
                frames.release(table.unmap(iova, size, keep_tables=keep))
        except ValueError:
            pass  # refused: then nothing may have changed
        for probe in probes:
            assert sees(walker, probe) == table.lookup(probe)


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
def test_unmapping_everything_gives_every_table_back(vendor):
    memory = Memory()
    frames = FrameAllocator(memory, FRAMES)
    table = PageTable(memory, frames, entry_format(vendor), LEVELS)
    before = frames.available
    table.map(0x1000, 0x1000, 0x4020_0000, RW)
    table.map(1 << 47, 0, 0x3000, RW)
    assert frames.available < before
    frames.release(table.unmap(0x1000, 0x4020_0000))
    frames.release(table.unmap(1 << 47, 0x3000))
    assert frames.available == before
    assert memory.read(table.root, 4096) == bytes(4096)


@pytest.fixture
def table():
    memory = Memory()
    return PageTable(memory, FrameAllocator(memory, FRAMES), entry_format("vtd"), LEVELS)


def test_unmapping_can_keep_tables_that_it_does_not_cover_whole(table):
    table.map(0, 0, 0x3000, RW)
    tables = table.frames()
    assert table.unmap(0, 0x3000, keep_tables=True) == []
    assert (table.frames(), table.mapped) == (tables, 0)


def test_unmapping_gives_back_tables_that_it_covers_whole(table):
    table.map(0x1F_F000, 0, 0x20_2000, RW, [4096])
    tables = table.frames()
    (freed,) = table.unmap(0x1F_F000, 0x20_2000, keep_tables=True)
    assert set(table.frames()) == set(tables) - {freed}


def test_mapping_uses_a_table_that_was_kept_instead_of_a_large_page(table):
    table.map(0, 0, 0x1000, RW)
    table.unmap(0, 0x1000, keep_tables=True)
    tables = table.frames()
    table.map(0, 0, 0x20_0000, RW)
    assert table.frames() == tables
    assert table.entry_address(1, 0x1F_F000) is not None


def test_mapping_of_large_pages_only_does_not_replace_a_table_that_was_kept(table):
    table.map(0, 0, 0x1000, RW)
    table.unmap(0, 0x1000, keep_tables=True)
    with pytest.raises(ValueError, match="do not fit between the tables"):
        table.map(0, 0, 0x20_0000, RW, [1 << 21])
    assert table.mapped == 0


def test_entry_address_is_where_the_walker_reads():
    memory = Memory()
    table = PageTable(memory, FrameAllocator(memory, FRAMES), entry_format("vtd"), LEVELS)
    table.map(0x1234_5000, 0x8000, 4096, RW)
    walker = walker_over("vtd", memory, table.root)
    visited = walker.walk(Request(0x1234_5000)).visited
    assert [(v.level, v.address) for v in visited[2:]] == [
        (level, table.entry_address(level, 0x1234_5000)) for level in (4, 3, 2, 1)
    ]


def test_entry_address_without_a_table_is_none():
    memory = Memory()
    table = PageTable(memory, FrameAllocator(memory, FRAMES), entry_format("vtd"), LEVELS)
    assert table.entry_address(4, 0) == table.root
    assert table.entry_address(1, 0) is None


def test_frame_allocator_reuses_what_is_released_and_zeroes_it():
    memory = Memory()
    frames = FrameAllocator(memory, range(0x1000, 0x3000))
    first = frames.take()
    memory.write(first, b"old")
    frames.release([first])
    assert [frames.take(), frames.take()] == [first, 0x2000]
    assert memory.read(first, 3) == bytes(3)
    with pytest.raises(MemoryError, match=r"^the driver's memory range has no 1 frames left$"):
        frames.take()
