"""The DMA API: what a device reaches, from when, and until when exactly."""

import pytest
from linux_bed import BOTH, FROM, PAGE, RAM, TO, TOP, Bed, boot, new_machine, new_port

from iommu_emu import Bar, Bridge, Device, PortType
from iommu_emu.clock import MILLISECOND
from iommu_emu.devices import MaliciousDevice
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.flush_queue import GLOBAL_LIST, PER_CPU, SINGLE
from iommu_emu.timeline import EventKind
from iommu_emu.timing import Timing
from iommu_emu.vtd.capabilities import Capabilities

VENDORS = ("vtd", "amdvi")
SECRET = b"attack at dawn"


@pytest.fixture(params=VENDORS)
def iommu(request):
    return request.param


@pytest.fixture
def strict(iommu):
    return Bed(iommu, "iommu.strict=1")


@pytest.fixture
def lazy(iommu):
    return Bed(iommu, "iommu.strict=0")


def mapped(bed, data=SECRET, direction=TO, size=PAGE, cpu=0):
    physical = bed.buffer(data, size)
    return physical, bed.dma.map_single(bed.device, physical, size, direction, cpu)


def reaches(bed, iova):
    return bed.evil.read(iova, 4).ok


# Single buffers.


def test_map_starts_at_the_top_of_the_first_4_gib(strict):
    assert mapped(strict)[1] == TOP


def test_map_keeps_the_offset_in_the_page(strict):
    assert strict.dma.map_single(strict.device, 0x60_0123, 100, TO) == TOP + 0x123


def test_map_lets_the_device_read_the_buffer(strict):
    _, iova = mapped(strict)
    assert strict.evil.read(iova, len(SECRET)).data == SECRET


@pytest.mark.parametrize(
    ("direction", "reads", "writes"),
    [(TO, True, False), (FROM, False, True), (BOTH, True, True)],
)
def test_map_direction_is_what_the_device_may_do(strict, direction, reads, writes):
    _, iova = mapped(strict, direction=direction)
    done = strict.evil.read(iova, 4).ok, strict.evil.write(iova, b"data").ok
    assert done == (reads, writes)


def test_map_exposes_what_shares_the_page(strict):
    physical = strict.buffer(b"mine", 512)
    neighbour = strict.buffer(SECRET, 512)
    iova = strict.dma.map_single(strict.device, physical, 512, TO)
    assert strict.evil.read(iova + neighbour - physical, len(SECRET)).data == SECRET


def test_map_with_forcedac_starts_at_the_top_of_all(iommu):
    bed = Bed(iommu, "iommu.forcedac=1")
    assert mapped(bed)[1] == (1 << 48) - PAGE


def test_map_does_not_hand_out_the_windows_of_the_host_bridge(strict):
    strict.device.limit.last = 0xE000_0FFF
    assert mapped(strict)[1] == 0xDFFF_F000


@pytest.mark.parametrize(
    ("physical", "size", "cpu", "message"),
    [
        (0x60_0000, 0, 0, "size must be at least 1 byte, not 0"),
        (-1, 4, 0, "physical must be an address of 64 bits"),
        (0x60_0000, 4, 2, "cpu must be in 0..1, not 2"),
    ],
)
def test_map_refuses_what_makes_no_sense(strict, physical, size, cpu, message):
    with pytest.raises(ValueError, match=message):
        strict.dma.map_single(strict.device, physical, size, TO, cpu)


@pytest.mark.parametrize(
    ("iova", "size", "direction", "message"),
    [
        (TOP + 4, PAGE, TO, "0000:01:00.0 has nothing mapped at 0xfffff004"),
        (TOP, 100, TO, "must be those mapped at 0xfffff000"),
        (TOP, PAGE, FROM, "must be those mapped at 0xfffff000"),
    ],
)
def test_unmap_of_something_else_is_refused(strict, iova, size, direction, message):
    mapped(strict)
    with pytest.raises(ValueError, match=message):
        strict.dma.unmap_single(strict.device, iova, size, direction)
    assert reaches(strict, TOP)


# Strict and lazy.


