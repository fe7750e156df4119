import pytest
from swiotlb_bed import BOTH, BUFFER, FROM, POOL, SIZE, TO, fill

from iommu_emu import Machine
from iommu_emu.devices import MaliciousDevice
from iommu_emu.linux.bounce import BouncedBuffer, BounceRule, Extent, Segment, plan_bounce
from iommu_emu.linux.swiotlb import PoolFullError, Swiotlb
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


@pytest.mark.parametrize(
    ("address", "size", "segments"),
    [
        pytest.param(
            0xF80,
            0x2100,
            (
                Segment(0, 0x80, 0xF80, bounced=True),
                Segment(0x80, 0x2000, 0x1000, bounced=False),
                Segment(0x2080, 0x80, 0x3000, bounced=True),
            ),
            id="head, middle and tail",
        ),
        pytest.param(0xF80, 0x40, (Segment(0, 0x40, 0xF80, bounced=True),), id="inside a page"),
        pytest.param(0xF80, 0x80, (Segment(0, 0x80, 0xF80, bounced=True),), id="end of a page"),
        pytest.param(0x1000, 0x80, (Segment(0, 0x80, 0, bounced=True),), id="start of a page"),
        pytest.param(
            0xFFF,
            2,
            (Segment(0, 1, 0xFFF, bounced=True), Segment(1, 1, 0x1000, bounced=True)),
            id="no middle",
        ),
        pytest.param(
            0x1000,
            0x1001,
            (Segment(0, 0x1000, 0, bounced=False), Segment(0x1000, 1, 0x1000, bounced=True)),
            id="no head",
        ),
        pytest.param(0x1000, 0x2000, (Segment(0, 0x2000, 0, bounced=False),), id="whole pages"),
    ],
)
def test_bounce_head_tail_bounces_partial_granules(address, size, segments):
    assert plan_bounce(address, size, 4096, BounceRule.HEAD_TAIL).segments == segments


@pytest.mark.parametrize(("address", "size"), [(0xF80, 0x2100), (0xF80, 0x1000), (0x1000, 1)])
def test_bounce_whole_bounces_everything_from_offset_0(address, size):
    plan = plan_bounce(address, size, 4096, BounceRule.WHOLE)
    assert plan.segments == (Segment(0, size, 0, bounced=True),)


def test_bounce_whole_keeps_the_offset_that_the_device_needs():
    plan = plan_bounce(0xF84, 0x2100, 4096, BounceRule.WHOLE, min_align_mask=0x1FF)
    assert (plan.iova_offset, plan.iova_size) == (0x184, 0x3000)


@pytest.mark.parametrize("rule", BounceRule)
def test_bounce_maps_whole_granules_in_place(rule):
    plan = plan_bounce(0x1000, 0x2000, 4096, rule)
    assert (plan.bounced_bytes, plan.exposed_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("rule", "granule", "bounced", "exposed"),
    [
        (BounceRule.NONE, 0x1000, 0, 0x1F00),
        (BounceRule.HEAD_TAIL, 0x1000, 0x100, 0),
        (BounceRule.WHOLE, 0x1000, 0x2100, 0),
        (BounceRule.NONE, 0x1_0000, 0, 0xDF00),
        (BounceRule.HEAD_TAIL, 0x1_0000, 0x2100, 0),
    ],
)
def test_bounce_plan_counts_bytes_bounced_and_exposed(rule, granule, bounced, exposed):
    plan = plan_bounce(0xF80, 0x2100, granule, rule)
    assert (plan.bounced_bytes, plan.exposed_bytes) == (bounced, exposed)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("^granule must be a power of two of at least 4096", {"granule": 2048}),
        ("^granule must be a power of two of at least 4096", {"granule": 12288}),
        ("^address must be 0 or more and size 1 or more", {"size": 0}),
        ("^min_align_mask must be below the granule", {"min_align_mask": 0x1FFF}),
    ],
)
def test_bounce_plan_refuses_bad_arguments(message, arguments):
    good = {"address": 0, "size": 1, "granule": 4096, "rule": BounceRule.WHOLE}
    with pytest.raises(ValueError, match=message):
        plan_bounce(**{**good, **arguments})


def test_bounced_buffer_of_head_and_tail_keeps_their_places(pool):
    plan = plan_bounce(BUFFER + 0xF80, 0x2100, 4096, BounceRule.HEAD_TAIL)
    assert BouncedBuffer(pool, plan, BOTH).extents == (
        Extent(0, POOL, 0x1000),
        Extent(0x1000, BUFFER + 0x1000, 0x2000),
        Extent(0x3000, POOL + 0x1000, 0x1000),
    )


def test_bounced_buffer_synchronises_across_its_segments(memory, pool):
    plan = plan_bounce(BUFFER + 0xF80, 0x100, 4096, BounceRule.HEAD_TAIL)
    buffer = BouncedBuffer(pool, plan, BOTH)
    memory.write(POOL + 0xF80, b"D" * 0x100)  # head and tail lie in neighbouring slots here
    buffer.sync_for_cpu(0x70, 0x20)
    assert memory.read(BUFFER + 0xF80, 0x100) == bytes(0x70) + b"D" * 0x20 + bytes(0x70)


