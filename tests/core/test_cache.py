"""Cache geometries that the core takes and refuses; the cache at its extremes."""

from __future__ import annotations

import pytest
from core_bench import BASE, SELECTIVE, Bench, ByRegister, geometry

from iommu_emu.core import CacheId
from iommu_emu.geometry import PRESETS, CacheGeometry, preset


def create(sets: int, ways: int, replacement: int = 0, cache: int = 0) -> None:
    """Create a unit whose cache number `cache` has this shape; past the checks of Python."""
    bench = Bench()
    unit = dict(bench.config["unit"])
    shapes = [dict(shape) for shape in unit["geometry"]]
    shapes[cache] = {"sets": sets, "ways": ways, "replacement": replacement, "seed": 1}
    unit |= {"geometry": shapes, "base": BASE + 0x10_0000}
    bench.machine.create_vtd(bench.config | {"unit": unit})


@pytest.mark.parametrize(
    ("sets", "ways", "replacement"),
    [(1, 1, 0), (1, 1024, 1), (1024, 1024, 2), (65536, 1, 0), (65536, 16, 0)],
)
def test_cache_shape_is_taken(sets: int, ways: int, replacement: int) -> None:
    create(sets, ways, replacement)


@pytest.mark.parametrize("cache", range(4))
@pytest.mark.parametrize(
    ("sets", "ways", "replacement"),
    [
        (0, 1, 0),
        (3, 1, 0),
        (131072, 1, 0),
        (1, 0, 0),
        (1, 1025, 0),
        (65536, 17, 0),
        (1, 1, 3),
    ],
)
def test_cache_shape_is_refused(sets: int, ways: int, replacement: int, cache: int) -> None:
    with pytest.raises(ValueError, match="outside its documented range"):
        create(sets, ways, replacement, cache)


@pytest.mark.parametrize("name", PRESETS)
def test_cache_preset_works(name: str) -> None:
    bench = Bench(shape=preset(name))
    table = bench.attach()
    for page in range(32):
        table.map(page << 12, page << 12)
    bench.enable()
    for _ in range(2):
        for page in range(32):
            assert bench.reads(page << 12) == page << 12
    assert len(bench.unit.entries(CacheId.IOTLB)) == min(32, preset(name).iotlb.lines)


@pytest.mark.parametrize(("sets", "ways"), [(1, 16), (16, 1), (4, 4)])
def test_cache_holds_as_many_lines_as_it_says(sets: int, ways: int) -> None:
    bench = Bench(shape=geometry(iotlb=CacheGeometry(sets, ways)))
    table = bench.attach()
    for page in range(40):
        table.map(page << 12, page << 12)
    bench.enable()
    for page in range(40):
        bench.translate(page << 12)
    assert len(bench.unit.entries(CacheId.IOTLB)) == 16
    assert bench.counter("iotlb_eviction") == 24


@pytest.mark.parametrize("domain", [0, 1, 0x7FFF, 0xFFFF])
def test_cache_domain_stamps_cover_every_domain(domain: int) -> None:
    bench = Bench()
    bench.attach(0x10, domain=domain).map(0x5000, 0x20_0000)
    bench.attach(0x18, domain=domain ^ 1).map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000, requester=0x10)
    bench.translate(0x5000, requester=0x18)
    ByRegister(bench).iotlb(2, domain)
    assert [e.domain for e in bench.unit.entries(CacheId.IOTLB)] == [domain ^ 1]


def test_cache_mixed_sizes_are_dropped_by_one_range() -> None:
    bench = Bench(shape=geometry(iotlb=CacheGeometry(1, 16)))
    table = bench.attach()
    table.map(0x4000_0000, 0x4000_0000, level=3)
    table.map(0x20_0000, 0x20_0000, level=2)
    table.map(0x5000, 0x5000)
    bench.enable()
    for address in (0x4000_0000, 0x20_0000, 0x5000):
        bench.translate(address)
    ByRegister(bench).iotlb(SELECTIVE, 1, 0x20_0000)
    assert {e.address for e in bench.unit.entries(CacheId.IOTLB)} == {0x4000_0000, 0x5000}


def test_cache_line_refilled_after_its_drop_is_found(bench: Bench) -> None:
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    bench.enable()
    for output in (0x20_0000, 0x21_0000, 0x22_0000):
        table.map(0x5000, output)
        ByRegister(bench).iotlb(SELECTIVE, 1, 0x5000)
        assert bench.reads(0x5000) == bench.reads(0x5000) == output
    assert len(bench.unit.entries(CacheId.IOTLB)) == 1
