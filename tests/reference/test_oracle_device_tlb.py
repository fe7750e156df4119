"""Translation requests and device-TLBs in the reference, without any unit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iommu_emu.core import Access, AddressType, Outcome, Request, RequestFlag
from iommu_emu.reference import Answer, ats_range, vtd
from iommu_emu.reference.oracle import Oracle
from iommu_emu.vtd.structures import (
    ContextEntry,
    ContextInvalidation,
    DeviceTlbInvalidation,
    IotlbInvalidation,
    RootEntry,
)

ROOT, CONTEXT = 0x1000, 0x2000
LEAF = 0x5000  # address of the entry for IOVA 0
DEVICE = 0x0310
OLD, NEW = 0x8000, 0x9000
UNIT = vtd.Unit(root_table=ROOT, device_tlb=True)
ASKED = AddressType.TRANSLATION_REQUEST


class Setup:
    """A page table of 3 levels in which IOVA 0 leads to a page; its device may use ATS."""

    def __init__(self, unit: vtd.Unit = UNIT) -> None:
        self.memory = bytearray(0x20000)
        self.walker = vtd.Walker(unit, self.read)
        self.oracle: Oracle[vtd.Context] = Oracle(self.walker)
        self.write(ROOT + 16 * 3, RootEntry.build(p=1, ctp=CONTEXT))
        self.context()
        self.write(0x3000, (0x4003).to_bytes(8, "little"))
        self.write(0x4000, (0x5003).to_bytes(8, "little"))
        self.page(OLD)

    def read(self, address: int, length: int) -> bytes | None:
        data = bytes(self.memory[address : address + length])
        return data if len(data) == length else None

    def write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def context(self, tt: int = 1) -> None:
        entry = ContextEntry.build(p=1, tt=tt, aw=1, did=5, ssptptr=0x3000)
        self.write(CONTEXT + 16 * 0x10, entry)

    def page(self, target: int, permissions: int = 3) -> None:
        self.write(LEAF, (target | permissions if target else 0).to_bytes(8, "little"))

    def ask(self, address: int = 0, flags: RequestFlag = RequestFlag.NONE) -> Answer:
        return self.walker.walk(Request(address, 8, DEVICE, at=ASKED, flags=flags))

    def reached(self, access: Access = Access.READ) -> set[int | str | None]:
        """Return every address that an access to IOVA 0 may reach; None: nothing is sent."""
        answers = self.oracle.allowed_through_device_tlb(Request(0, 8, DEVICE, access))
        return {
            (a.address if a.permissions else None) if a.outcome is Outcome.MEMORY else a.name
            for a in answers
        }

    def invalidate(self, *descriptors: bytes) -> None:
        for descriptor in descriptors:
            vtd.invalidate(self.oracle, descriptor)


IOTLB = IotlbInvalidation.build(g=1)
CONTEXTS = ContextInvalidation.build(g=1)
DEVICE_TLB = DeviceTlbInvalidation.build(sid=DEVICE, s=1, addr=0x7FFF_FFFF_FFFF_F000)


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_translation_request_is_told_address_and_permissions(setup: Setup) -> None:
    setup.page(OLD, 1)
    answer = setup.ask()
    assert (answer.address, answer.page_shift, answer.permissions) == (OLD, 12, Access.READ)


@pytest.mark.parametrize("address", [1 << 39, 0x1000], ids=["too-high", "not-present"])
def test_translation_request_in_vain_is_no_fault(setup: Setup, address: int) -> None:
    answer = setup.ask(address)
    assert answer.outcome is Outcome.MEMORY
    assert answer.permissions is Access.NONE
    assert answer.failure is None


def test_translation_request_without_ats_is_unsupported(setup: Setup) -> None:
    setup.context(tt=0)
    answer = setup.ask()
    assert (answer.outcome, answer.name, answer.recorded) == (Outcome.UNSUPPORTED, "LCT.5", True)


def test_translation_request_that_meets_a_broken_entry_is_aborted(setup: Setup) -> None:
    setup.page(OLD | 1 << 51)
    answer = setup.ask()
    assert (answer.outcome, answer.name, answer.recorded) == (Outcome.ABORTED, "LSS.2", True)


def test_translation_request_for_interrupts_is_told_to_write_untranslated(setup: Setup) -> None:
    answer = setup.ask(0xFEE0_0000)
    assert (answer.permissions, answer.untranslated) == (Access.WRITE, True)


@pytest.mark.parametrize(("supported", "granted"), [(True, Access.READ), (False, Access.ATOMIC)])
def test_no_write_flag_counts_where_it_is_supported(supported: bool, granted: Access) -> None:
    setup = Setup(replace(UNIT, no_write_flag=supported))
    assert setup.ask(flags=RequestFlag.NO_WRITE).permissions is granted


def test_device_tlb_is_filled_by_what_was_asked(setup: Setup) -> None:
    assert setup.reached() == {OLD}
    setup.page(NEW)
    assert setup.reached() == {OLD, NEW}


def test_device_tlb_outlives_the_iotlb(setup: Setup) -> None:
    assert setup.reached() == {OLD}
    setup.page(NEW)
    setup.invalidate(IOTLB)
    assert setup.reached() == {OLD, NEW}


def test_device_tlb_refetches_what_the_iotlb_still_holds(setup: Setup) -> None:
    assert setup.reached() == {OLD}
    setup.page(NEW)
    setup.invalidate(DEVICE_TLB)
    assert setup.reached() == {OLD, NEW}


def test_device_tlb_is_fresh_after_iotlb_and_its_own_invalidation(setup: Setup) -> None:
    assert setup.reached() == {OLD}
    setup.page(NEW)
    setup.invalidate(IOTLB, DEVICE_TLB)
    assert setup.reached() == {NEW}


def test_device_tlb_is_of_no_use_once_the_context_forbids_ats(setup: Setup) -> None:
    assert setup.reached() == {OLD}
    setup.context(tt=0)
    setup.invalidate(CONTEXTS)
    assert setup.reached() == {"LCT.5"}


def test_device_tlb_does_without_what_it_has_no_permission_for(setup: Setup) -> None:
    setup.page(OLD, 1)
    assert setup.reached(Access.WRITE) == {None}
    setup.page(OLD, 3)
    setup.invalidate(IOTLB)
    assert setup.reached(Access.WRITE) == {OLD}


def test_translated_requests_use_no_iotlb(setup: Setup) -> None:
    setup.oracle.allowed(Request(0, requester=DEVICE))
    translated = Request(0, requester=DEVICE, at=AddressType.TRANSLATED)
    assert {answer.address for answer in setup.oracle.allowed(translated)} == {0}


@pytest.mark.parametrize(
    ("sized", "address", "covered"),
    [
        (0, 0x7000, (0x7000, 0x7FFF)),
        (1, 0x6000, (0x6000, 0x7FFF)),
        (1, 0x5000, (0x4000, 0x7FFF)),
        (1, 0x1_7000, (0x1_0000, 0x1_FFFF)),
        (1, 0x7FFF_FFFF_FFFF_F000, (0, (1 << 64) - 1)),
        (1, 0xFFFF_FFFF_FFFF_F000, (0, (1 << 64) - 1)),
    ],
)
def test_ats_range(sized: int, address: int, covered: tuple[int, int]) -> None:
    assert ats_range(sized, address) == covered
