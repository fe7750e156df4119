"""Root and context entries, translation types, order of checks (VT-d 4.1, 4.3, 5.2, 8.3)."""

from __future__ import annotations

import pytest
from core_bench import (
    DEVICE,
    DOMAIN,
    HOLE,
    READ,
    ROOT_TABLE,
    SELECTIVE,
    TE,
    WRITE,
    Bench,
    ByRegister,
    bits,
)

from iommu_emu.core import Access, AddressType, Attribute, Outcome

ROOT_NOT_PRESENT, CONTEXT_NOT_PRESENT, PROGRAMMING, BEYOND = 0x01, 0x02, 0x03, 0x04
ROOT_FETCH, CONTEXT_FETCH, ROOT_RESERVED, CONTEXT_RESERVED, BLOCKED = 0x08, 0x09, 0x0A, 0x0B, 0x0D
BAD_MODE, PASID_IN_LEGACY = 0x30, 0x31

SECOND_STAGE, WITH_ATS, PASS_THROUGH, TT_RESERVED = range(4)


def ready(bench: Bench, requester: int = DEVICE, **context: int) -> None:
    """Attach a requester with a page at 5000h, and enable."""
    bench.attach(requester, **context).map(0x5000, 0x20_0000)
    bench.enable()


def flip(bench: Bench, at: int, bit: int) -> None:
    """Toggle a bit of a 128-bit entry."""
    at += 8 * (bit // 64)
    bench.poke(at, bench.peek(at) ^ 1 << bit % 64)


# ---- root entry (4.1) -----------------------------------------------------------------------


@pytest.mark.parametrize("requester", [0x0000, 0x0100, 0x80FF, 0xFF08, 0xFFFF])
def test_context_is_found_by_bus_and_function(bench: Bench, requester: int) -> None:
    ready(bench, requester)
    assert bench.reads(0x5000, requester) == 0x20_0000
    assert bench.fault(0x5000, requester=requester ^ 0x01) == CONTEXT_NOT_PRESENT
    assert bench.fault(0x5000, requester=requester ^ 0x80) == CONTEXT_NOT_PRESENT
    assert bench.fault(0x5000, requester=requester ^ 0x100) == ROOT_NOT_PRESENT
    assert bench.fault(0x5000, requester=requester ^ 0x8000) == ROOT_NOT_PRESENT


def test_context_root_fetch_error(bench: Bench) -> None:
    ready(bench)
    bench.set_root(HOLE)
    assert bench.fault(0x5000) == ROOT_FETCH


def test_context_root_not_present_ignores_the_rest(bench: Bench) -> None:
    ready(bench)
    bench.poke(bench.root_entry(0), ~1 & (1 << 64) - 1, (1 << 64) - 1)
    assert bench.fault(0x5000) == ROOT_NOT_PRESENT


@pytest.mark.parametrize("bit", bits((11, 1), (63, 39), (127, 64)))
def test_context_root_reserved_bit(bench: Bench, bit: int) -> None:
    ready(bench)
    flip(bench, bench.root_entry(0), bit)
    assert bench.fault(0x5000) == ROOT_RESERVED


@pytest.mark.parametrize(("haw", "code"), [(39, ROOT_RESERVED), (40, CONTEXT_FETCH)])
def test_context_root_pointer_reaches_the_host_address_width(haw: int, code: int) -> None:
    bench = Bench(haw=haw)
    ready(bench)
    flip(bench, bench.root_entry(0), 39)
    assert bench.fault(0x5000) == code


# ---- context entry (4.3) --------------------------------------------------------------------


def test_context_fetch_error(bench: Bench) -> None:
    ready(bench)
    bench.poke(bench.root_entry(0), HOLE | 1)
    assert bench.fault(0x5000) == CONTEXT_FETCH


def test_context_not_present_ignores_the_rest(bench: Bench) -> None:
    ready(bench)
    bench.poke(bench.context_entry(), ~1 & (1 << 64) - 1, (1 << 64) - 1)
    assert bench.fault(0x5000) == CONTEXT_NOT_PRESENT


@pytest.mark.parametrize("bit", bits((11, 4), (63, 39), 71, (127, 88)))
def test_context_reserved_bit(bench: Bench, bit: int) -> None:
    ready(bench)
    flip(bench, bench.context_entry(), bit)
    assert bench.fault(0x5000) == CONTEXT_RESERVED


@pytest.mark.parametrize("bit", bits((70, 67)))
def test_context_ignored_bit(bench: Bench, bit: int) -> None:
    ready(bench)
    flip(bench, bench.context_entry(), bit)
    assert bench.reads(0x5000) == 0x20_0000


@pytest.mark.parametrize("width", range(4, 17, 2))
def test_context_domain_id_is_as_wide_as_nd_says(width: int) -> None:
    bench = Bench(domain_bits=width)
    ready(bench, domain=1 << width - 1)
    assert bench.translate(0x5000).domain == 1 << width - 1
    for bit in range(width, 16):
        bench.set_context(DEVICE, bench.peek(bench.context_entry()), (1 << bit) << 8 | 2)
        ByRegister(bench).context(DOMAIN, 1 << width - 1)
        ByRegister(bench).iotlb(DOMAIN, 1 << width - 1)
        assert bench.fault(0x5000) == CONTEXT_RESERVED


@pytest.mark.parametrize("aw", range(8))
@pytest.mark.parametrize("levels", [{3}, {4}, {5}, {3, 4}, {3, 4, 5}])
def test_context_address_width_must_be_supported(levels: set[int], aw: int) -> None:
    bench = Bench(levels=frozenset(levels))
    ready(bench)
    bench.set_context(DEVICE, bench.peek(bench.context_entry()), 1 << 8 | aw)
    bad = bench.fault(0x1000) == PROGRAMMING
    assert bad is (aw + 2 not in levels)


@pytest.mark.parametrize(
    ("tt", "device_tlb", "pass_through", "code"),
    [
        (SECOND_STAGE, False, False, 0),
        (WITH_ATS, True, False, 0),
        (WITH_ATS, False, True, PROGRAMMING),
        (PASS_THROUGH, False, True, 0),
        (PASS_THROUGH, True, False, PROGRAMMING),
        (TT_RESERVED, True, True, PROGRAMMING),
    ],
)
def test_context_translation_type_must_be_supported(
    tt: int, device_tlb: bool, pass_through: bool, code: int
) -> None:
    bench = Bench(device_tlb=device_tlb, pass_through=pass_through, levels=frozenset({4}))
    ready(bench, tt=tt)
    assert bench.fault(0x5000) == code


# ---- pass-through (TT=10) -------------------------------------------------------------------


def test_context_pass_through_output_is_input(bench: Bench) -> None:
    ready(bench, tt=PASS_THROUGH, levels=5, domain=9)
    for access in (READ, WRITE, Access.ATOMIC):
        result = bench.translate(0x1234_5678, access)
        assert (result.address, result.domain, result.fault) == (0x1234_5678, 9, 0)
        assert result.permissions is Access.READ | Access.WRITE


@pytest.mark.parametrize("bit", [12, 38, 39, 63])
def test_context_pass_through_ignores_the_table_pointer(bench: Bench, bit: int) -> None:
    ready(bench, tt=PASS_THROUGH, levels=5)
    flip(bench, bench.context_entry(), bit)
    assert bench.reads(0x1234_5678) == 0x1234_5678


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_context_pass_through_needs_the_largest_width(bench: Bench, levels: int) -> None:
    ready(bench, tt=PASS_THROUGH, levels=levels)
    assert bench.fault(0x5000) == (0 if levels == 5 else PROGRAMMING)


@pytest.mark.parametrize("haw", [39, 46])
def test_context_pass_through_limit_is_the_host_address_width(haw: int) -> None:
    bench = Bench(haw=haw)
    ready(bench, tt=PASS_THROUGH, levels=5)
    assert bench.reads((1 << haw) - 4) == (1 << haw) - 4
    for bit in range(haw, 64):
        assert bench.fault(1 << bit) == BEYOND


# ---- request classes (5.2, 6.1, 6.3) --------------------------------------------------------

CLASSES = [
    # tt, address type, outcome, code, diagnostic name
    (SECOND_STAGE, AddressType.UNTRANSLATED, Outcome.MEMORY, 0),
    (SECOND_STAGE, AddressType.TRANSLATION_REQUEST, Outcome.UNSUPPORTED, BLOCKED),
    (SECOND_STAGE, AddressType.TRANSLATED, Outcome.UNSUPPORTED, BLOCKED),
    (WITH_ATS, AddressType.UNTRANSLATED, Outcome.MEMORY, 0),
    (WITH_ATS, AddressType.TRANSLATION_REQUEST, Outcome.MEMORY, 0),
    (WITH_ATS, AddressType.TRANSLATED, Outcome.MEMORY, 0),
    (PASS_THROUGH, AddressType.UNTRANSLATED, Outcome.MEMORY, 0),
    (PASS_THROUGH, AddressType.TRANSLATION_REQUEST, Outcome.UNSUPPORTED, BLOCKED),
    (PASS_THROUGH, AddressType.TRANSLATED, Outcome.UNSUPPORTED, BLOCKED),
    (TT_RESERVED, AddressType.UNTRANSLATED, Outcome.UNSUPPORTED, PROGRAMMING),
    (TT_RESERVED, AddressType.TRANSLATION_REQUEST, Outcome.ABORTED, PROGRAMMING),
    (TT_RESERVED, AddressType.TRANSLATED, Outcome.UNSUPPORTED, PROGRAMMING),
]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(("tt", "at", "outcome", "code"), CLASSES)
def test_context_type_selects_the_request_classes(
    tt: int, at: AddressType, outcome: Outcome, code: int, warm: bool
) -> None:
    bench = Bench(device_tlb=True)
    ready(bench, tt=tt, levels=5)
    if warm:  # an untranslated request has filled every cache
        bench.translate(0x5000)
    result = bench.translate(0x5000, at=at)
    assert (result.outcome, result.fault, result.recorded) == (outcome, code, code != 0)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_context_translation_request_walks(warm: bool) -> None:
    bench = Bench(device_tlb=True)
    ready(bench, tt=WITH_ATS)
    if warm:
        bench.translate(0x5000)
    result = bench.translate(0x5000, at=AddressType.TRANSLATION_REQUEST, length=8)
    assert (result.address, result.page_shift) == (0x20_0000, 12)
    assert result.permissions is Access.READ | Access.WRITE


def test_context_translated_request_is_not_walked() -> None:
    bench = Bench(device_tlb=True)
    ready(bench, tt=WITH_ATS)
    result = bench.translate(0x7123, WRITE, at=AddressType.TRANSLATED)
    assert (result.address, result.attributes) == (0x7123, Attribute.UNTRANSLATED_PASS)


def test_context_translated_request_never_uses_the_iotlb() -> None:
    bench = Bench(device_tlb=True)
    ready(bench, tt=WITH_ATS)
    assert bench.reads(0x5000) == 0x20_0000
    assert bench.translate(0x5000, at=AddressType.TRANSLATED).address == 0x5000


@pytest.mark.parametrize(
    ("address", "code"), [(1 << 39, 0x04), (0xFEE0_0000, 0x0E), (0xFEEF_FFFC, 0x0E)]
)
def test_context_translated_request_address_is_checked(address: int, code: int) -> None:
    bench = Bench(device_tlb=True)
    ready(bench, tt=WITH_ATS)
    result = bench.translate(address, at=AddressType.TRANSLATED)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, code)


