"""What every invalidation drops, and what it leaves: exactly (VT-d 7.4)."""

from __future__ import annotations

import pytest
from vtd_bench import CONTEXT, ROOT, Bench

from iommu_emu.vtd.structures import (
    ContextEntry,
    ContextInvalidation,
    IotlbInvalidation,
    RootEntry,
)

QUEUE = 0x7000
REQUESTERS = {0x0310: 5, 0x0314: 5, 0x0317: 5, 0x0311: 6, 0x0318: 5}
PAGES = [0x1000, 0x2000, 0x8000, 0x20_0000, 0x4000_0000]
# Page tables of both domains: level 1 below 2 MiB, a 2 MiB page, a 1 GiB page.
TABLES = {5: 0x2_0000, 6: 0x3_0000}


@pytest.fixture(params=["queue", "register"])
def invalidate(request):
    """Carries out a descriptor on a bench, by queue or by registers."""

    def by_queue(bench, descriptor):
        bench.unit.write("IQA", QUEUE)
        bench.unit.write("GCMD", bench.unit.read("GSTS") & 0x96FF_FFFF | 1 << 26)
        bench.write(QUEUE, descriptor)
        bench.unit.write("IQT", 16)
        assert bench.unit.read("IQH") == 16

    def by_register(bench, descriptor):
        if descriptor[0] & 0xF == 1:
            d = ContextInvalidation.parse(descriptor)
            bench.unit.write("CCMD", 1 << 63 | d.g << 61 | d.fm << 32 | d.sid << 16 | d.did)
            assert bench.unit.field("CCMD", "CAIG") == d.g
        else:
            d = IotlbInvalidation.parse(descriptor)
            bench.unit.write("IVA", d.addr | d.ih << 6 | d.am)
            bench.unit.write("IOTLB", 1 << 63 | d.g << 60 | d.did << 32)
            assert bench.unit.field("IOTLB", "IAIG") == d.g

    return by_queue if request.param == "queue" else by_register


@pytest.fixture
def bench():
    """A bench whose caches hold every requester and, of one requester a domain, every page."""
    bench = Bench(geometry="fully-associative-64")
    bench.write(ROOT + 16 * 3, RootEntry.build(p=1, ctp=CONTEXT))
    for requester, domain in REQUESTERS.items():
        entry = ContextEntry.build(p=1, aw=2, did=domain, ssptptr=TABLES[domain])
        bench.write(CONTEXT + 16 * (requester & 0xFF), entry)
    for base in TABLES.values():
        bench.write(base, base + 0x1000 | 3)
        bench.write(base + 0x1000, base + 0x2000 | 3)
        bench.write(base + 0x1000 + 8, 0x4000_0083)
        bench.write(base + 0x2000, base + 0x3000 | 3)
        bench.write(base + 0x2000 + 8, 0x20_0083)
        for page in (1, 2, 8):
            bench.write(base + 0x3000 + 8 * page, page << 12 | 3)
    for requester in REQUESTERS:
        for page in PAGES if requester in (0x0310, 0x0311) else PAGES[:1]:
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


@pytest.mark.parametrize(
    ("descriptor", "dropped"),
    [
        (ContextInvalidation.build(g=1), set(REQUESTERS)),
        (ContextInvalidation.build(g=2, did=5), {0x0310, 0x0314, 0x0317, 0x0318}),
        (ContextInvalidation.build(g=2, did=6), {0x0311}),
        (ContextInvalidation.build(g=2, did=7), set()),
        (ContextInvalidation.build(g=3, did=5, sid=0x0310), {0x0310}),
        (ContextInvalidation.build(g=3, did=6, sid=0x0310), set()),
        (ContextInvalidation.build(g=3, did=5, sid=0x0310, fm=1), {0x0310, 0x0314}),
        (ContextInvalidation.build(g=3, did=5, sid=0x0314, fm=1), {0x0310, 0x0314}),
        (ContextInvalidation.build(g=3, did=5, sid=0x0310, fm=2), {0x0310, 0x0314}),
        (ContextInvalidation.build(g=3, did=5, sid=0x0311, fm=2), {0x0317}),
        (ContextInvalidation.build(g=3, did=5, sid=0x0310, fm=3), {0x0310, 0x0314, 0x0317}),
        (ContextInvalidation.build(g=3, did=6, sid=0x0317, fm=3), {0x0311}),
        (ContextInvalidation.build(g=3, did=5, sid=0x0410, fm=3), set()),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else "",
)
def test_context_invalidation_drops_what_it_names_and_nothing_else(
    bench, invalidate, descriptor, dropped
):
    invalidate(bench, descriptor)
    assert contexts(bench) == set(REQUESTERS) - dropped
    assert pages(bench, 0x0310) == set(PAGES)
    assert tables(bench, 5) == {21, 30, 39}


@pytest.mark.parametrize(
    ("descriptor", "dropped", "dropped_tables"),
    [
        (IotlbInvalidation.build(g=2, did=5), set(PAGES), {21, 30, 39}),
        (IotlbInvalidation.build(g=3, did=5, addr=0x1000), {0x1000}, {21, 30, 39}),
        (IotlbInvalidation.build(g=3, did=5, addr=0x1000, ih=1), {0x1000}, set()),
        (IotlbInvalidation.build(g=3, did=5, addr=0x3000, am=1), {0x2000}, {21, 30, 39}),
        (IotlbInvalidation.build(g=3, did=5, addr=0x7000, am=3), {0x1000, 0x2000}, {21, 30, 39}),
        (
            IotlbInvalidation.build(g=3, did=5, addr=0x5000, am=9),
            {0x1000, 0x2000, 0x8000},
            {21, 30, 39},
        ),
        (
            IotlbInvalidation.build(g=3, did=5, addr=0, am=18),
            {0x1000, 0x2000, 0x8000, 0x20_0000},
            {21, 30, 39},
        ),
        (IotlbInvalidation.build(g=3, did=5, addr=0x20_5000), {0x20_0000}, {30, 39}),
        (IotlbInvalidation.build(g=3, did=5, addr=0x5000_5000), {0x4000_0000}, {39}),
        (IotlbInvalidation.build(g=3, did=5, addr=0x8000_0000), set(), {39}),
        (IotlbInvalidation.build(g=3, did=5, addr=1 << 39), set(), set()),
        (IotlbInvalidation.build(g=3, did=5, addr=1 << 60 | 0x1000), {0x1000}, {21, 30, 39}),
        (IotlbInvalidation.build(g=3, did=7, addr=0, am=18), set(), set()),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else "",
)
def test_iotlb_invalidation_drops_what_it_names_and_nothing_else(
    bench, invalidate, descriptor, dropped, dropped_tables
):
    invalidate(bench, descriptor)
    assert pages(bench, 0x0310) == set(PAGES) - dropped
    assert tables(bench, 5) == {21, 30, 39} - dropped_tables
    assert pages(bench, 0x0314) == {0x1000} - dropped
    assert (pages(bench, 0x0311), tables(bench, 6)) == (set(PAGES), {21, 30, 39})
    assert contexts(bench) == set(REQUESTERS)


def test_iotlb_global_invalidation_drops_every_translation_and_no_context(bench, invalidate):
    invalidate(bench, IotlbInvalidation.build(g=1))
    assert bench.unit.entries("iotlb") == bench.unit.entries("paging") == []
    assert contexts(bench) == set(REQUESTERS)


@pytest.mark.parametrize("power_on", [False, True])
def test_reset_drops_everything(bench, power_on):
    bench.unit.reset(power_on=power_on)
    assert [bench.unit.entries(cache) for cache in ("context", "iotlb", "paging")] == [[], [], []]
