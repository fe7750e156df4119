import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from swiotlb_bed import BOTH, BUFFER, FROM, KIB, POOL, SIZE, TO, fill, slot_of

from iommu_emu import Machine
from iommu_emu.core import NotRamError
from iommu_emu.direction import Direction
from iommu_emu.linux.swiotlb import (
    MappingTooLargeError,
    PoolFullError,
    Slot,
    Swiotlb,
    max_mapping_size,
)

# ---- which slots ---------------------------------------------------------------------------------


def test_swiotlb_default_pool_is_64_mib_of_2_kib_slots():
    assert Swiotlb(Machine(65 << 20).memory, 1 << 20).free_slots == 32_768


def test_swiotlb_pool_starts_zeroed(memory):
    memory.write(POOL, b"old data")
    Swiotlb(memory, POOL, SIZE)
    assert memory.read(POOL, 8) == bytes(8)


@pytest.mark.parametrize(("size", "slots"), [(1, 1), (2048, 1), (2049, 2), (256 * KIB, 128)])
def test_swiotlb_mapping_takes_whole_slots(pool, size, slots):
    assert (pool.map(BUFFER, size, TO), pool.used_slots) == (POOL, slots)


def test_swiotlb_search_begins_behind_the_last_mapping(pool):
    pool.unmap(pool.map(BUFFER, 2049, TO), 2049, TO)
    assert slot_of(pool.map(BUFFER, 1, TO)) == (2, 0)


def test_swiotlb_search_wraps_around_to_freed_slots(pool):
    addresses = fill(pool)
    pool.unmap(addresses[7], 1, TO)
    assert pool.map(BUFFER, 1, TO) == addresses[7]


def test_swiotlb_search_begins_at_the_first_slot_after_the_last(pool):
    addresses = fill(pool)
    for address in addresses:
        pool.unmap(address, 1, TO)
    assert slot_of(pool.map(BUFFER, 1, TO)) == (0, 0)


def test_swiotlb_mapping_does_not_cross_a_segment(pool):
    pool.map(BUFFER, 100 * 2048, TO)
    assert slot_of(pool.map(BUFFER, 100 * 2048, TO)) == (128, 0)


def test_swiotlb_mapping_may_end_with_its_segment(pool):
    pool.map(BUFFER, 100 * 2048, TO)
    assert slot_of(pool.map(BUFFER, 28 * 2048, TO)) == (100, 0)


def test_swiotlb_mapping_does_not_cross_the_boundary_mask(pool):
    pool.map(BUFFER, 6 * 2048, TO)
    assert slot_of(pool.map(BUFFER, 5 * 2048, TO, boundary_mask=0x3FFF)) == (8, 0)


def test_swiotlb_freed_neighbours_join(pool):
    addresses = fill(pool)
    for index in (11, 13, 12, 10):
        pool.unmap(addresses[index], 1, TO)
    assert [pool.slot(index).free for index in range(9, 15)] == [0, 4, 3, 2, 1, 0]


def test_swiotlb_freed_neighbours_do_not_join_across_segments(pool):
    addresses = fill(pool)
    for index in (127, 128):
        pool.unmap(addresses[index], 1, TO)
    assert [pool.slot(index).free for index in (127, 128)] == [1, 1]


def test_swiotlb_free_slots_before_a_mapping_end_with_it(pool):
    pool.map(BUFFER + 0x1800, 1, TO, min_align_mask=0x1FFF)
    assert [pool.slot(index).free for index in range(5)] == [3, 2, 1, 0, 124]


def test_swiotlb_slot_tells_its_part_of_the_buffer(pool):
    pool.map(BUFFER + 0x34, 5000, TO)
    assert [pool.slot(index) for index in range(4)] == [
        Slot(BUFFER + 0x34, 5000, 0),
        Slot(BUFFER + 0x834, 2952, 0),
        Slot(BUFFER + 0x1034, 904, 0),
        Slot(None, 0, 125),
    ]


# ---- alignment -----------------------------------------------------------------------------------


def test_swiotlb_offset_in_the_slot_is_0_without_a_mask(pool):
    assert slot_of(pool.map(BUFFER + 0xA34, 16, TO)) == (0, 0)


