"""CAP and ECAP: composed, decoded, and refused by name."""

import re

import pytest

from iommu_emu.vtd.capabilities import UNIMPLEMENTED, Capabilities, unimplemented
from iommu_emu.vtd.presets import PRESETS, preset
from iommu_emu.vtd.unit import VtdConfig

BASE = 0xFED9_0000
SKYLAKE = (0x00D2_008C_4066_0462, 0xF0_50DA)


def test_words_are_those_of_a_skylake_boot_log():
    capabilities = Capabilities(
        domain_bits=8,
        levels={4},
        guest_address_width=39,
        fault_offset=0x400,
        iotlb_offset=0x500,
        fault_records=1,
        coherent=False,
        interrupt_remapping=True,
        extended_interrupts=True,
        max_handle_mask=15,
    )
    assert (capabilities.cap, capabilities.ecap) == SKYLAKE


def test_parse_is_the_inverse():
    parsed = Capabilities.parse(*SKYLAKE)
    assert (parsed.cap, parsed.ecap) == SKYLAKE
    assert (parsed.domain_bits, parsed.levels, parsed.guest_address_width) == (8, {4}, 39)


@pytest.mark.parametrize(
    ("word", "bit", "message"),
    [
        ("cap", 3, "advanced fault logging (CAP.AFL)"),
        ("cap", 59, "posted interrupts (CAP.PI)"),
        ("cap", 61, "enhanced commands (CAP.ECMDS)"),
        ("ecap", 25, "memory types (MTRRs) (ECAP.MTS)"),
        ("ecap", 29, "page requests (ECAP.PRS)"),
        ("ecap", 40, "PASIDs (ECAP.PASID)"),
        ("ecap", 43, "scalable mode (ECAP.SMTS)"),
        ("ecap", 51, "performance monitoring (ECAP.PMS)"),
    ],
)
def test_parse_refuses_what_is_not_implemented_by_name(word, bit, message):
    cap, ecap = SKYLAKE
    words = {"cap": cap, "ecap": ecap}
    words[word] |= 1 << bit
    with pytest.raises(ValueError, match=f"^not implemented: {re.escape(message)}$"):
        Capabilities.parse(**words)


def test_parse_refuses_reserved_bits():
    with pytest.raises(ValueError, match=r"^reserved bits are set: CAP 0x2000, ECAP 0x0$"):
        Capabilities.parse(SKYLAKE[0] | 1 << 13, SKYLAKE[1])


def test_masked_drops_what_is_not_implemented():
    capabilities = Capabilities.masked(SKYLAKE[0] | 1 << 59, SKYLAKE[1] | 1 << 29 | 1 << 43)
    assert (capabilities.cap, capabilities.ecap) == SKYLAKE


def test_unimplemented_lists_every_feature_of_a_word():
    assert unimplemented(0, 1 << 43 | 1 << 40) == [
        "PASIDs (ECAP.PASID)",
        "scalable mode (ECAP.SMTS)",
    ]


