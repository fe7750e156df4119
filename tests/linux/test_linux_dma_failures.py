"""After every failure of the DMA API nothing is half-mapped, and nothing leaked."""

import pytest
from linux_bed import BOTH, FRAMES, FROM, PAGE, RAM, TO, Bed

from iommu_emu.core import StateError
from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.refused import RefusedError

KIB = 1024
VENDORS = ("vtd", "amdvi")


@pytest.fixture(params=VENDORS)
def iommu(request):
    return request.param


def frames_accounted(bed):
    """Frames that are free or hold a page table: an unmap keeps tables, as Linux does."""
    table = bed.device.domain.table
    return bed.device.driver.frames.available + len(table.table.frames() if table else [])


def refused(bed, work, match):
    """Check that work is refused, and leaves everything as it was; return the error."""
    before, frames = bed.linux.leaks(), frames_accounted(bed)
    failed = bed.dma.statistics.failed
    with pytest.raises(DmaMappingError, match=match) as caught:
        work()
    assert bed.linux.leaks() == before
    assert bed.dma.statistics.failed == failed + 1
    assert str(caught.value) == caught.value.reason
    assert frames_accounted(bed) == frames
    assert bed.device.domain.mappings == {}
    return caught.value


def test_iova_space_that_is_exhausted(iommu):
    bed = Bed(iommu)
    bed.device.limit.last = 3 * PAGE - 1  # pages 1 and 2: page 0 is never handed out
    refused(
        bed,
        lambda: bed.dma.map_single(bed.device, 0x60_0000, 3 * PAGE, TO),
        "no 12288 bytes of IOVA space left",
    )


def test_iova_space_that_is_exhausted_in_the_middle_of_a_batch(iommu):
    bed = Bed(iommu, "iommu.strict=1")
    bed.device.limit.last = 3 * PAGE - 1
    refused(
        bed,
        lambda: bed.dma.map_batch(bed.device, [(0x60_0000, PAGE)] * 3, TO),
        "no 4096 bytes of IOVA space left",
    )


def test_table_frames_that_run_out(iommu):
    bed = Bed(iommu)
    frames = bed.device.driver.frames
    while frames.available > 1:
        frames.take()
    refused(bed, lambda: bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO), "no page table")


@pytest.mark.parametrize("external", [False, True])
def test_table_frames_that_run_out_in_the_middle_of_an_sg(iommu, external):
    bed = Bed(iommu, "iommu.strict=1", external=external)
    frames = bed.device.driver.frames
    first = bed.dma.map_single(bed.device, 0x60_0000, 505 * PAGE, TO)  # most of a table
    bed.dma.unmap_single(bed.device, first, 505 * PAGE, TO)
    while frames.available:
        frames.take()
    bed.device.domain.iovas.reserve(first + 10 * PAGE, 0xFFFF_FFFF)  # 10 pages of it are left
    refused(
        bed,
        lambda: bed.dma.map_sg(bed.device, [(0x60_0000, 4 * PAGE)] * 4, TO),
        "no page table",
    )


def test_physical_address_that_no_page_table_can_hold(iommu):
    bed = Bed(iommu)
    refused(bed, lambda: bed.dma.map_single(bed.device, 1 << 52, PAGE, TO), "must end at or below")


@pytest.mark.parametrize("rule", [BounceRule.WHOLE, BounceRule.HEAD_TAIL])
def test_bounce_pool_that_is_exhausted(iommu, rule):
    bed = Bed(iommu, external=True, bounce=rule, pool_size=256 * KIB)
    for index in range(64):  # two slots each: whole granules
        bed.linux.pool.map(RAM.start + index * PAGE, 100, FROM, alloc_align_mask=PAGE - 1)
    error = refused(
        bed,
        lambda: bed.dma.map_single(bed.device, 0x60_0800, 2 * PAGE, FROM),
        "no 2 free slots|no 4 free slots|no 6 free slots",
    )
    assert error.log == bed.log()[-1]
    assert error.log.startswith("evil 0000:01:00.0: swiotlb buffer is full (sz: 8192 bytes)")
    assert error.log.endswith("total 128 (slots), used 128 (slots)")