def test_swiotlb_min_align_mask_below_a_slot_keeps_the_offset(pool):
    assert slot_of(pool.map(BUFFER + 0xA34, 16, TO, min_align_mask=0x7FF)) == (0, 0x234)


def test_swiotlb_min_align_mask_of_a_page_picks_the_slot_too(pool):
    address = pool.map(BUFFER + 0xA34, 16, TO, min_align_mask=0xFFF)
    assert (slot_of(address), address & 0xFFF, pool.used_slots) == ((1, 0x234), 0xA34, 1)


def test_swiotlb_offset_counts_towards_the_slots(pool):
    pool.map(BUFFER + 0x7FF, 2, TO, min_align_mask=0x7FF)
    assert pool.used_slots == 2


def test_swiotlb_alloc_align_mask_takes_whole_pages(pool):
    pool.map(BUFFER, 1, TO)
    address = pool.map(BUFFER + 0xA34, 16, TO, alloc_align_mask=0xFFF)
    assert (slot_of(address), pool.used_slots) == ((2, 0), 3)


def test_swiotlb_both_masks_pad_in_front(pool):
    address = pool.map(BUFFER + 0xA34, 16, TO, min_align_mask=0xFFF, alloc_align_mask=0xFFF)
    assert slot_of(address) == (1, 0x234)
    assert [pool.slot(index) for index in (0, 1)] == [
        Slot(None, 0, 0),
        Slot(BUFFER + 0xA34, 16, 0),
    ]


def test_swiotlb_padding_is_freed_with_the_mapping(pool):
    address = pool.map(BUFFER + 0xA34, 16, TO, min_align_mask=0xFFF, alloc_align_mask=0xFFF)
    pool.unmap(address, 16, TO)
    assert (pool.free_slots, pool.slot(0).free) == (512, 128)


def test_swiotlb_page_or_more_is_page_aligned(pool):
    pool.map(BUFFER, 1, TO)
    assert slot_of(pool.map(BUFFER, 4096, TO)) == (2, 0)


def test_swiotlb_less_than_a_page_is_not_page_aligned(pool):
    pool.map(BUFFER, 1, TO)
    assert slot_of(pool.map(BUFFER, 4095, TO)) == (1, 0)


@pytest.mark.parametrize(
    ("mask", "limit"), [(0, 256 * KIB), (0x1FF, 254 * KIB), (0xFFF, 252 * KIB)]
)
def test_swiotlb_largest_mapping_leaves_room_for_the_offset(mask, limit):
    assert max_mapping_size(mask) == limit


# ---- areas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cpus", "areas"), [(1, 1), (2, 2), (3, 4), (100, 4)])
def test_swiotlb_has_an_area_per_cpu_as_far_as_segments_go(memory, cpus, areas):
    assert Swiotlb(memory, POOL, SIZE, cpus).areas == areas


@pytest.mark.parametrize(("cpu", "slot"), [(0, 0), (1, 128), (3, 384), (5, 128)])
def test_swiotlb_cpu_searches_its_own_area_first(memory, cpu, slot):
    pool = Swiotlb(memory, POOL, SIZE, cpus=4)
    assert slot_of(pool.map(BUFFER, 1, TO, cpu=cpu)) == (slot, 0)


def test_swiotlb_cpu_searches_the_other_areas_when_its_own_is_full(memory):
    pool = Swiotlb(memory, POOL, SIZE, cpus=4)
    pool.map(BUFFER, 256 * KIB, TO, cpu=3)
    assert slot_of(pool.map(BUFFER, 1, TO, cpu=3)) == (0, 0)


def test_swiotlb_area_has_its_slots_back_after_unmap(memory):
    pool = Swiotlb(memory, POOL, SIZE, cpus=4)
    pool.unmap(pool.map(BUFFER, 256 * KIB, TO, cpu=3), 256 * KIB, TO)
    assert slot_of(pool.map(BUFFER, 256 * KIB, TO, cpu=3)) == (384, 0)


# ---- refusals leave nothing behind ---------------------------------------------------------------


