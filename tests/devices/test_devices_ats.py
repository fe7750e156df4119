"""Devices with a device-TLB: what software's enable bit does, and how they answer."""

import pytest

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Access, RequestFlag, Status, Translation
from iommu_emu.devices import Device
from iommu_emu.devices.malicious import load
from iommu_emu.geometry import CacheGeometry
from iommu_emu.machine import Machine
from iommu_emu.pci.ats import IN_PYTHON, NEVER, WRONGLY, late
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

FRAMES = range(0x10_0000, 0x40_0000)
RAM = 8 << 20
PAGE = 0x50_0000
IOVA = 0x20_0000


class Accelerator(Device):
    ats = True


class Bed:
    """A device that may use ATS, and has not been told to; one page is mapped for it."""

    def __init__(self, iommu="vtd", device=None):
        self.machine = machine = Machine(RAM)
        if iommu == "vtd":
            capabilities = Capabilities(device_tlbs=True)
            unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000, capabilities=capabilities))
            self.driver = VtdDriver(machine, unit, FRAMES)
        else:
            amdvi = AmdviUnit(machine, AmdviConfig(base=0xFED8_0000, device_tlbs=True))
            self.driver = AmdviDriver(machine, amdvi, FRAMES, buses=1)
        self.driver.start()
        self.device = machine.attach(device or Accelerator(), "00:04.0")
        self.ats = self.device.ats_capability
        self.domain = self.driver.create_domain()
        self.driver.attach(self.domain, self.device.dma.requester, ats=True)
        self.domain.map(IOVA, PAGE, 4096, "r")

    def held(self):
        return [(entry.address, entry.output) for entry in self.ats.device_tlb.entries()]

    def counters(self):
        return self.ats.device_tlb.counters()


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    return Bed(request.param)


def test_device_uses_its_device_tlb_once_ats_is_enabled(bed):
    bed.device.dma.read(IOVA, 8)
    assert bed.held() == []
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    assert bed.held() == [(IOVA, PAGE)]


def test_device_asks_once_for_a_page(bed):
    bed.ats.enable()
    for offset in (0, 8, 16):
        bed.device.dma.read(IOVA + offset, 8)
    assert bed.counters()["translation_requests"] == 1


def test_device_sends_nothing_without_permission(bed):
    bed.ats.enable()
    assert bed.device.dma.write(IOVA, b"x").status is Status.NOT_TRANSLATED
    assert bed.driver.faults() == []


def test_device_can_do_without_its_device_tlb(bed):
    bed.ats.enable()
    flags = RequestFlag.PAST_DEVICE_TLB
    assert bed.device.dma.transfer(Access.READ, IOVA, 8, flags=flags).ok
    assert bed.held() == []


def test_device_can_ask_for_a_translation(bed):
    bed.ats.enable()
    found = Translation.decode(bed.device.dma.translation_request(IOVA).data)
    assert (found.address, found.size, found.read, found.write) == (PAGE, 4096, True, False)


def test_interrupts_do_not_go_through_the_device_tlb(bed):
    bed.ats.enable()
    bed.device.send_message(0xFEE0_0000, 0x31)
    assert [interrupt.vector for interrupt in bed.machine.interrupts] == [0x31]


def test_disabling_ats_empties_the_device_tlb(bed):
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    bed.ats.enable(False)
    bed.ats.enable()
    assert bed.held() == []


def test_reset_empties_the_device_tlb(bed):
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    bed.device.reset()
    assert bed.held() == []
    assert not bed.ats.device_tlb.enabled


def test_device_tlb_has_the_shape_that_the_model_says():
    class Small(Accelerator):
        device_tlb = CacheGeometry(1, 1)

    bed = Bed(device=Small())
    bed.domain.map(IOVA + 4096, PAGE + 4096, 4096)
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    bed.device.dma.read(IOVA + 4096, 8)
    assert bed.held() == [(IOVA + 4096, PAGE + 4096)]


def test_device_comes_back_with_an_empty_device_tlb(bed):
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    bed.machine.remove(bed.device)
    bed.machine.attach(bed.device, "00:04.0")
    assert bed.held() == []
    assert bed.ats.device_tlb.enabled


# ---- answers -------------------------------------------------------------------------------------


def invalidate(bed):
    """Ask the device to drop the page; return whether it answered at once."""
    complete = []
    bed.driver.invalidate_device_tlb(bed.device.dma.requester, IOVA, 4096)
    bed.driver.when_complete(lambda: complete.append(bed.machine.clock.now), lambda error: None)
    return complete


@pytest.fixture
def filled(bed):
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    return bed


def test_answer_at_once(filled):
    assert invalidate(filled) == [0]
    assert filled.held() == []


def test_answer_late(filled):
    filled.ats.answering = late(700)
    complete = invalidate(filled)
    filled.machine.advance(699)
    assert complete == []
    assert filled.held() != []
    filled.machine.advance(1)
    assert complete == [700]
    assert filled.held() == []


def test_answer_never(filled):
    filled.ats.answering = NEVER
    complete = invalidate(filled)
    filled.machine.advance(10**6)
    assert complete == []
    assert filled.held() != []


def test_answer_wrongly(filled):
    filled.ats.answering = WRONGLY
    complete = invalidate(filled)
    filled.machine.advance(10**6)
    assert complete == []
    assert filled.held() == []


def test_answer_chosen_before_the_device_is_attached():
    device = Accelerator()
    device.ats_capability.answering = NEVER
    assert invalidate(Bed(device=device)) == []


def test_answer_in_python():
    asked = []

    class Choosy(Accelerator):
        def on_invalidate(self, first, last, tag):
            asked.append((first, last))
            super().on_invalidate(first, last, tag)

    bed = Bed(device=Choosy())
    bed.ats.answering = IN_PYTHON
    bed.ats.enable()
    bed.device.dma.read(IOVA, 8)
    assert invalidate(bed) == [0]
    assert asked == [(IOVA, IOVA + 0xFFF)]
    assert bed.held() == []


def test_answer_of_a_removed_device_is_a_timeout():
    bed = Bed("vtd")
    bed.ats.enable()
    failed = []
    bed.machine.remove(bed.device)
    bed.domain.begin_flush(lambda: None, failed.append)
    bed.machine.advance(60 * 10**9)
    assert [error.requester for error in failed] == [0x20]


def test_translation_keeper_answers_and_keeps():
    bed = Bed(device=load("translation-keeper")())
    bed.machine.memory.write(PAGE, b"old data")
    bed.ats.enable()
    bed.device.read(IOVA, 8)
    bed.domain.unmap(IOVA, 4096)
    bed.machine.memory.write(PAGE, b"new data")
    assert bed.device.read(IOVA, 8).data == b"new data"