def test_bounce_pool_that_is_exhausted_by_the_tail(iommu):
    bed = Bed(iommu, external=True, bounce=BounceRule.HEAD_TAIL, pool_size=256 * KIB)
    for index in range(63):
        bed.linux.pool.map(RAM.start + index * PAGE, 100, FROM, alloc_align_mask=PAGE - 1)
    refused(bed, lambda: bed.dma.map_single(bed.device, 0x60_0800, 2 * PAGE, FROM), "no 2 free")


def test_bounce_pool_that_is_exhausted_in_the_middle_of_an_sg(iommu):
    bed = Bed(iommu, external=True, pool_size=256 * KIB)
    segments = [(0x60_0800, 100 * KIB)] * 3
    refused(bed, lambda: bed.dma.map_sg(bed.device, segments, TO), "free slots in a row")


def test_bounce_of_more_than_a_segment(iommu):
    bed = Bed(iommu, external=True)
    refused(
        bed,
        lambda: bed.dma.map_single(bed.device, 0x60_0800, 256 * KIB + 1, TO),
        "map at most 262144 bytes at once",
    )


def test_bounce_without_a_pool_is_logged_once(iommu):
    bed = Bed(iommu, "swiotlb=noforce", external=True)
    lines = [
        refused(
            bed, lambda: bed.dma.map_single(bed.device, 0x60_0800, 100, TO), "there is no pool"
        ).log
        for _ in range(2)
    ]
    assert lines == [
        "evil 0000:01:00.0: DMA bounce buffers are inactive, unable to map unaligned transaction.",
        "",
    ]


def test_bounce_of_what_is_not_ram(iommu):
    bed = Bed(iommu, external=True)
    refused(bed, lambda: bed.dma.map_single(bed.device, 0xC000_0000, 100, TO), "only RAM")


def test_bounce_when_the_iova_space_is_exhausted(iommu):
    bed = Bed(iommu, external=True)
    bed.device.limit.last = PAGE - 1
    refused(bed, lambda: bed.dma.map_single(bed.device, 0x60_0800, 100, TO), "IOVA space")


def test_alignment_that_is_wider_than_a_page(iommu):
    bed = Bed(iommu, external=True)
    bed.device.min_align_mask = 2 * PAGE - 1
    error = refused(bed, lambda: bed.dma.map_single(bed.device, 0x60_0800, 100, TO), "min_align")
    assert error.log == "evil 0000:01:00.0: Unsupported alignment constraint"


def test_coherent_memory_when_the_iova_space_is_exhausted(iommu):
    bed = Bed(iommu)
    bed.device.limit.last = PAGE - 1
    refused(bed, lambda: bed.dma.alloc_coherent(bed.device, PAGE), "IOVA space")


def test_coherent_memory_when_the_kernels_is_exhausted(iommu):
    bed = Bed(iommu, ram=range(RAM.start, RAM.start + 0x30_0000))
    refused(bed, lambda: bed.dma.alloc_coherent(bed.device, 4 << 20), "1024 pages in a row")


def test_coherent_memory_of_more_than_4_mib_is_refused(iommu):
    bed = Bed(iommu)
    with pytest.raises(ValueError, match="size must be at most 4194304 bytes"):
        bed.dma.alloc_coherent(bed.device, (4 << 20) + 1)


def test_untranslated_device_whose_bounce_buffers_are_out_of_reach(iommu):
    bed = Bed(iommu, "iommu.passthrough=1")
    bed.device.limit.last = PAGE - 1
    error = refused(bed, lambda: bed.dma.map_single(bed.device, 0x60_0000, 100, TO), "are above")
    assert error.log == bed.log()[-1]


def test_frames_that_do_not_do_for_a_boot_are_an_error():
    with pytest.raises(MemoryError, match="frames left"):
        Bed("vtd", frames=range(FRAMES.start, FRAMES.start + 2 * PAGE))


def test_device_that_was_removed_maps_nothing_any_more(iommu):
    bed = Bed(iommu)
    bed.linux.remove(bed.evil)
    frames = next(iter(bed.linux.drivers.values())).frames.available
    with pytest.raises(StateError, match="is not the kernel's: it is blocked"):
        bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    assert next(iter(bed.linux.drivers.values())).frames.available == frames


