"""What the caches hold, who finds it, and for how long (VT-d 9.1, 9.2, 9.5, 9.6)."""

from __future__ import annotations

import pytest
from core_bench import (
    ATOMIC,
    DEVICE,
    DOMAIN,
    GLOBAL,
    OTHER,
    PS,
    READ,
    RW,
    SELECTIVE,
    SNP,
    TABLES,
    WRITE,
    Bench,
    ByRegister,
    R,
    W,
    geometry,
)

from iommu_emu.core import Access, AddressType, CacheId, IotlbLookup, Replacement, RequestFlag
from iommu_emu.geometry import CacheGeometry

REQUESTER, BY_DOMAIN = IotlbLookup.BY_REQUESTER, IotlbLookup.BY_DOMAIN


def reads_of(bench: Bench, address: int, requester: int = DEVICE, **request: object) -> int:
    """Return how many table entries one request reads from memory."""
    before = bench.counter("iommu_mrds")
    bench.translate(address, requester=requester, **request)
    return bench.counter("iommu_mrds") - before


# ---- hits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", [REQUESTER, BY_DOMAIN])
@pytest.mark.parametrize(("levels", "leaf"), [(3, 1), (4, 1), (5, 1), (4, 2), (4, 3)])
def test_caching_walk_reads_each_entry_once(lookup: IotlbLookup, levels: int, leaf: int) -> None:
    bench = Bench(lookup=lookup)
    bench.attach(levels=levels).map(0x4000_0000, 0x8000_0000, level=leaf)
    bench.enable()
    assert reads_of(bench, 0x4000_0000) == 2 + levels - leaf + 1
    assert reads_of(bench, 0x4000_0000) == 0
    assert reads_of(bench, 0x4000_0ABC, access=WRITE) == 0


def test_caching_hit_equals_the_miss_in_every_field(bench: Bench) -> None:
    bench.attach(domain=0x1234).map(0x4020_0000, 0x8000_0000, R | SNP, level=2)
    bench.enable()
    first = bench.translate(0x4021_2345)
    assert bench.translate(0x4021_2345) == first
    bench.command(1 << 30)  # SRTP changes nothing
    assert bench.translate(0x4021_2345) == first


@pytest.mark.parametrize("bits", [R, W, RW])
@pytest.mark.parametrize("access", [READ, WRITE, ATOMIC])
def test_caching_hit_checks_permissions_as_the_walk_does(
    bench: Bench, bits: int, access: Access
) -> None:
    bench.attach().map(0x5000, 0x20_0000, bits)
    bench.enable()
    fresh = bench.fault(0x5000, access)
    bench.translate(0x5000, READ if bits & R else WRITE)
    assert bench.fault(0x5000, access) == fresh


def test_caching_paging_structures_shorten_the_next_walk(bench: Bench) -> None:
    table = bench.attach(levels=4)
    for iova in (0x5000, 0x6000, 0x20_0000, 0x4000_0000, 0x80_0000_0000):
        table.map(iova, iova & 0xFFFF_FFFF)
    bench.enable()
    assert reads_of(bench, 0x5000) == 6
    assert reads_of(bench, 0x6000) == 1  # same page table
    assert reads_of(bench, 0x20_0000) == 2  # same directory
    assert reads_of(bench, 0x4000_0000) == 3
    assert reads_of(bench, 0x80_0000_0000) == 4
    assert reads_of(bench, 0x7000) == 1


def test_caching_paging_structures_keep_the_permissions_above_them(bench: Bench) -> None:
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.map(0x6000, 0x20_1000)
    at = table.entry(0x5000, 4)
    bench.poke(at, bench.peek(at) & ~W)
    bench.enable()
    bench.translate(0x5000)
    assert bench.fault(0x6000, WRITE) == 5
    assert bench.translate(0x6000).permissions is Access.READ


def test_caching_paging_structures_are_shared_by_a_domain(bench: Bench) -> None:
    table = bench.attach(DEVICE)
    table.map(0x5000, 0x20_0000)
    bench.attach(OTHER, table=table)
    bench.enable()
    bench.translate(0x5000)
    assert reads_of(bench, 0x5000, OTHER) == 3  # root, context, leaf


def test_caching_paging_structures_are_not_shared_across_domains(bench: Bench) -> None:
    bench.attach(DEVICE, domain=1).map(0x5000, 0x20_0000)
    bench.attach(OTHER, domain=2).map(0x5000, 0x21_0000)
    bench.enable()
    bench.translate(0x5000)
    assert bench.reads(0x5000, OTHER) == 0x21_0000
    bench.translate(0x6000)
    assert bench.fault(0x6000, requester=OTHER) == 6


