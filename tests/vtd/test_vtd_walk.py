"""Every fault of legacy mode, and every way to get through: unit and reference, side by side."""

import pytest

from iommu_emu.core import Access, AddressType, IotlbLookup, Outcome
from iommu_emu.reference.vtd import FAILURES
from iommu_emu.vtd.capabilities import Capabilities

IOVA = 0x12_3456_7000
PAGE = 0x8_0000
ABOVE_RAM = 0x20_0000
ABOVE_HOST = 1 << 46
READ, WRITE, ATOMIC = Access.READ, Access.WRITE, Access.ATOMIC


@pytest.fixture
def mapped(bench):
    """A bench on which IOVA is mapped to PAGE, read and write."""
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, PAGE | 3)
    return bench


def name(result):
    return result.cause.name if result.cause else ""


def test_walk_reaches_a_4k_page_and_keeps_the_offset(mapped):
    result = mapped.check(mapped.request(IOVA + 0x123))
    assert (result.outcome, result.address, result.page_shift) == (Outcome.MEMORY, PAGE + 0x123, 12)
    assert (result.permissions, result.domain) == (ATOMIC, 5)


def test_walk_reaches_a_2m_page(mapped):
    mapped.walk_to(IOVA, 0x4000_0000 | 0x83, level=2)
    result = mapped.check(mapped.request(IOVA))
    assert (result.address, result.page_shift) == (0x4000_0000 | IOVA & 0x1F_FFFF, 21)


def test_walk_reaches_a_1g_page(mapped):
    mapped.walk_to(IOVA, 0x8000_0000 | 0x83, level=3)
    result = mapped.check(mapped.request(IOVA))
    assert (result.address, result.page_shift) == (0x8000_0000 | IOVA & 0x3FFF_FFFF, 30)


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_walk_depth_follows_the_address_width_of_the_context(bench, levels):
    iova = 1 << 12 + 9 * levels - 1 | 0x7000
    bench.root_entry()
    bench.context_entry(aw=levels - 2, ssptptr=bench.table(levels))
    bench.walk_to(iova, PAGE | 3, top=levels)
    assert bench.check(bench.request(iova)).address == PAGE


def test_walk_reports_forced_snooping(mapped):
    mapped.walk_to(IOVA, PAGE | 3 | 1 << 11)
    assert mapped.check(mapped.request(IOVA)).attributes == 1


def test_walk_ignores_the_ignored_bits(mapped):
    ignored = 0x7C | 1 << 7 | 3 << 8 | 1 << 10 | 0x1FF << 52 | 1 << 61 | 1 << 63
    mapped.walk_to(IOVA, PAGE | 3 | ignored)
    assert mapped.check(mapped.request(IOVA)).ok


def test_context_ignored_bits_are_free(mapped):
    mapped.context_entry(ignored_70_67=15)
    assert mapped.check(mapped.request(IOVA)).ok


# ---- one test a fault ------------------------------------------------------------------------


def test_root_fetch_error_is_lrt_1(mapped):
    mapped.set_root(ABOVE_RAM)
    assert name(mapped.check(mapped.request(IOVA))) == "LRT.1"


def test_root_not_present_is_lrt_2(mapped):
    mapped.root_entry(p=0)
    assert name(mapped.check(mapped.request(IOVA))) == "LRT.2"


@pytest.mark.parametrize("field", ["reserved_11_1", "reserved_127_64"])
def test_root_reserved_is_lrt_3(mapped, field):
    mapped.root_entry(**{field: 1})
    assert name(mapped.check(mapped.request(IOVA))) == "LRT.3"


def test_root_pointer_above_host_width_is_lrt_3(mapped):
    mapped.root_entry(ctp=ABOVE_HOST)
    assert name(mapped.check(mapped.request(IOVA))) == "LRT.3"


def test_root_not_present_beats_reserved(mapped):
    mapped.root_entry(p=0, reserved_11_1=1)
    assert name(mapped.check(mapped.request(IOVA))) == "LRT.2"