@pytest.mark.parametrize(
    ("at", "access"),
    [
        (AddressType.RESERVED, READ),
        (AddressType.RESERVED, WRITE),
        (AddressType.TRANSLATION_REQUEST, WRITE),
        (AddressType.TRANSLATION_REQUEST, Access.ATOMIC),
    ],
)
@pytest.mark.parametrize("enabled", [False, True])
def test_context_malformed_address_type_is_unsupported(
    at: AddressType, access: Access, enabled: bool
) -> None:
    bench = Bench(device_tlb=True)
    ready(bench, tt=WITH_ATS)
    bench.command(TE, enabled)
    result = bench.translate(0x5000, access, at=at)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.UNSUPPORTED, 0, False)
    assert bench.records() == []


# ---- translation mode (2.5) -----------------------------------------------------------------


@pytest.mark.parametrize("ttm", [1, 2, 3])
def test_context_translation_table_mode_must_be_supported(bench: Bench, ttm: int) -> None:
    ready(bench)
    bench.write("PMEN", 0)
    bench.translate(0x5000)  # what is cached does not matter
    bench.set_root(ROOT_TABLE | ttm << 10)
    result = bench.translate(0x5000)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, BAD_MODE)
    assert result.recorded


def test_context_mode_is_checked_before_the_root_entry(bench: Bench) -> None:
    bench.set_root(HOLE | 2 << 10)
    bench.command(TE)
    assert bench.fault(0x5000) == BAD_MODE


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_context_pasid_is_refused_in_legacy_mode(bench: Bench, warm: bool) -> None:
    ready(bench)
    if warm:
        bench.translate(0x5000)
    result = bench.translate(0x5000, pasid=0)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, PASID_IN_LEGACY)


