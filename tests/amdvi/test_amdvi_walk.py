"""Device table and host page tables of AMD-Vi: unit and reference, side by side."""

import pytest
from amdvi_bench import DEVICE_PAGES, REQUESTER, Bench

from iommu_emu.amdvi.features import Features
from iommu_emu.core import Access, AddressType, IotlbLookup, Outcome

IOVA = 0x12_3456_7000
PAGE = 0x8_0000
ABOVE_RAM = 0x20_0000
READ, WRITE, ATOMIC = Access.READ, Access.WRITE, Access.ATOMIC


@pytest.fixture
def mapped():
    """A bench on which IOVA is mapped to PAGE, read and write."""
    bench = Bench()
    bench.device_entry()
    bench.walk_to(IOVA, bench.pte(PAGE))
    return bench


def condition(result):
    return result.cause.condition if result.cause else ""


def name(result):
    return result.cause.name if result.cause else ""


def test_walk_reaches_a_4k_page_and_keeps_the_offset(mapped):
    result = mapped.check(mapped.request(IOVA + 0x123))
    assert (result.address, result.page_shift, result.domain) == (PAGE + 0x123, 12, 5)


@pytest.mark.parametrize(("level", "shift"), [(1, 12), (2, 21), (3, 30), (4, 39)])
def test_walk_reaches_the_default_page_of_a_level(mapped, level, shift):
    mapped.walk_to(IOVA, mapped.pte(0), level=level)
    result = mapped.check(mapped.request(IOVA))
    assert (result.address, result.page_shift) == (IOVA & (1 << shift) - 1, shift)


@pytest.mark.parametrize("shift", [*range(13, 21), *range(22, 30), *range(31, 39), *range(40, 48)])
def test_walk_reaches_a_page_of_an_encoded_size(mapped, shift):
    level = (shift - 12) // 9 + 1
    size = (1 << shift - 1) - 0x1000
    mapped.walk_to(IOVA, mapped.pte(size, next_level=7), level=level)
    result = mapped.check(mapped.request(IOVA))
    assert (result.address, result.page_shift) == (IOVA & (1 << shift) - 1, shift)


@pytest.mark.parametrize(
    ("level", "shift"), [(1, 21), (1, 30), (2, 13), (2, 21), (2, 30), (3, 22), (3, 39), (1, 52)]
)
def test_page_size_that_is_not_the_levels_own_faults(mapped, level, shift):
    size = (1 << shift - 1) - 0x1000
    mapped.walk_to(IOVA, mapped.pte(size, next_level=7), level=level)
    assert condition(mapped.check(mapped.request(IOVA))) == (
        "page-table entry: page size not of its level"
    )


@pytest.mark.parametrize("mode", [1, 2, 3, 4, 5, 6])
def test_walk_depth_follows_the_mode(mode):
    bench = Bench()
    iova = (1 << min(12 + 9 * mode, 64)) - 0x1000
    bench.device_entry(mode=mode, root=bench.table(mode))
    bench.walk_to(iova, bench.pte(PAGE), top=mode)
    assert bench.check(bench.request(iova)).address == PAGE


@pytest.mark.parametrize("mode", [1, 2, 3, 4, 5])
def test_address_beyond_the_mode_faults(mapped, mode):
    mapped.device_entry(mode=mode)
    result = mapped.check(mapped.request(1 << 12 + 9 * mode))
    assert condition(result) == "address beyond the reach of the page table"


def test_level_may_be_skipped(mapped):
    iova = 0x12_0000_7000
    mapped.write(mapped.entry(4, iova), mapped.pde(mapped.table(1), 1))
    mapped.write(mapped.entry(1, iova), mapped.pte(PAGE))
    low = iova & 0x1F_FFFF
    assert mapped.check(mapped.request(low)).address == PAGE


def test_skipped_address_bits_must_be_zero(mapped):
    mapped.write(mapped.entry(4, IOVA), mapped.pde(mapped.table(1), 1))
    result = mapped.check(mapped.request(IOVA))
    assert condition(result) == "address bits of a skipped level are set"


@pytest.mark.parametrize(("level", "next_level"), [(4, 4), (4, 5), (3, 6), (2, 2), (1, 1), (1, 6)])
def test_next_level_must_be_lower(mapped, level, next_level):
    mapped.write(mapped.entry(level, IOVA), mapped.pde(mapped.table(1), next_level))
    result = mapped.check(mapped.request(IOVA))
    assert condition(result) == "page-table entry: illegal next level"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_entry_not_present_faults(mapped, level):
    mapped.write(mapped.entry(level, IOVA), 0xFFFF_FFFF_FFFF_FFFE)
    assert condition(mapped.check(mapped.request(IOVA))) == "page-table entry not present"


@pytest.mark.parametrize("bit", range(52, 59))
def test_leaf_reserved_bit_faults(mapped, bit):
    mapped.walk_to(IOVA, mapped.pte(PAGE) | 1 << bit)
    result = mapped.check(mapped.request(IOVA))
    assert condition(result) == "page-table entry: reserved bit set"


