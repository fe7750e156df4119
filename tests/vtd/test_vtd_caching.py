"""What caches keep, entry by entry, and what they must not keep (VT-d 9.1, 9.2, 9.5, 2.4)."""

import pytest
from vtd_bench import CONTEXT, REQUESTER, ROOT, Bench

from iommu_emu.core import Access, IotlbLookup
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.structures import RootEntry

IOVA = 0x12_3456_7000
PAGE = 0x8_0000
OTHER = 0x9_0000
LOOKUPS = [IotlbLookup.BY_REQUESTER, IotlbLookup.BY_DOMAIN]


def make(caching_mode=False, **options):
    """Return a bench on which IOVA is mapped to PAGE."""
    config = {name: options.pop(name) for name in ("iotlb_lookup",) if name in options}
    bench = Bench(Capabilities(caching_mode=caching_mode, **options), **config)
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, PAGE | 3)
    return bench


def fault(bench, access=Access.READ, requester=REQUESTER):
    """Return the fault's name, or the address as text, of an access to IOVA."""
    result = bench.translate(bench.request(IOVA, access, requester=requester))
    return result.cause.name if result.cause else f"{result.address:#x}"


# Ways to break the path, and how the walk then ends.
BREAKS = {
    "root not present": (lambda bench: bench.root_entry(p=0), "LRT.2"),
    "root reserved": (lambda bench: bench.root_entry(reserved_11_1=1), "LRT.3"),
    "context not present": (lambda bench: bench.context_entry(p=0), "LCT.2"),
    "context reserved": (lambda bench: bench.context_entry(reserved_71=1), "LCT.3"),
    "context width": (lambda bench: bench.context_entry(aw=7), "LCT.4.1"),
    "context type": (lambda bench: bench.context_entry(tt=3), "LCT.4.2"),
    **{
        f"level {level} not present": (
            lambda bench, level=level: bench.write(bench.entry(level, IOVA), 0),
            "LGN.3",
        )
        for level in (1, 2, 3, 4)
    },
    **{
        f"level {level} reserved": (
            lambda bench, level=level: bench.write(bench.entry(level, IOVA), 1 << 62 | 3),
            "LSS.2",
        )
        for level in (1, 2, 3, 4)
    },
}


def mend(bench):
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, PAGE | 3)


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("broken", BREAKS)
def test_faulting_entry_is_never_cached_without_caching_mode(broken, lookup):
    bench = make(iotlb_lookup=lookup)
    break_it, name = BREAKS[broken]
    break_it(bench)
    assert fault(bench) == name
    mend(bench)
    assert fault(bench) == hex(PAGE)


@pytest.mark.parametrize(
    "broken", [name for name in BREAKS if name.startswith(("context", "level"))]
)
def test_faulting_entry_is_cached_in_caching_mode(broken):
    bench = make(caching_mode=True)
    break_it, name = BREAKS[broken]
    break_it(bench)
    assert fault(bench) == name
    mend(bench)
    assert fault(bench) == name


def test_faulting_context_of_caching_mode_has_domain_0():
    bench = make(caching_mode=True)
    bench.context_entry(p=0)
    fault(bench)
    assert [(e.domain, e.negative) for e in bench.unit.entries("context")] == [(0, True)]


@pytest.mark.parametrize("level", [2, 3, 4])
def test_tables_above_a_missing_page_are_cached(level):
    bench = make()
    bench.write(bench.entry(1, IOVA), 0)
    assert fault(bench) == "LGN.3"
    bench.write(bench.entry(level, IOVA), 0)
    bench.write(bench.entry(1, IOVA), PAGE | 3)
    assert fault(bench) == hex(PAGE)


def test_missing_permission_of_a_cached_page_is_a_fault_that_leaves_it_cached():
    bench = make()
    bench.write(bench.entry(1, IOVA), PAGE | 1)
    assert fault(bench) == hex(PAGE)
    assert fault(bench, Access.WRITE) == "LGN.2"
    bench.write(bench.entry(1, IOVA), OTHER | 1)
    assert fault(bench) == hex(PAGE)


def test_changed_context_hides_behind_the_iotlb_by_requester():
    bench = make()
    assert fault(bench) == hex(PAGE)
    bench.context_entry(p=0)
    bench.unit.write("CCMD", 1 << 63 | 1 << 61)
    assert fault(bench) == hex(PAGE)


def test_changed_context_does_not_hide_behind_the_iotlb_by_domain():
    bench = make(iotlb_lookup=IotlbLookup.BY_DOMAIN)
    assert fault(bench) == hex(PAGE)
    bench.context_entry(p=0)
    assert fault(bench) == hex(PAGE)
    bench.unit.write("CCMD", 1 << 63 | 1 << 61)
    assert fault(bench) == "LCT.2"


@pytest.mark.parametrize(
    ("lookup", "expected"),
    [(IotlbLookup.BY_REQUESTER, OTHER), (IotlbLookup.BY_DOMAIN, PAGE)],
)
def test_iotlb_by_domain_alone_is_shared_between_functions(lookup, expected):
    bench = make(iotlb_lookup=lookup)
    bench.context_entry(REQUESTER + 1)
    assert fault(bench) == hex(PAGE)
    bench.write(bench.entry(1, IOVA), OTHER | 3)
    assert fault(bench, requester=REQUESTER + 1) == hex(expected)


def test_root_entry_is_not_cached_for_another_device():
    bench = make()
    assert fault(bench) == hex(PAGE)
    bench.root_entry(p=0)
    assert fault(bench) == hex(PAGE)
    assert fault(bench, requester=REQUESTER + 1) == "LRT.2"


def test_write_only_permission_of_an_upper_level_is_cached_with_the_table():
    bench = make()
    bench.write(bench.entry(3, IOVA), bench.table(2) | 1)
    assert fault(bench) == hex(PAGE)
    bench.write(bench.entry(3, IOVA), bench.table(2) | 3)
    bench.unit.write("IVA", IOVA | 1 << 6)
    bench.unit.write("IOTLB", 1 << 63 | 3 << 60 | 5 << 32)
    assert fault(bench, Access.WRITE) == "LGN.2"


@pytest.mark.parametrize(("esrtps", "expected"), [(False, hex(PAGE)), (True, "LRT.2")])
def test_setting_the_root_pointer_invalidates_if_esrtps_says_so(esrtps, expected):
    bench = make(root_invalidates=esrtps)
    assert fault(bench) == hex(PAGE)
    bench.set_root(0x8000)
    assert fault(bench) == expected
    assert len(bench.unit.entries("iotlb")) == (0 if esrtps else 1)


def test_switching_translation_off_and_on_keeps_the_caches():
    bench = make()
    assert fault(bench) == hex(PAGE)
    bench.walk_to(IOVA, OTHER | 3)
    bench.enable(False)
    bench.enable()
    assert fault(bench) == hex(PAGE)


def test_context_cache_holds_root_and_context_of_their_time():
    bench = make()
    assert fault(bench) == hex(PAGE)
    bench.unit.write("IOTLB", 1 << 63 | 1 << 60)
    bench.write(ROOT + 16 * 3, RootEntry.build())
    bench.write(CONTEXT + 16 * 0x10, bytes(16))
    assert fault(bench) == hex(PAGE)
