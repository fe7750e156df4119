import pytest
from linux_bed import BOTH, FROM, PAGE, TO, Bed

from iommu_emu.devices import MaliciousDevice
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.permanent import PermanentMappings

KIB = 1024


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    return Bed(request.param, "iommu.strict=1", dma_api=PermanentMappings)


def test_permanent_buffers_come_from_a_chunk_of_the_device(bed):
    first, second = (bed.dma.alloc_buffer(bed.device, 1500) for _ in range(2))
    assert second - first == 2 * KIB
    assert bed.linux.memory.owner_of(first) == "evil"
    assert bed.linux.leaks()["mapped pages"] == 16


def test_permanent_map_is_a_lookup(bed):
    physical = bed.dma.alloc_buffer(bed.device, PAGE)
    submitted = bed.device.driver.submitted.total()
    iova = bed.dma.map_single(bed.device, physical + 16, 100, FROM)
    assert bed.evil.write(iova, b"data").ok
    bed.dma.unmap_single(bed.device, iova, 100, FROM)
    assert bed.memory(physical + 16, 4) == b"data"
    assert bed.device.driver.submitted.total() == submitted


def test_permanent_buffer_is_reached_after_the_unmap(bed):
    physical = bed.dma.alloc_buffer(bed.device, PAGE)
    iova = bed.dma.map_single(bed.device, physical, PAGE, FROM)
    bed.dma.unmap_single(bed.device, iova, PAGE, FROM)
    bed.evil.write(iova, b"changed after the check")
    assert bed.memory(physical, 7) == b"changed"


def test_permanent_buffer_goes_to_the_same_device_only(bed):
    physical = bed.dma.alloc_buffer(bed.device, PAGE)
    bed.dma.free_buffer(bed.device, physical)
    assert bed.buffer(owner="crypto") != physical
    other = bed.plug(MaliciousDevice("other"))
    assert bed.dma.alloc_buffer(other, PAGE) != physical
    assert bed.dma.alloc_buffer(bed.device, PAGE) == physical


def test_permanent_buffer_of_another_size_is_not_split(bed):
    bed.dma.free_buffer(bed.device, bed.dma.alloc_buffer(bed.device, PAGE))
    bed.dma.alloc_buffer(bed.device, 100 * KIB)
    assert bed.linux.leaks()["mapped pages"] == 16 + 32


def test_permanent_buffer_that_is_not_in_use_is_refused(bed):
    physical = bed.dma.alloc_buffer(bed.device, PAGE)
    with pytest.raises(ValueError, match="is not the address of a buffer in use"):
        bed.dma.free_buffer(bed.device, physical + PAGE)


def test_other_memory_is_unmapped_strictly(bed):
    iova = bed.dma.map_single(bed.device, bed.buffer(), PAGE, BOTH)
    assert bed.evil.read(iova, 4).ok
    bed.dma.unmap_single(bed.device, iova, PAGE, BOTH)
    assert not bed.evil.read(iova, 4).ok


def test_scatter_list_of_both_kinds(bed):
    pieces = [(bed.dma.alloc_buffer(bed.device, PAGE), PAGE), (bed.buffer(), PAGE)]
    entries = bed.dma.map_sg(bed.device, pieces, TO)
    bed.dma.unmap_sg(bed.device, entries, TO)
    assert [bed.evil.read(iova, 4).ok for iova, _ in entries] == [True, False]


def test_chunks_go_with_the_device(bed):
    bed.dma.free_buffer(bed.device, bed.dma.alloc_buffer(bed.device, PAGE))
    bed.linux.remove(bed.evil)
    assert set(bed.linux.leaks().values()) == {0}


def test_chunk_of_a_device_that_has_gone_is_freed_with_its_last_buffer(bed):
    buffers = [bed.dma.alloc_buffer(bed.device, PAGE) for _ in range(2)]
    bed.linux.remove(bed.evil)
    assert bed.linux.leaks()["mapped pages"] == 0
    pages = []
    for buffer in buffers:
        pages.append(bed.linux.leaks()["allocated pages"])
        bed.dma.free_buffer(bed.device, buffer)
    assert [*pages, bed.linux.leaks()["allocated pages"]] == [16, 16, 0]


def test_buffer_of_another_device_cannot_be_freed(bed):
    buffer = bed.dma.alloc_buffer(bed.device, PAGE)
    other = bed.plug(MaliciousDevice("other"))
    with pytest.raises(ValueError, match=f"{buffer:#x} is not .* in use by 0000:02:00.0"):
        bed.dma.free_buffer(other, buffer)
    assert bed.linux.leaks()["allocated pages"] == 16


def test_buffer_that_is_mapped_twice_has_two_addresses(bed):
    buffer = bed.dma.alloc_buffer(bed.device, PAGE)
    once, again = (bed.dma.map_single(bed.device, buffer, PAGE, TO) for _ in range(2))
    bed.dma.unmap_single(bed.device, again, PAGE, TO)
    assert (once != again, bed.evil.read(once, 4).ok, bed.evil.read(again, 4).ok) == (
        True,
        True,
        False,
    )


def test_buffer_of_more_than_4_mib_is_refused(bed):
    with pytest.raises(ValueError, match=r"size must be in 1..4194304 bytes, not 4194305"):
        bed.dma.alloc_buffer(bed.device, (4 << 20) + 1)


def test_chunk_that_cannot_be_mapped_leaks_nothing(bed):
    bed.device.limit.last = PAGE - 1
    before = bed.linux.leaks()
    with pytest.raises(DmaMappingError, match="IOVA space"):
        bed.dma.alloc_buffer(bed.device, PAGE)
    assert bed.linux.leaks() == before


def test_untranslated_device_has_ordinary_memory():
    bed = Bed("vtd", "iommu.passthrough=1", dma_api=PermanentMappings)
    physical = bed.dma.alloc_buffer(bed.device, PAGE)
    bed.dma.free_buffer(bed.device, physical)
    assert bed.linux.leaks()["allocated pages"] == 0


def test_chunk_is_cleared_before_the_device_gets_it(bed):
    bed.dma.alloc_buffer(bed.device, PAGE)
    assert bed.dma.statistics.zeroed == 64 * KIB


def test_buffer_that_is_in_a_chunk_in_part_only_is_mapped_as_ever(bed):
    buffers = [bed.dma.alloc_buffer(bed.device, 64 * KIB) for _ in range(2)]
    across = min(buffers) + 60 * KIB
    assert max(buffers) - min(buffers) == 64 * KIB
    iova = bed.dma.map_single(bed.device, across, 2 * PAGE, TO)
    bed.dma.unmap_single(bed.device, iova, 2 * PAGE, TO)
    assert not bed.evil.read(iova, 4).ok


def test_memory_behind_a_chunk_is_freed_as_ever(bed):
    first = bed.dma.alloc_buffer(bed.device, 64 * KIB)
    behind = bed.linux.memory.alloc_pages(16, "evil")
    assert behind == first + 64 * KIB
    bed.dma.free_buffer(bed.device, behind)
    assert bed.linux.leaks()["allocated pages"] == 16