def test_strict_unmap_ends_the_devices_reach(strict):
    _, iova = mapped(strict)
    assert reaches(strict, iova)
    strict.dma.unmap_single(strict.device, iova, PAGE, TO)
    assert not reaches(strict, iova)


def test_strict_unmap_frees_the_iova_for_the_next_map(strict):
    _, iova = mapped(strict)
    strict.dma.unmap_single(strict.device, iova, PAGE, TO)
    assert mapped(strict)[1] == iova


def test_strict_unmap_keeps_page_tables_and_what_caches_know_of_them(strict):
    _, iova = mapped(strict)
    frames = strict.device.driver.frames.available
    strict.dma.unmap_single(strict.device, iova, PAGE, TO)
    assert strict.device.driver.frames.available == frames


@pytest.mark.parametrize(
    ("kind", "window"),
    [(PER_CPU, 10), (SINGLE, 1000), (GLOBAL_LIST, 10)],
    ids=lambda value: getattr(value, "name", None),
)
def test_lazy_window_ends_when_the_timer_flushes(iommu, kind, window):
    bed = Bed(iommu, "iommu.strict=0", queue=kind)
    _, iova = mapped(bed)
    assert reaches(bed, iova)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    bed.machine.clock.advance(window * MILLISECOND - 1000)
    assert reaches(bed, iova)
    bed.machine.clock.advance(2000)
    assert not reaches(bed, iova)


def test_lazy_window_is_for_cached_translations_only(lazy):
    _, iova = mapped(lazy)
    lazy.dma.unmap_single(lazy.device, iova, PAGE, TO)
    assert not reaches(lazy, iova)  # it never was used, so no cache has it


def test_lazy_window_of_a_later_unmap_is_shorter(lazy):
    (_, first), (_, second) = mapped(lazy), mapped(lazy)
    assert reaches(lazy, second)
    lazy.dma.unmap_single(lazy.device, first, PAGE, TO)
    lazy.machine.clock.advance(6 * MILLISECOND)
    lazy.dma.unmap_single(lazy.device, second, PAGE, TO)
    lazy.machine.clock.advance(4 * MILLISECOND)
    assert not reaches(lazy, second)


def test_lazy_window_closes_early_when_the_queue_is_full(lazy):
    _, iova = mapped(lazy)
    assert reaches(lazy, iova)
    lazy.dma.unmap_single(lazy.device, iova, PAGE, TO)
    for _ in range(254):
        lazy.dma.unmap_single(lazy.device, mapped(lazy)[1], PAGE, TO)
    assert reaches(lazy, iova)
    lazy.dma.unmap_single(lazy.device, mapped(lazy)[1], PAGE, TO)
    assert not reaches(lazy, iova)


def test_lazy_queues_are_per_cpu(lazy):
    for cpu in (0, 1):
        for _ in range(200):
            lazy.dma.unmap_single(lazy.device, mapped(lazy, cpu=cpu)[1], PAGE, TO, cpu)
    queue = lazy.device.domain.queue
    assert (queue.waiting, queue.statistics.flushes) == (400, 0)


def test_lazy_unmap_keeps_the_iova_until_the_flush(lazy):
    _, iova = mapped(lazy)
    lazy.dma.unmap_single(lazy.device, iova, PAGE, TO)
    _, other = mapped(lazy)
    assert other == iova - PAGE
    lazy.machine.clock.advance(10 * MILLISECOND)
    assert mapped(lazy)[1] == iova


def test_lazy_window_leaks_what_the_next_owner_writes(lazy):
    physical, iova = mapped(lazy, b"old")
    lazy.evil.read(iova, 4)
    lazy.dma.unmap_single(lazy.device, iova, PAGE, TO)
    lazy.linux.memory.kfree(physical)
    assert lazy.buffer(SECRET, owner="crypto") == physical
    assert lazy.evil.read(iova, len(SECRET)).data == SECRET


def test_passthrough_lets_the_device_reach_everything(iommu):
    bed = Bed(iommu, "iommu.passthrough=1")
    physical, address = mapped(bed)
    bed.dma.unmap_single(bed.device, address, PAGE, TO)
    assert (physical, reaches(bed, physical)) == (address, True)


