"""The stale-entry rule on VT-d: edits without invalidation, invalidations at every granularity.

The universe is small, so that things meet: three requesters on two buses, three domain IDs, two
tables a level whose entries point anywhere below, and caches of two lines.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from vtd_bench import Bench

from iommu_emu.core import Access, IotlbLookup, Outcome
from iommu_emu.reference import vtd as reference
from iommu_emu.reference.oracle import Oracle
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.structures import (
    ContextEntry,
    ContextInvalidation,
    IotlbInvalidation,
    RootEntry,
)

REQUESTERS = [0x0310, 0x0311, 0x0410]
DOMAINS = [0, 1, 2]
IOVAS = [0x1000, 0x2000, 0x20_1000, 0x4000_1000]
ROOTS = [0x1000, 0x2000]
CONTEXTS = [0x3000, 0x4000]
QUEUE = 0x5000
PAGES = [0x8_0000, 0x9_0000]
LEVELS = 3


def table(level: int, which: int) -> int:
    """Return the address of one of the two tables of a level."""
    return 0x10000 + 0x2000 * level + 0x1000 * which


def entry_values(level: int) -> list[int]:
    """Return what the entries of a level may be: tables, pages, nothing, and broken ones."""
    permissions = [3, 3, 1, 2]
    values = [0, 0]
    if level > 1:
        values += [table(level - 1, which) | p for which in (0, 1) for p in permissions]
        values += [table(level - 1, 0) | 3 | 1 << 62]
    large = 1 << 7 if level > 1 else 0
    size = 1 << 12 + 9 * (level - 1)
    pages = PAGES if level == 1 else [0, size]
    values += [page | large | p for page in pages for p in permissions]
    return [*values, pages[0] | large | 3 | 1 << 51]


requesters = st.sampled_from(REQUESTERS)
domains = st.sampled_from(DOMAINS)
iovas = st.sampled_from(IOVAS)


class OracleMachine(RuleBasedStateMachine):
    """Every answer of the unit is one that the oracle allows."""

    lookup = IotlbLookup.BY_REQUESTER
    caching_mode = False
    by_register = False
    root_invalidates = False

    @initialize()
    def start(self) -> None:
        self.bench = Bench(
            Capabilities(
                caching_mode=self.caching_mode,
                root_invalidates=self.root_invalidates,
                guest_address_width=48,
            ),
            geometry="tiny-2",
            iotlb_lookup=self.lookup,
        )
        self.oracle: Oracle[reference.Context] = Oracle(
            self.bench.walker(),
            by_domain=self.lookup is IotlbLookup.BY_DOMAIN,
            negative=self.caching_mode,
        )
        for page in PAGES:
            self.bench.write(page, page)
        # Something that works, so that not every run has to find it.
        for which in (0, 1):
            for bus in (3, 4):
                self.bench.write(ROOTS[which] + 16 * bus, RootEntry.build(p=1, ctp=CONTEXTS[which]))
            for requester in REQUESTERS:
                entry = ContextEntry.build(p=1, aw=1, did=1, ssptptr=table(LEVELS, which))
                self.bench.write(CONTEXTS[which] + 16 * (requester & 0xFF), entry)
            for level in (2, 3):
                for iova in IOVAS:
                    self.bench.write(self.entry(level, which, iova), table(level - 1, which) | 3)
            for iova in IOVAS:
                self.bench.write(self.entry(1, which, iova), PAGES[which] | 3)
        self.program()

    def program(self) -> None:
        """Program the unit as it is after reset."""
        self.bench.set_root(ROOTS[0])
        self.tail = 0
        if not self.by_register:
            self.bench.unit.write("IQA", QUEUE)
            self.command(1 << 26)
        self.command(1 << 31)
        self.oracle.walker = self.bench.walker()
        self.invalidate(ContextInvalidation.build(g=1))
        self.invalidate(IotlbInvalidation.build(g=1))

    def command(self, bit: int) -> None:
        self.bench.unit.write("GCMD", self.bench.unit.read("GSTS") & 0x96FF_FFFF | bit)

    @staticmethod
    def entry(level: int, which: int, iova: int) -> int:
        return table(level, which) + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    def invalidate(self, descriptor: bytes) -> None:
        """Invalidate by queue or registers, and tell the oracle."""
        if self.by_register:
            self.invalidate_by_register(descriptor)
        else:
            self.bench.machine.memory.write(QUEUE + 16 * self.tail, descriptor)
            self.tail = (self.tail + 1) % 256
            self.bench.unit.write("IQT", 16 * self.tail)
            assert self.bench.unit.read("IQH") == 16 * self.tail
        reference.invalidate(self.oracle, descriptor)

    def invalidate_by_register(self, descriptor: bytes) -> None:
        unit = self.bench.unit
        if descriptor[0] & 0xF == 1:
            d = ContextInvalidation.parse(descriptor)
            unit.write("CCMD", 1 << 63 | d.g << 61 | d.fm << 32 | d.sid << 16 | d.did)
            assert unit.field("CCMD", "ICC") == 0
        else:
            d = IotlbInvalidation.parse(descriptor)
            unit.write("IVA", d.addr | d.ih << 6 | d.am)
            unit.write("IOTLB", 1 << 63 | d.g << 60 | d.did << 32)
            assert unit.field("IOTLB", "IVT") == 0

    # ---- edits that owe an invalidation ------------------------------------------------------

    @rule(which=st.sampled_from([0, 1]), bus=st.sampled_from([3, 4]), entry=st.data())
    def edit_root(self, which: int, bus: int, entry: st.DataObject) -> None:
        p, target = entry.draw(st.sampled_from([(1, 0), (1, 1), (0, 0)]))
        self.bench.write(ROOTS[which] + 16 * bus, RootEntry.build(p=p, ctp=CONTEXTS[target]))

    @rule(
        which=st.sampled_from([0, 1]),
        requester=requesters,
        domain=domains,
        tree=st.sampled_from([0, 1]),
        shape=st.sampled_from(["table", "table", "table", "pass", "blocked", "broken", "quiet"]),
    )
    def edit_context(self, which: int, requester: int, domain: int, tree: int, shape: str) -> None:
        values = {"p": 1, "aw": 1, "did": domain, "ssptptr": table(LEVELS, tree)}
        values |= {
            "table": {},
            "pass": {"tt": 2, "aw": 3},
            "blocked": {"p": 0},
            "broken": {"reserved_71": 1},
            "quiet": {"fpd": 1},
        }[shape]
        entry = ContextEntry.build(**values)
        self.bench.write(CONTEXTS[which] + 16 * (requester & 0xFF), entry)

    @rule(level=st.integers(1, LEVELS), which=st.sampled_from([0, 1]), iova=iovas, data=st.data())
    def edit_table(self, level: int, which: int, iova: int, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(entry_values(level)))
        self.bench.write(self.entry(level, which, iova), value)

    @rule(which=st.sampled_from([0, 1]))
    def change_root_pointer(self, which: int) -> None:
        self.bench.set_root(ROOTS[which])
        self.oracle.walker = self.bench.walker()
        if self.root_invalidates:
            self.oracle.invalidate_all()

    # ---- invalidations -----------------------------------------------------------------------

    @rule()
    def invalidate_contexts(self) -> None:
        self.invalidate(ContextInvalidation.build(g=1))

    @rule(domain=domains)
    def invalidate_context_of_domain(self, domain: int) -> None:
        self.invalidate(ContextInvalidation.build(g=2, did=domain))

    @rule(domain=domains, requester=requesters, mask=st.integers(0, 3))
    def invalidate_context_of_device(self, domain: int, requester: int, mask: int) -> None:
        self.invalidate(ContextInvalidation.build(g=3, did=domain, sid=requester, fm=mask))

    @rule()
    def invalidate_iotlb(self) -> None:
        self.invalidate(IotlbInvalidation.build(g=1))

    @rule(domain=domains)
    def invalidate_iotlb_of_domain(self, domain: int) -> None:
        self.invalidate(IotlbInvalidation.build(g=2, did=domain))

    @rule(
        domain=domains,
        iova=iovas,
        mask=st.sampled_from([0, 0, 1, 9, 18]),
        hint=st.booleans(),
    )
    def invalidate_iotlb_of_pages(self, domain: int, iova: int, mask: int, hint: bool) -> None:
        self.invalidate(IotlbInvalidation.build(g=3, did=domain, addr=iova, am=mask, ih=int(hint)))

    @rule(power_on=st.booleans())
    def reset(self, power_on: bool) -> None:
        self.bench.unit.reset(power_on=power_on)
        self.oracle.invalidate_all()
        self.program()

    # ---- edits with what they owe: use, edit, invalidate, use again --------------------------

    @rule(
        requester=requesters,
        iova=iovas,
        level=st.integers(1, LEVELS),
        beside=st.sampled_from([0, 0, 1, 9]),
        data=st.data(),
    )
    def edit_table_properly(
        self, requester: int, iova: int, level: int, beside: int, data: st.DataObject
    ) -> None:
        self.translate(requester, iova, Access.READ, False)
        for which in (0, 1):
            self.edit_table(level, which, iova, data)
        # Another page of the same range names this one as well.
        other = iova ^ ((1 << beside) - 1 << 12)
        for domain in DOMAINS:
            self.invalidate_iotlb_of_pages(domain, other, beside, hint=level == 1)
        self.translate(requester, iova, Access.READ, False)

    @rule(
        requester=requesters,
        iova=iovas,
        domain=domains,
        mask=st.sampled_from([(0, 0), (1, 4), (2, 6), (3, 7)]),
        data=st.data(),
    )
    def edit_context_properly(
        self, requester: int, iova: int, domain: int, mask: tuple[int, int], data: st.DataObject
    ) -> None:
        self.translate(requester, iova, Access.READ, False)
        for which in (0, 1):
            self.edit_context(which, requester, domain, data.draw(st.integers(0, 1)), "table")
        code, ignored = mask
        for owner in DOMAINS:
            # Any requester that differs in ignored bits alone names this one as well.
            self.invalidate_context_of_device(owner, requester ^ ignored, code)
        for owner in DOMAINS:
            self.invalidate_iotlb_of_domain(owner)
        self.translate(requester, iova, Access.READ, False)

    @rule(requester=requesters, iova=iovas, which=st.sampled_from([0, 1]))
    def change_root_pointer_in_use(self, requester: int, iova: int, which: int) -> None:
        self.translate(requester, iova, Access.READ, False)
        self.change_root_pointer(which)
        self.translate(requester, iova, Access.READ, False)

    # ---- what is checked ---------------------------------------------------------------------

    @rule(
        requester=requesters,
        iova=iovas,
        access=st.sampled_from([Access.READ, Access.WRITE, Access.ATOMIC]),
        zero_length=st.booleans(),
    )
    def translate(self, requester: int, iova: int, access: Access, zero_length: bool) -> None:
        request = self.bench.request(
            iova, access, requester=requester, zero_length=zero_length and access is Access.READ
        )
        allowed = self.oracle.allowed(request)
        result = self.bench.translate(request)
        wrong = {answer: answer.differences(result) for answer in allowed}
        assert any(not differences for differences in wrong.values()), wrong

    @rule(requester=requesters, iova=iovas)
    def dma_read(self, requester: int, iova: int) -> None:
        allowed = self.oracle.allowed(self.bench.request(iova, requester=requester, length=8))
        completion = self.bench.machine.core.create_port(0, requester).read(iova, 8)
        self.bench.clear_faults()
        # What a read may return: a page's content, or a failure with the fault behind it.
        possible = {
            self.bench.read(answer.address, 8) if answer.outcome is Outcome.MEMORY else answer.fault
            for answer in allowed
        }
        found = completion.data if completion.ok else completion.fault or None
        assert found in possible, possible

    @rule()
    def translate_with_everything_invalidated(self) -> None:
        for iova in IOVAS:
            for requester in REQUESTERS:
                self.invalidate(ContextInvalidation.build(g=1))
                self.invalidate(IotlbInvalidation.build(g=1))
                request = self.bench.request(iova, requester=requester)
                expected = self.bench.walker().walk(request)
                assert self.oracle.allowed(request) == {expected}
                assert expected.differences(self.bench.translate(request)) == []

    @invariant()
    def caches_hold_no_more_than_two_lines(self) -> None:
        if hasattr(self, "bench"):
            for cache in ("iotlb", "context", "paging"):
                assert len(self.bench.unit.entries(cache)) <= 2


class ByDomainMachine(OracleMachine):
    lookup = IotlbLookup.BY_DOMAIN


class CachingModeMachine(OracleMachine):
    caching_mode = True


class ByDomainCachingModeMachine(OracleMachine):
    lookup = IotlbLookup.BY_DOMAIN
    caching_mode = True


class RegisterMachine(OracleMachine):
    by_register = True
    root_invalidates = True


CASES = (
    OracleMachine,
    ByDomainMachine,
    CachingModeMachine,
    ByDomainCachingModeMachine,
    RegisterMachine,
)
for _case in CASES:
    _case.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestByRequester = OracleMachine.TestCase
TestByDomain = ByDomainMachine.TestCase
TestCachingMode = CachingModeMachine.TestCase
TestByDomainCachingMode = ByDomainCachingModeMachine.TestCase
TestByRegister = RegisterMachine.TestCase