def test_context_fetch_error_is_lct_1(mapped):
    mapped.root_entry(ctp=ABOVE_RAM)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.1"


def test_context_not_present_is_lct_2(mapped):
    mapped.context_entry(p=0)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.2"


@pytest.mark.parametrize("bit", [*range(4, 12), 71, *range(88, 128)])
def test_context_reserved_is_lct_3(mapped, bit):
    mapped.context_entry()
    address = 0x2000 + 16 * 0x10
    entry = int.from_bytes(mapped.read(address, 16), "little") | 1 << bit
    mapped.write(address, entry.to_bytes(16, "little"))
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.3"


def test_context_pointer_above_host_width_is_lct_3(mapped):
    mapped.context_entry(ssptptr=ABOVE_HOST)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.3"


def test_context_domain_id_above_nd_is_lct_3(make_bench):
    bench = make_bench(Capabilities(domain_bits=8))
    bench.root_entry()
    bench.context_entry(did=0x100)
    assert name(bench.check(bench.request(IOVA))) == "LCT.3"


@pytest.mark.parametrize("aw", [0, 4, 5, 6, 7])
def test_context_unknown_address_width_is_lct_4_1(mapped, aw):
    mapped.context_entry(aw=aw)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.4.1"


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_context_address_width_outside_sagaw_is_lct_4_1(make_bench, levels):
    bench = make_bench(Capabilities(levels=frozenset({3, 4, 5} - {levels})))
    bench.root_entry()
    bench.context_entry(aw=levels - 2)
    assert name(bench.check(bench.request(IOVA))) == "LCT.4.1"


@pytest.mark.parametrize("aw", [1, 2])
def test_pass_through_needs_the_largest_address_width(mapped, aw):
    mapped.context_entry(tt=2, aw=aw)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.4.1"


@pytest.mark.parametrize("tt", [1, 3])
def test_context_unsupported_translation_type_is_lct_4_2(mapped, tt):
    mapped.context_entry(tt=tt)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.4.2"


def test_pass_through_without_pt_is_lct_4_2(make_bench):
    bench = make_bench(Capabilities(pass_through=False))
    bench.root_entry()
    bench.context_entry(tt=2, aw=3)
    assert name(bench.check(bench.request(IOVA))) == "LCT.4.2"


def test_top_table_fetch_error_is_lct_4_3(mapped):
    mapped.context_entry(ssptptr=ABOVE_RAM)
    assert name(mapped.check(mapped.request(IOVA))) == "LCT.4.3"


@pytest.mark.parametrize(
    ("levels", "width", "first"),
    [(3, 57, 1 << 39), (4, 57, 1 << 48), (5, 57, 1 << 57), (4, 46, 1 << 46)],
)
def test_input_above_the_limit_is_lgn_1_1(make_bench, levels, width, first):
    bench = make_bench(Capabilities(guest_address_width=width))
    bench.root_entry()
    bench.context_entry(aw=levels - 2, ssptptr=bench.table(levels))
    bench.walk_to(first - 4096, PAGE | 3, top=levels)
    assert bench.check(bench.request(first - 4096)).ok
    assert name(bench.check(bench.request(first))) == "LGN.1.1"


def test_pass_through_above_host_width_is_lgn_1_3(mapped):
    mapped.context_entry(tt=2, aw=3)
    assert mapped.check(mapped.request(ABOVE_HOST - 4)).ok
    assert name(mapped.check(mapped.request(ABOVE_HOST))) == "LGN.1.3"


def test_pass_through_output_is_the_input(mapped):
    mapped.context_entry(tt=2, aw=3)
    assert mapped.check(mapped.request(0x1234)).address == 0x1234


def test_pass_through_ignores_the_table_pointer(mapped):
    mapped.context_entry(tt=2, aw=3, ssptptr=ABOVE_HOST)
    assert mapped.check(mapped.request(0x1234)).ok


@pytest.mark.parametrize("access", [WRITE, ATOMIC])
def test_write_to_a_read_only_page_is_lgn_2(mapped, access):
    mapped.walk_to(IOVA, PAGE | 1)
    assert name(mapped.check(mapped.request(IOVA, access))) == "LGN.2"