def test_statistics_count_calls(lazy):
    for _ in range(3):
        lazy.dma.unmap_single(lazy.device, mapped(lazy)[1], PAGE, TO)
    statistics = lazy.dma.statistics
    assert (statistics.maps, statistics.unmaps, statistics.deferred) == (3, 3, 3)


def test_timeline_tells_of_maps_unmaps_and_flushes(lazy):
    _, iova = mapped(lazy)
    lazy.dma.unmap_single(lazy.device, iova, PAGE, TO)
    lazy.machine.clock.advance(10 * MILLISECOND)
    kinds = (EventKind.MAP, EventKind.UNMAP, EventKind.FLUSH)
    assert [(e.kind, e.time, e.address) for e in lazy.linux.timeline if e.kind in kinds] == [
        (EventKind.MAP, 0, iova),
        (EventKind.UNMAP, 0, iova),
        (EventKind.FLUSH, 10 * MILLISECOND, None),
    ]


# Scatter lists.


def test_sg_is_one_range_of_input_addresses(strict):
    pieces = [strict.buffer(bytes([65 + n]) * PAGE) for n in range(3)]
    entries = strict.dma.map_sg(strict.device, [(p, PAGE) for p in reversed(pieces)], TO)
    assert entries == [(0xFFFF_C000, 3 * PAGE)]  # aligned to four pages
    got = strict.evil.read(entries[0][0], 3 * PAGE).data
    assert [got[n * PAGE] for n in range(3)] == [67, 66, 65]


def test_sg_unmap_takes_it_back_whole(strict):
    before = strict.linux.leaks()
    entries = strict.dma.map_sg(strict.device, [(0x60_0800, 100), (0x62_0000, PAGE)], TO)
    assert len(entries) == 2
    strict.dma.unmap_sg(strict.device, entries, TO)
    assert strict.linux.leaks() == before


def test_sg_of_nothing_is_refused(strict):
    with pytest.raises(ValueError, match="segments must not be empty"):
        strict.dma.map_sg(strict.device, [], TO)


def test_sg_unmap_of_something_else_is_refused(strict):
    entries = strict.dma.map_sg(strict.device, [(0x60_0000, PAGE), (0x62_0800, 100)], TO)
    with pytest.raises(ValueError, match="must be those of the scatter list"):
        strict.dma.unmap_sg(strict.device, entries[:1], TO)
    assert reaches(strict, entries[1][0])


def test_sg_of_an_untrusted_device_is_not_merged(iommu):
    bed = Bed(iommu, external=True)
    entries = bed.dma.map_sg(bed.device, [(0x60_0000, PAGE), (0x60_1000, PAGE)], TO)
    assert entries == [(TOP, PAGE), (TOP - PAGE, PAGE)]
    bed.dma.unmap_sg(bed.device, entries, TO)
    assert bed.linux.leaks()["iovas"] == 0


class Accelerator(Device):
    bar_layout = (Bar(0, PAGE),)


@pytest.fixture
def switch(iommu):
    """A kernel on a switch with the device and an accelerator below; ACS is the second one's."""
    machine = new_machine(iommu)
    up = machine.attach(Bridge("up", PortType.UPSTREAM), under=new_port(machine))
    down = [machine.attach(Bridge("down", PortType.DOWNSTREAM), under=up) for _ in range(2)]
    evil = machine.attach(MaliciousDevice("evil"), under=down[0])
    peer = machine.attach(Accelerator("accelerator"), under=down[1])
    return boot(machine, "iommu.strict=1"), evil, peer.bar_address(0)


def test_sg_leaves_registers_of_a_peer_below_the_switch(switch):
    linux, evil, registers = switch
    device = linux.device(evil)
    before = linux.leaks()
    entries = linux.dma.map_sg(device, [(0x60_0000, PAGE), (registers, PAGE)], BOTH)
    assert entries == [(TOP, PAGE), (registers, PAGE)]
    linux.dma.unmap_sg(device, entries, BOTH)
    assert linux.leaks() == before


