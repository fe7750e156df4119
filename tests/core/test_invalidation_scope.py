"""What each granularity drops, and what it must leave (VT-d 7.4), by register and by queue.

Dropping more than asked for would be legal hardware, but it hides forgotten invalidations: the
entries that must survive are as much a part of each expectation as those that must go.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from core_bench import (
    DOMAIN,
    GLOBAL,
    SELECTIVE,
    Bench,
    ByQueue,
    ByRegister,
    Table,
    geometry,
)

from iommu_emu.core import CacheId, IotlbLookup
from iommu_emu.geometry import CacheGeometry

Way = type[ByRegister] | type[ByQueue]

# ---- context cache --------------------------------------------------------------------------

CONTEXTS = {  # requester: domain
    0x0010: 1,
    0x0011: 1,
    0x0012: 1,
    0x0013: 1,
    0x0014: 1,
    0x0015: 2,
    0x0017: 1,
    0x0018: 1,
    0x0090: 1,
    0x0110: 1,
    0x0020: 2,
    0x0021: 0x8001,
}


@pytest.fixture
def contexts(bench: Bench) -> Bench:
    """Every context of CONTEXTS is cached, and a page of each."""
    for requester, domain in CONTEXTS.items():
        bench.attach(requester, domain=domain).map(0x5000, 0x20_0000)
    bench.enable()
    for requester in CONTEXTS:
        bench.translate(0x5000, requester=requester)
    return bench


def cached_contexts(bench: Bench) -> set[int]:
    return {entry.requester for entry in bench.unit.entries(CacheId.CONTEXT)}


@pytest.mark.parametrize(
    ("g", "did", "sid", "fm", "dropped"),
    [
        (GLOBAL, 0, 0, 0, set(CONTEXTS)),
        (DOMAIN, 1, 0, 0, {r for r, d in CONTEXTS.items() if d == 1}),
        (DOMAIN, 2, 0, 0, {0x15, 0x20}),
        (DOMAIN, 0x8001, 0, 0, {0x21}),
        (DOMAIN, 3, 0, 0, set()),
        (SELECTIVE, 1, 0x10, 0, {0x10}),
        (SELECTIVE, 2, 0x10, 0, set()),
        (SELECTIVE, 1, 0x15, 0, set()),
        (SELECTIVE, 2, 0x15, 0, {0x15}),
        (SELECTIVE, 1, 0x10, 1, {0x10, 0x14}),
        (SELECTIVE, 1, 0x14, 1, {0x10, 0x14}),
        (SELECTIVE, 1, 0x10, 2, {0x10, 0x12, 0x14}),
        (SELECTIVE, 1, 0x17, 2, {0x11, 0x13, 0x17}),
        (SELECTIVE, 1, 0x10, 3, {0x10, 0x11, 0x12, 0x13, 0x14, 0x17}),
        (SELECTIVE, 2, 0x10, 3, {0x15}),
        (SELECTIVE, 1, 0x110, 3, {0x110}),
    ],
)
def test_invalidation_scope_of_context(
    contexts: Bench, way: Way, g: int, did: int, sid: int, fm: int, dropped: set[int]
) -> None:
    pages = len(contexts.unit.entries(CacheId.IOTLB))
    paging = len(contexts.unit.entries(CacheId.PAGING))
    way(contexts).context(g, did, sid, fm)
    assert set(CONTEXTS) - cached_contexts(contexts) == dropped
    assert len(contexts.unit.entries(CacheId.IOTLB)) == pages == len(CONTEXTS)
    assert len(contexts.unit.entries(CacheId.PAGING)) == paging


def test_invalidation_scope_of_context_domain_ids_are_cut_to_nd(way: Way) -> None:
    bench = Bench(domain_bits=8)
    bench.attach(0x10, domain=1).map(0x5000, 0x20_0000)
    bench.attach(0x18, domain=2).map(0x5000, 0x20_0000)
    bench.enable()
    for requester in (0x10, 0x18):
        bench.translate(0x5000, requester=requester)
    chosen = way(bench)
    chosen.context(DOMAIN, 0xFF01)
    chosen.iotlb(DOMAIN, 0xFF01)
    assert cached_contexts(bench) == {0x18}
    assert {entry.domain for entry in bench.unit.entries(CacheId.IOTLB)} == {2}


# ---- IOTLB and paging-structure cache -------------------------------------------------------

# Pages of both domains: address: size. Every one is cached for requester 10h (domain 1) and 18h
# (domain 2); 20h shares domain 1 but has used one page only.
PAGES = {
    0x0000_5000: 12,
    0x0000_6000: 12,
    0x0000_7000: 12,
    0x0020_0000: 12,
    0x0040_0000: 21,
    0x0060_0000: 21,
    0x4000_0000: 30,
    0x80_0000_0000: 12,
}
LEVEL = {12: 1, 21: 2, 30: 3}
Key = tuple[int, int, int]  # requester, address, shift


def fill(table: Table) -> None:
    for page, shift in PAGES.items():
        table.map(page, page & 0xFFFF_FFFF, level=LEVEL[shift])


def use(bench: Bench, requester: int) -> None:
    for page in PAGES:
        assert bench.fault(page, requester=requester) == 0


def populate(bench: Bench) -> Bench:
    first = bench.attach(0x10, domain=1)
    second = bench.attach(0x18, domain=2)
    fill(first)
    fill(second)
    bench.attach(0x20, domain=1, table=first)
    bench.enable()
    use(bench, 0x10)
    use(bench, 0x18)
    bench.translate(0x5000, requester=0x20)
    return bench


@pytest.fixture
def pages(bench: Bench) -> Bench:
    return populate(bench)


def cached_pages(bench: Bench) -> set[Key]:
    return {(e.requester, e.address, e.page_shift) for e in bench.unit.entries(CacheId.IOTLB)}


def cached_tables(bench: Bench) -> set[Key]:
    return {(e.domain, e.address, e.page_shift) for e in bench.unit.entries(CacheId.PAGING)}


@dataclass(frozen=True)
class Scope:
    """One IOTLB invalidation and the input range of one domain that it covers."""

    g: int
    did: int
    address: int = 0
    am: int = 0
    ih: int = 0

    def covers(self, domain: int, address: int, shift: int) -> bool:
        if self.g == GLOBAL:
            return True
        if domain != self.did:
            return False
        first = self.address >> 12 + self.am << 12 + self.am
        last = first + (1 << 12 + self.am) - 1
        return self.g == DOMAIN or (address <= last and address + (1 << shift) - 1 >= first)


SCOPES = [
    Scope(GLOBAL, 0),
    Scope(DOMAIN, 1),
    Scope(DOMAIN, 2),
    Scope(DOMAIN, 3),
    *(Scope(SELECTIVE, did, 0x6000, 0, ih) for did in (1, 2, 3) for ih in (0, 1)),
    *(Scope(SELECTIVE, 1, 0x6000, am, ih) for am in (1, 2, 8, 9, 18) for ih in (0, 1)),
    Scope(SELECTIVE, 1, 0x0000_9000),  # nothing there, but the tables above it cover it
    Scope(SELECTIVE, 1, 0x0040_0000),  # the first 4 KiB of a large page
    Scope(SELECTIVE, 1, 0x005F_F000),  # the last 4 KiB of a large page
    Scope(SELECTIVE, 1, 0x0040_0000, 9),
    Scope(SELECTIVE, 1, 0x0040_0000, 10),
    Scope(SELECTIVE, 1, 0x4000_0000),
    Scope(SELECTIVE, 1, 0x7FFF_F000),
    Scope(SELECTIVE, 1, 0x8000_0000),
    Scope(SELECTIVE, 1, 0x3FFF_F000),
    Scope(SELECTIVE, 1, 0x4000_0000, 18),
    Scope(SELECTIVE, 1, 0x80_0000_0000),
]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_invalidation_scope_of_iotlb(pages: Bench, way: Way, scope: Scope) -> None:
    iotlb, tables = cached_pages(pages), cached_tables(pages)
    domains = {0x10: 1, 0x18: 2, 0x20: 1}
    way(pages).iotlb(scope.g, scope.did, scope.address, scope.am, scope.ih)
    assert cached_pages(pages) == {
        key for key in iotlb if not scope.covers(domains[key[0]], key[1], key[2])
    }
    keep = scope.g == SELECTIVE and scope.ih
    assert cached_tables(pages) == {key for key in tables if keep or not scope.covers(*key)}
    assert cached_contexts(pages) == {0x10, 0x18, 0x20}


def test_invalidation_scope_setup_has_cached_everything(pages: Bench) -> None:
    both = {(r, page, shift) for r in (0x10, 0x18) for page, shift in PAGES.items()}
    assert cached_pages(pages) == both | {(0x20, 0x5000, 12)}
    assert {key for key in cached_tables(pages) if key[0] == 1} == {
        (1, 0, 39),
        (1, 0, 30),
        (1, 0, 21),
        (1, 0x20_0000, 21),
        (1, 0x80_0000_0000, 39),
        (1, 0x80_0000_0000, 30),
        (1, 0x80_0000_0000, 21),
    }


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_invalidation_scope_of_iotlb_looked_up_by_domain(scope: Scope) -> None:
    bench = populate(Bench(lookup=IotlbLookup.BY_DOMAIN))
    before = {(e.domain, e.address, e.page_shift) for e in bench.unit.entries(CacheId.IOTLB)}
    ByRegister(bench).iotlb(scope.g, scope.did, scope.address, scope.am, scope.ih)
    after = {(e.domain, e.address, e.page_shift) for e in bench.unit.entries(CacheId.IOTLB)}
    assert after == {key for key in before if not scope.covers(*key)}
    assert len(before) == 2 * len(PAGES)


@pytest.mark.parametrize("sets", [1, 2, 16, 64])
@pytest.mark.parametrize("am", range(8))
@pytest.mark.parametrize("page", [0, 37, 63])
def test_invalidation_scope_of_pages_is_exact(sets: int, am: int, page: int) -> None:
    bench = Bench(shape=geometry(iotlb=CacheGeometry(sets, 64)))
    table = bench.attach()
    for n in range(64):
        table.map(n << 12, n << 12)
    bench.enable()
    for n in range(64):
        bench.translate(n << 12)
    ByRegister(bench).iotlb(SELECTIVE, 1, page << 12, am)
    kept = {e.address >> 12 for e in bench.unit.entries(CacheId.IOTLB)}
    assert kept == {n for n in range(64) if n >> am != page >> am}
    reads = bench.counter("iommu_mrds")
    for n in kept:
        bench.translate(n << 12)
    assert bench.counter("iommu_mrds") == reads  # they are found as well


def test_invalidation_scope_ignores_address_bits_above_mgaw(way: Way) -> None:
    bench = Bench(guest_address_width=39)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    way(bench).iotlb(SELECTIVE, 1, 0x5000 | 1 << 39 | 1 << 63)
    assert cached_pages(bench) == set()


def test_invalidation_scope_counts_address_bits_below_mgaw(way: Way) -> None:
    bench = Bench(guest_address_width=40)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    way(bench).iotlb(SELECTIVE, 1, 0x5000 | 1 << 39)
    assert cached_pages(bench) == {(0x10, 0x5000, 12)}


def test_invalidation_scope_largest_mask_covers_everything(way: Way) -> None:
    bench = populate(Bench(max_address_mask=63))
    way(bench).iotlb(SELECTIVE, 1, 0x1234_5000, 63)
    assert {e.domain for e in bench.unit.entries(CacheId.IOTLB)} == {2}
    assert {e.domain for e in bench.unit.entries(CacheId.PAGING)} == {2}


# ---- what a dropped entry means to a device -------------------------------------------------


def test_invalidation_makes_a_changed_page_visible(way: Way, bench: Bench) -> None:
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.map(0x6000, 0x21_0000)
    bench.enable()
    chosen = way(bench)
    bench.translate(0x5000)
    bench.translate(0x6000)
    table.map(0x5000, 0x30_0000)
    table.map(0x6000, 0x31_0000)
    assert bench.reads(0x5000) == 0x20_0000
    chosen.iotlb(SELECTIVE, 1, 0x5000)
    assert bench.reads(0x5000) == 0x30_0000
    assert bench.reads(0x6000) == 0x21_0000


def test_invalidation_of_context_alone_leaves_stale_translations(way: Way, bench: Bench) -> None:
    bench.attach(domain=1).map(0x5000, 0x20_0000)
    bench.enable()
    chosen = way(bench)
    bench.translate(0x5000)
    bench.attach(domain=2).map(0x5000, 0x30_0000)
    chosen.context(SELECTIVE, 1, 0x10)
    assert bench.reads(0x5000) == 0x20_0000
    chosen.iotlb(DOMAIN, 1)
    assert bench.reads(0x5000) == 0x30_0000


def test_invalidation_with_a_hint_leaves_stale_tables(way: Way, bench: Bench) -> None:
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    bench.enable()
    chosen = way(bench)
    bench.translate(0x5000)
    other = bench.table()
    bench.poke(other + 8 * 5, 0x30_0000 | 3)
    table.set(0x5000, 2, other | 3)
    chosen.iotlb(SELECTIVE, 1, 0x5000, ih=1)
    assert bench.reads(0x5000) == 0x20_0000  # through the cached directory entry
    chosen.iotlb(SELECTIVE, 1, 0x5000, ih=0)
    assert bench.reads(0x5000) == 0x30_0000


def test_invalidation_does_not_drop_what_is_filled_after_it(way: Way, bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    chosen = way(bench)
    for g in (GLOBAL, DOMAIN, SELECTIVE):
        chosen.iotlb(g, 1, 0x5000)
        chosen.context(g, 1, 0x10)
        bench.translate(0x5000)
        reads = bench.counter("iommu_mrds")
        bench.translate(0x5000)
        assert bench.counter("iommu_mrds") == reads