@pytest.mark.parametrize("access", [READ, ATOMIC])
def test_read_of_a_write_only_page_is_lgn_3(mapped, access):
    mapped.walk_to(IOVA, PAGE | 2)
    assert name(mapped.check(mapped.request(IOVA, access))) == "LGN.3"


@pytest.mark.parametrize(
    ("access", "expected"), [(READ, "LGN.3"), (WRITE, "LGN.2"), (ATOMIC, "LGN.2")]
)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_entry_not_present_is_told_by_the_access(mapped, level, access, expected):
    mapped.write(mapped.entry(level, IOVA), 0xFFF_FFFF_FFFC)
    assert name(mapped.check(mapped.request(IOVA, access))) == expected


def test_permissions_are_anded_over_the_levels(mapped):
    mapped.write(mapped.entry(4, IOVA), mapped.table(3) | 1)
    assert mapped.check(mapped.request(IOVA)).permissions == READ
    assert name(mapped.check(mapped.request(IOVA, WRITE))) == "LGN.2"


def test_permissions_of_which_nothing_is_left_fault_by_the_access(mapped):
    mapped.write(mapped.entry(3, IOVA), mapped.table(2) | 1)
    mapped.walk_to(IOVA, PAGE | 2, top=2)
    assert name(mapped.check(mapped.request(IOVA, READ))) == "LGN.3"
    assert name(mapped.check(mapped.request(IOVA, WRITE))) == "LGN.2"


@pytest.mark.parametrize("level", [2, 3, 4])
def test_lower_table_fetch_error_is_lss_1(mapped, level):
    mapped.write(mapped.entry(level, IOVA), ABOVE_RAM | 3)
    assert name(mapped.check(mapped.request(IOVA))) == "LSS.1"


@pytest.mark.parametrize(
    ("level", "bit"),
    [(4, 7), (4, 11), (3, 11), (2, 11), (4, 62), (3, 62), (2, 62), (1, 62)]
    + [(level, bit) for level in (1, 2, 3, 4) for bit in (46, 51)],
)
def test_table_entry_reserved_bit_is_lss_2(mapped, level, bit):
    address = mapped.entry(level, IOVA)
    entry = int.from_bytes(mapped.read(address, 8), "little") | 1 << bit
    mapped.write(address, entry)
    assert name(mapped.check(mapped.request(IOVA))) == "LSS.2"


@pytest.mark.parametrize(("level", "bit"), [(2, 12), (2, 20), (3, 12), (3, 29), (2, 62), (3, 62)])
def test_large_page_reserved_bit_is_lss_2(mapped, level, bit):
    mapped.walk_to(IOVA, 0x4000_0083 | 1 << bit, level=level)
    assert name(mapped.check(mapped.request(IOVA))) == "LSS.2"


@pytest.mark.parametrize(("level", "large_pages"), [(2, set()), (3, set()), (3, {21})])
def test_large_page_outside_sslps_is_lss_2(make_bench, level, large_pages):
    bench = make_bench(Capabilities(large_pages=frozenset(large_pages)))
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, 0x4000_0083, level=level)
    assert name(bench.check(bench.request(IOVA))) == "LSS.2"


@pytest.mark.parametrize("level", [1, 2, 3])
def test_snoop_bit_without_snoop_control_is_lss_2(make_bench, level):
    bench = make_bench(Capabilities(snoop_control=False))
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, 0x4000_0003 | (1 << 7 if level > 1 else 0) | 1 << 11, level=level)
    assert name(bench.check(bench.request(IOVA))) == "LSS.2"


@pytest.mark.parametrize("at", [AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED])
@pytest.mark.parametrize("tt", [0, 2])
def test_translation_service_without_ats_context_is_lct_5(mapped, tt, at):
    mapped.context_entry(tt=tt, aw=3)
    result = mapped.check(mapped.request(IOVA, at=at))
    assert (name(result), result.outcome) == ("LCT.5", Outcome.UNSUPPORTED)


