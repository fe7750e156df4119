"""The small AMD-Vi driver: it programs the unit, and what it maps is what devices reach."""

import re

import pytest

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.features import Features
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Access, Outcome
from iommu_emu.driver import ALL_PAGES, invalidation_address
from iommu_emu.machine import Machine
from iommu_emu.reference.amdvi import invalidated_range
from iommu_emu.timing import MANUAL, Timing

BASE = 0xFEB8_0000
FRAMES = range(0x100_0000, 0x200_0000)
DEVICE = 0x0310
IOVA = 0x10_0000_0000
PAGE = 0x4000


def make(invalidation="queue", features=None, start=True, **config):
    machine = Machine(32 << 20)
    unit = AmdviUnit(machine, AmdviConfig(base=BASE, features=features or Features(), **config))
    driver = AmdviDriver(machine, unit, FRAMES, invalidation, buses=4)
    if start:
        driver.start()
    return driver


@pytest.fixture
def driver():
    return make()


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


def test_start_runs_command_buffer_and_event_log(driver):
    assert driver.unit.field("Status", "CmdBufRun") == 1
    assert driver.unit.field("Status", "EventLogRun") == 1


def test_start_blocks_every_device(driver):
    assert reach(driver) is None
    assert reach(driver, requester=0xFFFF) is None


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


def test_forgotten_entry_invalidation_leaves_a_detached_device_in(driver, domain):
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


@pytest.mark.parametrize("shift", [12, 13, 16, 20, 21, 24, 29, 30, 33, 38])
def test_every_page_size_can_be_chosen(driver, domain, shift):
    size = 1 << shift
    domain.map(1 << 40, 1 << 41, 2 * size, page_size=size)
    last = (1 << 40) + 2 * size - 4
    result = driver.unit.translate(DEVICE, last)
    assert (result.page_shift, result.address) == (shift, (1 << 41) + 2 * size - 4)
    domain.unmap((1 << 40) + size, size)
    assert (reach(driver, last), reach(driver, 1 << 40)) == (None, 1 << 41)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6])
def test_domain_of_every_depth_works(driver, levels):
    domain = driver.create_domain(levels)
    driver.attach(domain, DEVICE)
    iova = (1 << min(12 + 9 * levels, 64)) - 4096
    domain.map(iova, PAGE, 4096)
    assert reach(driver, iova) == PAGE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IOVA + 1, PAGE, 4096), "iova must be a multiple of 0x1000, not 0x1000000001"),
        ((1 << 48, PAGE, 4096), "map must stay in 0..0xffffffffffff, not 0x1000000000000+0x1000"),
        (
            (0, 1 << 48, 4096),
            "physical range must end at or below 0x1000000000000, not 0x1000000000000",
        ),
        ((IOVA, PAGE, 4096), "iova 0x1000000000 is mapped already"),
        (
            (0x8000, 0x1000, 0x2000, "rw", 0x2000),
            "physical must be a multiple of 0x2000, not 0x1000",
        ),
    ],
)
def test_map_refuses_mistakes_with_the_limit(driver, domain, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        domain.map(*arguments)


def test_faults_are_decoded_and_taken(driver, domain):
    reach(driver, 0x7000, Access.WRITE)
    event = driver.faults()[0]
    assert (event.requester, event.address, event.access, event.code, event.name) == (
        DEVICE,
        0x7000,
        Access.WRITE,
        2,
        "IO_PAGE_FAULT",
    )
    assert event.fields.domain_id == domain.id
    assert str(event) == "03:02.0 IO_PAGE_FAULT address 0x7000 flags rw"
    assert driver.faults() == []


def test_event_is_a_message_with_the_chosen_vector():
    driver = make(start=False)
    driver.start(fault_vector=0x51)
    reach(driver)
    assert [interrupt.vector for interrupt in driver.machine.interrupts] == [0x51]


@pytest.mark.parametrize("vector", [15, 255])
def test_start_refuses_a_vector_that_no_interrupt_has(vector):
    driver = make(start=False)
    with pytest.raises(ValueError, match=rf"^fault_vector must be in 16\.\.254, not {vector}$"):
        driver.start(fault_vector=vector)


def test_event_log_wraps_around(driver, domain):
    for number in range(600):
        reach(driver, 0x10_0000 + 4096 * number)
        assert [event.address for event in driver.faults()] == [0x10_0000 + 4096 * number]


def test_np_cache_map_drops_what_was_cached_of_nothing():
    driver = make(np_cache=True)
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    assert reach(driver) is None
    domain.map(IOVA, PAGE, 4096, invalidate=False)
    assert reach(driver) is None
    domain.unmap(IOVA, 4096)
    domain.map(IOVA, PAGE, 4096)
    assert reach(driver) == PAGE


def test_invalidate_all_works_without_its_command():
    driver = make(features=Features(invalidate_all=False))
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    domain.map(IOVA, PAGE, 4096)
    assert reach(driver) == PAGE
    domain.unmap(IOVA, 4096, invalidate=False)
    driver.invalidate_all()
    driver.wait()
    assert reach(driver) is None


def test_command_buffer_wraps_around(driver, domain):
    for _ in range(600):
        driver.invalidate_iotlb("domain", domain.id)
    driver.wait()
    assert reach(driver) == PAGE


def test_wait_lets_time_pass():
    driver = make(timing=Timing(command=10, invalidation=100, wait=20))
    before = driver.machine.clock.now
    driver.invalidate_iotlb("domain", 0)
    driver.wait()
    assert driver.machine.clock.now - before == 140


def test_wait_gives_up_if_nothing_is_due(driver):
    driver.unit.set_timing(MANUAL)
    driver.invalidate_iotlb("domain", 0)
    with pytest.raises(TimeoutError, match=r"^COMPLETION_WAIT: not complete"):
        driver.wait()


def test_wait_reports_a_stopped_command_buffer(driver):
    driver.submit(bytes(16))
    with pytest.raises(RuntimeError, match=r"^the command buffer stopped at command \d"):
        driver.wait()
    assert driver.faults()[0].name == "ILLEGAL_COMMAND_ERROR"


def test_driver_refuses_invalidation_by_register():
    with pytest.raises(ValueError, match=r"^invalidation must be one of \('queue', 'none'\)"):
        make("register", start=False)


def test_driver_refuses_a_requester_beyond_the_device_table(driver, domain):
    with pytest.raises(ValueError, match=r"^requester must be in 0\.\.0x3ff, not 0x400$"):
        driver.attach(domain, 0x400)


def test_low_level_granularities_are_named(driver):
    with pytest.raises(
        ValueError, match=r"^granularity must be one of domain, page, not 'global'$"
    ):
        driver.invalidate_iotlb("global")


@pytest.mark.parametrize(
    ("iova", "size", "expected"),
    [
        (0x1000, 0x1000, (0, 0x1000)),
        (0x2000, 0x2000, (1, 0x2000)),
        (0x1000, 0x2000, (1, 0x1000)),
        (0x20_0000, 0x20_0000, (1, 0x2F_F000)),
        (0, 1 << 52, (1, ALL_PAGES)),
    ],
)
def test_invalidation_address_encodes_the_size(iova, size, expected):
    assert invalidation_address(iova, size) == expected


@pytest.mark.parametrize("pages", range(1, 40))
@pytest.mark.parametrize("first", [0, 0x1000, 0x7000, 0x1F_F000, 0xFFFF_F000])
def test_invalidation_address_covers_the_range(first, pages):
    low, high = invalidated_range(*invalidation_address(first, pages * 4096))
    assert low <= first
    assert high >= first + pages * 4096 - 1
