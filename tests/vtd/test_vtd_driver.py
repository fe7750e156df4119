"""The small VT-d driver: it programs the unit, and what it maps is what devices reach."""

import re

import pytest

from iommu_emu.core import Access, Outcome
from iommu_emu.machine import Machine
from iommu_emu.timing import MANUAL, Timing
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BASE = 0xFED9_0000
FRAMES = range(0x100_0000, 0x200_0000)
DEVICE = 0x0310
IOVA = 0x10_0000_0000
PAGE = 0x4000


def make(invalidation="queue", capabilities=None, start=True, **config):
    machine = Machine(32 << 20)
    arguments = {"base": BASE, "capabilities": capabilities or Capabilities(), **config}
    unit = VtdUnit(machine, VtdConfig(**arguments))
    driver = VtdDriver(machine, unit, FRAMES, invalidation)
    if start:
        driver.start()
    return driver


@pytest.fixture(params=["queue", "register"])
def driver(request):
    return make(request.param)


@pytest.fixture
def domain(driver):
    """A domain with DEVICE attached and PAGE mapped at IOVA."""
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    domain.map(IOVA, PAGE, 4096)
    return domain


def reach(driver, iova=IOVA, access=Access.READ, requester=DEVICE):
    """Return the physical address that a device reaches, or None."""
    result = driver.unit.translate(requester, iova, access=access)
    return result.address if result.outcome is Outcome.MEMORY else None


def test_start_enables_translation(driver):
    assert driver.unit.field("GSTS", "TES") == 1
    assert driver.unit.field("GSTS", "RTPS") == 1
    assert driver.unit.field("FECTL", "IM") == 0


def test_start_turns_the_queue_on_only_if_it_is_used(driver):
    assert driver.unit.field("GSTS", "QIES") == int(driver.invalidation == "queue")


def test_start_blocks_every_device(driver):
    assert reach(driver) is None


def test_stop_lets_everything_through(driver):
    driver.stop()
    assert reach(driver, 0x1234) == 0x1234


def test_attached_device_reaches_what_is_mapped(driver, domain):
    assert reach(driver, IOVA + 0x123) == PAGE + 0x123


def test_unmapped_page_is_out_of_reach_at_once(driver, domain):
    assert reach(driver) == PAGE
    domain.unmap(IOVA, 4096)
    assert reach(driver) is None


def test_forgotten_invalidation_leaves_the_page_in_reach(driver, domain):
    assert reach(driver) == PAGE
    domain.unmap(IOVA, 4096, invalidate=False)
    assert reach(driver) == PAGE
    domain.flush()
    assert reach(driver) is None


def test_driver_without_invalidation_leaves_everything_in_reach():
    driver = make("none")
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    domain.map(IOVA, PAGE, 4096)
    assert reach(driver) == PAGE
    domain.unmap(IOVA, 4096)
    driver.detach(DEVICE)
    assert reach(driver) == PAGE


def test_permissions_are_kept(driver, domain):
    domain.map(IOVA + 0x1000, PAGE, 4096, "r")
    assert reach(driver, IOVA + 0x1000) == PAGE
    assert reach(driver, IOVA + 0x1000, Access.WRITE) is None


def test_detached_device_is_blocked(driver, domain):
    assert reach(driver) == PAGE
    driver.detach(DEVICE)
    assert reach(driver) is None


def test_forgotten_context_invalidation_leaves_a_detached_device_in(driver, domain):
    assert reach(driver) == PAGE
    driver.detach(DEVICE, invalidate=False)
    assert reach(driver) == PAGE


def test_device_can_change_its_domain(driver, domain):
    assert reach(driver) == PAGE
    other = driver.create_domain(levels=3)
    other.map(0, 0x5000, 4096)
    driver.attach(other, DEVICE)
    assert (reach(driver), reach(driver, 0)) == (None, 0x5000)


def test_pass_through_device_reaches_physical_memory(driver):
    driver.pass_through(DEVICE)
    assert reach(driver, 0x1234) == 0x1234


def test_pass_through_needs_the_capability():
    driver = make(capabilities=Capabilities(pass_through=False))
    with pytest.raises(ValueError, match=r"^the unit does not support pass-through \(ECAP\.PT\)$"):
        driver.pass_through(DEVICE)


def test_pages_are_as_large_as_they_can_be(driver, domain):
    domain.map(0x3FFF_F000, 0x3FFF_F000, 0x4000_0000 + 0x20_2000)
    shifts = {
        iova: driver.unit.translate(DEVICE, iova).page_shift
        for iova in (0x3FFF_F000, 0x4000_0000, 0x8000_0000, 0x8020_0000)
    }
    assert list(shifts.values()) == [12, 30, 21, 12]


