import numpy as np
import pytest

from iommu_emu import Access, Machine, Timing
from iommu_emu.core import InvalidationState, OverlapError, Owed
from iommu_emu.devices import Device
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


def test_unit_reads_a_register_by_name(unit):
    assert unit.read("VER") == unit.core.mmio_read(0, 4)


def test_unit_writes_a_register_by_name(unit):
    unit.write("FEDATA", 0x41)
    assert unit.read("FEDATA") == 0x41


def test_unit_reads_a_field(unit):
    assert unit.field("FECTL", "IM") == 1


def test_unit_write_field_leaves_the_fields_beside_it(unit):
    unit.write("IQA", 0x5000)
    unit.write_field("IQA", "QS", 3)
    assert unit.read("IQA") == 0x5003


def test_unit_write_field_clears_no_other_write_1_to_clear_field(unit, block_everything):
    block_everything(unit)
    unit.translate(0x10, 0x1000)
    unit.write_field("FSTS", "PFO", 1)
    assert unit.field("FSTS", "PPF") == 1


def test_unit_reads_a_128_bit_register_of_an_array(unit, block_everything):
    block_everything(unit)
    unit.translate(0x10, 0x1000)
    assert unit.read("FRCD", 0) >> 127 == 1
    assert unit.field("FRCD", "SID", 0) == 0x10


def test_unit_array_index_is_checked(unit):
    count = unit.register("FRCD").count
    with pytest.raises(
        ValueError, match=rf"^index of FRCD must be in 0\.\.{count - 1}, not {count}$"
    ):
        unit.read("FRCD", count)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda unit: unit.read("NOPE"), "VTD has no register 'NOPE'"),
        (lambda unit: unit.field("GSTS", "NOPE"), "register GSTS has no field 'NOPE'"),
        (lambda unit: unit.entries("nope"), "cache must be one of iotlb, context"),
        (lambda unit: unit.write("FEDATA", 1 << 32), "value of FEDATA must be in 0x0..0xffffffff"),
    ],
)
def test_unit_names_what_does_not_exist(unit, use, message):
    with pytest.raises(ValueError, match=message):
        use(unit)


def test_unit_describes_a_field_that_is_set(unit):
    line = next(line for line in unit.describe().splitlines() if " FECTL " in line)
    assert line == "  038 FECTL        80000000  IM=0x1  # Fault event control"


def test_unit_translates_identically_while_switched_off(unit):
    result = unit.translate(0x10, 0x1234, access=Access.WRITE)
    assert (result.ok, result.address) == (True, 0x1234)


def test_unit_fault_names_its_cause(unit, block_everything):
    block_everything(unit)
    result = unit.translate(0x10, 0x1000)
    assert (result.fault, result.cause.code, result.recorded) == (1, 1, True)


def test_unit_batch_fills_one_result_an_address(unit):
    addresses = np.array([0x1000, 0x2004], dtype=np.uint64)
    assert unit.translate_batch(0x10, addresses)["address"].tolist() == [0x1000, 0x2004]


def test_unit_batch_takes_every_second_address_of_an_array(unit):
    addresses = np.arange(8, dtype=np.uint64)[::2]
    assert unit.translate_batch(0x10, addresses)["address"].tolist() == [0, 2, 4, 6]


def test_unit_batch_of_nothing_is_nothing(unit):
    assert len(unit.translate_batch(0x10, np.empty(0, dtype=np.uint64))) == 0


def test_unit_batch_refuses_other_types(unit):
    with pytest.raises(ValueError, match="one-dimensional uint64 array, not 1 dimensions of int32"):
        unit.translate_batch(0x10, np.zeros(3, dtype=np.int32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requester": 1 << 16, "address": 0}, "requester must be in 0x0..0xffff, not 0x10000"),
        ({"requester": 0, "address": -1}, "address must be in"),
        ({"requester": 0, "address": 0, "pasid": 1 << 20}, "pasid must be in 0x0..0xfffff"),
    ],
)
def test_unit_translate_names_the_argument_out_of_range(unit, arguments, message):
    with pytest.raises(ValueError, match=message):
        unit.translate(**arguments)


def test_unit_counters_count(unit, block_everything):
    block_everything(unit)
    unit.translate(0x10, 0x1000)
    assert unit.counters["faults_recorded"] == 1


def test_unit_reset_switches_translation_off(unit, block_everything):
    block_everything(unit)
    unit.reset()
    assert unit.field("GSTS", "TES") == 0


