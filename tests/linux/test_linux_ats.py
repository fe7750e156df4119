"""What Linux does about device-TLBs: whom it lets, how it takes time-outs (os 4.5, 4.7, 4.9)."""

from functools import partial

import pytest
from linux_bed import ACS, PAGE, TO, boot, new_machine, new_port

from iommu_emu.clock import MILLISECOND, SECOND
from iommu_emu.core import AddressType, Outcome
from iommu_emu.devices import MaliciousDevice
from iommu_emu.hung import HungError
from iommu_emu.linux.ats import AMD_TIMEOUT, WATCHDOG, ats_refusal
from iommu_emu.linux.flush_queue import GLOBAL_LIST
from iommu_emu.pci.ats import AT_ONCE, NEVER, WRONGLY, late
from iommu_emu.pci.capabilities import Acs, PortType
from iommu_emu.pci.topology import Bridge
from iommu_emu.vtd.capabilities import Capabilities

TIMEOUT = 60 * SECOND
LOCKUP = "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 0"


class Accelerator(MaliciousDevice):
    ats = True


class Bed:
    """A kernel with an accelerator."""

    def __init__(
        self,
        iommu,
        parameters="",
        *,
        external=False,
        device_tlbs=True,
        model=Accelerator,
        timeout=TIMEOUT,
        **options,
    ):
        if iommu == "vtd":
            config = {
                "capabilities": Capabilities(device_tlbs=device_tlbs),
                "invalidation_timeout": timeout,
            }
        else:
            config = {"device_tlbs": device_tlbs}
        self.machine = new_machine(iommu, **config)
        port = new_port(self.machine, external=external, acs=ACS | Acs.TRANSLATION_BLOCKING)
        self.evil = self.machine.attach(model("evil"), under=port)
        self.linux = boot(self.machine, parameters, **options)
        self.device = self.linux.device(self.evil)
        self.clock = self.machine.clock
        self.booted = len(self.linux.log.lines)

    def map(self):
        """Map a page for reading, and let the device keep its translation."""
        self.page = self.linux.dma.alloc_buffer(self.device, PAGE)
        self.iova = self.linux.dma.map_single(self.device, self.page, PAGE, TO)
        assert self.reads()

    def unmap(self):
        """Unmap it; return how long that took."""
        begun = self.clock.now
        self.linux.dma.unmap_single(self.device, self.iova, PAGE, TO)
        return self.clock.now - begun

    def reads(self):
        return self.evil.read(self.iova, 8).ok

    def log(self):
        """Lines since boot, with times."""
        return [(line.time, line.text) for line in self.linux.log.lines[self.booted :]]

    def texts(self):
        return [text for _, text in self.log()]


@pytest.fixture(params=["vtd", "amdvi"])
def iommu(request):
    return request.param


# ---- who may -------------------------------------------------------------------------------------


def test_ats_is_enabled_for_a_trusted_device(iommu):
    bed = Bed(iommu)
    assert bed.device.ats
    assert bed.evil.ats_capability.enabled
    assert bed.device.requesters[0] in bed.device.driver.device_tlbs


def test_ats_is_enabled_for_a_device_that_comes_later(iommu):
    bed = Bed(iommu)
    port = new_port(bed.machine)
    bed.linux.add(port)
    late_comer = bed.machine.attach(Accelerator("late"), under=port)
    assert bed.linux.add(late_comer).ats


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"parameters": "pci=noats"}, "pci=noats"),
        ({"external": True}, "the device is not trusted"),
        ({"device_tlbs": False}, "the unit supports no device-TLBs"),
        ({"model": MaliciousDevice}, "no ATS capability"),
    ],
)
def test_ats_is_refused(iommu, options, why):
    bed = Bed(iommu, **options)
    assert ats_refusal(bed.linux, bed.device).startswith(why)
    assert not bed.device.ats
    assert bed.device.driver.device_tlbs == {}
    capability = bed.evil.ats_capability
    assert capability is None or not capability.enabled


