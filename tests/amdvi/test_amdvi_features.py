"""EFR: composed, decoded, and refused by name."""

import re

import pytest

from iommu_emu.amdvi.features import Features
from iommu_emu.amdvi.presets import PRESETS, preset
from iommu_emu.amdvi.unit import AmdviConfig

BASE = 0xFEB8_0000


@pytest.mark.parametrize(
    ("features", "efr"),
    [
        (Features(levels=4, invalidate_all=False, message_registers=False), 0),
        (Features(levels=6, invalidate_all=False, message_registers=False), 2 << 10),
        (Features(levels=5, message_registers=False), 1 << 10 | 1 << 6),
        (Features(levels=4, prefetch=True), 1 << 46 | 1 << 6 | 1),
    ],
)
def test_efr_is_composed_and_parsed(features, efr):
    assert features.efr == efr
    assert Features.parse(efr) == features


def test_parse_refuses_what_is_not_implemented_by_name():
    with pytest.raises(ValueError, match=r"^not implemented: GTSup, GASup$"):
        Features.parse(1 << 4 | 1 << 7)


def test_parse_refuses_a_unit_without_host_tables():
    with pytest.raises(ValueError, match=r"^EFR\.HATS must be 0, 1 or 2, not 3"):
        Features.parse(3 << 10)


def test_parse_refuses_reserved_bits():
    with pytest.raises(ValueError, match=r"^reserved bits are set: EFR 0x40000000$"):
        Features.parse(1 << 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_id": 0x10000}, "device_id must be in 0x0..0xffff, not 0x10000"),
        ({"window": 0x8000}, "window must be 0x4000, not 0x8000"),
    ],
)
def test_config_refuses_what_is_not_allowed(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AmdviConfig(**({"base": BASE} | arguments))


def test_features_refuse_a_depth_that_hats_cannot_say():
    with pytest.raises(ValueError, match=r"^levels must be 4, 5 or 6, not 3$"):
        Features(levels=3)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_makes_a_configuration_and_says_where_it_comes_from(name):
    config = preset(name, base=BASE)
    assert config.np_cache == PRESETS[name].np_cache
    assert PRESETS[name].provenance


@pytest.mark.parametrize(("name", "levels"), [("zen", 6), ("zen4", 6)])
def test_preset_of_a_machine_keeps_what_is_implemented(name, levels):
    features = preset(name, base=BASE).features
    assert (features.levels, features.invalidate_all) == (levels, True)


def test_preset_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"^preset must be one of default, default-ats, np-cache, .*'nope'$"
    ):
        preset("nope", base=BASE)