# ---- translation disabled (5.1) -------------------------------------------------------------


def test_context_disabled_unit_passes_everything(bench: Bench) -> None:
    for address in (0, 0x1234_5678, (1 << 64) - 4):
        result = bench.translate(address, WRITE, pasid=5)
        assert (result.outcome, result.address) == (Outcome.MEMORY, address)
        assert result.attributes is Attribute.UNTRANSLATED_PASS


@pytest.mark.parametrize("at", [AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED])
def test_context_disabled_unit_refuses_ats(at: AddressType) -> None:
    bench = Bench(device_tlb=True)
    result = bench.translate(0x5000, at=at)
    assert (result.outcome, result.recorded) == (Outcome.UNSUPPORTED, False)


@pytest.mark.parametrize("protect", [None, 0, 1 << 31])
def test_context_disabling_again_passes(bench: Bench, protect: int | None) -> None:
    """Whatever else was written before: what is cached must not answer any more."""
    bench.write("PLMBASE", 0x60_0000)
    bench.write("PHMBASE", 0x60_0000)  # limits are 0: both regions are empty
    ready(bench)
    if protect is not None:
        bench.write("PMEN", protect)
    assert bench.reads(0x5000) == 0x20_0000
    bench.command(TE, on=False)
    assert bench.reads(0x5000) == 0x5000
    bench.command(TE)
    assert bench.reads(0x5000) == 0x20_0000