def test_swiotlb_full_pool_refuses(pool):
    fill(pool)
    with pytest.raises(PoolFullError, match=r"^no 2 free slots in a row .*512 of 512 slots are"):
        pool.map(BUFFER, 2049, TO)
    assert (pool.free_slots, pool.statistics.failed) == (0, 1)


def test_swiotlb_fragmented_pool_refuses(pool):
    for address in fill(pool)[::2]:
        pool.unmap(address, 1, TO)
    with pytest.raises(PoolFullError, match="256 of 512 slots are used"):
        pool.map(BUFFER, 2049, TO)
    assert pool.free_slots == 256


def test_swiotlb_full_pool_takes_no_failed_mapping_later(pool):
    addresses = fill(pool)
    with pytest.raises(PoolFullError):
        pool.map(BUFFER, 1, TO)
    for address in addresses:
        pool.unmap(address, 1, TO)
    assert pool.free_slots == 512


def test_swiotlb_mapping_beyond_a_segment_is_refused(pool):
    with pytest.raises(MappingTooLargeError, match=r"map at most 262144 bytes at once$"):
        pool.map(BUFFER, 256 * KIB + 1, TO)
    assert (pool.free_slots, pool.statistics.failed) == (512, 1)


def test_swiotlb_mapping_whose_alignment_leaves_no_room_is_refused(pool):
    with pytest.raises(MappingTooLargeError, match=r"map at most 258048 bytes at once$"):
        pool.map(BUFFER + 0x800, 256 * KIB, TO, min_align_mask=0xFFF)
    assert (pool.free_slots, pool.statistics.failed) == (512, 1)


def test_swiotlb_buffer_that_is_not_ram_is_refused(pool):
    with pytest.raises(NotRamError):
        pool.map(0x40_0000 - 8, 16, TO)
    assert pool.free_slots == 512


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("size 1 or more", {"size": 0}),
        ("original and cpu must be 0 or more", {"original": -1}),
        ("original and cpu must be 0 or more", {"cpu": -1}),
        ("min_align_mask must be a power of two less one", {"min_align_mask": 0x1000}),
        ("alloc_align_mask must be a power of two less one", {"alloc_align_mask": -1}),
        ("must be below 0x40000", {"alloc_align_mask": 0x3_FFFF + 0x4_0000}),
        ("boundary_mask must be at least 0x7ff", {"boundary_mask": 0x3FF}),
        ("is in the pool", {"original": POOL - 1, "size": 2}),
    ],
)
def test_swiotlb_map_refuses_bad_arguments(pool, message, arguments):
    with pytest.raises(ValueError, match=message):
        pool.map(**{"original": BUFFER, "size": 1, "direction": TO, **arguments})
    assert pool.free_slots == 512


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("^size must be a power of two of at least 262144", {"size": 128 * KIB}),
        ("^size must be a power of two of at least 262144", {"size": 768 * KIB}),
        ("^base must be a multiple of 4096", {"base": POOL + 2048}),
        ("^cpus must be 1 or more", {"cpus": 0}),
        ("is not inside one region", {"base": 0x3F_0000}),
    ],
)
def test_swiotlb_refuses_bad_pools(memory, message, arguments):
    with pytest.raises(ValueError, match=message):
        Swiotlb(memory, **{"base": POOL, "size": SIZE, **arguments})


@pytest.mark.parametrize(
    ("offset", "size", "direction"), [(0, 99, BOTH), (0, 101, BOTH), (0, 100, FROM), (1, 99, BOTH)]
)
def test_swiotlb_unmap_refuses_what_was_not_mapped(pool, offset, size, direction):
    address = pool.map(BUFFER, 100, BOTH)
    with pytest.raises(ValueError):
        pool.unmap(address + offset, size, direction)
    assert pool.used_slots == 1


def test_swiotlb_second_unmap_is_refused(pool):
    address = pool.map(BUFFER, 100, BOTH)
    pool.unmap(address, 100, BOTH)
    with pytest.raises(ValueError, match="is not inside one mapping"):
        pool.unmap(address, 100, BOTH)


