import pytest
from linux_bed import FROM, PAGE, Bed

from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.fast_and_safe import FastAndSafe


@pytest.fixture(params=["vtd", "amdvi"])
def iommu(request):
    return request.param


def bed_of(iommu, dma_api=FastAndSafe):
    return Bed(iommu, "iommu.strict=1", dma_api=dma_api)


def pages(count):
    return [(0x60_0000 + 2 * n * PAGE, PAGE) for n in range(count)]


def invalidations(bed):
    return sum(n for name, n in bed.device.driver.submitted.items() if "Invalidat" in name)


def test_batch_gets_input_addresses_in_a_row(iommu):
    bed = bed_of(iommu)
    iovas = bed.dma.map_batch(bed.device, pages(64), FROM)
    assert iovas == [0xFFFC_0000 + n * PAGE for n in range(64)]


@pytest.mark.parametrize(("dma_api", "count"), [(FastAndSafe, 1), (DmaApi, 64)])
def test_batch_is_invalidated_at_once(iommu, dma_api, count):
    bed = bed_of(iommu, dma_api)
    iovas = bed.dma.map_batch(bed.device, pages(64), FROM)
    before = invalidations(bed)
    bed.dma.unmap_batch(bed.device, [(iova, PAGE) for iova in iovas], FROM)
    assert invalidations(bed) - before == count


def test_batch_is_out_of_reach_when_it_is_unmapped(iommu):
    bed = bed_of(iommu)
    iovas = bed.dma.map_batch(bed.device, pages(64), FROM)
    assert all(bed.evil.write(iova, b"x").ok for iova in iovas)
    bed.dma.unmap_batch(bed.device, [(iova, PAGE) for iova in iovas], FROM)
    assert not any(bed.evil.write(iova, b"x").ok for iova in iovas)


def test_batch_keeps_what_paging_structure_caches_hold(iommu):
    bed = bed_of(iommu)
    iovas = bed.dma.map_batch(bed.device, pages(64), FROM)
    bed.evil.write(iovas[0], b"x")
    unit = bed.device.driver.unit
    before = len(unit.entries("paging"))
    bed.dma.unmap_batch(bed.device, [(iova, PAGE) for iova in iovas], FROM)
    assert before == len(unit.entries("paging")) > 0


def test_batch_larger_than_a_range_is_cut(iommu):
    bed = bed_of(iommu)
    before = bed.linux.leaks()
    iovas = bed.dma.map_batch(bed.device, pages(65), FROM)
    assert iovas[64] == 0xFFFB_F000
    bed.dma.unmap_batch(bed.device, [(iova, PAGE) for iova in iovas], FROM)
    assert bed.linux.leaks() == before


def test_batch_unmapped_one_by_one_frees_its_range_with_the_last(iommu):
    bed = bed_of(iommu)
    iovas = bed.dma.map_batch(bed.device, pages(3), FROM)
    for left, iova in zip((1, 1, 0), iovas, strict=True):
        bed.dma.unmap_single(bed.device, iova, PAGE, FROM)
        assert not bed.evil.write(iova, b"x").ok
        assert bed.linux.leaks()["iovas"] == left


def test_batch_with_something_that_is_not_mapped_is_refused_whole(iommu):
    bed = bed_of(iommu)
    iovas = bed.dma.map_batch(bed.device, pages(2), FROM)
    with pytest.raises(ValueError, match="nothing mapped at 0x1000"):
        bed.dma.unmap_batch(bed.device, [(iovas[0], PAGE), (0x1000, PAGE)], FROM)
    assert bed.evil.write(iovas[0], b"x").ok


def test_batch_that_fails_leaves_nothing(iommu):
    bed = bed_of(iommu)
    bed.device.limit.last = 65 * PAGE - 1
    before = bed.linux.leaks()
    with pytest.raises(DmaMappingError, match="IOVA space"):
        bed.dma.map_batch(bed.device, pages(65), FROM)
    assert bed.linux.leaks() == before


def test_batch_that_fails_in_its_second_range_leaves_nothing(iommu):
    bed = bed_of(iommu)
    before = bed.linux.leaks()
    with pytest.raises(DmaMappingError, match="no page table for it"):
        bed.dma.map_batch(bed.device, [*pages(64), (1 << 52, PAGE)], FROM)
    assert bed.linux.leaks() == before


def test_nothing_waits_in_a_lazy_domain_either(iommu):
    bed = Bed(iommu, "iommu.strict=0", dma_api=FastAndSafe)
    iova = bed.dma.map_single(bed.device, 0x60_0000, PAGE, FROM)
    assert bed.evil.write(iova, b"x").ok
    bed.dma.unmap_single(bed.device, iova, PAGE, FROM)
    assert not bed.evil.write(iova, b"x").ok


def test_batch_for_a_device_that_is_not_trusted_is_bounced_one_by_one(iommu):
    bed = Bed(iommu, dma_api=FastAndSafe, external=True)
    buffers = [(bed.buffer(size=512), 512) for _ in range(3)]
    iovas = bed.dma.map_batch(bed.device, buffers, FROM)
    assert bed.evil.write(iovas[1], b"came").ok
    bed.dma.unmap_batch(bed.device, [(iova, 512) for iova in iovas], FROM)
    assert bed.memory(buffers[1][0], 4) == b"came"
    assert (bed.linux.leaks()["slots"], bed.linux.leaks()["iovas"]) == (0, 0)