@pytest.mark.parametrize("bit", range(52, 61))
def test_directory_reserved_bit_faults(mapped, bit):
    mapped.write(mapped.entry(2, IOVA), mapped.pde(mapped.table(1), 1) | 1 << bit)
    result = mapped.check(mapped.request(IOVA))
    assert condition(result) == "page directory entry: reserved bit set"


def test_ignored_bits_are_free(mapped):
    mapped.walk_to(IOVA, mapped.pte(PAGE) | 0x1FE | 1 << 63)
    assert mapped.check(mapped.request(IOVA)).ok


def test_force_coherent_is_reported(mapped):
    mapped.walk_to(IOVA, mapped.pte(PAGE, fc=1))
    assert mapped.check(mapped.request(IOVA)).attributes == 1


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_permissions_are_anded_over_the_levels(mapped, level):
    address = mapped.entry(level, IOVA)
    entry = int.from_bytes(mapped.read(address, 8), "little") & ~(1 << 62)
    mapped.write(address, entry)
    assert mapped.check(mapped.request(IOVA)).permissions == READ
    result = mapped.check(mapped.request(IOVA + 4, WRITE))
    assert condition(result) == "write without write permission"


def test_permissions_of_the_device_count(mapped):
    mapped.device_entry(ir=0)
    assert condition(mapped.check(mapped.request(IOVA))) == "read without read permission"
    assert mapped.check(mapped.request(IOVA, WRITE)).ok


def test_permissions_are_tested_at_the_end_of_the_walk(mapped):
    mapped.device_entry(iw=0)
    mapped.walk_to(IOVA, 0)
    assert condition(mapped.check(mapped.request(IOVA, WRITE))) == "page-table entry not present"


@pytest.mark.parametrize("access", [READ, WRITE, ATOMIC])
def test_mode_0_is_the_identity(mapped, access):
    mapped.device_entry(mode=0)
    assert mapped.check(mapped.request(0x1234, access)).address == 0x1234


def test_mode_0_obeys_the_permissions_of_the_device(mapped):
    mapped.device_entry(mode=0, iw=0)
    assert not mapped.check(mapped.request(0x1234, WRITE)).ok


def test_entry_that_is_not_valid_forwards_everything(mapped):
    mapped.device_entry(v=0, tv=0, mode=7)
    assert mapped.check(mapped.request(0x1234, WRITE)).address == 0x1234


def test_entry_without_translation_blocks(mapped):
    mapped.device_entry(tv=0)
    assert condition(mapped.check(mapped.request(IOVA))) == (
        "device table entry without translation (V=1, TV=0)"
    )


@pytest.mark.parametrize("bit", [2, 3, 63])
def test_device_entry_reserved_bit_in_the_low_half_is_illegal(mapped, bit):
    mapped.device_entry()
    address = 0x40000 + 32 * REQUESTER
    mapped.write(address, int.from_bytes(mapped.read(address, 8), "little") | 1 << bit)
    assert condition(mapped.check(mapped.request(IOVA))) == (
        "device table entry: reserved bit set in 127:0"
    )


def test_device_entry_sats_is_reserved_without_its_feature(mapped):
    mapped.device_entry(sats=1)
    assert condition(mapped.check(mapped.request(IOVA))) == (
        "device table entry: reserved bit set in 127:0"
    )


@pytest.mark.parametrize("field", ["reserved_181_180", "reserved_206_192", "reserved_244_240"])
def test_device_entry_reserved_bit_in_the_high_half_is_illegal_if_valid(mapped, field):
    mapped.device_entry(iv=1, **{field: 1})
    assert name(mapped.check(mapped.request(IOVA))) == "ILLEGAL_DEV_TABLE_ENTRY"
    mapped.device_entry(iv=0, **{field: 1})
    assert mapped.check(mapped.request(IOVA + 4)).ok


@pytest.mark.parametrize(("levels", "mode"), [(4, 5), (5, 6), (6, 7)])
def test_device_entry_with_too_many_levels_is_illegal(levels, mode):
    bench = Bench(Features(levels=levels))
    bench.device_entry(mode=mode)
    assert condition(bench.check(bench.request(IOVA))) == (
        "device table entry: more levels than EFR.HATS"
    )


@pytest.mark.parametrize(
    "values", [{"ioctl": 3}, {"iv": 1, "intctl": 3}, {"iv": 1, "inttablen": 12}]
)
def test_device_entry_with_reserved_controls_is_illegal(mapped, values):
    mapped.device_entry(**values)
    assert name(mapped.check(mapped.request(IOVA))) == "ILLEGAL_DEV_TABLE_ENTRY"


def test_device_beyond_the_table_faults(mapped):
    requester = DEVICE_PAGES * 128
    assert condition(mapped.check(mapped.request(IOVA, requester=requester))) == (
        "device ID beyond the device table"
    )


def test_device_entry_that_cannot_be_read_is_a_hardware_error(mapped):
    mapped.enable(False)
    mapped.unit.write("DevTabBase", ABOVE_RAM | 0x1FF)
    mapped.enable()
    assert name(mapped.check(mapped.request(IOVA))) == "DEV_TAB_HARDWARE_ERROR"


