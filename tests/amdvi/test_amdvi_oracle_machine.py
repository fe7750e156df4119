"""The stale-entry rule on AMD-Vi: edits without invalidation, every kind of invalidation.

The universe is small, so that things meet: two requesters, three domain IDs, two tables a level
whose entries point anywhere below, and caches of two lines.
"""

from __future__ import annotations

from amdvi_bench import Bench
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from iommu_emu.amdvi.structures import (
    InvalidateDevtabEntry,
    InvalidateIommuAll,
    InvalidateIommuPages,
)
from iommu_emu.core import Access, IotlbLookup, Outcome
from iommu_emu.driver import ALL_PAGES, invalidation_address
from iommu_emu.reference import amdvi as reference
from iommu_emu.reference.oracle import Oracle

REQUESTERS = [0x0310, 0x0311]
DOMAINS = [0, 1, 2]
IOVAS = [0x1000, 0x2000, 0x20_1000, 0x4000_1000]
PAGES = [0x8_0000, 0x9_0000]
LEVELS = 3


def table(level: int, which: int) -> int:
    """Return the address of one of the two tables of a level."""
    return 0x10000 + 0x2000 * level + 0x1000 * which


def entry_values(level: int) -> list[int]:
    """Return what the entries of a level may be: tables, pages, nothing, and broken ones."""
    permissions = [{}, {}, {"iw": 0}, {"ir": 0}]
    values = [0, 0]
    if level > 1:
        targets = [table(level - 1, which) for which in (0, 1)]
        values += [Bench.pde(target, level - 1, **p) for target in targets for p in permissions]
        values += [Bench.pde(targets[0], level - 1, reserved_60_52=1)]
        values += [Bench.pde(table(1, 0), level)]
    size = 1 << 12 + 9 * (level - 1)
    pages = PAGES if level == 1 else [0, size]
    values += [Bench.pte(page, **p) for page in pages for p in permissions]
    # A page of twice the level's own size; its other half may well hold something else.
    values += [Bench.pte(4 * size, next_level=7)] if level == 1 else []
    return [*values, Bench.pte(pages[0], reserved_58_52=1)]


requesters = st.sampled_from(REQUESTERS)
domains = st.sampled_from(DOMAINS)
iovas = st.sampled_from(IOVAS)


