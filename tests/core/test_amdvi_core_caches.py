"""AMD-Vi caches: what stays and what goes, NpCache, both lookups, the detector (9.2, 13)."""

from __future__ import annotations

import pytest
from amdvi_core_bench import (
    DEVICE,
    EVERYTHING_ADDRESS,
    OTHER,
    PAGE_FAULT,
    PE,
    PR,
    READ,
    RW,
    WRITE,
    Amdvi,
    R,
    Table,
    completion_wait,
    dte,
    invalidate_all,
    invalidate_devtab,
    invalidate_domain,
    invalidate_pages,
    pde,
    pte,
)

from iommu_emu.core import Access, CacheId, IotlbLookup, Owed, TableLevel
from iommu_emu.geometry import CacheGeometry, Geometry

BY_DOMAIN = IotlbLookup.BY_DOMAIN
ONE = CacheGeometry(1, 1)
WIDE = CacheGeometry(1, 256)  # fully associative: far apart pages do not evict each other


@pytest.fixture(params=list(IotlbLookup), ids=lambda lookup: lookup.name.lower())
def bench(request: pytest.FixtureRequest) -> Amdvi:
    """A unit that is on, with both ways to look up the IOTLB."""
    shape = Geometry("wide", "fully associative", "tests", WIDE, WIDE, WIDE, WIDE)
    return Amdvi(lookup=request.param, shape=shape)


def cached_pages(bench: Amdvi, cache: CacheId = CacheId.IOTLB) -> set[int]:
    return {entry.address for entry in bench.unit.entries(cache)}


# ---- page translations (9.2) ------------------------------------------------------------------


def test_iotlb_keeps_a_changed_leaf_until_its_page_is_invalidated(bench: Amdvi) -> None:
    leaf = bench.attach().map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    bench.poke(leaf, pte(0xA000))
    assert bench.reads(0x5000) == 0x9000
    bench.submit(invalidate_pages(1, 0x5000))
    assert bench.reads(0x5000) == 0xA000


@pytest.mark.parametrize("domain", [0, 2, 0x101, 0xFFFF])
def test_page_invalidation_of_another_domain_drops_nothing(bench: Amdvi, domain: int) -> None:
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.submit(invalidate_pages(domain, 0x5000), invalidate_domain(domain))
    assert cached_pages(bench) == {0x5000}


@pytest.mark.parametrize("domain", [0, 1, 0xFFFF])
def test_page_invalidation_takes_16_bits_of_domain(bench: Amdvi, domain: int) -> None:
    bench.attach(domain=domain).map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.submit(invalidate_pages(domain, 0x5000))
    assert cached_pages(bench) == set()


def many_pages(bench: Amdvi) -> set[int]:
    """Cache 4 KiB pages around powers of two, all in one domain."""
    table = bench.attach(levels=6)
    pages = {0, 0x1000, 0x2000, 0x3000, 0x4000, 0x7000, 0x8000, 0xF000, 0x1_0000}
    pages |= {1 << n for n in range(17, 63)}
    for page in pages:
        table.map(page, 0x9000)
        assert bench.reads(page) == 0x9000
    assert cached_pages(bench) == pages
    return pages


@pytest.mark.parametrize("size", range(13, 53))
def test_page_invalidation_covers_its_size_and_no_more(bench: Amdvi, size: int) -> None:
    pages = many_pages(bench)
    bench.submit(invalidate_pages(1, (1 << size - 1) - 0x1000, s=1))
    assert cached_pages(bench) == {page for page in pages if page >= 1 << size}


@pytest.mark.parametrize("page", [0x2000, 0x3000])
def test_page_invalidation_of_8_kib_starts_at_its_own_alignment(bench: Amdvi, page: int) -> None:
    pages = many_pages(bench)
    bench.submit(invalidate_pages(1, 0x2000, s=1))
    assert page not in cached_pages(bench)
    assert cached_pages(bench) == pages - {0x2000, 0x3000}


def test_page_invalidation_without_s_is_one_page(bench: Amdvi) -> None:
    pages = many_pages(bench)
    bench.submit(invalidate_pages(1, 0x7000))
    assert cached_pages(bench) == pages - {0x7000}