def test_caching_fetch_error_below_a_cached_structure_is_not_at_the_root(bench: Bench) -> None:
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.set(0x20_0000, 2, 1 << 32 | RW)
    bench.enable()
    bench.translate(0x5000)
    assert bench.fault(0x20_0000) == 0x07


# ---- lookup by requester, by domain (9.2) ---------------------------------------------------


def test_caching_iotlb_by_requester_is_private(bench: Bench) -> None:
    table = bench.attach(DEVICE)
    table.map(0x5000, 0x20_0000)
    bench.attach(OTHER, table=table)
    bench.enable()
    bench.translate(0x5000)
    bench.translate(0x5000, requester=OTHER)
    rows = {(e.requester, e.domain) for e in bench.unit.entries(CacheId.IOTLB)}
    assert rows == {(DEVICE, 1), (OTHER, 1)}


def test_caching_iotlb_by_domain_is_shared() -> None:
    bench = Bench(lookup=BY_DOMAIN)
    table = bench.attach(DEVICE)
    table.map(0x5000, 0x20_0000)
    bench.attach(OTHER, table=table)
    bench.enable()
    bench.translate(0x5000)
    assert reads_of(bench, 0x5000, OTHER) == 2  # root and context
    (row,) = bench.unit.entries(CacheId.IOTLB)
    assert (row.requester, row.domain) == (0, 1)


@pytest.mark.parametrize(("lookup", "stale"), [(REQUESTER, True), (BY_DOMAIN, False)])
def test_caching_changed_context_hides_behind_an_iotlb_hit(
    lookup: IotlbLookup, stale: bool
) -> None:
    bench = Bench(lookup=lookup)
    bench.attach(domain=1).map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    bench.attach(domain=2).map(0x5000, 0x30_0000)
    ByRegister(bench).context(SELECTIVE, 1, DEVICE)
    assert bench.reads(0x5000) == (0x20_0000 if stale else 0x30_0000)


def test_caching_changed_root_hides_behind_a_context_entry(bench: Bench) -> None:
    """Root entries are not cached, apart from what context entries hold (9.1)."""
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.map(0x6000, 0x20_1000)
    bench.enable()
    bench.translate(0x5000)
    bench.poke(bench.root_entry(0), 0)
    assert bench.reads(0x6000) == 0x20_1000
    assert bench.fault(0x5000, requester=OTHER) == 0x01
    ByRegister(bench).context(GLOBAL)
    assert bench.fault(0x7000) == 0x01


@pytest.mark.parametrize("lookup", [REQUESTER, BY_DOMAIN])
def test_caching_domain_of_a_hit_is_that_of_the_fill(lookup: IotlbLookup) -> None:
    bench = Bench(lookup=lookup)
    bench.attach(domain=0xABCD).map(0x5000, 0x20_0000)
    bench.enable()
    assert [bench.translate(0x5000).domain for _ in range(2)] == [0xABCD] * 2


# ---- entries() ------------------------------------------------------------------------------


def test_caching_entries_describe_the_iotlb(bench: Bench) -> None:
    bench.attach(domain=7).map(0x4020_0000, 0x8000_0000, R | SNP, level=2)
    bench.enable()
    bench.translate(0x4021_2345)
    (row,) = bench.unit.entries(CacheId.IOTLB)
    assert (row.cache, row.address, row.page_shift) == (CacheId.IOTLB, 0x4020_0000, 21)
    assert (row.output, row.permissions) == (0x8000_0000, Access.READ)
    assert (row.requester, row.domain, row.pasid) == (DEVICE, 7, 0)
    assert (row.attributes, row.negative) == (1, False)


def test_caching_entries_describe_the_context_cache(bench: Bench) -> None:
    bench.attach(0xABCD, domain=7).map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000, requester=0xABCD)
    (row,) = bench.unit.entries(CacheId.CONTEXT)
    assert (row.requester, row.domain, row.address) == (0xABCD, 7, 0)
    assert row.output == bench.peek(bench.context_entry(0xABCD))
    assert not row.negative