def test_sg_of_nothing_but_a_peers_registers_maps_nothing(switch):
    linux, evil, registers = switch
    device = linux.device(evil)
    entries = linux.dma.map_sg(device, [(registers, PAGE)], BOTH)
    linux.dma.unmap_sg(device, entries, BOTH)
    assert (entries, linux.leaks()["iovas"]) == ([(registers, PAGE)], 0)


# Coherent memory.


def test_coherent_memory_is_zeroed_whole_pages(strict):
    used = strict.linux.memory.alloc_pages()
    strict.machine.memory.write(used, SECRET)
    strict.linux.memory.free_pages(used)
    buffer = strict.dma.alloc_coherent(strict.device, 100)
    assert (buffer.physical, buffer.size) == (used, 100)
    assert strict.evil.read(buffer.iova, PAGE).data == bytes(PAGE)
    assert strict.evil.write(buffer.iova, b"x").ok


def test_coherent_memory_is_freed_before_a_lazy_flush(lazy):
    buffer = lazy.dma.alloc_coherent(lazy.device, PAGE)
    assert reaches(lazy, buffer.iova)
    lazy.dma.free_coherent(lazy.device, buffer)
    assert lazy.buffer(SECRET, owner="crypto") == buffer.physical
    assert lazy.evil.read(buffer.iova, len(SECRET)).data == SECRET


def test_coherent_memory_is_never_bounced(iommu):
    bed = Bed(iommu, "iommu.passthrough=1 swiotlb=force")
    buffer = bed.dma.alloc_coherent(bed.device, PAGE)
    assert buffer.iova == buffer.physical


def test_coherent_memory_that_is_out_of_reach_is_refused(iommu):
    bed = Bed(iommu, "iommu.passthrough=1")
    bed.device.limit.last = PAGE - 1
    with pytest.raises(DmaMappingError, match="reaches addresses up to 0xfff"):
        bed.dma.alloc_coherent(bed.device, PAGE)
    assert bed.linux.leaks()["allocated pages"] == 0


def test_coherent_memory_is_not_freed_twice(strict):
    buffer = strict.dma.alloc_coherent(strict.device, PAGE)
    strict.dma.free_coherent(strict.device, buffer)
    with pytest.raises(ValueError, match="is not in use"):
        strict.dma.free_coherent(strict.device, buffer)


# Bounce buffers.


@pytest.fixture
def untrusted(iommu):
    return Bed(iommu, "iommu.strict=0", external=True)


def test_bounce_hides_what_shares_the_page(untrusted):
    physical = untrusted.buffer(b"mine", 512)
    untrusted.buffer(SECRET, 512)
    iova = untrusted.dma.map_single(untrusted.device, physical, 512, TO)
    got = untrusted.evil.read(iova & -PAGE, PAGE).data
    assert (got[:4], got.count(0)) == (b"mine", PAGE - 4)


def test_bounce_copies_back_what_the_device_wrote(untrusted):
    physical = untrusted.buffer(size=512)
    iova = untrusted.dma.map_single(untrusted.device, physical, 512, FROM)
    untrusted.evil.write(iova, SECRET)
    assert untrusted.memory(physical, 4) == bytes(4)
    untrusted.dma.unmap_single(untrusted.device, iova, 512, FROM)
    assert untrusted.memory(physical, len(SECRET)) == SECRET
    assert untrusted.dma.statistics.copied == 1024


def test_bounce_counts_what_is_copied_and_zeroed(untrusted):
    physical = untrusted.buffer(size=512)
    for _ in range(2):
        iova = untrusted.dma.map_single(untrusted.device, physical, 512, FROM)
        untrusted.dma.unmap_single(untrusted.device, iova, 512, FROM)
    statistics = untrusted.dma.statistics
    assert (statistics.copied, statistics.zeroed) == (4 * 512, 2 * (PAGE - 512))


def test_bounce_sync_copies_a_part(untrusted):
    physical = untrusted.buffer(size=512)
    iova = untrusted.dma.map_single(untrusted.device, physical, 512, BOTH)
    untrusted.evil.write(iova + 8, SECRET)
    untrusted.dma.sync_for_cpu(untrusted.device, iova + 8, 4, BOTH)
    assert untrusted.memory(physical + 8, 6) == SECRET[:4] + bytes(2)
    untrusted.machine.memory.write(physical, b"new")
    untrusted.dma.sync_for_device(untrusted.device, iova, 3, BOTH)
    assert untrusted.evil.read(iova, 3).data == b"new"


