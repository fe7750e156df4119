"""The drivers and device-TLBs: who may translate for himself, and what is owed to him."""

import pytest

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.structures import InvalidateIotlbPages
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.clock import SECOND
from iommu_emu.core import AddressType, Outcome
from iommu_emu.devices import Device
from iommu_emu.driver import ALL_PAGES, DeviceTlbTimeoutError
from iommu_emu.machine import Machine
from iommu_emu.pci.ats import NEVER, WRONGLY, late
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.structures import DeviceTlbInvalidation
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

FRAMES = range(0x10_0000, 0x40_0000)
RAM = 8 << 20
PAGE = 0x50_0000
IOVA = 0x20_0000
TIMEOUT = 60 * SECOND


class Accelerator(Device):
    ats = True


def make_vtd(device_tlbs=True, invalidation="queue"):
    machine = Machine(RAM)
    capabilities = Capabilities(device_tlbs=device_tlbs)
    config = VtdConfig(base=0xFED9_0000, capabilities=capabilities, invalidation_timeout=TIMEOUT)
    return VtdDriver(machine, VtdUnit(machine, config), FRAMES, invalidation)


def make_amdvi(device_tlbs=True, invalidation="queue"):
    machine = Machine(RAM)
    unit = AmdviUnit(machine, AmdviConfig(base=0xFED8_0000, device_tlbs=device_tlbs))
    return AmdviDriver(machine, unit, FRAMES, invalidation, buses=1)


@pytest.fixture(params=[make_vtd, make_amdvi], ids=["vtd", "amdvi"])
def make(request):
    return request.param


class Bed:
    """A device whose device-TLB holds the translation of a page that is mapped."""

    def __init__(self, driver):
        self.driver = driver
        self.machine = driver.machine
        driver.start()
        self.device = self.machine.attach(Accelerator(), "00:04.0")
        self.requester = self.device.dma.requester
        self.machine.memory.write(PAGE, b"old data")
        self.domain = driver.create_domain()
        driver.attach(self.domain, self.requester, ats=True)
        self.device.ats_capability.enable()
        self.domain.map(IOVA, PAGE, 4096)
        assert self.read() == b"old data"

    def read(self):
        completion = self.device.dma.read(IOVA, 8)
        return completion.data if completion.ok else None

    def held(self):
        return len(self.device.ats_capability.device_tlb.entries())

    def forged(self):
        result = self.driver.unit.translate(self.requester, PAGE, at=AddressType.TRANSLATED)
        return result.outcome is Outcome.MEMORY


@pytest.fixture
def bed(make):
    return Bed(make())


def test_attach_with_ats_lets_translated_requests_through(bed):
    assert bed.held() == 1
    assert bed.forged()


def test_attach_without_ats_takes_that_away(bed):
    bed.driver.attach(bed.domain, bed.requester)
    assert bed.held() == 0
    assert not bed.forged()


def test_attach_to_another_domain_empties_the_device_tlb(bed):
    other = bed.driver.create_domain()
    bed.driver.attach(other, bed.requester, ats=True)
    assert bed.held() == 0
    assert bed.read() is None


def test_pass_through_empties_the_device_tlb(bed):
    bed.driver.pass_through(bed.requester)
    assert bed.held() == 0


def test_detach_empties_the_device_tlb(bed):
    bed.driver.detach(bed.requester)
    assert bed.held() == 0
    assert not bed.forged()


def test_detach_without_invalidation_leaves_the_device_its_translations(bed):
    bed.driver.detach(bed.requester, invalidate=False)
    assert bed.read() == b"old data"


def test_unmap_reaches_the_device_tlb(bed):
    bed.domain.unmap(IOVA, 4096)
    assert bed.held() == 0
    assert bed.read() is None


def test_unmap_without_invalidation_leaves_the_device_its_translations(bed):
    bed.domain.unmap(IOVA, 4096, invalidate=False)
    assert bed.read() == b"old data"
    bed.domain.flush()
    assert bed.read() is None


def test_unmap_of_another_page_leaves_the_device_its_translations(bed):
    bed.domain.map(IOVA + 0x10_0000, PAGE, 4096)
    bed.domain.unmap(IOVA + 0x10_0000, 4096)
    assert bed.held() == 1


def test_begin_flush_reaches_the_device_tlb(bed):
    bed.domain.unmap(IOVA, 4096, invalidate=False)
    complete = []
    bed.domain.begin_flush(lambda: complete.append(bed.held()))
    assert complete == [0]


def test_unmap_waits_for_a_late_answer(bed):
    bed.device.ats_capability.answering = late(5000)
    before = bed.machine.clock.now
    bed.domain.unmap(IOVA, 4096)
    assert bed.machine.clock.now - before == 5000


def test_map_asks_no_device(bed):
    before = bed.device.ats_capability.device_tlb.counters()["invalidation_requests"]
    bed.domain.map(IOVA + 4096, PAGE, 4096)
    after = bed.device.ats_capability.device_tlb.counters()["invalidation_requests"]
    assert after == before


def test_device_tlb_comes_after_the_iotlb():
    bed = Bed(make_vtd())
    sent = []
    submit = bed.driver.submit
    bed.driver.submit = lambda *commands: (
        sent.extend(c[0] & 0xF for c in commands),
        submit(*commands),
    )
    bed.domain.unmap(IOVA, 4096)
    assert sent == [2, 3, 5]


def test_submitted_counts_device_tlb_invalidations():
    assert Bed(make_vtd()).driver.submitted["DeviceTlbInvalidation"] == 0
    for make, name in ((make_vtd, "DeviceTlbInvalidation"), (make_amdvi, "InvalidateIotlbPages")):
        bed = Bed(make())
        bed.domain.flush()
        assert bed.driver.submitted[name] == 1


