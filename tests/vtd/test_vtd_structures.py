"""Memory structures of VT-d: bit positions as the specification's tables give them."""

import pytest

from iommu_emu.bitfields import Structure, bit, field, reserved
from iommu_emu.vtd import structures
from iommu_emu.vtd.structures import (
    ContextEntry,
    ContextInvalidation,
    FaultRecording,
    IotlbInvalidation,
    RootEntry,
    SecondStagePage2M,
    SecondStagePage4K,
    WaitDescriptor,
)

ALL = [getattr(structures, name) for name in structures.__all__]
STRUCTURES = [item for item in ALL if isinstance(item, Structure)]


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def test_root_entry_is_present_bit_and_table_address():
    assert number(RootEntry.build(p=1, ctp=0x1234_5000)) == 0x1234_5001


def test_context_entry_puts_width_and_domain_in_the_second_quadword():
    entry = ContextEntry.build(p=1, tt=2, ssptptr=0x7000, aw=2, did=0x1234)
    assert number(entry) == (0x7000 | 1 | 2 << 2) | (2 | 0x1234 << 8) << 64


def test_context_entry_parse_shows_reserved_and_ignored_bits():
    entry = ContextEntry.parse((1 << 71 | 1 << 67 | 1 << 4).to_bytes(16, "little"))
    assert (entry.reserved_71, entry.ignored_70_67, entry.reserved_11_4) == (1, 1, 1)


def test_context_entry_reserved_mask_is_the_specifications():
    assert ContextEntry.reserved_mask == 0xFFFFFFFFFF000080_0000000000000FF0


def test_second_stage_page_4k_ignores_bit_7():
    assert SecondStagePage4K.reserved_mask == 1 << 62


def test_second_stage_page_2m_fills_in_page_size_and_reserves_low_address_bits():
    assert number(SecondStagePage2M.build(r=1, w=1, address=0x4000_0000)) == 0x4000_0083
    assert SecondStagePage2M.reserved_mask == 1 << 62 | 0x1F_F000


def test_context_invalidation_matches_the_descriptor_table():
    descriptor = ContextInvalidation.build(g=3, did=0x11, sid=0x0108, fm=1)
    assert number(descriptor) == 1 | 3 << 4 | 0x11 << 16 | 0x0108 << 32 | 1 << 48


def test_iotlb_invalidation_matches_the_descriptor_table():
    descriptor = IotlbInvalidation.build(g=3, dr=1, dw=1, did=5, am=2, ih=1, addr=0xABC000)
    assert number(descriptor) == (2 | 3 << 4 | 3 << 6 | 5 << 16) | (2 | 1 << 6 | 0xABC000) << 64


@pytest.mark.parametrize(
    ("structure", "low", "high"),
    [
        (ContextInvalidation, 0xFFFC_0000_0000_F1C0, 0xFFFF_FFFF_FFFF_FFFF),
        (IotlbInvalidation, 0xFFFF_FFFF_0000_F100, 0x0F80),
        (structures.InterruptEntryInvalidation, 0xFFFF_0000_07FF_F1E0, 0xFFFF_FFFF_FFFF_FFFF),
        (WaitDescriptor, 0x0000_0000_FFFF_F100, 3),
    ],
)
def test_descriptor_reserved_mask_is_the_specifications(structure, low, high):
    assert structure.reserved_mask == low | high << 64


def test_wait_descriptor_carries_status_data_and_dword_address():
    descriptor = number(WaitDescriptor.build(sw=1, status_data=0xCAFE, status_address=0x1004))
    assert descriptor == 5 | 1 << 5 | 0xCAFE << 32 | 0x1004 << 64


def test_fault_recording_parses_a_whole_record():
    record = FaultRecording.parse_int(1 << 127 | 1 << 126 | 5 << 96 | 0x0310 << 64 | 0x7_F000)
    assert (record.f, record.t1, record.fr, record.sid, record.fi) == (1, 1, 5, 0x310, 0x7F000)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_structure_builds_what_it_parsed(structure):
    ones = (1 << structure.bits) - 1
    for declared in structure:
        if declared.kind.value == "constant":
            ones = ones & ~declared.mask | declared.value << declared.low
    data = ones.to_bytes(structure.size, "little")
    assert structure.build(**structure.parse(data)) == data


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_structure_names_its_specification_section(structure):
    assert "(VT-d " in structure.__doc__


def test_build_refuses_a_value_that_does_not_fit():
    with pytest.raises(ValueError, match=r"^ContextEntry\.aw must be in 0\.\.0x7, not 0x8$"):
        ContextEntry.build(aw=8)


def test_build_refuses_an_unaligned_address():
    with pytest.raises(
        ValueError,
        match=r"^RootEntry\.ctp must be in 0\.\.0xfffffffffffff000 in steps of 0x1000, not 0x1$",
    ):
        RootEntry.build(ctp=1)


def test_build_refuses_an_unknown_field():
    with pytest.raises(ValueError, match=r"^RootEntry has no field nonsense$"):
        RootEntry.build(nonsense=1)


def test_build_refuses_another_constant():
    with pytest.raises(ValueError, match=r"^WaitDescriptor\.type is always 0x5, not 0x1$"):
        WaitDescriptor.build(type=1)


def test_parse_refuses_a_wrong_length():
    with pytest.raises(ValueError, match=r"^RootEntry is 16 bytes, not 8$"):
        RootEntry.parse(bytes(8))


def test_structure_refuses_a_gap():
    with pytest.raises(ValueError, match=r"^Broken: b starts at 2, bit 1 comes next$"):
        Structure("Broken", 8, "", [bit("a", 0), field("b", 7, 2)])


def test_structure_refuses_missing_bits():
    with pytest.raises(ValueError, match=r"^Short: fields cover 4 of 8 bits$"):
        Structure("Short", 8, "", [bit("a", 0), reserved(3, 1)])