@pytest.mark.parametrize("level", [2, 3, 4])
def test_table_that_cannot_be_read_is_a_hardware_error(mapped, level):
    mapped.write(mapped.entry(level, IOVA), mapped.pde(ABOVE_RAM, level - 1))
    assert name(mapped.check(mapped.request(IOVA))) == "PAGE_TAB_HARDWARE_ERROR"


@pytest.mark.parametrize("at", [AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED])
def test_translation_services_are_refused(mapped, at):
    assert name(mapped.check(mapped.request(IOVA, at=at))) == "INVALID_DEVICE_REQUEST"


def test_unit_that_is_off_passes_everything(mapped):
    mapped.enable(False)
    assert mapped.check(mapped.request(0x1234, WRITE)).address == 0x1234


def test_interrupt_is_a_write_to_the_message_window(mapped):
    result = mapped.check(mapped.request(0xFEE0_0000, WRITE))
    assert (result.outcome, result.address) == (Outcome.INTERRUPT, 0xFEE0_0000)


@pytest.mark.parametrize("access", [READ, ATOMIC])
def test_message_window_cannot_be_read(mapped, access):
    assert condition(mapped.check(mapped.request(0xFEE0_0000, access))) == (
        "read or non-posted write in the interrupt range"
    )


def test_interrupt_is_blocked_by_interrupt_control(mapped):
    mapped.device_entry(iv=1, intctl=0)
    port = mapped.machine.core.create_port(0, REQUESTER)
    assert not port.write(0xFEE0_0000, bytes(4)).ok
    event = mapped.decode_events()[0]
    assert (event.name, event.fields.type) == ("INVALID_DEVICE_REQUEST", 5)


@pytest.mark.parametrize(
    ("address", "access", "values", "kind"),
    [
        (0xFD_0000_0000, WRITE, {}, 6),
        (0xFD_0000_0000, READ, {}, 0),
        (0xFD_F910_0000, WRITE, {}, 3),
        (0xFD_F910_0000, READ, {}, 4),
        (0xFD_F910_0000, WRITE, {"sysmgt": 3, "tv": 0}, 7),
        (0xFD_FC00_0000, READ, {}, 2),
        (0xFD_FC00_0000, READ, {"ioctl": 2, "tv": 0}, 7),
    ],
)
def test_special_range_is_refused_with_its_type(mapped, address, access, values, kind):
    mapped.device_entry(**values)
    result = mapped.unit.core.translate(mapped.request(address, access))
    assert name(result) == "INVALID_DEVICE_REQUEST"
    assert mapped.decode_events()[0].fields.type == kind


@pytest.mark.parametrize(
    ("address", "values"),
    [
        (0xFD_0000_0000, {}),
        (0xFD_F910_0000, {}),
        (0xFD_F910_0000, {"sysmgt": 1}),
        (0xFD_FC00_0000, {}),
        (0xFD_FC00_0000, {"ioctl": 1}),
        (0xFD_FC00_0000, {"ioctl": 2}),
        (0xFD_FC00_0000, {"v": 0}),
        (0xFD_FB00_0000, {}),
    ],
)
@pytest.mark.parametrize("access", [READ, WRITE])
def test_special_range_agrees_with_the_reference(mapped, address, values, access):
    mapped.device_entry(**values)
    mapped.walk_to(address, mapped.pte(PAGE))
    mapped.check(mapped.request(address, access))


@pytest.mark.parametrize(("allow", "ex", "passes"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_exclusion_range_is_forwarded_if_device_or_register_says_so(mapped, allow, ex, passes):
    mapped.device_entry(ex=ex)
    mapped.unit.write("ExclBase", 0x30_0000 | allow << 1 | 1)
    mapped.unit.write("ExclLimit", 0x30_1000)
    assert mapped.check(mapped.request(0x30_1FFC)).ok is passes
    assert not mapped.check(mapped.request(0x30_2000)).ok


@pytest.mark.parametrize("iova", [IOVA + 0x1000, 1 << 48])
def test_suppress_all_drops_page_faults(mapped, iova):
    mapped.device_entry(sa=1)
    assert not mapped.check(mapped.request(iova)).recorded


def test_suppress_all_does_not_reach_hardware_errors(mapped):
    mapped.device_entry(sa=1, root=ABOVE_RAM)
    assert mapped.check(mapped.request(IOVA)).recorded


def test_suppression_is_the_requesters_own_though_the_iotlb_is_shared():
    bench = Bench(iotlb_lookup=IotlbLookup.BY_DOMAIN)
    bench.device_entry(0x0310)
    bench.device_entry(0x0311, sa=1)
    bench.walk_to(IOVA, bench.pte(PAGE, iw=0))
    assert bench.check(bench.request(IOVA, READ, requester=0x0310)).ok
    assert not bench.check(bench.request(IOVA, WRITE, requester=0x0311)).recorded