def test_ats_is_refused_below_a_conventional_bridge():
    machine = new_machine("vtd", capabilities=Capabilities(device_tlbs=True))
    bridge = machine.attach(Bridge("bridge", kind=PortType.PCIE_TO_PCI))
    evil = machine.attach(Accelerator("evil"), under=bridge)
    linux = boot(machine)
    assert ats_refusal(linux, linux.device(evil)) == "bridge on its path is no PCI Express port"


def test_ats_is_not_used_in_an_identity_domain(iommu):
    bed = Bed(iommu, "iommu.passthrough=1")
    assert not bed.device.ats
    assert not bed.evil.ats_capability.enabled


def test_ats_goes_with_the_domain(iommu):
    bed = Bed(iommu)
    bed.linux.set_type(bed.device.group, "identity")
    assert not bed.device.ats
    assert not bed.evil.ats_capability.enabled
    bed.linux.set_type(bed.device.group, "DMA")
    assert bed.device.ats


def test_ats_is_switched_off_when_a_device_goes(iommu):
    bed = Bed(iommu)
    bed.linux.remove(bed.evil)
    assert not bed.evil.ats_capability.enabled
    result = bed.machine.units[0].translate(
        bed.device.requesters[0], 0x1000, at=AddressType.TRANSLATED
    )
    assert result.outcome is not Outcome.MEMORY


# ---- honest devices ------------------------------------------------------------------------------


def test_strict_unmap_takes_the_translation_from_the_device(iommu):
    bed = Bed(iommu, "iommu.strict=1")
    bed.map()
    bed.unmap()
    assert not bed.reads()


def test_lazy_unmap_leaves_it_until_the_flush(iommu):
    bed = Bed(iommu, "iommu.strict=0")
    bed.map()
    bed.unmap()
    bed.clock.advance(10 * MILLISECOND - 1)
    assert bed.reads()
    bed.clock.advance(1)
    assert not bed.reads()


def test_strict_unmap_waits_for_a_late_answer(iommu):
    bed = Bed(iommu, "iommu.strict=1")
    bed.map()
    bed.evil.ats_capability.answering = late(50 * MILLISECOND)
    assert bed.unmap() == 50 * MILLISECOND
    assert not bed.reads()
    assert bed.texts() == []


# ---- VT-d: again and again -----------------------------------------------------------------------


def silent(parameters, iommu="vtd", **options):
    bed = Bed(iommu, parameters, **options)
    bed.map()
    bed.evil.ats_capability.answering = NEVER
    return bed


def test_vtd_silent_device_locks_the_unmapping_cpu_up():
    bed = silent("iommu.strict=1")
    with pytest.raises(HungError, match=r"^CPU 0 submits an invalidation for ever: requester"):
        bed.unmap()
    lines = bed.log()
    assert lines[0] == (WATCHDOG, LOCKUP)
    assert lines[1] == (TIMEOUT, "DMAR: VT-d detected Invalidation Time-out Error: SID 100")
    assert lines[-1] == (TIMEOUT, "DMAR: Invalidation Time-out Error (ITE) cleared")


def test_vtd_time_out_is_told_with_its_descriptors():
    bed = silent("iommu.strict=1")
    with pytest.raises(HungError):
        bed.unmap()
    head, prior = bed.texts()[2:4]
    assert head.startswith("DMAR: QI HEAD: Invalidation Wait qw0 = 0x")
    assert prior.startswith("DMAR: QI PRIOR: Device-TLB Invalidation qw0 = 0x10000000003, qw1 = ")


def test_vtd_silent_device_lets_a_lazy_unmap_return():
    bed = silent("iommu.strict=0")
    assert bed.unmap() == 0
    with pytest.raises(HungError):
        bed.clock.advance(2 * TIMEOUT)
    flush = 10 * MILLISECOND
    assert bed.log()[0] == (flush + WATCHDOG, LOCKUP)
    assert bed.clock.now == flush + TIMEOUT