@pytest.mark.parametrize(
    "address", [EVERYTHING_ADDRESS, 0xFFFF_FFFF_FFFF_F000, 0x000F_FFFF_FFFF_F000]
)
def test_page_invalidation_without_a_0_bit_is_everything(bench: Amdvi, address: int) -> None:
    many_pages(bench)
    bench.submit(invalidate_pages(1, address, s=1))
    assert cached_pages(bench) == set()


@pytest.mark.parametrize("shift", [13, 16, 20, 21, 24, 30, 33])
def test_page_invalidation_of_any_part_drops_a_large_page(bench: Amdvi, shift: int) -> None:
    bench.attach().map(0, 0, shift=shift)
    bench.reads(0)
    bench.submit(invalidate_pages(1, 1 << shift))
    assert cached_pages(bench) == {0}
    bench.submit(invalidate_pages(1, (1 << shift) - 0x1000))
    assert cached_pages(bench) == set()


# ---- page structure (9.2, PDE) ----------------------------------------------------------------


@pytest.mark.parametrize("level", [2, 3, 4])
def test_directory_stays_until_an_invalidation_with_pde(bench: Amdvi, level: int) -> None:
    table = bench.attach()
    table.map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    other = Table(bench, bench.table(), level - 1)
    other.map(0x5000, 0xA000)
    bench.poke(table.entry(0x5000, level), pde(other.root, level - 1))
    bench.submit(invalidate_pages(1, 0x5000))
    assert bench.reads(0x5000) == 0x9000
    bench.submit(invalidate_pages(1, 0x5000, pde=1))
    assert bench.reads(0x5000) == 0xA000


def test_directory_of_another_range_stays(bench: Amdvi) -> None:
    table = bench.attach()
    table.map(0, 0x9000)
    table.map(1 << 39, 0xA000)
    bench.reads(0)
    bench.reads(1 << 39)
    before = cached_pages(bench, CacheId.PAGING)
    bench.submit(invalidate_pages(1, 1 << 39, pde=1))
    assert before == {0, 1 << 39}
    assert cached_pages(bench, CacheId.PAGING) == {0}


def test_directories_are_shared_by_domain(bench: Amdvi) -> None:
    table = bench.attach()
    bench.attach(OTHER, table=table)
    table.map(0x5000, 0x9000)
    table.map(0x6000, 0xA000)
    bench.reads(0x5000)
    reads = bench.counter("iommu_mrds")
    assert bench.reads(0x6000, OTHER) == 0xA000
    assert bench.counter("iommu_mrds") - reads == 2  # its entry, and the leaf


# ---- device table entries (9.2) ---------------------------------------------------------------


def test_dte_change_stays_hidden_behind_the_iotlb_by_requester() -> None:
    bench = Amdvi()
    bench.attach().map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    bench.set_dte(dte(tv=0))
    bench.submit(invalidate_devtab())
    assert bench.reads(0x5000) == 0x9000
    bench.submit(invalidate_domain())
    assert bench.reads(0x5000) is None


def test_dte_change_shows_after_its_invalidation_by_domain() -> None:
    bench = Amdvi(lookup=BY_DOMAIN)
    bench.attach().map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    bench.set_dte(dte(tv=0))
    assert bench.reads(0x5000) == 0x9000
    bench.submit(invalidate_devtab())
    assert bench.reads(0x5000) is None


def test_dte_stays_cached_without_its_invalidation(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 0x9000)
    assert bench.reads(0x5000) == 0x9000
    bench.set_dte(dte(tv=0))
    bench.submit(invalidate_domain())
    assert bench.reads(0x5000) == 0x9000
    bench.submit(invalidate_devtab(), invalidate_domain())
    assert bench.reads(0x5000) is None


@pytest.mark.parametrize("device", [0, OTHER, DEVICE | 0x100, DEVICE | 1])
def test_dte_invalidation_drops_its_own_device_only(bench: Amdvi, device: int) -> None:
    bench.set_dte(dte())
    bench.reads(0x5000)
    bench.submit(invalidate_devtab(device))
    assert len(bench.unit.entries(CacheId.CONTEXT)) == 1