@pytest.mark.parametrize("output", [0xFEE0_0000, 0xFEEF_F000])
def test_output_in_the_interrupt_range_is_lgn_4(mapped, output):
    mapped.walk_to(IOVA, output | 3)
    assert name(mapped.check(mapped.request(IOVA))) == "LGN.4"


@pytest.mark.parametrize("output", [0xFEDF_F000, 0xFEF0_0000])
def test_output_beside_the_interrupt_range_passes(mapped, output):
    mapped.walk_to(IOVA, output | 3)
    assert mapped.check(mapped.request(IOVA)).ok


def test_large_page_faults_only_where_it_covers_the_interrupt_range(mapped):
    mapped.walk_to(0x4000_0000, 0xC000_0083, level=3)
    assert mapped.check(mapped.request(0x4000_0000)).ok
    assert name(mapped.check(mapped.request(0x4000_0000 | 0xFEE0_0000 & 0x3FFF_FFFF))) == "LGN.4"


@pytest.mark.parametrize(("mode", "expected"), [(1, "RTA.1.3"), (2, "RTA.1.2"), (3, "RTA.1.1")])
def test_table_mode_that_is_not_supported_is_rta_1(mapped, mode, expected):
    mapped.set_root(0x1000 | mode << 10)
    assert name(mapped.check(mapped.request(IOVA))) == expected


def test_request_with_pasid_is_rta_2(mapped):
    assert name(mapped.check(mapped.request(IOVA, pasid=7))) == "RTA.2"


@pytest.mark.parametrize(
    ("access", "length"), [(READ, 4), (ATOMIC, 4), (WRITE, 8), (WRITE, 2), (WRITE, 1)]
)
def test_interrupt_range_takes_nothing_but_dword_writes(mapped, access, length):
    assert name(mapped.check(mapped.request(0xFEE0_1000, access, length=length))) == "IR.29"


@pytest.mark.parametrize("address", [0xFEE0_0000, 0xFEEF_FFFC])
def test_dword_write_to_the_interrupt_range_is_a_message(mapped, address):
    result = mapped.check(mapped.request(address, WRITE))
    assert (result.outcome, result.address) == (Outcome.INTERRUPT, address)


def test_zero_length_read_of_the_interrupt_range_succeeds(mapped):
    result = mapped.check(mapped.request(0xFEE0_0000, zero_length=True))
    assert result.outcome is Outcome.DISCARDED


def test_every_failure_of_legacy_mode_has_a_test_above():
    """LGN.1.2 needs ATS; the rest of the reference's table is asserted by name in this file."""
    with open(__file__, encoding="utf-8") as source:
        text = source.read()
    missing = {entry for entry in FAILURES if f'"{entry}"' not in text} - {"LGN.1.2"}
    assert missing == set()


# ---- what is no fault, or not recorded -------------------------------------------------------


def test_zero_length_read_of_a_write_only_page_passes(mapped):
    mapped.walk_to(IOVA, PAGE | 2)
    assert mapped.check(mapped.request(IOVA, zero_length=True)).ok


def test_zero_length_read_without_zlr_faults(make_bench):
    bench = make_bench(Capabilities(zero_length_reads=False))
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, PAGE | 2)
    assert name(bench.check(bench.request(IOVA, zero_length=True))) == "LGN.3"


def test_zero_length_read_of_no_page_faults(mapped):
    mapped.walk_to(IOVA, 0)
    assert name(mapped.check(mapped.request(IOVA, zero_length=True))) == "LGN.3"


@pytest.mark.parametrize("values", [{"p": 0}, {"reserved_71": 1}, {"aw": 7}, {"tt": 3}])
def test_fault_processing_disable_suppresses_context_faults(mapped, values):
    mapped.context_entry(fpd=1, **values)
    assert not mapped.check(mapped.request(IOVA)).recorded


def test_fault_processing_disable_suppresses_page_faults(mapped):
    mapped.context_entry(fpd=1)
    mapped.walk_to(IOVA, 0)
    assert not mapped.check(mapped.request(IOVA)).recorded


