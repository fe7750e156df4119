"""The proposals of 2019: who is lazy, and what that still concedes."""

import pytest
from linux_bed import BOTH, FROM, PAGE, TO, Bed

from iommu_emu.clock import MILLISECOND
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.lazy_variants import (
    BounceLazy,
    LazyCoherentOnly,
    LazyDevicePrivate,
    LazyOptIn,
)

SECRET = b"attack at dawn"


@pytest.fixture(params=["vtd", "amdvi"])
def iommu(request):
    return request.param


def bed_of(iommu, dma_api, **options):
    return Bed(iommu, "iommu.strict=0", dma_api=dma_api, **options)


def use(bed, size=PAGE, direction=TO):
    """Map a buffer of the device's driver, and let the device cache its translation."""
    physical = bed.dma.alloc_buffer(bed.device, size)
    iova = bed.dma.map_single(bed.device, physical, size, direction)
    bed.evil.read(iova, 4)
    return physical, iova


# (1) coherent memory only.


def test_coherent_only_unmaps_buffers_strictly(iommu):
    bed = bed_of(iommu, LazyCoherentOnly)
    _, iova = use(bed)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert not bed.evil.read(iova, 4).ok


def test_coherent_only_frees_memory_after_the_flush(iommu):
    bed = bed_of(iommu, LazyCoherentOnly)
    before = bed.linux.leaks()
    buffer = bed.dma.alloc_coherent(bed.device, PAGE)
    bed.evil.read(buffer.iova, 4)
    bed.dma.free_coherent(bed.device, buffer)
    assert bed.buffer(owner="crypto") != buffer.physical
    assert bed.evil.read(buffer.iova, 4).ok  # nobody's memory
    bed.machine.clock.advance(10 * MILLISECOND)
    assert bed.buffer(owner="crypto") == buffer.physical
    assert not bed.evil.read(buffer.iova, 4).ok
    assert bed.linux.leaks()["iovas"] == before["iovas"]
    assert bed.dma.statistics.unmaps == 1


# (2) drivers that opt in.


def test_opt_in_is_strict_for_who_does_not_ask(iommu):
    bed = bed_of(iommu, LazyOptIn)
    _, iova = use(bed)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert not bed.evil.read(iova, 4).ok


def test_opt_in_by_call(iommu):
    bed = bed_of(iommu, LazyOptIn)
    _, iova = use(bed)
    bed.dma.unmap_single_deferred(bed.device, iova, PAGE, TO)
    assert bed.evil.read(iova, 4).ok
    bed.machine.clock.advance(10 * MILLISECOND)
    assert not bed.evil.read(iova, 4).ok


def test_opt_in_of_a_driver_for_all_of_its_unmaps(iommu):
    bed = bed_of(iommu, LazyOptIn)
    bed.device.opt_in = True
    _, iova = use(bed)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert bed.evil.read(iova, 4).ok


def test_opt_in_is_nothing_for_a_device_that_is_not_trusted(iommu):
    bed = bed_of(iommu, LazyOptIn, external=True)
    _, iova = use(bed)
    bed.dma.unmap_single_deferred(bed.device, iova, PAGE, TO)
    assert not bed.evil.read(iova, 4).ok


# Memory that only the same device gets again.


def test_device_private_memory_does_not_go_to_others_before_the_flush(iommu):
    bed = bed_of(iommu, LazyDevicePrivate)
    physical, iova = use(bed)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    bed.dma.free_buffer(bed.device, physical)
    assert bed.buffer(SECRET, owner="crypto") != physical
    assert bed.evil.read(iova, len(SECRET)).data != SECRET
    bed.machine.clock.advance(10 * MILLISECOND)
    assert bed.buffer(owner="crypto") == physical


def test_device_private_memory_goes_to_the_same_device(iommu):
    bed = bed_of(iommu, LazyDevicePrivate)
    physical, iova = use(bed)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    bed.dma.free_buffer(bed.device, physical)
    assert bed.dma.alloc_buffer(bed.device, PAGE) == physical


def test_device_private_scatter_list_is_held_piece_by_piece(iommu):
    bed = bed_of(iommu, LazyDevicePrivate)
    pieces = [bed.dma.alloc_buffer(bed.device, PAGE) for _ in range(3)]
    entries = bed.dma.map_sg(bed.device, [(p, PAGE) for p in pieces], TO)
    bed.dma.unmap_sg(bed.device, entries, TO)
    for piece in pieces:
        bed.dma.free_buffer(bed.device, piece)
    assert bed.buffer(owner="crypto") not in pieces


def test_device_private_neighbours_of_small_objects_stay_exposed(iommu):
    bed = bed_of(iommu, LazyDevicePrivate)
    physical, iova = use(bed, 512)
    bed.dma.unmap_single(bed.device, iova, 512, TO)
    neighbour = physical + 512
    bed.machine.memory.write(neighbour, SECRET)
    assert bed.evil.read(iova + 512, len(SECRET)).data == SECRET


# Slots that wait for the flush.


def test_bounce_lazy_makes_untrusted_devices_lazy(iommu):
    bed = bed_of(iommu, BounceLazy, external=True)
    assert bed.device.domain.type is DomainType.LAZY


def test_bounce_lazy_keeps_slots_until_the_flush(iommu):
    bed = bed_of(iommu, BounceLazy, external=True)
    _, iova = use(bed, 512)
    bed.dma.unmap_single(bed.device, iova, 512, TO)
    assert bed.linux.leaks()["slots"] == 2
    assert bed.evil.read(iova, 4).ok
    bed.machine.clock.advance(10 * MILLISECOND)
    assert bed.linux.leaks()["slots"] == 0


def test_bounce_lazy_copies_out_at_the_unmap(iommu):
    bed = bed_of(iommu, BounceLazy, external=True)
    physical, iova = use(bed, 512, FROM)
    bed.evil.write(iova, SECRET)
    bed.dma.unmap_single(bed.device, iova, 512, FROM)
    bed.evil.write(iova, b"too late")
    bed.machine.clock.advance(10 * MILLISECOND)
    assert bed.memory(physical, len(SECRET)) == SECRET


def test_bounce_lazy_unmaps_whole_pages_strictly(iommu):
    bed = bed_of(iommu, BounceLazy, external=True)
    _, iova = use(bed, PAGE, BOTH)
    bed.dma.unmap_single(bed.device, iova, PAGE, BOTH)
    assert not bed.evil.read(iova, 4).ok


def test_live_switch_of_an_untrusted_device_gives_slots_back_too_early(iommu):
    bed = Bed(iommu, "iommu.strict=0", external=True)  # Linux as it is: compare with BounceLazy
    bed.linux.set_type(bed.device.group, "DMA-FQ")
    _, iova = use(bed, 512)
    bed.dma.unmap_single(bed.device, iova, 512, TO)
    assert bed.linux.leaks()["slots"] == 0
    assert bed.evil.read(iova, 4).ok