def test_caching_entries_describe_paging_structures(bench: Bench) -> None:
    table = bench.attach(levels=3, domain=7)
    table.map(0x4020_5000, 0x20_0000)
    at = table.entry(0x4020_5000, 3)
    bench.poke(at, bench.peek(at) & ~W)
    bench.enable()
    bench.translate(0x4020_5000)
    rows = sorted(bench.unit.entries(CacheId.PAGING), key=lambda row: row.page_shift)
    tables = [table.entry(0x4020_5000, level) & ~0xFFF for level in (1, 2)]
    assert [(r.address, r.page_shift, r.output) for r in rows] == [
        (0x4020_0000, 21, tables[0]),
        (0x4000_0000, 30, tables[1]),
    ]
    assert {(r.domain, r.permissions) for r in rows} == {(7, Access.READ)}


def test_caching_entries_tell_the_order_of_filling(bench: Bench) -> None:
    table = bench.attach()
    pages = [0x7000, 0x5000, 0x6000]
    for page in pages:
        table.map(page, page)
    bench.enable()
    for page in pages:
        bench.translate(page)
    rows = sorted(bench.unit.entries(CacheId.IOTLB), key=lambda row: row.filled)
    assert [row.address for row in rows] == pages


def test_caching_entries_of_no_cache_are_none(bench: Bench) -> None:
    assert bench.unit.entries(4) == []


# ---- caching mode (9.5) ---------------------------------------------------------------------


def faulting_paths() -> list[tuple[str, int]]:
    return [("root", 0x01), ("context", 0x02), ("reserved", 0x0B), ("page", 0x06), ("bits", 0x0C)]


def spoil(bench: Bench, where: str) -> None:
    """Make 5000h fault for DEVICE, then tell how to repair it."""
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    if where == "root":
        bench.poke(bench.root_entry(0), 0)
    elif where == "context":
        bench.poke(bench.context_entry(), 0)
    elif where == "reserved":
        bench.poke(bench.context_entry(), bench.peek(bench.context_entry()) | 1 << 4)
    else:
        table.set(0x5000, 1, 0 if where == "page" else 0x20_0000 | RW | 1 << 62)


def repair(bench: Bench, table: int) -> None:
    bench.set_context(DEVICE, table | 1, 1 << 8 | 2)
    at = table
    for _ in range(3):
        at = bench.peek(at) & ~0xFFF
    bench.poke(at + 8 * 5, 0x20_0000 | RW)


@pytest.mark.parametrize("lookup", [REQUESTER, BY_DOMAIN])
@pytest.mark.parametrize("cm", [False, True])
@pytest.mark.parametrize(("where", "code"), faulting_paths())
def test_caching_mode_decides_whether_faults_are_cached(
    where: str, code: int, cm: bool, lookup: IotlbLookup
) -> None:
    bench = Bench(caching_mode=cm, lookup=lookup)
    spoil(bench, where)
    bench.enable()
    assert bench.fault(0x5000) == code
    repair(bench, TABLES)
    negative = [e for c in CacheId for e in bench.unit.entries(c) if e.negative]
    if not cm or where == "root":  # root entries are never cached
        assert negative == []
        assert bench.reads(0x5000) == 0x20_0000
        return
    (row,) = negative
    assert row.cache is (CacheId.IOTLB if where in ("page", "bits") else CacheId.CONTEXT)
    assert bench.fault(0x5000) == code  # until it is invalidated
    way = ByRegister(bench)
    if where in ("page", "bits"):
        assert row.domain == 1
        way.iotlb(SELECTIVE, 1, 0x5000)
    else:
        tag = 1 if where == "reserved" else 0  # one that is not present has domain 0 (9.5)
        assert row.domain == tag
        way.context(SELECTIVE, tag, DEVICE)
    assert bench.reads(0x5000) == 0x20_0000


@pytest.mark.parametrize(("where", "tag"), [("context", 0), ("reserved", 1)])
def test_caching_mode_bad_context_is_matched_by_one_domain(where: str, tag: int) -> None:
    """9.5: domain 0 where it is not present; 9.2: its own where it is."""
    bench = Bench(caching_mode=True)
    spoil(bench, where)
    bench.enable()
    code = bench.fault(0x5000)
    repair(bench, TABLES)
    ByRegister(bench).context(DOMAIN, 1 - tag)
    assert bench.fault(0x5000) == code
    ByRegister(bench).context(DOMAIN, tag)
    assert bench.fault(0x5000) == 0