def test_fault_processing_disable_does_not_reach_root_faults(mapped):
    mapped.context_entry(fpd=1)
    mapped.root_entry(p=0)
    assert mapped.check(mapped.request(IOVA)).recorded


def test_translation_off_passes_everything(mapped):
    mapped.enable(False)
    result = mapped.check(mapped.request(0x1234, WRITE, pasid=3))
    assert (result.outcome, result.address) == (Outcome.MEMORY, 0x1234)


@pytest.mark.parametrize("at", [AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED])
def test_translation_off_refuses_translation_services(mapped, at):
    mapped.enable(False)
    result = mapped.check(mapped.request(IOVA, at=at))
    assert (result.outcome, name(result)) == (Outcome.UNSUPPORTED, "AT")


def test_reserved_address_type_is_refused(mapped):
    assert name(mapped.check(mapped.request(IOVA, at=AddressType.RESERVED))) == "AT"


def test_write_as_translation_request_is_refused(mapped):
    request = mapped.request(IOVA, WRITE, at=AddressType.TRANSLATION_REQUEST)
    assert name(mapped.check(request)) == "AT"


def protect(bench, low=None, high=None):
    for kind, region in (("PLM", low), ("PHM", high)):
        base, limit = region or (0xFFE0_0000, 0)
        bench.unit.write(f"{kind}BASE", base)
        bench.unit.write(f"{kind}LIMIT", limit)
    bench.unit.write("PMEN", 1 << 31)


def test_protected_memory_blocks_silently_while_translation_is_off(mapped):
    mapped.enable(False)
    protect(mapped, low=(0x20_0000, 0x20_0000))
    assert mapped.check(mapped.request(0x1F_FFFC)).ok
    assert name(mapped.check(mapped.request(0x20_0000))) == "PMR"
    assert name(mapped.check(mapped.request(0x3F_FFFC))) == "PMR"
    assert mapped.check(mapped.request(0x40_0000)).ok


def test_protected_high_memory_blocks_above_4g(mapped):
    mapped.enable(False)
    protect(mapped, high=(1 << 33, 1 << 33))
    assert name(mapped.check(mapped.request(1 << 33))) == "PMR"


def test_protected_memory_blocks_pass_through(mapped):
    mapped.context_entry(tt=2, aw=3)
    protect(mapped, low=(0x20_0000, 0x20_0000))
    assert name(mapped.check(mapped.request(0x20_0000))) == "PMR"


@pytest.mark.parametrize(("major", "expected"), [(1, ""), (2, "PMR")])
def test_protected_memory_blocks_translated_requests_from_version_2_on(make_bench, major, expected):
    bench = make_bench(Capabilities(), major=major)
    bench.root_entry()
    bench.context_entry()
    bench.walk_to(IOVA, 0x20_0003)
    protect(bench, low=(0x20_0000, 0x20_0000))
    assert name(bench.check(bench.request(IOVA))) == expected


def test_protected_region_with_limit_below_base_is_off(mapped):
    mapped.enable(False)
    protect(mapped, low=(0x40_0000, 0x20_0000))
    assert mapped.check(mapped.request(0x20_0000)).ok


def test_fault_processing_disable_is_the_requesters_own_though_the_iotlb_is_shared(make_bench):
    bench = make_bench(iotlb_lookup=IotlbLookup.BY_DOMAIN)
    bench.root_entry()
    bench.context_entry(0x0310)
    bench.context_entry(0x0311, fpd=1)
    bench.walk_to(IOVA, PAGE | 1)
    assert bench.check(bench.request(IOVA, READ, requester=0x0310)).ok
    assert not bench.check(bench.request(IOVA, WRITE, requester=0x0311)).recorded


def test_translation_off_ignores_a_pasid_in_the_interrupt_range(mapped):
    mapped.enable(False)
    assert mapped.check(mapped.request(0xFEE0_0000, WRITE, pasid=1)).outcome is Outcome.INTERRUPT
