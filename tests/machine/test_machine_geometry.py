import pytest

from iommu_emu.core import Replacement
from iommu_emu.geometry import PRESETS, CacheGeometry, preset
from iommu_emu.timing import Timing


def test_geometry_default_iotlb_has_4096_lines():
    assert preset("default").iotlb.lines == 4096


def test_geometry_gem5_replaces_round_robin():
    assert preset("gem5-smmuv3").iotlb.replacement is Replacement.FIFO


def test_geometry_tiny_has_two_lines_in_every_cache():
    tiny = preset("tiny-2")
    caches = (tiny.iotlb, tiny.context, tiny.paging, tiny.interrupt)
    assert [cache.lines for cache in caches] == [2, 2, 2, 2]


@pytest.mark.parametrize("name", PRESETS)
def test_geometry_preset_says_where_it_comes_from(name):
    assert PRESETS[name].provenance


def test_geometry_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match="tiny-2, not 'huge'"):
        preset("huge")


@pytest.mark.parametrize(
    ("sets", "ways", "message"),
    [
        (3, 1, "sets must be a power of two in 1..65536, not 3"),
        (0, 1, "sets must be a power of two in 1..65536, not 0"),
        (1, 1025, "ways must be in 1..1024, not 1025"),
        (65536, 32, r"sets \* ways must be at most 1048576, not 2097152"),
    ],
)
def test_cache_geometry_refuses_what_the_core_cannot_build(sets, ways, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        CacheGeometry(sets, ways)


def test_timing_refuses_negative_latency():
    with pytest.raises(ValueError, match=r"^wait must be in 0\.\.1000000000000 ns, not -1$"):
        Timing(wait=-1)