def test_dte_invalidation_drops_no_translation(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.submit(invalidate_devtab())
    assert cached_pages(bench) == {0x5000}
    assert len(cached_pages(bench, CacheId.PAGING)) == 1


def test_invalidate_all_empties_every_cache(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.submit(invalidate_all())
    assert all(bench.unit.entries(cache) == [] for cache in CacheId)


# ---- identity ---------------------------------------------------------------------------------


def test_identity_is_cached_under_its_domain(bench: Amdvi) -> None:
    bench.set_dte(dte(domain=4))
    bench.reads(0x5678)
    (entry,) = bench.unit.entries(CacheId.IOTLB)
    assert (entry.address, entry.output, entry.page_shift) == (0x5000, 0x5000, 12)
    assert (entry.domain, entry.permissions) == (4, Access(RW))
    bench.submit(invalidate_domain(4))
    assert bench.unit.entries(CacheId.IOTLB) == []


def test_pass_without_v_is_not_cached(bench: Amdvi) -> None:
    bench.reads(0x5000)
    assert bench.unit.entries(CacheId.IOTLB) == []


# ---- lookup by domain -------------------------------------------------------------------------


@pytest.mark.parametrize(("lookup", "hits"), [(BY_DOMAIN, 1), (IotlbLookup.BY_REQUESTER, 0)])
def test_iotlb_is_shared_between_devices_by_domain_only(lookup: IotlbLookup, hits: int) -> None:
    bench = Amdvi(lookup=lookup)
    table = bench.attach()
    bench.attach(OTHER, table=table)
    table.map(0x5000, 0x9000)
    bench.reads(0x5000)
    assert bench.reads(0x5000, OTHER) == 0x9000
    assert bench.counter("iotlb_hit") == hits


@pytest.mark.parametrize("first", [DEVICE, OTHER])
@pytest.mark.parametrize("mode", [0, 4])
def test_shared_translation_meets_the_permissions_of_each_device(mode: int, first: int) -> None:
    bench = Amdvi(lookup=BY_DOMAIN)
    table = bench.attach()
    table.map(0x5000, 0x5000)
    for device, permissions in ((DEVICE, RW), (OTHER, R)):
        bench.set_dte(dte(mode=mode, root=table.root, permissions=permissions), device)
    bench.reads(0x5000, first)
    assert bench.translate(0x5000, WRITE, DEVICE).permissions is Access(RW)
    assert bench.translate(0x5000, WRITE, OTHER).fault == PAGE_FAULT
    assert bench.translate(0x5000, READ, OTHER).permissions is Access(R)
    assert len(bench.unit.entries(CacheId.IOTLB)) == 1


@pytest.mark.parametrize(("device", "logged"), [(DEVICE, 1), (OTHER, 0)])
def test_shared_translation_is_suppressed_by_each_device_for_itself(
    device: int, logged: int
) -> None:
    bench = Amdvi(lookup=BY_DOMAIN)
    table = bench.attach()
    bench.attach(OTHER, table=table, low=1 << 98)  # SA
    table.map(0x5000, 0x9000, R)
    bench.reads(0x5000, DEVICE + OTHER - device)
    assert bench.translate(0x5000, WRITE, device).fault == PAGE_FAULT
    assert len(bench.events()) == logged


def test_iotlb_entries_name_their_requester_unless_looked_up_by_domain() -> None:
    for lookup, requester in ((BY_DOMAIN, 0), (IotlbLookup.BY_REQUESTER, DEVICE)):
        bench = Amdvi(lookup=lookup)
        bench.attach(domain=6).map(0, 0x20_0000, shift=21)
        bench.reads(0x1234)
        (entry,) = bench.unit.entries(CacheId.IOTLB)
        assert (entry.requester, entry.domain) == (requester, 6)
        assert (entry.address, entry.output, entry.page_shift) == (0, 0x20_0000, 21)


# ---- what a hit answers -----------------------------------------------------------------------


def test_hit_answers_as_the_walk_did(bench: Amdvi) -> None:
    bench.attach(domain=3).map(0x5000, 0x9000)
    assert bench.translate(0x5678) == bench.translate(0x5678)
    assert bench.counter("iotlb_hit") == 1


def test_hit_without_permission_faults_with_the_device_and_domain(bench: Amdvi) -> None:
    bench.attach(domain=3).map(0x5000, 0x9000, R)
    bench.reads(0x5000)
    reads = bench.counter("iommu_mrds")
    assert bench.translate(0x5008, WRITE).fault == PAGE_FAULT
    event = bench.event()
    assert (event.device, event.domain, event.address) == (DEVICE, 3, 0x5008)
    assert event.flags == PR | PE | 0x20
    assert bench.counter("iommu_mrds") == reads


def test_small_cache_evicts() -> None:
    shape = Geometry("tiny", "one line", "tests", ONE, ONE, ONE, ONE)
    bench = Amdvi(shape=shape)
    table = bench.attach()
    table.map(0x5000, 0x9000)
    leaf = table.map(0x6000, 0xA000)
    bench.reads(0x6000)
    bench.poke(leaf, 0)
    bench.reads(0x5000)
    assert bench.reads(0x6000) is None


# ---- NpCache (13) -----------------------------------------------------------------------------


@pytest.mark.parametrize("np_cache", [False, True])
def test_not_present_entry_is_cached_only_with_np_cache(np_cache: bool) -> None:
    bench = Amdvi(np_cache=np_cache)
    table = bench.attach()
    leaf = table.set(0x5000, 1, 0)
    assert bench.reads(0x5000) is None
    bench.poke(leaf, pte(0x9000))
    assert bench.reads(0x5000) == (None if np_cache else 0x9000)
    bench.submit(invalidate_pages(1, 0x5000))
    assert bench.reads(0x5000) == 0x9000


@pytest.mark.parametrize(
    ("entry", "flags"), [(0, 0), (pte(0x9000) | 1 << 52, 0x90), (pde(0x9000, 1), 0x10)]
)
def test_cached_fault_is_logged_again_as_it_was(entry: int, flags: int) -> None:
    bench = Amdvi(np_cache=True)
    bench.attach(domain=2).set(0x5000, 1, entry)
    for address, access in ((0x5000, READ), (0x5010, WRITE)):
        assert bench.translate(address, access).fault == PAGE_FAULT
        event = bench.event()
        assert (event.address, event.domain) == (address, 2)
        assert event.flags == flags | (0x20 if access is WRITE else 0)
    (entry_cached,) = bench.unit.entries(CacheId.IOTLB)
    assert entry_cached.negative


@pytest.mark.parametrize("np_cache", [False, True])
def test_page_that_grants_nothing_is_cached_only_with_np_cache(np_cache: bool) -> None:
    bench = Amdvi(np_cache=np_cache)
    bench.attach().map(0x5000, 0x9000, 0)
    bench.reads(0x5000)
    assert len(bench.unit.entries(CacheId.IOTLB)) == int(np_cache)


# ---- prefetch ---------------------------------------------------------------------------------


def prefetch(address: int, *, inval: int) -> tuple[int, int]:
    return 6 << 60 | DEVICE | 1 << 24, address | inval << 4


@pytest.mark.parametrize("inval", [0, 1])
def test_prefetch_invalidates_only_if_told(bench: Amdvi, inval: int) -> None:
    table = bench.attach()
    for page in (0x5000, 0x6000):
        table.map(page, 0x9000)
        bench.reads(page)
    bench.submit(prefetch(0x5000, inval=inval))
    assert cached_pages(bench) == ({0x6000} if inval else {0x5000, 0x6000})


# ---- the stale-use detector -------------------------------------------------------------------


def test_detector_reports_a_stale_page(bench: Amdvi) -> None:
    bench.unit.watch(True)
    leaf = bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.poke(leaf, 0)
    assert bench.reads(0x5000) == 0x9000
    ((use,), lost) = bench.unit.stale_uses()
    assert (use.cached.address, use.fresh.fault) == (0x9000, PAGE_FAULT)
    assert (use.entry, use.before, use.after) == (leaf, pte(0x9000), 0)
    assert (use.cache, use.level, use.owed) == (CacheId.IOTLB, 1, Owed.IOTLB_PAGE)
    assert lost == 0


@pytest.mark.parametrize("level", [2, 3, 4])
def test_detector_reports_a_stale_directory(bench: Amdvi, level: int) -> None:
    bench.unit.watch(True)
    table = bench.attach()
    table.map(0x5000, 0x9000)
    table.map(0x6000, 0xA000)
    bench.reads(0x5000)
    at = table.entry(0x5000, level)
    bench.poke(at, 0)
    assert bench.reads(0x6000) == 0xA000
    ((use,), _) = bench.unit.stale_uses()
    assert (use.cache, use.level, use.entry) == (CacheId.PAGING, level, at)
    assert use.owed == Owed.IOTLB_PAGE


def test_detector_reports_a_stale_dte(bench: Amdvi) -> None:
    bench.unit.watch(True)
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    before = bench.peek(bench.dte_address())
    bench.set_dte(dte(tv=0))
    assert bench.reads(0x5000) == 0x9000
    ((use,), _) = bench.unit.stale_uses()
    assert (use.level, use.entry) == (TableLevel.CONTEXT, bench.dte_address())
    assert (use.before, use.after) == (before, dte(tv=0) & (1 << 64) - 1)
    assert use.owed == Owed.CONTEXT_DEVICE | Owed.IOTLB_DOMAIN


def test_detector_reports_a_stale_dte_behind_a_new_translation(bench: Amdvi) -> None:
    bench.unit.watch(True)
    bench.set_dte(dte())
    bench.reads(0x5000)
    bench.set_dte(dte(tv=0))
    assert bench.reads(0x6000) == 0x6000
    ((use,), _) = bench.unit.stale_uses()
    assert (use.cache, use.level) == (CacheId.CONTEXT, TableLevel.CONTEXT)
    assert use.owed == Owed.CONTEXT_DEVICE | Owed.IOTLB_DOMAIN


def test_detector_owes_only_the_domain_once_the_dte_is_invalidated() -> None:
    bench = Amdvi()
    bench.unit.watch(True)
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.set_dte(dte(tv=0))
    bench.submit(invalidate_devtab())
    assert bench.reads(0x5000) == 0x9000
    ((use,), _) = bench.unit.stale_uses()
    assert use.owed == Owed.IOTLB_DOMAIN


def test_detector_owes_only_the_domain_once_the_dte_is_cached_anew() -> None:
    bench = Amdvi()
    bench.unit.watch(True)
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.set_dte(dte(tv=0))
    bench.submit(invalidate_devtab())
    assert bench.reads(0x6000) is None  # reads the new entry
    assert bench.reads(0x5000) == 0x9000
    ((use,), _) = bench.unit.stale_uses()
    assert use.owed == Owed.IOTLB_DOMAIN


def test_detector_owes_everything_for_another_device_table(bench: Amdvi) -> None:
    bench.unit.watch(True)
    bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.write("DevTabBase", 0x60_0000 + 0x10_0000 | 0x1FF)
    assert bench.reads(0x5000) == 0x9000
    ((use,), _) = bench.unit.stale_uses()
    assert use.level == TableLevel.REGISTER
    assert use.owed == Owed.CONTEXT_GLOBAL | Owed.IOTLB_GLOBAL


def test_detector_does_not_know_what_was_cached_before_it(bench: Amdvi) -> None:
    leaf = bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.unit.watch(True)
    bench.poke(leaf, 0)
    assert bench.reads(0x5000) == 0x9000
    ((use,), _) = bench.unit.stale_uses()
    assert (use.level, use.entry, use.owed) == (TableLevel.UNKNOWN, 0, Owed.IOTLB_DOMAIN)


def test_detector_is_silent_after_the_right_invalidation(bench: Amdvi) -> None:
    bench.unit.watch(True)
    leaf = bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.poke(leaf, 0)
    bench.submit(invalidate_pages(1, 0x5000), completion_wait())
    assert bench.reads(0x5000) is None
    assert bench.unit.stale_uses() == ([], 0)


def test_detector_changes_nothing_but_the_reports() -> None:
    counters = []
    for watched in (False, True):
        bench = Amdvi()
        bench.unit.watch(watched)
        bench.attach().map(0x5000, 0x9000)
        for address in (0x5000, 0x5000, 0x6000, 0x5008):
            bench.translate(address, WRITE)
        counters.append((bench.unit.counters(), len(bench.events())))
    del counters[0][0]["iotlb_lookup"], counters[1][0]["iotlb_lookup"]
    assert counters[0] == counters[1]