def test_vtd_gives_up_on_a_device_that_is_gone():
    bed = silent("iommu.strict=1")
    bed.machine.remove(bed.evil)
    assert bed.unmap() == TIMEOUT
    texts = bed.texts()
    assert texts[0] == LOCKUP
    assert texts[-1] == "DMAR: Invalidation Time-out Error (ITE) cleared"


def test_vtd_goes_on_once_the_device_answers_the_repetition():
    bed = silent("iommu.strict=1", timeout=SECOND)
    answer = partial(setattr, bed.evil.ats_capability, "answering", AT_ONCE)
    bed.clock.call_later(3 * SECOND // 2, answer)
    assert bed.unmap() == 2 * SECOND
    assert sum("Time-out Error: SID" in text for text in bed.texts()) == 2
    assert not bed.reads()


def test_vtd_waits_for_an_answer_beyond_the_watchdog():
    bed = Bed("vtd", "iommu.strict=1")
    bed.map()
    bed.evil.ats_capability.answering = late(30 * SECOND)
    assert bed.unmap() == 30 * SECOND
    assert bed.texts() == [LOCKUP]


def test_vtd_answer_that_nobody_asked_for_is_told_and_cleared():
    bed = Bed("vtd", "iommu.strict=1")
    bed.map()
    bed.evil.ats_capability.answering = WRONGLY
    with pytest.raises(HungError):
        bed.unmap()
    texts = bed.texts()
    assert texts[0] == "DMAR: VT-d detected Invalidation Completion Error: SID 100"
    assert texts[3] == "DMAR: Invalidation Completion Error (ICE) cleared"
    assert not bed.reads()


def test_vtd_unit_without_time_out_hangs_the_cpu_as_well():
    bed = silent("iommu.strict=1", timeout=0)
    with pytest.raises(HungError, match=r"^CPU 0 waits for an invalidation, and no event is due$"):
        bed.unmap()
    assert bed.texts() == [LOCKUP]


# ---- AMD-Vi: on with it --------------------------------------------------------------------------


def test_amdvi_goes_on_after_100_ms():
    bed = silent("iommu.strict=1", "amdvi")
    assert bed.unmap() == AMD_TIMEOUT
    assert bed.texts() == ["AMD-Vi: IOMMU 0000:00:00.2: Completion-Wait loop timed out"]
    assert bed.reads()


def test_amdvi_unit_reports_after_a_second():
    bed = silent("iommu.strict=1", "amdvi")
    bed.unmap()
    bed.clock.advance(SECOND)
    (line,) = bed.linux.faults()
    assert "IOTLB_INV_TIMEOUT" in line


def test_amdvi_late_answer_comes_after_the_memory_is_free():
    bed = Bed("amdvi", "iommu.strict=1")
    bed.map()
    bed.evil.ats_capability.answering = late(300 * MILLISECOND)
    assert bed.unmap() == AMD_TIMEOUT
    bed.clock.advance(200 * MILLISECOND - 1)
    assert bed.reads()
    bed.clock.advance(1)
    assert not bed.reads()


def test_amdvi_lazy_flush_goes_on_as_well():
    bed = silent("iommu.strict=0", "amdvi")
    assert bed.unmap() == 0
    bed.clock.advance(10 * MILLISECOND + AMD_TIMEOUT - 1)
    assert bed.texts() == []
    assert bed.linux.leaks()["iovas"] == 1
    bed.clock.advance(1)
    assert bed.texts() == ["AMD-Vi: IOMMU 0000:00:00.2: Completion-Wait loop timed out"]
    assert bed.linux.leaks()["iovas"] == 0
    assert bed.reads()


def test_flush_for_all_domains_empties_device_tlbs_as_well(iommu):
    bed = Bed(iommu, "iommu.strict=0", queue=GLOBAL_LIST)
    bed.map()
    bed.unmap()
    assert bed.reads()
    bed.clock.advance(10 * MILLISECOND)
    assert not bed.reads()
