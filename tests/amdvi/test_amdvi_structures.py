"""Memory structures of AMD-Vi: bit positions as the specification's tables give them."""

import pytest

from iommu_emu.amdvi import structures
from iommu_emu.amdvi.structures import (
    CompletionWait,
    DeviceTableEntry,
    InvalidateDevtabEntry,
    InvalidateIommuAll,
    InvalidateIommuPages,
    IoPageFault,
    PageDirectoryEntry,
    PageTableEntry,
    event_structure,
)
from iommu_emu.bitfields import Structure

ALL = [getattr(structures, name) for name in structures.__all__]
STRUCTURES = [item for item in ALL if isinstance(item, Structure)]


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def test_device_table_entry_of_a_host_translation():
    entry = DeviceTableEntry.build(v=1, tv=1, mode=4, root=0x8000, ir=1, iw=1, domain_id=7)
    assert number(entry) == (3 | 4 << 9 | 0x8000 | 3 << 61) | 7 << 64


def test_device_table_entry_interrupt_half():
    entry = DeviceTableEntry.build(iv=1, inttablen=9, inttabroot=0x10080, intctl=2)
    assert number(entry) == (1 | 9 << 1 | 0x10080 | 2 << 60) << 128


def test_device_table_entry_guest_root_is_in_three_parts():
    root = 0x000F_EDCB_A987_6000
    entry = DeviceTableEntry.build(
        gcr3_14_12=root & 0x7000, gcr3_30_15=root & 0x7FFF_8000, gcr3_51_31=root & ~0x7FFF_FFFF
    )
    parsed = DeviceTableEntry.parse(entry)
    assert parsed.gcr3_14_12 | parsed.gcr3_30_15 | parsed.gcr3_51_31 == root


def test_page_directory_entry_names_the_next_level():
    entry = PageDirectoryEntry.build(pr=1, next_level=3, address=0x5000, ir=1, iw=1)
    assert number(entry) == 1 | 3 << 9 | 0x5000 | 3 << 61


def test_page_table_entry_force_coherent_is_bit_60():
    assert number(PageTableEntry.build(pr=1, fc=1)) == 1 | 1 << 60


def test_completion_wait_store_address_is_eight_byte_aligned():
    command = CompletionWait.build(s=1, f=1, store_address=0x1238, store_data=0x55)
    assert number(command) == (5 | 0x1238 | 1 << 60) | 0x55 << 64


def test_invalidate_devtab_entry_names_the_device():
    assert number(InvalidateDevtabEntry.build(device_id=0x310)) == 0x310 | 2 << 60


def test_invalidate_iommu_pages_of_everything():
    command = InvalidateIommuPages.build(domain_id=9, s=1, pde=1, address=0x7FFF_FFFF_FFFF_F000)
    assert number(command) == (9 << 32 | 3 << 60) | (3 | 0x7FFF_FFFF_FFFF_F000) << 64


def test_invalidate_iommu_all_is_an_opcode_alone():
    assert number(InvalidateIommuAll.build()) == 8 << 60


def test_io_page_fault_flags_are_those_that_linux_prints():
    event = IoPageFault.parse_int(2 << 60 | 0x0A0 << 48 | 7 << 32 | 0x310 | 0x1234 << 64)
    assert (event.device_id, event.domain_id, event.address) == (0x310, 7, 0x1234)
    assert (event.rw, event.rz, event.pr, event.pe, event.tr) == (1, 1, 0, 0, 0)


def test_event_structure_is_found_by_its_code():
    assert event_structure(IoPageFault.build(device_id=1)) is IoPageFault


def test_event_structure_of_an_unknown_code_is_none():
    assert event_structure(bytes(16)) is None


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
    assert "(AMD-Vi " in structure.__doc__
