"""A driver's flush that does not wait, and its count of what it submitted, for both vendors."""

import pytest

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Outcome
from iommu_emu.machine import Machine
from iommu_emu.timing import IMMEDIATE, Timing
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BASE = 0xFED9_0000
FRAMES = range(0x10_0000, 0x40_0000)
DEVICE = 0x0008
IOVA = 0x20_0000
SLOW = Timing(command=10, invalidation=100, wait=20)


def make_vtd(timing, invalidation="queue"):
    machine = Machine(FRAMES.stop)
    driver = VtdDriver(machine, VtdUnit(machine, VtdConfig(base=BASE)), FRAMES, invalidation)
    driver.start()
    driver.unit.set_timing(timing)
    return driver


def make_amdvi(timing, invalidation="queue"):
    machine = Machine(FRAMES.stop)
    unit = AmdviUnit(machine, AmdviConfig(base=BASE))
    driver = AmdviDriver(machine, unit, FRAMES, invalidation, buses=1)
    driver.start()
    driver.unit.set_timing(timing)
    return driver


@pytest.fixture(params=[make_vtd, make_amdvi], ids=["vtd", "amdvi"])
def make(request):
    return request.param


def stale(driver):
    """A domain with a page that is unmapped, and still in the IOTLB."""
    domain = driver.create_domain()
    driver.attach(domain, DEVICE)
    domain.map(IOVA, 0, 4096)
    driver.unit.translate(DEVICE, IOVA)
    domain.unmap(IOVA, 4096, invalidate=False)
    return domain


def reached(driver):
    return driver.unit.translate(DEVICE, IOVA).outcome is Outcome.MEMORY


def test_begin_flush_of_a_fast_unit_is_complete_at_once(make):
    driver = make(IMMEDIATE)
    complete = []
    stale(driver).begin_flush(lambda: complete.append(driver.machine.clock.now))
    assert complete == [0]
    assert not reached(driver)


def test_begin_flush_of_a_slow_unit_returns_first(make):
    driver = make(SLOW)
    domain = stale(driver)
    now = driver.machine.clock.now
    complete = []
    domain.begin_flush(lambda: complete.append(driver.machine.clock.now - now))
    assert complete == []
    assert reached(driver)
    driver.machine.advance(1000)
    assert complete == [140]
    assert not reached(driver)


def test_begin_flush_from_inside_a_timer_completes(make):
    driver = make(SLOW)
    domain = stale(driver)
    clock = driver.machine.clock
    complete = []
    start = clock.now + 50
    clock.call_at(start, lambda: domain.begin_flush(lambda: complete.append(clock.now - start)))
    driver.machine.advance(1000)
    assert complete == [140]


def test_begin_flush_twice_completes_in_order(make):
    driver = make(SLOW)
    domain = stale(driver)
    now = driver.machine.clock.now
    complete = []
    for name in ("first", "second"):
        domain.begin_flush(
            lambda name=name: complete.append((name, driver.machine.clock.now - now))
        )
    driver.machine.advance(1000)
    assert complete == [("first", 140), ("second", 280)]


def test_begin_flush_releases_page_tables_on_completion(make):
    driver = make(SLOW)
    domain = stale(driver)
    available = driver.frames.available
    domain.begin_flush(lambda: None)
    assert driver.frames.available == available
    driver.machine.advance(1000)
    assert driver.frames.available == available + 3  # every table below the root


def test_begin_flush_reports_a_stopped_queue(make):
    driver = make(SLOW)
    domain = stale(driver)
    driver.submit(bytes(16))  # type 0 is no descriptor or command
    failures = []
    domain.begin_flush(lambda: failures.append("complete"), failures.append)
    driver.machine.advance(1000)
    assert len(failures) == 1
    assert isinstance(failures[0], RuntimeError)


def test_begin_flush_without_a_taker_of_errors_raises_where_time_passes(make):
    driver = make(SLOW)
    domain = stale(driver)
    driver.submit(bytes(16))
    domain.begin_flush(lambda: None)
    with pytest.raises(RuntimeError, match=r"stopped at command|queue error 3"):
        driver.machine.advance(1000)
    driver.machine.advance(1000)


def test_begin_flush_through_registers_completes_later():
    driver = make_vtd(SLOW, "register")
    complete = []
    stale(driver).begin_flush(lambda: complete.append(True))
    assert complete == []
    driver.machine.advance(1000)
    assert complete == [True]


def test_submitted_counts_descriptors_by_name():
    driver = make_vtd(IMMEDIATE)
    driver.submitted.clear()
    stale(driver).flush()
    assert driver.submitted == {"IotlbInvalidation": 1, "WaitDescriptor": 1}


def test_submitted_counts_commands_by_name():
    driver = make_amdvi(IMMEDIATE)
    driver.submitted.clear()
    stale(driver).flush()
    assert driver.submitted == {
        "InvalidateDevtabEntry": 1,
        "InvalidateIommuPages": 2,  # of the domain of blocked devices, and of ours
        "CompletionWait": 2,
    }
