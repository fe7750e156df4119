"""What caches keep, entry by entry, and what they must not keep (AMD-Vi 13)."""

import pytest
from amdvi_bench import REQUESTER, Bench

from iommu_emu.amdvi.structures import InvalidateDevtabEntry, InvalidateIommuPages
from iommu_emu.core import Access, IotlbLookup

IOVA = 0x12_3456_7000
PAGE = 0x8_0000
OTHER = 0x9_0000
LOOKUPS = [IotlbLookup.BY_REQUESTER, IotlbLookup.BY_DOMAIN]


def make(**config):
    """Return a bench on which IOVA is mapped to PAGE."""
    bench = Bench(**config)
    bench.device_entry()
    bench.walk_to(IOVA, bench.pte(PAGE))
    return bench


def reach(bench, access=Access.READ, requester=REQUESTER):
    """Return the address that an access to IOVA reaches, or None."""
    result = bench.translate(bench.request(IOVA, access, requester=requester))
    return result.address if result.ok else None


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("entry", [0, 1 | 1 << 52 | 1 << 9], ids=["not-present", "reserved"])
def test_faulting_entry_is_never_cached_without_np_cache(level, entry, lookup):
    bench = make(iotlb_lookup=lookup)
    bench.write(bench.entry(level, IOVA), entry)
    assert reach(bench) is None
    bench.walk_to(IOVA, bench.pte(PAGE))
    assert reach(bench) == PAGE


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_not_present_entry_is_cached_with_np_cache(level):
    bench = make(np_cache=True)
    bench.write(bench.entry(level, IOVA), 0)
    assert reach(bench) is None
    bench.walk_to(IOVA, bench.pte(PAGE))
    assert reach(bench) is None
    bench.command(InvalidateIommuPages.build(domain_id=5, pde=1, address=IOVA))
    assert reach(bench) == PAGE


def test_changed_device_entry_hides_behind_the_iotlb_by_requester():
    bench = make()
    assert reach(bench) == PAGE
    bench.device_entry(ir=0, iw=0)
    bench.command(InvalidateDevtabEntry.build(device_id=REQUESTER))
    assert reach(bench) == PAGE


def test_changed_device_entry_does_not_hide_behind_the_iotlb_by_domain():
    bench = make(iotlb_lookup=IotlbLookup.BY_DOMAIN)
    assert reach(bench) == PAGE
    bench.device_entry(ir=0, iw=0)
    assert reach(bench) == PAGE
    bench.command(InvalidateDevtabEntry.build(device_id=REQUESTER))
    assert reach(bench) is None


@pytest.mark.parametrize(
    ("lookup", "expected"),
    [(IotlbLookup.BY_REQUESTER, OTHER), (IotlbLookup.BY_DOMAIN, PAGE)],
)
def test_iotlb_by_domain_alone_is_shared_between_devices(lookup, expected):
    bench = make(iotlb_lookup=lookup)
    bench.device_entry(REQUESTER + 1)
    assert reach(bench) == PAGE
    bench.walk_to(IOVA, bench.pte(OTHER))
    assert reach(bench, requester=REQUESTER + 1) == expected


def test_permissions_of_a_device_do_not_reach_another_one_of_its_domain():
    bench = make()
    bench.device_entry(REQUESTER + 1, iw=0)
    assert reach(bench, requester=REQUESTER + 1) == PAGE
    assert reach(bench, Access.WRITE) == PAGE


@pytest.mark.parametrize("level", [2, 3, 4])
def test_tables_above_a_missing_page_are_cached(level):
    bench = make()
    bench.write(bench.entry(1, IOVA), 0)
    assert reach(bench) is None
    bench.write(bench.entry(level, IOVA), 0)
    bench.write(bench.entry(1, IOVA), bench.pte(PAGE))
    assert reach(bench) == PAGE


def test_switching_the_unit_off_and_on_keeps_the_caches():
    bench = make()
    assert reach(bench) == PAGE
    bench.walk_to(IOVA, bench.pte(OTHER))
    bench.enable(False)
    bench.enable()
    assert reach(bench) == PAGE


def test_device_entry_that_forwards_is_cached():
    bench = make()
    bench.device_entry(v=0, tv=0)
    assert reach(bench) == IOVA
    bench.device_entry()
    assert reach(bench) == IOVA