# ---- what is refused -----------------------------------------------------------------------------


def test_ats_needs_a_unit_that_knows_it(make):
    driver = make(device_tlbs=False)
    driver.start()
    domain = driver.create_domain()
    with pytest.raises(ValueError, match=r"^ats must be False: the unit does not support"):
        driver.attach(domain, 0x20, ats=True)
    assert driver.attached == {}


def test_ats_needs_a_queue():
    driver = make_vtd(invalidation="register")
    driver.start()
    with pytest.raises(ValueError, match=r"^ats needs invalidation by queue"):
        driver.attach(driver.create_domain(), 0x20, ats=True)


@pytest.mark.parametrize("depth", [0, 33])
def test_ats_needs_a_queue_depth_that_exists(make, depth):
    driver = make()
    driver.start()
    with pytest.raises(ValueError, match=r"^queue_depth must be in 1\.\.32, not"):
        driver.attach(driver.create_domain(), 0x20, ats=True, queue_depth=depth)


# ---- descriptors ---------------------------------------------------------------------------------


def last_command(driver, position):
    return driver.memory.read(driver._queue + position, 16)


def test_vtd_device_tlb_invalidation_of_a_range():
    driver = make_vtd()
    driver.start()
    driver.attach(driver.create_domain(), 0x20, ats=True, queue_depth=8)
    position = driver.unit.read("IQT")
    driver.invalidate_device_tlb(0x20, 0x6000, 0x2000)
    sent = DeviceTlbInvalidation.parse(last_command(driver, position))
    assert (sent.sid, sent.mip, sent.s, sent.addr) == (0x20, 8, 1, 0x6000)


def test_vtd_device_tlb_invalidation_of_everything():
    driver = make_vtd()
    driver.start()
    position = driver.unit.read("IQT")
    driver.invalidate_device_tlb(0x20)
    sent = DeviceTlbInvalidation.parse(last_command(driver, position))
    assert (sent.mip, sent.s, sent.addr) == (0, 1, ALL_PAGES)


def test_vtd_sends_nothing_to_device_tlbs_while_translation_is_off():
    driver = make_vtd()
    driver.start()
    driver.stop()
    driver.invalidate_device_tlb(0x20)
    assert driver.submitted["DeviceTlbInvalidation"] == 0


def test_amdvi_iotlb_invalidation_of_a_page():
    driver = make_amdvi()
    driver.start()
    driver.attach(driver.create_domain(), 0x20, ats=True, queue_depth=8)
    position = driver.unit.read("CmdBufTail")
    driver.invalidate_device_tlb(0x20, 0x6000, 0x1000)
    sent = InvalidateIotlbPages.parse(last_command(driver, position))
    assert (sent.device_id, sent.queue_id, sent.max_pending) == (0x20, 0x20, 8)
    assert (sent.s, sent.address) == (0, 0x6000)


# ---- devices that do not answer ------------------------------------------------------------------


def test_vtd_timeout_names_the_device():
    bed = Bed(make_vtd())
    bed.device.ats_capability.answering = NEVER
    before = bed.machine.clock.now
    with pytest.raises(DeviceTlbTimeoutError, match=r"^requester 0x0020 did not answer") as caught:
        bed.domain.unmap(IOVA, 4096)
    assert caught.value.requester == 0x20
    assert bed.machine.clock.now - before == TIMEOUT
    assert bed.driver.unit.field("FSTS", "ITE") == 0


def test_vtd_queue_goes_on_after_a_timeout():
    bed = Bed(make_vtd())
    bed.device.ats_capability.answering = NEVER
    with pytest.raises(DeviceTlbTimeoutError):
        bed.domain.unmap(IOVA, 4096)
    bed.device.ats_capability.answering = late(0)
    bed.domain.flush()
    assert bed.read() is None


def test_vtd_timeout_fails_every_flush_that_waits():
    bed = Bed(make_vtd())
    bed.device.ats_capability.answering = NEVER
    failed = []
    for _ in range(2):
        bed.domain.begin_flush(lambda: failed.append("complete"), failed.append)
    bed.machine.advance(3 * TIMEOUT)
    assert [error.requester for error in failed] == [0x20, 0x20]


def test_vtd_reports_what_it_finds_in_the_queue():
    bed = Bed(make_vtd())
    found = []
    bed.driver.on_queue_error = found.append
    bed.device.ats_capability.answering = WRONGLY
    with pytest.raises(DeviceTlbTimeoutError):
        bed.domain.unmap(IOVA, 4096)
    assert [(error.name, error.requester) for error in found] == [("ICE", 0x20), ("ITE", 0x20)]
    assert bed.driver.unit.field("FSTS", "ICE") == 0


def test_detach_of_a_silent_device_detaches_it_all_the_same():
    bed = Bed(make_vtd())
    bed.device.ats_capability.answering = NEVER
    with pytest.raises(DeviceTlbTimeoutError):
        bed.driver.detach(bed.requester)
    assert bed.driver.attached == {}
    assert not bed.forged()


def test_amdvi_timeout_is_an_event_and_counts_as_complete():
    bed = Bed(make_amdvi())
    bed.device.ats_capability.answering = NEVER
    before = bed.machine.clock.now
    bed.domain.unmap(IOVA, 4096)
    assert bed.machine.clock.now - before == SECOND  # Control.InvTimeOut, as the driver sets it
    (event,) = bed.driver.faults()
    assert (event.name, event.requester) == ("IOTLB_INV_TIMEOUT", 0x20)
    assert bed.read() == b"old data"