def test_bounced_buffer_carries_what_the_cpu_wrote_later(memory, pool):
    plan = plan_bounce(BUFFER + 0xF80, 0x100, 4096, BounceRule.WHOLE)
    buffer = BouncedBuffer(pool, plan, TO)
    memory.write(BUFFER + 0xF80, b"C" * 0x100)
    buffer.sync_for_device(0x10)
    assert memory.read(buffer.extents[0].physical, 0x100) == bytes(0x10) + b"C" * 0xF0


def test_bounced_buffer_refuses_to_synchronise_beyond_its_end(pool):
    plan = plan_bounce(BUFFER, 0x100, 4096, BounceRule.WHOLE)
    with pytest.raises(ValueError, match=r"^range 0x80\.\.0x101 must be inside"):
        BouncedBuffer(pool, plan, BOTH).sync_for_cpu(0x80, 0x81)


def test_bounced_buffer_is_released_once(memory, pool):
    buffer = BouncedBuffer(pool, plan_bounce(BUFFER, 1, 4096, BounceRule.WHOLE), FROM)
    buffer.release()
    memory.write(BUFFER, b"x")
    buffer.release()
    assert (memory.read(BUFFER, 1), pool.free_slots) == (b"x", 512)


def test_bounced_buffer_refuses_to_synchronise_after_release(pool):
    buffer = BouncedBuffer(pool, plan_bounce(BUFFER, 1, 4096, BounceRule.WHOLE), FROM)
    buffer.release()
    with pytest.raises(ValueError, match="must not be released"):
        buffer.sync_for_cpu()


def test_bounced_buffer_without_room_for_its_tail_takes_no_slots(memory, pool):
    memory.write(BUFFER, b"original" * 1024)
    addresses = fill(pool)
    for address in addresses[:3]:  # room for one page, not for two
        pool.unmap(address, 1, TO)
    plan = plan_bounce(BUFFER + 0xF80, 0x100, 4096, BounceRule.HEAD_TAIL)
    with pytest.raises(PoolFullError):
        BouncedBuffer(pool, plan, FROM)
    assert (pool.free_slots, memory.read(BUFFER, 8192)) == (3, b"original" * 1024)


# ---- what a device reaches -----------------------------------------------------------------------


class Bed:
    """A buffer among secrets, mapped for a malicious device by a rule."""

    IOVA = 0x7000_0000
    ADDRESS = BUFFER + 0xF80
    SIZE = 0x2100

    def __init__(self, rule):
        machine = Machine(4 << 20)
        self.memory = machine.memory
        self.device = machine.attach(MaliciousDevice(), "00:05.0")
        unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000))
        driver = VtdDriver(machine, unit, range(0x30_0000, 0x40_0000))
        driver.start()
        self.pool = Swiotlb(self.memory, POOL, SIZE)
        self.memory.write(POOL, b"S" * 0x1_0000)
        self.memory.write(BUFFER, b"S" * 0x1_0000)
        self.memory.write(self.ADDRESS, b"d" * self.SIZE)
        self.plan = plan_bounce(self.ADDRESS, self.SIZE, 4096, rule)
        self.buffer = BouncedBuffer(self.pool, self.plan, BOTH)
        domain = driver.create_domain()
        driver.attach(domain, self.device.dma.requester)
        for extent in self.buffer.extents:
            domain.map(self.IOVA + extent.iova_offset, extent.physical, extent.size)

    def all_that_is_mapped(self):
        return self.device.read(self.IOVA, self.plan.iova_size).data


def test_device_reads_what_lies_beside_a_buffer_mapped_in_place():
    bed = Bed(BounceRule.NONE)
    assert bed.all_that_is_mapped().count(b"S") == bed.plan.exposed_bytes == 0x1F00


@pytest.mark.parametrize("rule", [BounceRule.HEAD_TAIL, BounceRule.WHOLE])
def test_device_reads_the_buffer_and_zeros_of_a_bounced_one(rule):
    bed = Bed(rule)
    expected = bytes(bed.plan.iova_offset) + b"d" * bed.SIZE
    assert bed.all_that_is_mapped() == expected.ljust(bed.plan.iova_size, b"\0")


def test_device_corrupts_what_lies_beside_a_buffer_mapped_in_place():
    bed = Bed(BounceRule.NONE)
    bed.device.write(bed.IOVA, b"X" * bed.plan.iova_size)
    assert bed.memory.read(BUFFER, 0xF80) == b"X" * 0xF80


@pytest.mark.parametrize("rule", [BounceRule.HEAD_TAIL, BounceRule.WHOLE])
def test_device_writes_only_the_buffer_of_a_bounced_one(rule):
    bed = Bed(rule)
    bed.device.write(bed.IOVA, b"X" * bed.plan.iova_size)
    bed.buffer.release()
    expected = b"S" * 0xF80 + b"X" * bed.SIZE
    assert bed.memory.read(BUFFER, 0x1_0000) == expected.ljust(0x1_0000, b"S")


@pytest.mark.parametrize(
    ("rule", "at_once"), [(BounceRule.HEAD_TAIL, 0x2000), (BounceRule.WHOLE, 0)]
)
def test_device_writes_reach_memory_before_unmap_only_in_the_middle(rule, at_once):
    bed = Bed(rule)
    bed.device.write(bed.IOVA, b"X" * bed.plan.iova_size)
    assert bed.memory.read(bed.ADDRESS, bed.SIZE).count(b"X") == at_once