# ---- order of checks (8.3) ------------------------------------------------------------------


def test_context_reserved_is_found_before_programming(bench: Bench) -> None:
    ready(bench, tt=TT_RESERVED)
    flip(bench, bench.context_entry(), 71)
    assert bench.fault(0x5000) == CONTEXT_RESERVED


def test_context_programming_is_found_before_the_request_class() -> None:
    bench = Bench(device_tlb=True)
    ready(bench, levels=5)
    bench.set_context(DEVICE, bench.peek(bench.context_entry()), 1 << 8 | 7)
    assert bench.fault(0x5000) == PROGRAMMING
    result = bench.translate(0x5000, at=AddressType.TRANSLATED)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, PROGRAMMING)


def test_context_input_limit_is_found_before_the_walk(bench: Bench) -> None:
    bench.set_context(DEVICE, HOLE | 1, 1 << 8 | 1)
    bench.enable()
    assert bench.fault(1 << 39) == BEYOND


def test_context_two_functions_have_two_tables(bench: Bench) -> None:
    bench.attach(0x10, domain=1).map(0x5000, 0x20_0000)
    bench.attach(0x18, domain=2).map(0x5000, 0x21_0000)
    bench.enable()
    for _ in range(2):
        assert bench.reads(0x5000, 0x10) == 0x20_0000
        assert bench.reads(0x5000, 0x18) == 0x21_0000


def test_context_two_functions_may_share_a_domain(bench: Bench) -> None:
    table = bench.attach(0x10, domain=1)
    table.map(0x5000, 0x20_0000)
    bench.attach(0x18, domain=1, table=table)
    bench.enable()
    assert bench.reads(0x5000, 0x10) == bench.reads(0x5000, 0x18) == 0x20_0000


def test_context_changed_entry_counts_after_its_invalidations(bench: Bench) -> None:
    ready(bench)
    assert bench.reads(0x5000) == 0x20_0000
    bench.attach(domain=2).map(0x5000, 0x21_0000)
    way = ByRegister(bench)
    way.context(SELECTIVE, 1, DEVICE)
    way.iotlb(DOMAIN, 1)
    assert bench.reads(0x5000) == 0x21_0000