def test_unit_manual_timing_moves_step_by_step(unit):
    unit.set_timing(Timing(manual=True))
    unit.write("CCMD", 1 << 63 | 1 << 61)
    states = [unit.invalidation_state]
    while unit.step():
        states.append(unit.invalidation_state)
    assert states == [
        InvalidationState.SUBMITTED,
        InvalidationState.IN_PROGRESS,
        InvalidationState.IDLE,
    ]


def test_unit_registers_must_not_overlap_ram(machine):
    with pytest.raises(OverlapError, match="VTD unit at 0xff000"):
        VtdUnit(machine, VtdConfig(base=0xFF000))


def test_unit_that_cannot_be_built_leaves_the_machine_as_it_was(machine):
    with pytest.raises(OverlapError):
        VtdUnit(machine, VtdConfig(base=0xFF000))
    assert (machine.units, machine.rules) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 6000}, "window must be a power of two in 0x1000..0x1000000, not 0x1770"),
        ({"base": 0x1800}, r"base must be a multiple of window \(0x1000\)"),
        ({"host_address_width": 53}, r"host_address_width must be in 32\.\.52, not 53"),
        ({"fetch_granule": 512}, "fetch_granule must be 64, 128 or 256, not 512"),
        ({"geometry": "huge"}, "geometry must be one of default"),
    ],
)
def test_unit_config_names_the_value_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        VtdConfig(**{"base": 0xFED9_0000, **arguments})


def test_unit_first_one_serves_the_whole_segment(machine, unit):
    assert machine.core.routed_unit(0, 0xFFFF) is unit.core


def test_unit_in_another_segment_serves_only_that(machine, unit):
    other = VtdUnit(machine, VtdConfig(base=0xFED9_1000), 3)
    routed = [machine.core.routed_unit(segment, 0x10) for segment in (0, 3)]
    assert routed == [unit.core, other.core]


@pytest.fixture
def mapped(machine, unit):
    """A driver that has mapped IOVA 4000h to 8000h for requester 10h."""
    driver = VtdDriver(machine, unit, range(0x4_0000, 0x8_0000))
    driver.start()
    domain = driver.create_domain()
    domain.map(0x4000, 0x8000, 4096)
    driver.attach(domain, 0x10)
    return domain


def test_unit_entries_show_what_is_cached(unit, mapped):
    unit.translate(0x10, 0x4321)
    (entry,) = unit.entries("iotlb")
    assert (entry.address, entry.output, entry.page_shift) == (0x4000, 0x8000, 12)
    assert (entry.requester, entry.domain) == (0x10, mapped.id)


def test_unit_stale_use_says_what_was_owed(unit, mapped):
    unit.watch()
    unit.translate(0x10, 0x4000)
    mapped.unmap(0x4000, 4096, invalidate=False)
    unit.translate(0x10, 0x4000)
    (use,) = unit.stale_uses()
    assert (use.request.requester, use.request.address) == (0x10, 0x4000)
    assert (use.cached.address, use.fresh.fault, use.after) == (0x8000, 6, 0)
    assert use.owed & Owed.IOTLB_PAGE


def test_unit_stale_uses_are_taken_once(unit, mapped):
    unit.watch()
    unit.translate(0x10, 0x4000)
    mapped.unmap(0x4000, 4096, invalidate=False)
    unit.translate(0x10, 0x4000)
    unit.stale_uses()
    assert (unit.stale_uses(), unit.lost_stale_uses) == ([], 0)


def test_unit_lost_stale_uses_are_counted(unit, mapped):
    unit.watch()
    unit.translate(0x10, 0x4000)
    mapped.unmap(0x4000, 4096, invalidate=False)
    unit.translate_batch(0x10, np.full(10_000, 0x4000, dtype=np.uint64))
    kept = len(unit.stale_uses())
    assert kept + unit.lost_stale_uses == 10_000


def test_unit_write_reports_what_its_drain_made_land():
    machine = Machine.from_platform("q35-vtd")
    driver = VtdDriver(machine, machine.units[0], range(0x10_0000, 0x18_0000))
    driver.start()
    device = machine.attach(Device("writer"))
    domain = driver.create_domain()
    driver.attach(domain, device.address)
    domain.map(0x1000, 0x20_0000, 4096)
    device.dma.set_latency(0, 100)
    done = []
    device.dma.write(0x1000, b"\x01", done.append)
    domain.unmap(0x1000, 4096)
    assert [completion.ok for completion in done] == [True]