def test_caching_mode_obligations_after_a_faulty_context_entry_are_enough() -> None:
    """9.4: context device-selective and IOTLB by domain, both with the entry's own domain."""
    bench = Bench(caching_mode=True)
    bench.attach(domain=4).map(0x5000, 0x20_0000)
    low, high = bench.peek(bench.context_entry()), bench.peek(bench.context_entry() + 8)
    bench.poke(bench.context_entry() + 8, high | 7)  # AW that there is not
    bench.enable()
    assert bench.fault(0x5000) == 0x03
    bench.poke(bench.context_entry(), low, high)
    ByRegister(bench).context(SELECTIVE, 4, DEVICE)
    ByRegister(bench).iotlb(DOMAIN, 4)
    assert bench.reads(0x5000) == 0x20_0000


def test_caching_mode_not_present_page_faults_by_the_access_in_hand() -> None:
    bench = Bench(caching_mode=True)
    bench.attach()
    bench.enable()
    assert bench.fault(0x5000, READ) == 6
    reads = bench.counter("iommu_mrds")
    assert bench.fault(0x5000, WRITE) == 5
    assert bench.fault(0x5000, READ) == 6
    assert bench.counter("iommu_mrds") == reads


def test_caching_mode_covers_one_page() -> None:
    bench = Bench(caching_mode=True)
    table = bench.attach()
    bench.enable()
    assert bench.fault(0x5000) == 6
    table.map(0x6000, 0x20_0000)
    assert bench.reads(0x6000) == 0x20_0000


@pytest.mark.parametrize("fpd", [False, True])
def test_caching_mode_keeps_fpd(fpd: bool) -> None:
    bench = Bench(caching_mode=True)
    bench.attach(fpd=fpd)
    bench.attach(OTHER, fpd=fpd)
    bench.poke(bench.context_entry(OTHER), fpd << 1)
    bench.enable()
    for requester in (DEVICE, OTHER):
        for _ in range(2):
            assert bench.translate(0x5000, requester=requester).recorded is not fpd


@pytest.mark.parametrize("cm", [False, True])
def test_caching_mode_counts_a_path_without_permissions_as_not_present(cm: bool) -> None:
    bench = Bench(caching_mode=cm)
    table = bench.attach()
    table.map(0x5000, 0x20_0000, W)
    at = table.entry(0x5000, 4)
    bench.poke(at, bench.peek(at) & ~W)
    bench.enable()
    assert bench.fault(0x5000) == 6
    assert len(bench.unit.entries(CacheId.IOTLB)) == cm


def test_caching_mode_present_entries_are_cached_either_way() -> None:
    bench = Bench(caching_mode=True)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    assert reads_of(bench, 0x5000) == 0


# ---- fragments of large pages (9.6) ---------------------------------------------------------


def test_caching_large_page_at_the_interrupt_range_is_cached_in_fragments(bench: Bench) -> None:
    bench.attach().map(0x4000_0000, 0xC000_0000, level=3)
    bench.enable()
    bench.translate(0x4000_5000)
    bench.translate(0x4020_6000)
    rows = {(e.address, e.page_shift, e.output) for e in bench.unit.entries(CacheId.IOTLB)}
    assert rows == {(0x4000_5000, 12, 0xC000_5000), (0x4020_6000, 12, 0xC020_6000)}
    ByRegister(bench).iotlb(SELECTIVE, 1, 0x4000_0000, am=18)
    assert bench.unit.entries(CacheId.IOTLB) == []


@pytest.mark.parametrize("output", [0xFEC0_0000, 0xFF00_0000])
def test_caching_large_page_beside_the_interrupt_range_is_whole(bench: Bench, output: int) -> None:
    bench.attach().map(0x4000_0000, output, level=2)
    bench.enable()
    bench.translate(0x4000_5000)
    (row,) = bench.unit.entries(CacheId.IOTLB)
    assert (row.page_shift, row.output) == (21, output)


# ---- requests that bring no translation -----------------------------------------------------


@pytest.mark.parametrize("lookup", [REQUESTER, BY_DOMAIN])
def test_caching_translation_request_fills_and_hits(lookup: IotlbLookup) -> None:
    bench = Bench(device_tlb=True, lookup=lookup)
    bench.attach(tt=1).map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000, at=AddressType.TRANSLATION_REQUEST)
    assert reads_of(bench, 0x5000) == 0
    assert reads_of(bench, 0x5000, at=AddressType.TRANSLATION_REQUEST) == 0
    assert bench.translate(0x5000, at=AddressType.TRANSLATION_REQUEST).address == 0x20_0000