def test_page_size_can_be_chosen(driver, domain):
    domain.map(0x4000_0000, 0x4000_0000, 0x40_0000, page_size=0x20_0000)
    domain.map(0x8000_0000, 0x8000_0000, 0x20_0000, page_size=[0x1000])
    assert driver.unit.translate(DEVICE, 0x4000_0000).page_shift == 21
    assert driver.unit.translate(DEVICE, 0x8000_0000).page_shift == 12


def test_large_page_takes_the_place_of_small_ones(driver, domain):
    domain.map(0x4000_0000, 0x40_0000, 0x20_0000, page_size=4096)
    assert reach(driver, 0x4000_0000) == 0x40_0000
    domain.unmap(0x4000_0000, 0x20_0000)
    domain.map(0x4000_0000, 0x60_0000, 0x20_0000)
    assert reach(driver, 0x4000_0000) == 0x60_0000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IOVA + 1, PAGE, 4096), "iova must be a multiple of 0x1000, not 0x1000000001"),
        ((0, PAGE + 8, 4096), "physical must be a multiple of 0x1000, not 0x4008"),
        ((0, PAGE, 100), "size must be a multiple of 0x1000, not 0x64"),
        ((0, PAGE, 0), "size must be above 0, not 0x0"),
        ((1 << 48, PAGE, 4096), "map must stay in 0..0xffffffffffff, not 0x1000000000000+0x1000"),
        ((0, 1 << 39, 4096), "physical range must end at or below 0x8000000000, not 0x8000000000"),
        ((IOVA - 4096, PAGE, 8192), "iova 0x1000000000 is mapped already"),
        ((0, PAGE, 4096, "x"), 'permissions must be "r", "w" or "rw", not \'x\''),
        (
            (0, PAGE, 4096, "rw", 8192),
            "page_size must be of 0x1000, 0x200000, 0x40000000, not [8192]",
        ),
    ],
)
def test_map_refuses_mistakes_with_the_limit(driver, domain, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        domain.map(*arguments)


def test_refused_map_leaves_nothing_mapped(driver, domain):
    with pytest.raises(ValueError, match="is mapped already"):
        domain.map(IOVA - 0x3000, 0x8000, 0x5000)
    assert reach(driver, IOVA - 0x3000) is None
    assert domain.table.lookup(IOVA - 0x3000) is None


def test_map_without_frames_leaves_nothing_mapped(driver, domain):
    driver.frames.take(driver.frames.available - 1)
    with pytest.raises(MemoryError, match=r"^3 tables needed, 1 frames left$"):
        domain.map(1 << 45, PAGE, 4096)
    assert domain.table.lookup(1 << 45) is None


@pytest.mark.parametrize(
    ("iova", "size", "message"),
    [
        (IOVA, 8192, "iova 0x1000001000 is not mapped"),
        (0x5000, 4096, "iova 0x5000 is not mapped"),
        (0x4000_1000, 4096, "iova 0x40001000 splits a page of 0x200000"),
        (0x4000_0000, 4096, "end of the range 0x40001000 splits a page of 0x200000"),
    ],
)
def test_unmap_refuses_mistakes(driver, domain, iova, size, message):
    domain.map(0x4000_0000, 0x20_0000, 0x20_0000)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        domain.unmap(iova, size)
    assert (reach(driver), reach(driver, 0x4000_0000)) == (PAGE, 0x20_0000)


def test_unmapping_a_part_leaves_the_rest(driver, domain):
    domain.map(0x10000, 0x10000, 0x3000)
    domain.unmap(0x11000, 0x1000)
    assert [reach(driver, iova) for iova in (0x10000, 0x11000, 0x12000)] == [0x10000, None, 0x12000]


def test_tables_that_get_empty_are_given_back(driver, domain):
    before = driver.frames.available
    domain.map(1 << 40, PAGE, 4096)
    domain.unmap(1 << 40, 4096)
    assert driver.frames.available == before


def test_tables_are_kept_until_a_forgotten_invalidation_is_made_up_for(driver, domain):
    domain.map(1 << 40, PAGE, 4096)
    before = driver.frames.available
    domain.unmap(1 << 40, 4096, invalidate=False)
    assert driver.frames.available == before
    domain.flush()
    assert driver.frames.available == before + 3


def test_faults_are_decoded_and_cleared(driver, domain):
    reach(driver, 0x7000, Access.WRITE)
    record = driver.faults()[0]
    assert (record.requester, record.address, record.access, record.code, record.name) == (
        DEVICE,
        0x7000,
        Access.WRITE,
        5,
        "LGN.2",
    )
    assert str(record).startswith("03:02.0 write of 0x7000: fault 0x05 LGN.2 (")
    assert driver.faults() == []
    assert driver.unit.read("FSTS") == 0


def test_fault_event_is_a_message_with_the_chosen_vector():
    driver = make(start=False)
    driver.start(fault_vector=0x51)
    reach(driver)
    assert [interrupt.vector for interrupt in driver.machine.interrupts] == [0x51]


def test_caching_mode_map_drops_what_was_cached_of_nothing():
    driver = make(capabilities=Capabilities(caching_mode=True))
    domain = driver.create_domain()
    assert reach(driver) is None
    driver.attach(domain, DEVICE)
    assert reach(driver) is None
    domain.map(IOVA, PAGE, 4096, invalidate=False)
    assert reach(driver) is None
    domain.unmap(IOVA, 4096)
    domain.map(IOVA, PAGE, 4096)
    assert reach(driver) == PAGE


def test_unmap_without_page_selective_invalidation_works():
    driver = make(capabilities=Capabilities(page_selective=False, max_address_mask=0))
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    domain.map(IOVA, PAGE, 4096)
    assert reach(driver) == PAGE
    domain.unmap(IOVA, 4096)
    assert reach(driver) is None


def test_write_buffer_flush_is_done_where_it_is_required():
    driver = make(capabilities=Capabilities(write_buffer_flush=True))
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    domain.map(IOVA, PAGE, 4096)
    assert reach(driver) == PAGE
    assert driver.unit.field("GSTS", "WBFS") == 0


def test_queue_wraps_around(driver, domain):
    for _ in range(600):
        driver.invalidate_iotlb("domain", domain.id)
    driver.wait()
    assert reach(driver) == PAGE


def test_wait_lets_time_pass():
    driver = make(timing=Timing(command=10, invalidation=100, wait=20))
    before = driver.machine.clock.now
    driver.invalidate_iotlb()
    driver.wait()
    assert driver.machine.clock.now - before == 140


def test_wait_gives_up_if_nothing_is_due():
    driver = make()
    driver.unit.set_timing(MANUAL)
    driver.invalidate_iotlb()
    with pytest.raises(TimeoutError, match=r"^invalidation wait descriptor: not complete"):
        driver.wait()


def test_wait_reports_a_queue_error():
    driver = make()
    driver.submit(bytes(16))
    with pytest.raises(RuntimeError, match=r"^invalidation queue error 3 at descriptor \d"):
        driver.wait()


def test_wait_reports_a_refused_register_command():
    driver = make("register")
    driver.unit.write("IVA", 63)
    driver.unit.write("IOTLB", 1 << 63 | 3 << 60)
    with pytest.raises(RuntimeError, match=r"^IOTLB: the unit refused the invalidation"):
        driver.wait()


def test_domain_ids_run_out_at_the_limit():
    driver = make(capabilities=Capabilities(domain_bits=4))
    for _ in range(14):
        driver.create_domain()
    with pytest.raises(ValueError, match=r"^all 14 domain IDs are taken$"):
        driver.create_domain()


def test_destroyed_domain_gives_its_frames_and_id_back(driver):
    before = driver.frames.available
    domain = driver.create_domain()
    domain.map(IOVA, PAGE, 4096)
    driver.destroy_domain(domain)
    assert driver.frames.available == before
    assert driver.create_domain().id == domain.id


def test_domain_in_use_is_not_destroyed(driver, domain):
    with pytest.raises(ValueError, match=r"^requester 0x0310 is attached to domain 2$"):
        driver.destroy_domain(domain)


@pytest.mark.parametrize("invalidation", ["mmio", ""])
def test_driver_refuses_unknown_ways_of_invalidation(invalidation):
    with pytest.raises(ValueError, match=r"^invalidation must be one of "):
        make(invalidation, start=False)


def test_driver_refuses_a_queue_that_is_not_there():
    with pytest.raises(ValueError, match=r"^invalidation must not be 'queue'"):
        make(capabilities=Capabilities(queued_invalidation=False), start=False)


def test_driver_refuses_a_requester_out_of_range(driver, domain):
    with pytest.raises(ValueError, match=r"^requester must be in 0\.\.0xffff, not 0x10000$"):
        driver.attach(domain, 0x10000)


def test_detach_refuses_a_device_that_is_not_attached(driver):
    with pytest.raises(ValueError, match=r"^requester 0x0310 is not attached$"):
        driver.detach(DEVICE)


def test_domain_refuses_levels_that_the_unit_does_not_support():
    driver = make(capabilities=Capabilities(levels={4}))
    with pytest.raises(ValueError, match=r"^levels must be one of \[4\], not 5$"):
        driver.create_domain(levels=5)


def test_frames_must_be_pages(driver):
    with pytest.raises(ValueError, match=r"^frames must be a page-aligned range"):
        VtdDriver(driver.machine, driver.unit, range(1, 5))
