import pytest
from linux_bed import BOTH, FROM, PAGE, TO, Bed

from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.shadow_copy import ShadowCopy

SECRET = b"attack at dawn"
KIB = 1024


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    return Bed(request.param, "iommu.strict=1", dma_api=ShadowCopy)


def test_shadow_holds_a_copy_of_what_is_sent(bed):
    physical = bed.buffer(SECRET, 512)
    iova = bed.dma.map_single(bed.device, physical, 512, TO)
    bed.machine.memory.write(physical, b"retreat now!!!")
    assert bed.evil.read(iova, len(SECRET)).data == SECRET


def test_shadow_hides_what_shares_the_page(bed):
    physical = bed.buffer(b"mine", 512)
    bed.buffer(SECRET, 512)
    iova = bed.dma.map_single(bed.device, physical, 512, TO)
    assert bed.evil.read(iova, PAGE).data == b"mine" + bytes(PAGE - 4)


def test_shadow_is_copied_back_at_the_unmap(bed):
    physical = bed.buffer(size=512)
    iova = bed.dma.map_single(bed.device, physical, 512, FROM)
    bed.evil.write(iova, SECRET)
    bed.dma.unmap_single(bed.device, iova, 512, FROM)
    bed.evil.write(iova, b"too late")  # it gets through, and changes nothing
    assert bed.memory(physical, len(SECRET)) == SECRET
    assert (bed.dma.statistics.copied, bed.dma.statistics.zeroed) == (512, PAGE)


def test_shadow_sync_copies_a_part(bed):
    physical = bed.buffer(size=512)
    iova = bed.dma.map_single(bed.device, physical, 512, BOTH)
    bed.evil.write(iova + 8, SECRET)
    bed.dma.sync_for_cpu(bed.device, iova + 8, 6, BOTH)
    assert bed.memory(physical + 8, 8) == b"attack\0\0"


def test_shadow_is_used_again_without_an_invalidation(bed):
    submitted = bed.device.driver.submitted
    iovas, counts = [], []
    for _ in range(3):
        iovas.append(bed.dma.map_single(bed.device, 0x60_0000, 512, TO))
        bed.dma.unmap_single(bed.device, iovas[-1], 512, TO)
        counts.append(submitted.total())
    assert len(set(iovas)) == len(set(counts)) == 1
    assert bed.dma.shadows == 1


@pytest.mark.parametrize(
    ("direction", "cpu", "size"), [(FROM, 0, 512), (TO, 1, 512), (TO, 0, 5000)]
)
def test_shadow_is_of_one_direction_cpu_and_size(bed, direction, cpu, size):
    first = bed.dma.map_single(bed.device, 0x60_0000, 512, TO)
    bed.dma.unmap_single(bed.device, first, 512, TO)
    assert bed.dma.map_single(bed.device, 0x60_0000, size, direction, cpu) != first


def test_shadow_pages_do_not_show_what_was_in_them(bed):
    old = bed.buffer(SECRET)
    bed.linux.memory.kfree(old)
    iova = bed.dma.map_single(bed.device, bed.buffer(b"mine", 512), 512, TO)
    assert SECRET not in bed.evil.read(iova, PAGE).data


def test_large_buffer_is_mapped_in_place_but_for_its_ends(bed):
    size = 80 * KIB
    iova = bed.dma.map_single(bed.device, 0x60_0800, size, TO)
    assert (bed.dma.shadows, bed.linux.leaks()["slots"]) == (0, 4)
    bed.evil.read(iova + 40 * KIB, 4)
    bed.dma.unmap_single(bed.device, iova, size, TO)
    assert not bed.evil.read(iova + 40 * KIB, 4).ok


def test_scatter_list_is_copied_piece_by_piece(bed):
    entries = bed.dma.map_sg(bed.device, [(0x60_0000, PAGE), (0x60_1000, PAGE)], TO)
    assert (len(entries), bed.dma.shadows) == (2, 2)
    bed.dma.unmap_sg(bed.device, entries, TO)
    assert bed.device.domain.mappings == {}


def test_coherent_memory_is_mapped_as_ever(bed):
    buffer = bed.dma.alloc_coherent(bed.device, PAGE)
    bed.machine.memory.write(buffer.physical, SECRET)
    assert bed.evil.read(buffer.iova, len(SECRET)).data == SECRET


def test_memory_that_is_not_ram_is_refused(bed):
    with pytest.raises(DmaMappingError, match="only RAM can be copied"):
        bed.dma.map_single(bed.device, 0xC000_0000, 512, TO)
    assert bed.device.domain.mappings == {}
    assert bed.dma.map_single(bed.device, 0x60_0000, 512, TO)
    assert bed.dma.shadows == 1


def test_shadows_go_with_the_device(bed):
    bed.dma.map_single(bed.device, 0x60_0000, 512, TO)
    bed.linux.remove(bed.evil)
    assert set(bed.linux.leaks().values()) == {0}


def test_shadows_go_with_a_change_of_type(bed):
    before = bed.linux.leaks()
    iova = bed.dma.map_single(bed.device, 0x60_0000, 512, TO)
    bed.dma.unmap_single(bed.device, iova, 512, TO)
    bed.linux.set_type(bed.device.group, "DMA")
    assert (bed.linux.leaks(), bed.dma.shadows) == (before, 0)


def test_failure_to_make_a_shadow_leaks_nothing(bed):
    bed.device.limit.last = PAGE - 1
    before = bed.linux.leaks()
    with pytest.raises(DmaMappingError, match="IOVA space"):
        bed.dma.map_single(bed.device, 0x60_0000, 512, TO)
    assert bed.linux.leaks() == before
