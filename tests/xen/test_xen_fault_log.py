"""Faults in Xen's log, and what Xen does about a device that causes too many (os 4.10)."""

import pytest
from xen_bed import RAM, Bed

from iommu_emu.amdvi.structures import DeviceTableEntry
from iommu_emu.core import Access, AddressType
from iommu_emu.pci.function import BUS_MASTER, COMMAND
from iommu_emu.vtd.faults import FaultRecord
from iommu_emu.xen.fault_log import fault_lines


@pytest.fixture
def quarantined(bed):
    """A bed whose device was taken from its guest."""
    bed.boot()
    bed.give()
    bed.xen.deassign(bed.device)
    return bed


def test_fault_of_vtd_takes_two_lines():
    bed = Bed("vtd")
    bed.boot()
    bed.give()
    bed.write(RAM.start)
    assert len(bed.xen.faults()) == 1
    assert bed.lines == [
        "(XEN) [VT-D]DMAR:[DMA Write] Request device [0000:00:02.0] fault addr 1000000",
        "(XEN) [VT-D]DMAR: reason 05 - write, entry not present; write without write permission"
        " on iommu:0",
    ]


def test_fault_of_amdvi_takes_one_line():
    bed = Bed("amdvi")
    bed.boot()
    bed.give()
    bed.write(RAM.start)
    assert bed.xen.faults() == [
        "AMD-Vi: IO_PAGE_FAULT: 0000:00:02.0 d1 addr 0000000001000000 flags 0x20 RW"
    ]


def test_other_event_of_amdvi_is_logged_as_words():
    bed = Bed("amdvi")
    bed.boot()
    (driver,) = bed.xen.drivers.values()
    at = driver.context_entry_address(bed.device.address)
    bed.machine.memory.write(at, DeviceTableEntry.build(v=1, tv=1, mode=7))
    driver.invalidate_context("device", bed.device.address)
    driver.wait()
    bed.write(RAM.start)
    assert bed.xen.faults() == ["ILLEGAL_DEV_TABLE_ENTRY 00000010 10200000 01000000 00000000"]


def test_faults_are_told_once(quarantined):
    quarantined.read(RAM.start)
    assert (len(quarantined.xen.faults()), quarantined.xen.faults()) == (1, [])


def test_tenth_fault_in_short_order_switches_bus_mastering_off(quarantined):
    config = quarantined.device.config
    mastering = []
    for _ in range(10):
        quarantined.read(RAM.start)
        quarantined.xen.faults()
        mastering.append(bool(config.get(COMMAND, 2) & BUS_MASTER))
    assert mastering == [True] * 9 + [False]


def test_faults_that_are_rare_switch_nothing_off(quarantined):
    for _ in range(20):
        quarantined.read(RAM.start)
        quarantined.xen.faults()
        quarantined.machine.advance(11_000_000)
    assert quarantined.device.config.get(COMMAND, 2) & BUS_MASTER


def test_move_forgives_faults(quarantined):
    quarantined.read(RAM.start)
    quarantined.xen.faults()
    quarantined.xen.deassign(quarantined.device)
    assert quarantined.xen.device(quarantined.device).fault_count == 0


@pytest.mark.parametrize(
    ("code", "address", "first", "kind"),
    [
        (0x0D, 0x1000, "DMAR:[DMA Read] Request device [0000:00:02.0] fault addr 1000", "DMAR"),
        (0x0E, 0x1000, "UNKNOWN: Request device [0000:00:02.0] fault addr 1000", "UNKNOWN"),
        (0x1F, 0, "UNKNOWN: Request device [0000:00:02.0] fault addr 0", "UNKNOWN"),
        (0x20, 7 << 48, "INTR-REMAP: Request device [0000:00:02.0] fault index 7", "INTR-REMAP"),
        (0x26, 0, "INTR-REMAP: Request device [0000:00:02.0] fault index 0", "INTR-REMAP"),
        (0x27, 0, "UNKNOWN: Request device [0000:00:02.0] fault addr 0", "UNKNOWN"),
    ],
)
def test_fault_of_vtd_is_of_one_of_three_kinds(code, address, first, kind):
    bed = Bed("vtd")
    (driver,) = bed.boot().drivers.values()
    fault = FaultRecord(0x0010, address, Access.READ, code, AddressType.UNTRANSLATED, None, 0, 0)
    lines = fault_lines(driver, fault)
    assert lines[0] == f"[VT-D]{first}"
    assert lines[1].startswith(f"[VT-D]{kind}: reason {code:02x} - ")