def test_caching_translated_request_fills_the_context_cache_alone() -> None:
    bench = Bench(device_tlb=True)
    bench.attach(tt=1)
    bench.enable()
    bench.translate(0x5000, at=AddressType.TRANSLATED)
    counts = [len(bench.unit.entries(c)) for c in (CacheId.CONTEXT, CacheId.IOTLB, CacheId.PAGING)]
    assert counts == [1, 0, 0]


def test_caching_pass_through_is_cached_by_page(bench: Bench) -> None:
    bench.attach(tt=2, levels=5, domain=3)
    bench.enable()
    bench.translate(0x1234_5678)
    (row,) = bench.unit.entries(CacheId.IOTLB)
    assert (row.address, row.output, row.page_shift) == (0x1234_5000, 0x1234_5000, 12)
    assert (row.domain, row.permissions) == (3, Access.READ | Access.WRITE)
    assert reads_of(bench, 0x1234_5000) == 0


@pytest.mark.parametrize("lookup", [REQUESTER, BY_DOMAIN])
def test_caching_zero_length_read_may_hit(lookup: IotlbLookup) -> None:
    bench = Bench(lookup=lookup)
    bench.attach().map(0x5000, 0x20_0000, W)
    bench.enable()
    bench.translate(0x5000, WRITE)
    assert reads_of(bench, 0x5000, length=0, flags=RequestFlag.ZERO_LENGTH) == 0


# ---- geometry and replacement ---------------------------------------------------------------


def touch(bench: Bench, *pages: int) -> None:
    for page in pages:
        assert bench.reads(page << 12) == page << 12


def resident(bench: Bench) -> set[int]:
    return {e.address >> 12 for e in bench.unit.entries(CacheId.IOTLB)}


def with_iotlb(shape: CacheGeometry, pages: int = 64) -> Bench:
    bench = Bench(shape=geometry(iotlb=shape))
    table = bench.attach()
    for page in range(pages):
        table.map(page << 12, page << 12)
    bench.enable()
    return bench


def test_caching_set_is_chosen_by_the_low_page_bits() -> None:
    bench = with_iotlb(CacheGeometry(4, 1))
    touch(bench, 0, 1, 2, 3)
    assert resident(bench) == {0, 1, 2, 3}
    touch(bench, 4)
    assert resident(bench) == {4, 1, 2, 3}
    assert bench.counter("iotlb_eviction") == 1


def test_caching_least_recently_used_goes_first() -> None:
    bench = with_iotlb(CacheGeometry(1, 4, Replacement.LRU))
    touch(bench, 0, 1, 2, 3, 0, 2)
    touch(bench, 4)
    assert resident(bench) == {0, 2, 3, 4}
    touch(bench, 5)
    assert resident(bench) == {0, 2, 4, 5}


def test_caching_first_in_goes_first() -> None:
    bench = with_iotlb(CacheGeometry(1, 4, Replacement.FIFO))
    touch(bench, 0, 1, 2, 3, 0, 0)
    touch(bench, 4)
    assert resident(bench) == {1, 2, 3, 4}
    touch(bench, 5)
    assert resident(bench) == {2, 3, 4, 5}


def random_run(seed: int) -> list[set[int]]:
    bench = with_iotlb(CacheGeometry(1, 4, Replacement.RANDOM, seed))
    seen = []
    for page in range(32):
        touch(bench, page)
        seen.append(resident(bench))
    return seen


def test_caching_random_replacement_is_repeatable() -> None:
    assert random_run(1) == random_run(1)
    assert random_run(1) != random_run(2)


def test_caching_random_replacement_evicts_any_line() -> None:
    bench = with_iotlb(CacheGeometry(1, 4, Replacement.RANDOM, 7))
    victims = set()
    order: list[int] = []
    for page in range(64):
        touch(bench, page)
        now = resident(bench)
        gone = [p for p in order if p not in now]
        victims |= {order.index(p) for p in gone}
        order = [p for p in order if p in now] + [page]
    assert victims == {0, 1, 2, 3}  # by age: not always the oldest


def test_caching_invalidated_lines_are_reused_before_live_ones() -> None:
    bench = with_iotlb(CacheGeometry(1, 4))
    touch(bench, 0, 1, 2, 3)
    ByRegister(bench).iotlb(SELECTIVE, 1, 2 << 12)
    touch(bench, 4)
    assert resident(bench) == {0, 1, 3, 4}
    assert bench.counter("iotlb_eviction") == 0


