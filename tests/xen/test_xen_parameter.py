"""Xen's command line (os 4.10)."""

import pytest

from iommu_emu.xen.parameter import (
    Phantom,
    Quarantine,
    Release,
    parse_bool,
    parse_boolean,
    parse_command_line,
)


@pytest.mark.parametrize(
    ("option", "mode"),
    [
        ("", Quarantine.BASIC),
        ("iommu=quarantine", Quarantine.BASIC),
        ("iommu=no-quarantine", Quarantine.NONE),
        ("iommu=quarantine=scratch-page", Quarantine.SCRATCH_PAGE),
        ("iommu=verbose,quarantine=off,force", Quarantine.NONE),
        ("iommu=quarantine=no iommu=quarantine=scratch-page", Quarantine.SCRATCH_PAGE),
    ],
)
def test_parameter_quarantine_has_three_modes(option, mode):
    parameters = parse_command_line(option)
    assert (parameters.quarantine, parameters.complaints) == (mode, [])


@pytest.mark.parametrize("word", ["1", "on", "yes", "true", "enable"])
def test_parameter_true_has_five_spellings(word):
    assert parse_command_line(f"iommu=quarantine={word}", default=Quarantine.NONE).quarantine is (
        Quarantine.BASIC
    )


@pytest.mark.parametrize("word", ["0", "off", "no", "false", "disable"])
def test_parameter_false_has_five_spellings(word):
    assert parse_command_line(f"iommu=quarantine={word}").quarantine is Quarantine.NONE


@pytest.mark.parametrize("value", ["full", "scratch", "2", "", "Yes", "none", "basic"])
def test_parameter_another_quarantine_is_complained_about_and_changes_nothing(value):
    parameters = parse_command_line(f"iommu=quarantine={value}")
    assert parameters.quarantine is Quarantine.BASIC
    assert parameters.complaints == [
        f'parameter "iommu" has invalid value "quarantine={value}", rc=-22!'
    ]


def test_parameter_full_is_the_proposals_alone():
    proposal = parse_command_line("iommu=quarantine=full", Release.PROPOSAL)
    assert (proposal.quarantine, proposal.complaints) == (Quarantine.FULL, [])
    assert parse_command_line("iommu=quarantine=scratch-page", Release.PROPOSAL).complaints


def test_parameter_what_is_understood_in_a_list_counts():
    parameters = parse_command_line("iommu=quarantine=no,nonsense,required")
    assert (parameters.quarantine, parameters.required) == (Quarantine.NONE, True)
    assert parameters.complaints == [
        'parameter "iommu" has invalid value "quarantine=no,nonsense,required", rc=-22!'
    ]


def test_parameter_no_prefix_takes_no_value():
    assert parse_boolean("quarantine", "no-quarantine=yes") is None
    assert parse_command_line("no-iommu=yes").complaints == [
        'parameter "iommu" has invalid value "yes", rc=-22!'
    ]


@pytest.mark.parametrize("option", ["iommu=no", "iommu=0", "iommu=disable", "no-iommu"])
def test_parameter_iommu_can_be_switched_off(option):
    parameters = parse_command_line(option)
    assert (parameters.enabled, parameters.complaints) == (False, [])


def test_parameter_other_words_are_no_boolean():
    assert [parse_bool(word) for word in ("", "y", "TRUE", "11")] == [None] * 4


def test_parameter_dom0_mode_has_an_old_and_a_new_option():
    old = parse_command_line("iommu=dom0-passthrough,no-dom0-strict")
    new = parse_command_line("dom0-iommu=strict,passthrough=no,map-inclusive")
    assert (old.dom0_passthrough, old.dom0_strict) == (True, False)
    assert (new.dom0_passthrough, new.dom0_strict, new.complaints) == (False, True, [])


def test_parameter_device_tlb_timeout_is_in_ms():
    assert parse_command_line("").device_tlb_timeout == 1000
    assert parse_command_line("iommu_dev_iotlb_timeout=250").device_tlb_timeout == 250


@pytest.mark.parametrize("value", ["-1", "1s", "", "9" * 5000])
def test_parameter_device_tlb_timeout_is_a_number(value):
    parameters = parse_command_line(f"iommu_dev_iotlb_timeout={value}")
    assert parameters.device_tlb_timeout == 1000
    assert len(parameters.complaints) == 1


def test_parameter_ats_is_off_unless_asked_for():
    assert not parse_command_line("").ats
    assert parse_command_line("ats").ats
    assert parse_command_line("ats=maybe").complaints


def test_parameter_phantom_device_is_hexadecimal():
    assert parse_command_line("pci-phantom=3:1f,4 pci-phantom=0001:0a:0,1").phantoms == [
        Phantom(0, 3, 31, 4),
        Phantom(1, 10, 0, 1),
    ]


@pytest.mark.parametrize("value", ["", "3:20,1", "3:1,3", "3:1,8", "3:1", "3:1.0,1", "3:1,"])
def test_parameter_bad_phantom_device_is_complained_about(value):
    parameters = parse_command_line(f"pci-phantom={value}")
    assert parameters.phantoms == []
    assert parameters.complaints == [
        f'parameter "pci-phantom" has invalid value "{value}", rc=-22!'
    ]


def test_parameter_ninth_phantom_device_is_one_too_many():
    parameters = parse_command_line(" ".join(["pci-phantom=3:1,1"] * 9))
    assert len(parameters.phantoms) == 8
    assert parameters.complaints[0].endswith("rc=-7!")


def test_parameter_options_of_others_are_ignored():
    assert parse_command_line("console=com1 no-smt dom0_mem=4G").complaints == []