def test_swiotlb_unmap_whose_copy_fails_keeps_the_mapping():
    machine = Machine([(0, 2 << 20), (BUFFER, 4096)])
    pool = Swiotlb(machine.memory, POOL, SIZE)
    address = pool.map(BUFFER, 100, FROM)
    machine.memory.remove(BUFFER)
    with pytest.raises(NotRamError):
        pool.unmap(address, 100, FROM)
    assert pool.used_slots == 1


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", Direction)
def test_swiotlb_map_copies_in_whatever_the_direction(memory, pool, direction):
    memory.write(BUFFER, b"original")
    assert memory.read(pool.map(BUFFER, 8, direction), 8) == b"original"


@pytest.mark.parametrize("direction", [FROM, BOTH])
def test_swiotlb_unmap_copies_out_what_the_device_wrote(memory, pool, direction):
    memory.write(BUFFER, b"original")
    address = pool.map(BUFFER, 8, direction)
    memory.write(address, b"DEV")
    pool.unmap(address, 8, direction)
    assert memory.read(BUFFER, 8) == b"DEVginal"


@pytest.mark.parametrize(("direction", "skip_sync"), [(TO, False), (FROM, True), (BOTH, True)])
def test_swiotlb_unmap_copies_nothing_out(memory, pool, direction, skip_sync):
    memory.write(BUFFER, b"original")
    address = pool.map(BUFFER, 8, direction)
    memory.write(address, b"DEV")
    pool.unmap(address, 8, direction, skip_sync=skip_sync)
    assert (memory.read(BUFFER, 8), pool.used_slots) == (b"original", 0)


@pytest.mark.parametrize(("direction", "copied"), [(TO, 0), (FROM, 6), (BOTH, 6)])
def test_swiotlb_sync_for_cpu_copies_the_part_out(memory, pool, direction, copied):
    address = pool.map(BUFFER, 5000, direction)
    memory.write(address, b"D" * 5000)
    pool.sync_for_cpu(address + 2045, 6)
    assert memory.read(BUFFER, 5000) == (bytes(2045) + b"D" * copied).ljust(5000, b"\0")


@pytest.mark.parametrize(("direction", "copied"), [(TO, 6), (FROM, 0), (BOTH, 6)])
def test_swiotlb_sync_for_device_copies_the_part_in(memory, pool, direction, copied):
    address = pool.map(BUFFER, 5000, direction)
    memory.write(BUFFER, b"C" * 5000)
    pool.sync_for_device(address + 2045, 6)
    assert memory.read(address, 5000) == (bytes(2045) + b"C" * copied).ljust(5000, b"\0")


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 1), (0, 0), (0, 101), (100, 1), (2048, 1), (-POOL, 1)]
)
def test_swiotlb_sync_refuses_what_is_not_inside_a_mapping(pool, offset, size):
    address = pool.map(BUFFER + 0x10, 100, BOTH, min_align_mask=0x7FF)
    with pytest.raises(ValueError, match="is not inside one mapping"):
        pool.sync_for_cpu(address + offset, size)


def test_swiotlb_padding_shows_older_data_unless_zeroed(memory, pool):
    memory.write(POOL, b"S" * 4096)
    pool.map(BUFFER, 16, TO, alloc_align_mask=0xFFF)
    assert memory.read(POOL, 4096) == bytes(16) + b"S" * 4080


def test_swiotlb_zeroed_padding_is_all_of_the_pages_beside_the_data(memory, pool):
    memory.write(BUFFER, b"B" * 8192)
    memory.write(POOL, b"S" * 12288)
    pool.map(
        BUFFER + 0xA34, 16, TO, min_align_mask=0xFFF, alloc_align_mask=0xFFF, zero_padding=True
    )
    assert memory.read(POOL, 4096) == (bytes(0xA34) + b"B" * 16).ljust(4096, b"\0")
    assert memory.read(POOL + 4096, 8192) == b"S" * 8192
    assert pool.statistics.zeroed == 4080


def test_swiotlb_statistics_count_bytes_and_slots(pool):
    first = pool.map(BUFFER, 5000, FROM)
    second = pool.map(BUFFER + 8192, 100, BOTH)
    pool.sync_for_device(second, 40)
    pool.unmap(first, 5000, FROM)
    pool.unmap(second, 100, BOTH)
    pool.map(BUFFER, 1, TO)
    assert (pool.statistics.copied_to_device, pool.statistics.copied_from_device) == (5141, 5100)
    assert (pool.statistics.mapped, pool.statistics.used_high_water) == (3, 4)