def test_sync_of_something_else_is_refused(untrusted):
    iova = untrusted.dma.map_single(untrusted.device, 0x60_0000, 512, TO)
    with pytest.raises(ValueError, match="is not inside one mapping of 0000:01:00"):
        untrusted.dma.sync_for_cpu(untrusted.device, iova + 500, 13, TO)


def test_sizes_that_a_driver_should_know(strict, untrusted):
    sizes = [bed.dma.max_mapping_size(bed.device) for bed in (strict, untrusted)]
    assert sizes == [None, 256 << 10]
    assert strict.dma.optimal_mapping_size(strict.device) == 128 << 10


def test_bounce_leaves_whole_pages_in_place(untrusted):
    _, iova = mapped(untrusted)
    assert untrusted.linux.leaks()["slots"] == 0
    assert untrusted.evil.read(iova, len(SECRET)).data == SECRET


def test_bounce_can_be_switched_off(iommu):
    bed = Bed(iommu, "intel_iommu=nobounce", external=True)
    physical = bed.buffer(b"mine", 512)
    bed.buffer(SECRET, 512)
    iova = bed.dma.map_single(bed.device, physical, 512, TO)
    assert bed.evil.read(iova + 512, len(SECRET)).data == SECRET


def test_bounce_of_every_device_that_is_not_translated(iommu):
    bed = Bed(iommu, "iommu.passthrough=1 swiotlb=force")
    physical = bed.buffer(SECRET)
    address = bed.dma.map_single(bed.device, physical, PAGE, BOTH)
    assert address in bed.linux.pool
    bed.evil.write(address, b"ATTACK")
    bed.dma.sync_for_cpu(bed.device, address, PAGE, BOTH)
    assert bed.memory(physical, len(SECRET)) == b"ATTACK at dawn"
    bed.dma.unmap_single(bed.device, address, PAGE, BOTH)
    assert bed.linux.leaks()["slots"] == 0


def test_bounce_for_a_device_that_does_not_reach_so_far(iommu):
    bed = Bed(iommu, "iommu.passthrough=1", pool_size=1 << 20)
    bed.device.limit.last = RAM.stop - 1
    bed.machine.memory.add_ram(1 << 32, PAGE)
    assert bed.dma.map_single(bed.device, 1 << 32, PAGE, TO) in bed.linux.pool


# Invalidations that take time.


@pytest.fixture
def slow(iommu):
    return {"config": {"timing": Timing(invalidation=2000, wait=500)}}


def test_strict_unmap_takes_as_long_as_its_invalidation(iommu, slow):
    bed = Bed(iommu, "iommu.strict=1", **slow)
    _, iova = mapped(bed)
    begun = bed.machine.clock.now
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert bed.machine.clock.now - begun == 2500


def test_lazy_flush_takes_as_long_as_its_invalidation(iommu, slow):
    bed = Bed(iommu, "iommu.strict=0", **slow)
    _, iova = mapped(bed)
    begun = bed.machine.clock.now
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert bed.machine.clock.now == begun
    bed.machine.clock.advance(10 * MILLISECOND + 2499)
    assert bed.linux.leaks()["iovas"] == 1
    bed.machine.clock.advance(1)
    assert bed.linux.leaks()["iovas"] == 0


# Units that cache what is not present.


@pytest.mark.parametrize(
    ("vendor", "config"),
    [("vtd", {"capabilities": Capabilities(caching_mode=True)}), ("amdvi", {"np_cache": True})],
)
def test_map_invalidates_what_is_cached_of_an_address_that_was_not_mapped(vendor, config):
    bed = Bed(vendor, config=config)
    assert not reaches(bed, TOP)
    before = bed.device.driver.submitted.total()
    _, iova = mapped(bed)
    assert (iova, bed.device.driver.submitted.total() - before) == (TOP, 2)
    assert reaches(bed, iova)
