"""The oracle by itself: what it allows and forbids, without any unit."""

from __future__ import annotations

import pytest

from iommu_emu.core import Access, Outcome, Request
from iommu_emu.reference import vtd
from iommu_emu.reference.oracle import Oracle
from iommu_emu.vtd.structures import (
    ContextEntry,
    ContextInvalidation,
    IotlbInvalidation,
    RootEntry,
    WaitDescriptor,
)

ROOT, CONTEXT, ENTRY = 0x1000, 0x2000, 0x3000
DEVICE = 0x0310
OLD, NEW = 0x8000, 0x9000
UNIT = vtd.Unit(root_table=ROOT)


class Setup:
    """A page table of 3 levels, one table a level; domain 5 for DEVICE and its neighbour."""

    def __init__(self, unit: vtd.Unit = UNIT, **options: bool) -> None:
        self.memory = bytearray(0x20000)
        self.oracle: Oracle[vtd.Context] = Oracle(vtd.Walker(unit, self.read), **options)
        self.write(ROOT + 16 * 3, RootEntry.build(p=1, ctp=CONTEXT))
        for devfn in (0x10, 0x11):
            self.context(devfn)
        self.table(3, 0x4000)
        self.table(2, 0x5000)
        self.page(OLD)

    def read(self, address: int, length: int) -> bytes | None:
        data = bytes(self.memory[address : address + length])
        return data if len(data) == length else None

    def write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def context(
        self, devfn: int = 0x10, domain: int = 5, root: int = 0x3000, p: int = 1, aw: int = 1
    ) -> None:
        entry = ContextEntry.build(p=p, aw=aw, did=domain, ssptptr=root)
        self.write(CONTEXT + 16 * devfn, entry)

    def table(self, level: int, target: int, at: int | None = None) -> None:
        base = {3: 0x3000, 2: 0x4000, 1: 0x5000}[level] if at is None else at
        self.write(base, (target | 3).to_bytes(8, "little"))

    def page(self, target: int, permissions: int = 3, at: int = 0x5000) -> None:
        self.write(at, (target | permissions if target else 0).to_bytes(8, "little"))

    def allowed(self, access: Access = Access.READ, requester: int = DEVICE) -> set[int | str]:
        """Return every allowed address, or the fault's name, of an access to IOVA 0."""
        answers = self.oracle.allowed(Request(0, requester=requester, access=access))
        return {a.address if a.outcome is Outcome.MEMORY else a.name for a in answers}

    def invalidate(self, descriptor: bytes) -> None:
        vtd.invalidate(self.oracle, descriptor)


def page(did: int = 5, addr: int = 0, am: int = 0, ih: int = 0) -> bytes:
    return IotlbInvalidation.build(g=3, did=did, addr=addr, am=am, ih=ih)


@pytest.fixture
def setup() -> Setup:
    """A setup whose page was used once."""
    setup = Setup()
    assert setup.allowed() == {OLD}
    return setup


def test_fresh_oracle_allows_the_walk_alone(setup):
    assert setup.allowed() == {OLD}


def test_changed_leaf_may_be_old_or_new(setup):
    setup.page(NEW)
    assert setup.allowed() == {OLD, NEW}


def test_unmapped_leaf_may_still_be_used(setup):
    setup.page(0)
    assert setup.allowed() == {OLD, "LGN.3"}


def test_leaf_that_was_never_used_is_not_stale():
    setup = Setup()
    setup.page(NEW)
    assert setup.allowed() == {NEW}


@pytest.mark.parametrize(
    "descriptor",
    [
        page(),
        page(ih=1),
        page(am=9),
        page(addr=0x7000, am=3),
        IotlbInvalidation.build(g=2, did=5),
        IotlbInvalidation.build(g=1),
    ],
)
def test_invalidation_that_covers_the_leaf_ends_it(setup, descriptor):
    setup.page(NEW)
    setup.invalidate(descriptor)
    assert setup.allowed() == {NEW}


@pytest.mark.parametrize(
    "descriptor",
    [
        page(did=6),
        page(addr=0x1000),
        page(addr=0x8000, am=3),
        IotlbInvalidation.build(g=2, did=6),
        ContextInvalidation.build(g=1),
        WaitDescriptor.build(sw=1),
    ],
)
def test_invalidation_of_something_else_leaves_it(setup, descriptor):
    setup.page(NEW)
    setup.invalidate(descriptor)
    assert setup.allowed() == {OLD, NEW}


def test_changed_table_may_be_used_after_an_invalidation_with_the_hint(setup):
    setup.table(2, 0x6000)
    setup.page(NEW, at=0x6000)
    setup.invalidate(page(ih=1))
    assert setup.allowed() == {OLD, NEW}


def test_changed_table_is_gone_after_an_invalidation_without_the_hint(setup):
    setup.table(2, 0x6000)
    setup.page(NEW, at=0x6000)
    setup.invalidate(page())
    assert setup.allowed() == {NEW}


def test_cached_table_leads_to_the_leaf_as_it_is_now(setup):
    setup.table(2, 0x6000)
    setup.page(NEW, at=0x6000)
    setup.page(0xA000)
    setup.invalidate(page(ih=1))
    assert setup.allowed() == {0xA000, NEW}


def test_page_invalidation_beside_the_page_still_takes_the_table_that_covers_both(setup):
    setup.table(2, 0x6000)
    setup.page(NEW, at=0x6000)
    setup.page(0xA000)
    setup.invalidate(page(addr=0x1000))
    assert setup.allowed() == {OLD, NEW}