class PoolMachine(RuleBasedStateMachine):
    """Mappings come and go; the model keeps each buffer's and each bounce buffer's bytes."""

    WINDOW = 0x1_0000  # room for one buffer and what lies beside it

    def __init__(self):
        super().__init__()
        self.memory = Machine(4 << 20).memory
        self.memory.view(BUFFER, 16 * self.WINDOW)[:] = 0xEE
        self.pool = Swiotlb(self.memory, POOL, 512 * KIB, cpus=2)
        self.live = {}  # window: (bounce address, offset, direction, bytes in the bounce buffer)
        self.windows = [bytearray(b"\xee" * self.WINDOW) for _ in range(16)]
        self.stamp = 0

    def fresh(self, size):
        self.stamp += 1
        return bytes((self.stamp * 37 + index) % 251 for index in range(size))

    @precondition(lambda self: len(self.live) < 16)
    @rule(
        offset=st.integers(0, 8191),
        size=st.integers(1, 50_000),
        direction=st.sampled_from(Direction),
        keep=st.sampled_from([0, 0x1FF, 0x7FF, 0xFFF]),
        whole=st.sampled_from([0, 0xFFF, 0x3FFF]),
        cpu=st.integers(0, 3),
    )
    def map(self, offset, size, direction, keep, whole, cpu):
        window = min(set(range(16)) - set(self.live))
        data = self.fresh(size)
        original = BUFFER + window * self.WINDOW + offset
        self.memory.write(original, data)
        self.windows[window][offset : offset + size] = data
        free = self.pool.free_slots
        try:
            address = self.pool.map(
                original,
                size,
                direction,
                min_align_mask=keep,
                alloc_align_mask=whole,
                zero_padding=True,
                cpu=cpu,
            )
        except PoolFullError:
            assert self.pool.free_slots == free
            return
        assert address & keep == original & keep
        self.live[window] = (address, offset, direction, bytearray(data))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def device_writes(self, data):
        address, _, _, bounced = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        start = data.draw(st.integers(0, len(bounced) - 1))
        written = self.fresh(data.draw(st.integers(1, min(5000, len(bounced) - start))))
        self.memory.write(address + start, written)
        bounced[start : start + len(written)] = written

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def sync_for_cpu(self, data):
        window = data.draw(st.sampled_from(sorted(self.live)))
        address, offset, direction, bounced = self.live[window]
        start = data.draw(st.integers(0, len(bounced) - 1))
        size = data.draw(st.integers(1, len(bounced) - start))
        self.pool.sync_for_cpu(address + start, size)
        if direction is not TO:
            begin = offset + start
            self.windows[window][begin : begin + size] = bounced[start : start + size]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def unmap(self, data):
        window = data.draw(st.sampled_from(sorted(self.live)))
        address, offset, direction, bounced = self.live.pop(window)
        self.pool.unmap(address, len(bounced), direction)
        if direction is not TO:
            self.windows[window][offset : offset + len(bounced)] = bounced

    @invariant()
    def bytes_are_not_mixed(self):
        for window, content in enumerate(self.windows):
            assert self.memory.read(BUFFER + window * self.WINDOW, self.WINDOW) == content
        for address, _, _, bounced in self.live.values():
            assert self.memory.read(address, len(bounced)) == bounced

    @invariant()
    def free_runs_end_at_used_slots_and_segments(self):
        free = [self.pool.slot(index).free for index in range(256)]
        for index, run in enumerate(free):
            after = 0 if index % 128 == 127 else free[index + 1]
            assert run in (0, after + 1)
        assert sum(run > 0 for run in free) == self.pool.free_slots

    def teardown(self):
        for address, _, direction, bounced in self.live.values():
            self.pool.unmap(address, len(bounced), direction)
        assert [self.pool.slot(index).free for index in range(256)] == [
            128 - index % 128 for index in range(256)
        ]


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestSwiotlbPool = PoolMachine.TestCase