def test_caching_lines_dead_by_domain_are_reused_before_live_ones() -> None:
    bench = Bench(shape=geometry(iotlb=CacheGeometry(1, 2)))
    for requester, domain in ((0x10, 1), (0x18, 2)):
        table = bench.attach(requester, domain=domain)
        for page in range(4):
            table.map(page << 12, page << 12)
    bench.enable()
    bench.translate(0, requester=0x10)
    bench.translate(0, requester=0x18)
    bench.translate(0, requester=0x10)
    ByRegister(bench).iotlb(DOMAIN, 1)
    bench.translate(0x1000, requester=0x18)
    assert {e.domain for e in bench.unit.entries(CacheId.IOTLB)} == {2}
    assert len(bench.unit.entries(CacheId.IOTLB)) == 2
    assert bench.counter("iotlb_eviction") == 0


def test_caching_same_page_of_two_sizes_finds_the_smaller_first(bench: Bench) -> None:
    """Hardware may use either; the answer must not depend on what came last (9.6)."""
    table = bench.attach()
    table.map(0x4000_0000, 0x8000_0000, level=2)
    bench.enable()
    bench.translate(0x4000_0000)
    assert reads_of(bench, 0x401F_F000) == 0
    assert bench.translate(0x401F_F000).page_shift == 21


def test_caching_tiny_caches_change_no_answer() -> None:
    one = CacheGeometry(1, 1)
    bench = Bench(shape=geometry(iotlb=one, context=one, paging=one, interrupt=one))
    for requester, domain in ((0x10, 1), (0x18, 2)):
        table = bench.attach(requester, domain=domain)
        table.map(0x5000, domain << 24)
        table.map(0x1_0000_0000, 0x4000_0000 * domain, level=3)
        table.map(0x8000_0000, 0x8000_0000, level=2)
    bench.enable()
    for _ in range(3):
        for requester, domain in ((0x10, 1), (0x18, 2)):
            assert bench.reads(0x5000, requester) == domain << 24
            assert bench.reads(0x1_0000_1000, requester) == 0x4000_0000 * domain + 0x1000
            assert bench.reads(0x8000_1000, requester) == 0x8000_1000


def test_caching_page_sizes_that_are_gone_are_not_probed_wrongly(bench: Bench) -> None:
    """Fill, drop and fill again with another size at the same address."""
    table = bench.attach()
    table.map(0x4000_0000, 0x8000_0000, level=2)
    bench.enable()
    for _ in range(3):
        bench.poke(table.entry(0x4000_0000, 2), 0x8000_0000 | RW | PS)
        ByRegister(bench).iotlb(SELECTIVE, 1, 0x4000_0000, am=9)
        assert bench.translate(0x4000_3000).page_shift == 21
        bench.poke(table.entry(0x4000_0000, 2), 0)
        table.map(0x4000_3000, 0x20_0000)
        ByRegister(bench).iotlb(SELECTIVE, 1, 0x4000_0000, am=9)
        assert bench.translate(0x4000_3000).page_shift == 12


# ---- statistics -----------------------------------------------------------------------------


@pytest.mark.parametrize("lookup", [REQUESTER, BY_DOMAIN])
def test_caching_counters_count_lookups_and_hits(lookup: IotlbLookup) -> None:
    bench = Bench(lookup=lookup)
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.map(0x6000, 0x20_1000)
    bench.enable()
    for address in (0x5000, 0x5000, 0x5000, 0x6000, 0x7000):
        bench.translate(address)
    counters = bench.unit.counters()
    assert (counters["iotlb_lookup"], counters["iotlb_hit"]) == (5, 2)
    contexts = (3, 2) if lookup is REQUESTER else (5, 4)
    assert (counters["ctxt_cache_lookup"], counters["ctxt_cache_hit"]) == contexts
    assert (counters["ss_nonleaf_lookup"], counters["ss_nonleaf_hit"]) == (3, 2)
    assert counters["iommu_mrds"] == 2 + 4 + 1 + 1
    assert counters["iotlb_eviction"] == 0


def test_caching_counters_count_evictions() -> None:
    bench = with_iotlb(CacheGeometry(1, 4))
    touch(bench, *range(10))
    assert bench.counter("iotlb_eviction") == 6


def test_caching_counters_have_the_names_of_performance_events(bench: Bench) -> None:
    assert set(bench.unit.counters()) >= {
        "iotlb_lookup", "iotlb_hit", "ctxt_cache_lookup", "ctxt_cache_hit", "ss_nonleaf_lookup",
        "ss_nonleaf_hit", "int_cache_lookup", "int_cache_hit_nonposted", "iommu_mrds",
    }  # fmt: skip