def test_every_unimplemented_field_exists_in_the_register_table():
    assert len(unimplemented((1 << 64) - 1, (1 << 64) - 1)) == len(UNIMPLEMENTED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain_bits": 7}, "domain_bits must be an even number in 4..16, not 7"),
        ({"levels": {2}}, "levels must be of 3, 4 and 5, not [2]"),
        ({"large_pages": {30}}, "large_pages must be none, {21} or {21, 30}, not [30]"),
        ({"fault_records": 257}, "fault_records must be in 0x1..0x100, not 0x101"),
        ({"guest_address_width": 0}, "guest_address_width must be in 0x1..0x40, not 0x0"),
        ({"max_address_mask": 64}, "max_address_mask must be in 0x0..0x3f, not 0x40"),
        ({"fault_offset": 0x228}, "fault_offset must be a multiple of 16, not 0x228"),
        ({"iotlb_offset": 0x4000}, "iotlb_offset must be in 0x0..0x3ff0, not 0x4000"),
        (
            {"queued_invalidation": False, "interrupt_remapping": True},
            "interrupt_remapping needs queued_invalidation",
        ),
        ({"extended_interrupts": True}, "extended_interrupts needs interrupt_remapping"),
        ({"max_handle_mask": 1}, "max_handle_mask needs interrupt_remapping"),
        (
            {"interrupt_table_invalidates": True},
            "interrupt_table_invalidates needs interrupt_remapping",
        ),
        (
            {"queued_invalidation": False, "device_tlbs": True},
            "device_tlbs needs queued_invalidation",
        ),
        ({"no_write_flag": True}, "no_write_flag needs device_tlbs"),
        (
            {"interrupts_blocked_until_remapped": True},
            "interrupts_blocked_until_remapped needs interrupt_remapping",
        ),
        (
            {"interrupt_remapping": True, "extended_interrupts_required": True},
            "extended_interrupts_required needs extended_interrupts",
        ),
    ],
)
def test_capabilities_refuse_what_is_not_allowed(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Capabilities(**arguments)


@pytest.mark.parametrize(
    ("capabilities", "arguments", "message"),
    [
        ({}, {"major": 0}, "major must be in 0x1..0xf, not 0x0"),
        ({}, {"protected_shift": 11}, "protected_shift must be in 0xc..0x20, not 0xb"),
        (
            {"drain_reads": False},
            {"major": 2},
            "major from 2 on needs drain_reads and drain_writes (VT-d 3.1)",
        ),
        ({}, {"major": 6}, "major from 6 on needs second_stage, or no levels (VT-d 3.1)"),
        ({"levels": set()}, {}, "levels must not be empty"),
        (
            {"guest_address_width": 39},
            {"host_address_width": 46},
            "guest_address_width must be at least host_address_width (46), not 39",
        ),
        ({"fault_offset": 0x20}, {}, "fault_offset: registers at 0x20 overlap RTADDR"),
        ({"iotlb_offset": 0x280}, {}, "iotlb_offset: registers at 0x280 overlap fault_offset"),
        (
            {"fault_offset": 0xFF0},
            {},
            "fault_offset: registers at 0xff0..0x106f do not fit the window of 0x1000 bytes",
        ),
    ],
)
def test_config_refuses_what_is_not_allowed(capabilities, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VtdConfig(base=BASE, capabilities=Capabilities(**capabilities), **arguments)


def test_config_takes_registers_of_further_pages():
    capabilities = Capabilities(fault_offset=0x1000, iotlb_offset=0x2000)
    config = VtdConfig(base=BASE, window=0x4000, capabilities=capabilities)
    assert config.parameters()["cap"] == capabilities.cap


@pytest.mark.parametrize("name", PRESETS)
def test_preset_makes_a_configuration_and_says_where_it_comes_from(name):
    config = preset(name, base=BASE)
    assert config.host_address_width == PRESETS[name].host_address_width
    assert PRESETS[name].provenance


@pytest.mark.parametrize(
    ("name", "cap", "ecap"),
    [
        ("qemu-q35", 0x80D2_008C_222F_0606, 0xF0_0F5A),
        ("qemu-q35-caching-mode", 0x80D2_008C_222F_0686, 0xF0_0F5A),
        ("skylake-client", *SKYLAKE),
        ("skylake-graphics", 0x00C0_000C_4066_0462, 0x2_00F0_505E),
        ("skylake-server", 0x00D2_078C_106F_0466, 0xF0_20DF),
    ],
)
def test_preset_reports_the_words_of_its_machine(name, cap, ecap):
    capabilities = preset(name, base=BASE).capabilities
    assert (capabilities.cap, capabilities.ecap) == (cap, ecap)


def test_preset_can_be_changed():
    config = preset("skylake-client", base=BASE, geometry="tiny-2", host_address_width=36)
    assert (config.geometry.name, config.host_address_width) == ("tiny-2", 36)


def test_preset_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"^preset must be one of default, default-ats, .*'nope'$"):
        preset("nope", base=BASE)