def test_direction_that_is_none_is_refused(iommu):
    bed = Bed(iommu)
    with pytest.raises(ValueError, match=r"direction must be one of .*, not 'to-device'"):
        bed.dma.map_single(bed.device, 0x60_0000, PAGE, "to-device")
    assert set(bed.linux.leaks().values()) == {0}


@pytest.mark.parametrize(
    ("external", "wrong"),
    [
        (False, lambda entries: entries[:2]),
        (False, lambda entries: [*entries, entries[0]]),
        (True, lambda entries: [*entries, entries[0]]),
    ],
)
def test_scatter_list_is_taken_back_as_it_is_or_not_at_all(iommu, external, wrong):
    bed = Bed(iommu, "iommu.strict=1", external=external)
    entries = bed.dma.map_sg(bed.device, [(0x60_0100 + n * PAGE, 100) for n in range(3)], TO)
    before = bed.linux.leaks()
    with pytest.raises(ValueError, match=r"must be those of the scatter list|is named twice"):
        bed.dma.unmap_sg(bed.device, wrong(entries), TO)
    assert bed.linux.leaks() == before


def test_batch_with_a_buffer_named_twice_is_not_taken_back(iommu):
    bed = Bed(iommu)
    iovas = bed.dma.map_batch(bed.device, [(0x60_0000, PAGE), (0x60_1000, PAGE)], TO)
    with pytest.raises(ValueError, match=f"{iovas[0]:#x} is named twice"):
        bed.dma.unmap_batch(bed.device, [(iovas[0], PAGE)] * 2, TO)
    assert bed.linux.leaks()["iovas"] == 2


def test_coherent_memory_is_not_taken_back_as_a_buffer(iommu):
    bed = Bed(iommu)
    buffer = bed.dma.alloc_coherent(bed.device, PAGE)
    with pytest.raises(ValueError, match="is coherent memory: use free_coherent"):
        bed.dma.unmap_single(bed.device, buffer.iova, PAGE, BOTH)
    bed.dma.free_coherent(bed.device, buffer)
    assert bed.linux.leaks()["allocated pages"] == 0


def test_group_with_buffers_mapped_is_not_given_to_user_space(iommu):
    bed = Bed(iommu)
    iova = bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    with pytest.raises(RefusedError, match=r"EPERM: 0000:01:00.0 has 1 buffers mapped"):
        bed.linux.ownership(bed.device.group).claim("vfio")
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert bed.device.domain.mappings == {}


def test_pool_of_absurdly_many_slots_is_refused():
    with pytest.raises(ValueError, match="make ram larger, or the pool smaller"):
        Bed("vtd", "swiotlb=" + "9" * 5000)


def test_untranslated_device_that_just_reaches_its_bounce_buffer(iommu):
    bed = Bed(iommu, "iommu.passthrough=1 swiotlb=force")
    bed.device.limit.last = bed.linux.pool.base + 99
    assert bed.dma.map_single(bed.device, 0x60_0000, 100, TO) == bed.linux.pool.base
    bed.dma.unmap_single(bed.device, bed.linux.pool.base, 100, TO)
    refused(bed, lambda: bed.dma.map_single(bed.device, 0x60_0000, 2049, TO), "are above")


def test_call_for_a_cpu_that_there_is_not_is_refused(iommu):
    bed = Bed(iommu)
    entries = bed.dma.map_sg(bed.device, [(0x60_0000, PAGE)], TO)
    buffer = bed.dma.alloc_coherent(bed.device, PAGE)
    calls = [
        lambda: bed.dma.unmap_sg(bed.device, entries, TO, 2),
        lambda: bed.dma.unmap_batch(bed.device, entries, TO, 2),
        lambda: bed.dma.sync_for_cpu(bed.device, *entries[0], TO, 2),
        lambda: bed.dma.sync_for_device(bed.device, *entries[0], TO, -1),
        lambda: bed.dma.alloc_coherent(bed.device, PAGE, 2),
        lambda: bed.dma.free_coherent(bed.device, buffer, 2),
    ]
    before = bed.linux.leaks()
    for call in calls:
        with pytest.raises(ValueError, match=r"cpu must be in 0\.\.1"):
            call()
    assert bed.linux.leaks() == before
