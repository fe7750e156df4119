"""What every command drops, and what it leaves: exactly (AMD-Vi 9.2)."""

from __future__ import annotations

import pytest
from amdvi_bench import Bench

from iommu_emu.amdvi.structures import (
    CompletionWait,
    InvalidateDevtabEntry,
    InvalidateIommuAll,
    InvalidateIommuPages,
)
from iommu_emu.driver import ALL_PAGES

REQUESTERS = {0x0310: 5, 0x0311: 6}
PAGES = [0x1000, 0x2000, 0x1_0000, 0x20_0000, 0x4000_0000]
TABLES = {5: 0x2_0000, 6: 0x3_0000}


@pytest.fixture
def bench():
    """A bench whose caches hold two devices and, of each, every page."""
    bench = Bench(geometry="fully-associative-64")
    for requester, domain in REQUESTERS.items():
        bench.device_entry(requester, root=TABLES[domain], domain_id=domain)
    for base in TABLES.values():
        bench.write(base, bench.pde(base + 0x1000, 3))
        bench.write(base + 0x1000, bench.pde(base + 0x2000, 2))
        bench.write(base + 0x1000 + 8, bench.pte(0x4000_0000))
        bench.write(base + 0x2000, bench.pde(base + 0x3000, 1))
        bench.write(base + 0x2000 + 8, bench.pte(0x20_0000))
        for page in (1, 2):
            bench.write(base + 0x3000 + 8 * page, bench.pte(page << 12))
        for copy in range(16, 32):  # one page of 64 KiB
            bench.write(base + 0x3000 + 8 * copy, bench.pte(0x1_7000, next_level=7))
    for requester in REQUESTERS:
        for page in PAGES:
            assert bench.unit.translate(requester, page).ok
    return bench


def contexts(bench):
    return {entry.requester for entry in bench.unit.entries("context")}


def pages(bench, requester):
    return {e.address for e in bench.unit.entries("iotlb") if e.requester == requester}


def tables(bench, domain):
    """Return log2 of what the cached tables of a domain cover."""
    return {e.page_shift for e in bench.unit.entries("paging") if e.domain == domain}


def test_caches_are_filled_as_the_tests_below_expect(bench):
    assert contexts(bench) == set(REQUESTERS)
    assert pages(bench, 0x0310) == pages(bench, 0x0311) == set(PAGES)
    assert tables(bench, 5) == tables(bench, 6) == {21, 30, 39}


def test_devtab_entry_invalidation_drops_one_device_alone(bench):
    bench.command(InvalidateDevtabEntry.build(device_id=0x0310))
    assert contexts(bench) == {0x0311}
    assert pages(bench, 0x0310) == set(PAGES)
    assert tables(bench, 5) == {21, 30, 39}


@pytest.mark.parametrize(
    ("values", "dropped", "dropped_tables"),
    [
        ({"address": 0x1000}, {0x1000}, set()),
        ({"address": 0x1000, "pde": 1}, {0x1000}, {21, 30, 39}),
        ({"address": 0x2000, "s": 1}, {0x2000}, set()),
        ({"address": 0x1000, "s": 1}, {0x1000, 0x2000}, set()),
        ({"address": 0x1_3000}, {0x1_0000}, set()),
        ({"address": 0xF_F000, "s": 1}, {0x1000, 0x2000, 0x1_0000}, set()),
        ({"address": 0x20_5000, "pde": 1}, {0x20_0000}, {30, 39}),
        ({"address": 0x5000_5000, "pde": 1}, {0x4000_0000}, {39}),
        ({"address": 0x1FFF_F000, "s": 1}, {0x1000, 0x2000, 0x1_0000, 0x20_0000}, set()),
        ({"address": 1 << 39, "pde": 1}, set(), set()),
        ({"address": ALL_PAGES, "s": 1, "pde": 1}, set(PAGES), {21, 30, 39}),
        ({"address": ALL_PAGES, "s": 1}, set(PAGES), set()),
        ({"address": 0, "domain_id": 7, "pde": 1}, set(), set()),
    ],
)
def test_page_invalidation_drops_what_it_names_and_nothing_else(
    bench, values, dropped, dropped_tables
):
    bench.command(InvalidateIommuPages.build(**({"domain_id": 5} | values)))
    assert pages(bench, 0x0310) == set(PAGES) - dropped
    assert tables(bench, 5) == {21, 30, 39} - dropped_tables
    assert (pages(bench, 0x0311), tables(bench, 6)) == (set(PAGES), {21, 30, 39})
    assert contexts(bench) == set(REQUESTERS)


def test_invalidate_all_drops_everything(bench):
    bench.command(InvalidateIommuAll.build())
    assert [bench.unit.entries(cache) for cache in ("context", "iotlb", "paging")] == [[], [], []]


def test_completion_wait_drops_nothing(bench):
    bench.command(CompletionWait.build(s=1, store_address=0x8000, store_data=1))
    assert contexts(bench) == set(REQUESTERS)
    assert pages(bench, 0x0310) == set(PAGES)