def test_changed_context_stays_hidden_behind_the_iotlb(setup):
    setup.context(domain=6, root=0x7000)
    setup.invalidate(ContextInvalidation.build(g=3, did=5, sid=DEVICE))
    assert setup.allowed() == {OLD, "LGN.3"}


def test_changed_context_is_gone_after_both_invalidations_in_order(setup):
    setup.context(domain=6, root=0x7000)
    setup.invalidate(ContextInvalidation.build(g=3, did=5, sid=DEVICE))
    setup.invalidate(IotlbInvalidation.build(g=2, did=5))
    assert setup.allowed() == {"LGN.3"}


def test_changed_context_comes_back_if_the_iotlb_is_invalidated_first(setup):
    setup.context(domain=6, root=0x7000)
    setup.invalidate(IotlbInvalidation.build(g=2, did=5))
    assert setup.allowed() == {OLD, "LGN.3"}
    setup.invalidate(ContextInvalidation.build(g=3, did=5, sid=DEVICE))
    assert setup.allowed() == {OLD, "LGN.3"}


@pytest.mark.parametrize(
    ("descriptor", "stays"),
    [
        (ContextInvalidation.build(g=1), False),
        (ContextInvalidation.build(g=2, did=5), False),
        (ContextInvalidation.build(g=2, did=6), True),
        (ContextInvalidation.build(g=3, did=5, sid=DEVICE), False),
        (ContextInvalidation.build(g=3, did=6, sid=DEVICE), True),
        (ContextInvalidation.build(g=3, did=5, sid=DEVICE + 1), True),
        (ContextInvalidation.build(g=3, did=5, sid=DEVICE + 1, fm=3), False),
        (ContextInvalidation.build(g=3, did=5, sid=DEVICE + 4, fm=1), False),
        (ContextInvalidation.build(g=3, did=5, sid=DEVICE + 2, fm=1), True),
        (ContextInvalidation.build(g=3, did=5, sid=DEVICE + 2, fm=2), False),
    ],
)
def test_context_invalidation_matches_requester_and_domain(setup, descriptor, stays):
    setup.context(p=0)
    setup.invalidate(descriptor)
    setup.invalidate(IotlbInvalidation.build(g=1))
    assert setup.allowed() == ({OLD, "LCT.2"} if stays else {"LCT.2"})


def test_changed_root_entry_is_a_matter_of_the_context_cache(setup):
    setup.write(ROOT + 16 * 3, bytes(16))
    setup.invalidate(IotlbInvalidation.build(g=1))
    assert setup.allowed() == {OLD, "LRT.2"}
    setup.invalidate(ContextInvalidation.build(g=1))
    setup.invalidate(IotlbInvalidation.build(g=1))
    assert setup.allowed() == {"LRT.2"}


def test_stale_permission_may_fault(setup):
    setup.page(OLD, permissions=1)
    setup.invalidate(page())
    setup.allowed()
    setup.page(OLD)
    assert setup.allowed(Access.WRITE) == {OLD, "LGN.2"}


def test_faulting_entry_is_not_cached_without_caching_mode():
    setup = Setup()
    setup.page(0)
    assert setup.allowed() == {"LGN.3"}
    setup.page(NEW)
    assert setup.allowed() == {NEW}


def test_faulting_entry_may_be_cached_with_caching_mode():
    setup = Setup(negative=True)
    setup.page(0)
    setup.allowed()
    setup.page(NEW)
    assert setup.allowed() == {"LGN.3", NEW}
    setup.invalidate(page())
    assert setup.allowed() == {NEW}


def test_context_that_is_not_present_is_tagged_with_domain_0():
    setup = Setup(negative=True)
    setup.context(p=0)
    setup.allowed()
    setup.context()
    setup.invalidate(ContextInvalidation.build(g=3, did=5, sid=DEVICE))
    assert setup.allowed() == {"LCT.2", OLD}
    setup.invalidate(ContextInvalidation.build(g=3, did=0, sid=DEVICE))
    assert setup.allowed() == {OLD}


def test_faulting_context_is_tagged_with_its_domain():
    setup = Setup(negative=True)
    setup.context(aw=0)
    setup.allowed()
    setup.context()
    setup.invalidate(ContextInvalidation.build(g=3, did=0, sid=DEVICE))
    assert setup.allowed() == {"LCT.4.1", OLD}
    setup.invalidate(ContextInvalidation.build(g=3, did=5, sid=DEVICE))
    assert setup.allowed() == {OLD}


def test_iotlb_by_requester_is_not_shared(setup):
    setup.page(NEW)
    assert setup.allowed(requester=DEVICE + 1) == {NEW}


def test_iotlb_by_domain_is_shared():
    setup = Setup(by_domain=True)
    setup.allowed()
    setup.page(NEW)
    assert setup.allowed(requester=DEVICE + 1) == {OLD, NEW}


def test_iotlb_by_domain_does_not_hide_a_changed_context():
    setup = Setup(by_domain=True)
    setup.allowed()
    setup.context(domain=6, root=0x7000)
    setup.invalidate(ContextInvalidation.build(g=3, did=5, sid=DEVICE))
    assert setup.allowed() == {"LGN.3"}


def test_reset_forgets_everything(setup):
    setup.page(NEW)
    setup.oracle.invalidate_all()
    assert setup.allowed() == {NEW}