class OracleMachine(RuleBasedStateMachine):
    """Every answer of the unit is one that the oracle allows."""

    lookup = IotlbLookup.BY_REQUESTER
    np_cache = False

    @initialize()
    def start(self) -> None:
        self.bench = Bench(geometry="tiny-2", iotlb_lookup=self.lookup, np_cache=self.np_cache)
        self.oracle: Oracle[reference.Context] = Oracle(
            self.bench.walker(),
            by_domain=self.lookup is IotlbLookup.BY_DOMAIN,
            negative=self.np_cache,
        )
        for page in PAGES:
            self.bench.write(page, page)
        # Something that works, so that not every run has to find it.
        for requester in REQUESTERS:
            self.bench.device_entry(requester, mode=LEVELS, root=table(LEVELS, 0), domain_id=1)
        for which in (0, 1):
            for level in (2, 3):
                for iova in IOVAS:
                    entry = Bench.pde(table(level - 1, which), level - 1)
                    self.bench.write(self.entry(level, which, iova), entry)
            for iova in IOVAS:
                self.bench.write(self.entry(1, which, iova), Bench.pte(PAGES[which]))

    @staticmethod
    def entry(level: int, which: int, iova: int) -> int:
        return table(level, which) + 8 * (iova >> 12 + 9 * (level - 1) & 0x1FF)

    def invalidate(self, command: bytes) -> None:
        """Invalidate, and tell the oracle."""
        self.bench.command(command)
        assert self.bench.unit.read("CmdBufHead") == self.bench.unit.read("CmdBufTail")
        reference.invalidate(self.oracle, command)

    # ---- edits that owe an invalidation ------------------------------------------------------

    @rule(
        requester=requesters,
        domain=domains,
        tree=st.sampled_from([0, 1]),
        shape=st.sampled_from(
            ["table", "table", "read-only", "quiet", "identity", "open", "blocked", "broken"]
        ),
    )
    def edit_device(self, requester: int, domain: int, tree: int, shape: str) -> None:
        values = {"mode": LEVELS, "root": table(LEVELS, tree), "domain_id": domain}
        values |= {
            "table": {},
            "read-only": {"iw": 0},
            "quiet": {"sa": 1},
            "identity": {"mode": 0},
            "open": {"v": 0},
            "blocked": {"tv": 0},
            "broken": {"reserved_63": 1},
        }[shape]
        self.bench.device_entry(requester, **values)

    @rule(level=st.integers(1, LEVELS), which=st.sampled_from([0, 1]), iova=iovas, data=st.data())
    def edit_table(self, level: int, which: int, iova: int, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(entry_values(level)))
        self.bench.write(self.entry(level, which, iova), value)

    # ---- invalidations -----------------------------------------------------------------------

    @rule(requester=requesters)
    def invalidate_device(self, requester: int) -> None:
        self.invalidate(InvalidateDevtabEntry.build(device_id=requester))

    @rule(domain=domains, pde=st.booleans())
    def invalidate_domain(self, domain: int, pde: bool) -> None:
        command = InvalidateIommuPages.build(domain_id=domain, s=1, pde=int(pde), address=ALL_PAGES)
        self.invalidate(command)

    @rule(
        domain=domains,
        iova=iovas,
        size=st.sampled_from([0x1000, 0x1000, 0x2000, 0x20_0000, 0x4000_0000]),
        pde=st.booleans(),
    )
    def invalidate_pages(self, domain: int, iova: int, size: int, pde: bool) -> None:
        sized, address = invalidation_address(iova // size * size, size)
        command = InvalidateIommuPages.build(
            domain_id=domain, s=sized, pde=int(pde), address=address
        )
        self.invalidate(command)

    @rule()
    def invalidate_all(self) -> None:
        self.invalidate(InvalidateIommuAll.build())

    @rule()
    def reset(self) -> None:
        self.bench.unit.reset(power_on=True)
        self.oracle.invalidate_all()
        self.bench.program()

    # ---- edits with what they owe: use, edit, invalidate, use again --------------------------

    @rule(
        requester=requesters,
        iova=iovas,
        level=st.integers(1, LEVELS),
        size=st.sampled_from([0x1000, 0x1000, 0x2000, 0x20_0000]),
        data=st.data(),
    )
    def edit_table_properly(
        self, requester: int, iova: int, level: int, size: int, data: st.DataObject
    ) -> None:
        self.translate(requester, iova, Access.READ)
        for which in (0, 1):
            self.edit_table(level, which, iova, data)
        # Another page of the same range names this one as well.
        other = iova ^ size - 0x1000
        for domain in DOMAINS:
            self.invalidate_pages(domain, other, size, pde=level > 1)
        self.translate(requester, iova, Access.READ)

    @rule(requester=requesters, iova=iovas, domain=domains, tree=st.sampled_from([0, 1]))
    def edit_device_properly(self, requester: int, iova: int, domain: int, tree: int) -> None:
        self.translate(requester, iova, Access.READ)
        self.edit_device(requester, domain, tree, "table")
        self.invalidate_device(requester)
        for owner in DOMAINS:
            self.invalidate_domain(owner, pde=True)
        self.translate(requester, iova, Access.READ)

    # ---- what is checked ---------------------------------------------------------------------

    @rule(
        requester=requesters,
        iova=iovas,
        access=st.sampled_from([Access.READ, Access.WRITE, Access.ATOMIC]),
    )
    def translate(self, requester: int, iova: int, access: Access) -> None:
        request = self.bench.request(iova, access, requester=requester)
        allowed = self.oracle.allowed(request)
        result = self.bench.translate(request)
        wrong = {answer: answer.differences(result) for answer in allowed}
        assert any(not differences for differences in wrong.values()), wrong

    @rule(requester=requesters, iova=iovas)
    def dma_read(self, requester: int, iova: int) -> None:
        allowed = self.oracle.allowed(self.bench.request(iova, requester=requester, length=8))
        completion = self.bench.machine.core.create_port(0, requester).read(iova, 8)
        self.bench.take_events()
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
                self.invalidate(InvalidateIommuAll.build())
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


class NpCacheMachine(OracleMachine):
    np_cache = True


class ByDomainNpCacheMachine(OracleMachine):
    lookup = IotlbLookup.BY_DOMAIN
    np_cache = True


for _case in (OracleMachine, ByDomainMachine, NpCacheMachine, ByDomainNpCacheMachine):
    _case.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

TestByRequester = OracleMachine.TestCase
TestByDomain = ByDomainMachine.TestCase
TestNpCache = NpCacheMachine.TestCase
TestByDomainNpCache = ByDomainNpCacheMachine.TestCase
