import pytest
from linux_bed import PAGE

from iommu_emu import Machine
from iommu_emu.linux.kernel_memory import KernelMemory
from iommu_emu.timeline import EventKind, Timeline

RAM = range(0x10_0000, 0x14_0000)  # 64 pages


@pytest.fixture
def memory():
    return KernelMemory(RAM)


def test_pages_are_handed_out_from_the_lowest_address(memory):
    assert [memory.alloc_pages() for _ in range(3)] == [0x10_0000, 0x10_1000, 0x10_2000]


def test_pages_are_reused_last_in_first_out(memory):
    first, second = memory.alloc_pages(), memory.alloc_pages()
    memory.free_pages(first)
    memory.free_pages(second)
    assert [memory.alloc_pages(), memory.alloc_pages()] == [second, first]


def test_pages_in_a_row_are_a_power_of_two_and_aligned(memory):
    memory.alloc_pages()
    assert memory.alloc_pages(3) == 0x10_4000
    assert memory.used == 5


def test_free_neighbours_are_joined_when_large_blocks_run_out(memory):
    pages = [memory.alloc_pages() for _ in range(64)]
    for page in pages:
        memory.free_pages(page)
    assert memory.alloc_pages(64) == RAM.start


def test_exhaustion_is_an_error_that_changes_nothing(memory):
    memory.alloc_pages(64)
    with pytest.raises(MemoryError, match="no 1 pages in a row are free: 64 of 64 are used"):
        memory.alloc_pages()
    assert memory.used == 64


@pytest.mark.parametrize("count", [0, 1025])
def test_page_count_outside_its_range_is_refused(memory, count):
    with pytest.raises(ValueError, match=f"count must be in 1..1024 pages, not {count}"):
        memory.alloc_pages(count)


def test_page_freed_twice_is_refused(memory):
    page = memory.alloc_pages()
    memory.free_pages(page)
    with pytest.raises(ValueError, match="not the address of pages in use"):
        memory.free_pages(page)


def test_small_objects_of_a_size_share_a_page(memory):
    assert [memory.kmalloc(500, name) for name in "ab"] == [0x10_0000, 0x10_0200]
    assert memory.used == 1


def test_small_object_is_reused_last_in_first_out(memory):
    first, second = memory.kmalloc(100), memory.kmalloc(100)
    memory.kfree(first)
    assert memory.kmalloc(100) == first
    assert second == first + 128


def test_small_objects_page_is_free_when_all_are(memory):
    addresses = [memory.kmalloc(2048) for _ in range(3)]
    assert memory.used == 2
    for address in addresses:
        memory.kfree(address)
    assert memory.used == 0


def test_large_object_takes_whole_pages(memory):
    address = memory.kmalloc(2049)
    assert memory.used == 1
    memory.kfree(address)
    assert memory.used == 0


def test_owner_is_known_by_the_byte(memory):
    first, second = memory.kmalloc(500, "nic"), memory.kmalloc(500, "crypto")
    pages = memory.alloc_pages(2, "disk")
    asked = [first + 511, second, second + 512, pages + PAGE + 5, 0x13_0000]
    assert [memory.owner_of(address) for address in asked] == ["nic", "crypto", None, "disk", None]


def test_held_page_goes_to_its_last_owner_only(memory):
    page = memory.alloc_pages(owner="nic")
    memory.hold(page, 100)
    memory.free_pages(page)
    assert memory.alloc_pages(owner="crypto") != page
    assert memory.alloc_pages(owner="nic") == page


def test_held_page_is_for_everybody_once_released(memory):
    page = memory.alloc_pages(owner="nic")
    memory.hold(page, 100)
    memory.hold(page, 100)
    memory.free_pages(page)
    memory.release(page, 100)
    assert memory.alloc_pages(owner="crypto") != page
    memory.release(page, 100)
    assert memory.alloc_pages(owner="crypto") == page


def test_held_page_of_small_objects_is_not_given_away(memory):
    first = memory.kmalloc(100, "nic")
    memory.hold(first, 100)
    memory.kfree(first)
    assert memory.kmalloc(100, "crypto") & -PAGE != first & -PAGE


def test_reuse_by_somebody_else_is_on_the_timeline():
    timeline = Timeline(Machine(1 << 20).clock)
    memory = KernelMemory(RAM, timeline)
    for owner in ("nic", "nic", "crypto"):
        memory.free_pages(memory.alloc_pages(owner=owner))
    (event,) = timeline
    assert (event.kind, event.text, event.address) == (
        EventKind.REUSE,
        "memory of nic goes to crypto",
        RAM.start,
    )
