"""Device table entries: lookup, checks, what the valid bits do, special ranges (AMD-Vi 4, 7)."""

from __future__ import annotations

import pytest
from amdvi_core_bench import (
    ATOMIC,
    DEVICE,
    DEVICE_TABLE,
    DTE_ERROR,
    EVERYTHING,
    HATS_5,
    HATS_6,
    HATS_NONE,
    HOLE,
    ILLEGAL_DTE,
    INVALID_REQUEST,
    MASTER_ABORT,
    PAGE_FAULT,
    PE,
    PR,
    READ,
    RUNNING,
    RW,
    RW_FLAG,
    RZ,
    TR,
    WRITE,
    Amdvi,
    R,
    W,
    bits_of,
    dte,
)

from iommu_emu.core import Access, AddressType, Attribute, CacheId, Outcome, RequestFlag

TRANSLATION_REQUEST, TRANSLATED = AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED


@pytest.fixture
def bench() -> Amdvi:
    """A unit that is on, with an empty device table: every device passes."""
    return Amdvi()


# ---- lookup (4.1) -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, 0x10, 0x7F, 0x80, 0xFFFF])
def test_dte_is_found_by_device_id(bench: Amdvi, device: int) -> None:
    bench.set_dte(dte(permissions=0), device)
    assert bench.reads(0x5000, device) is None
    assert bench.reads(0x5000, device ^ 1) == 0x5000


@pytest.mark.parametrize(("size", "last"), [(0, 0x7F), (1, 0xFF), (0x1FF, 0xFFFF)])
def test_dte_of_the_last_device_of_the_table_is_read(bench: Amdvi, size: int, last: int) -> None:
    bench.write("DevTabBase", DEVICE_TABLE | size)
    assert bench.reads(0x5000, last) == 0x5000


@pytest.mark.parametrize(("size", "last"), [(0, 0x7F), (1, 0xFF)])
def test_dte_beyond_the_table_is_a_page_fault(bench: Amdvi, size: int, last: int) -> None:
    bench.write("DevTabBase", DEVICE_TABLE | size)
    result = bench.translate(0x5000, device=last + 1)
    assert (result.outcome, result.fault) == (Outcome.ABORTED, PAGE_FAULT)
    event = bench.event()
    assert (event.device, event.flags, event.address) == (last + 1, 0, 0x5000)


def test_dte_that_cannot_be_read_is_a_hardware_error(bench: Amdvi) -> None:
    bench.write("DevTabBase", HOLE | 0x1FF)
    assert bench.translate(0x5004, WRITE).fault == DTE_ERROR
    event = bench.event()
    assert (event.code, event.device, event.domain) == (DTE_ERROR, DEVICE, 0)
    assert event.flags == MASTER_ABORT | RW_FLAG
    assert event.address == HOLE + 32 * DEVICE


@pytest.mark.parametrize("granule", [64, 128, 256])
def test_dte_is_fetched_in_granules(granule: int) -> None:
    bench = Amdvi(granule=granule)
    address = bench.dte_address()
    bench.set_dte(dte(domain=1))
    # Another domain ID is stored directly after the first granule was fetched.
    bench.machine.arm_store(address, address + 8, 9)
    assert bench.translate(0x5000).domain == (9 if granule == 64 else 1)


# ---- checks (4.4) -----------------------------------------------------------------------------

LOW_RESERVED = [2, 3, 4, 5, 6, 7, 8, 63, 106]
HIGH_RESERVED = [*range(180, 184), 187, *range(192, 207), *range(240, 245)]
LOW_FREE = bits_of(52, (60, 53), (95, 80), (98, 97), (102, 101), (127, 107))
HIGH_FREE = bits_of((190, 190), (191, 191), (184, 184), (239, 207), (255, 245))


@pytest.mark.parametrize("bit", LOW_RESERVED)
def test_dte_reserved_bit_below_is_illegal_if_v(bench: Amdvi, bit: int) -> None:
    bench.set_dte(dte(low=1 << bit))
    assert bench.translate(0x5007).fault == ILLEGAL_DTE
    event = bench.event()
    assert (event.code, event.flags, event.device) == (ILLEGAL_DTE, RZ, DEVICE)
    assert event.address == 0x5004  # 63:2


@pytest.mark.parametrize("bit", LOW_RESERVED)
def test_dte_reserved_bit_below_does_not_matter_without_v(bench: Amdvi, bit: int) -> None:
    bench.set_dte(1 << bit)
    assert bench.reads(0x5000) == 0x5000


@pytest.mark.parametrize("bit", HIGH_RESERVED)
def test_dte_reserved_bit_above_is_illegal_if_iv(bench: Amdvi, bit: int) -> None:
    bench.set_dte(dte(iv=1, intctl=1, high=1 << bit))
    assert bench.translate(0x5000, WRITE).fault == ILLEGAL_DTE
    assert bench.event().flags == RZ | RW_FLAG


@pytest.mark.parametrize("bit", HIGH_RESERVED)
def test_dte_reserved_bit_above_does_not_matter_without_iv(bench: Amdvi, bit: int) -> None:
    bench.set_dte(dte(high=1 << bit))
    assert bench.reads(0x5000) == 0x5000


def test_dte_other_bits_are_not_checked(bench: Amdvi) -> None:
    bench.set_dte(dte(low=LOW_FREE, iv=1, intctl=1, high=HIGH_FREE))
    assert bench.reads(0x5000) == 0x5000


@pytest.mark.parametrize(
    ("efr", "mode", "legal"),
    [
        (0, 4, True),
        (0, 5, False),
        (HATS_5, 5, True),
        (HATS_5, 6, False),
        (HATS_6, 6, True),
        (HATS_6, 7, False),
        (HATS_NONE, 0, True),
        (HATS_NONE, 1, False),
    ],
)
def test_dte_mode_is_limited_by_hats(efr: int, mode: int, legal: bool) -> None:
    bench = Amdvi(efr=efr)
    bench.set_dte(dte(mode=mode))
    fault = bench.translate(0x5000).fault
    assert (fault != ILLEGAL_DTE) is legal
    if not legal:
        assert bench.event().flags == 0


def test_dte_root_is_illegal_without_host_tables() -> None:
    bench = Amdvi(efr=HATS_NONE)
    bench.set_dte(dte(root=0x1000))
    assert bench.translate(0x5000).fault == ILLEGAL_DTE


def test_dte_mode_does_not_matter_without_tv(bench: Amdvi) -> None:
    bench.set_dte(dte(tv=0, mode=7))
    assert bench.translate(0x5000).fault == PAGE_FAULT


@pytest.mark.parametrize(
    "entry",
    [
        dte(low=3 << 99),  # IoCtl
        dte(iv=1, intctl=3),
        dte(iv=1, intctl=1, high=12 << 129),  # IntTabLen
        dte(v=0, iv=1, intctl=3),
    ],
)
def test_dte_reserved_value_is_illegal(bench: Amdvi, entry: int) -> None:
    bench.set_dte(entry)
    assert bench.translate(0x5000).fault == ILLEGAL_DTE
    assert bench.event().flags == 0


@pytest.mark.parametrize(
    "entry", [dte(v=0, low=3 << 99), dte(intctl=3), dte(high=12 << 129), dte(low=2 << 99)]
)
def test_dte_reserved_value_of_a_half_that_is_not_valid_is_legal(bench: Amdvi, entry: int) -> None:
    bench.set_dte(entry)
    assert bench.reads(0x5000) == 0x5000


def test_dte_that_is_illegal_is_not_cached(bench: Amdvi) -> None:
    bench.set_dte(dte(low=1 << 2))
    assert bench.translate(0x5000).fault == ILLEGAL_DTE
    bench.set_dte(dte())
    assert bench.reads(0x5000) == 0x5000


# ---- what the valid bits do (4.3) -------------------------------------------------------------


def test_dte_without_v_passes_unchanged(bench: Amdvi) -> None:
    bench.set_dte(dte(v=0, tv=1, permissions=0, domain=5))
    result = bench.translate(0x1234_5678, WRITE)
    assert (result.outcome, result.address, result.domain) == (Outcome.MEMORY, 0x1234_5678, 0)
    assert result.attributes is Attribute.UNTRANSLATED_PASS


def test_dte_without_tv_is_a_page_fault(bench: Amdvi) -> None:
    bench.set_dte(dte(tv=0, domain=9))
    result = bench.translate(0x5010)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.ABORTED, PAGE_FAULT, True)
    event = bench.event()
    assert (event.code, event.device, event.domain) == (PAGE_FAULT, DEVICE, 9)
    assert (event.flags, event.address) == (0, 0x5010)


def test_dte_mode_0_is_the_identity(bench: Amdvi) -> None:
    bench.set_dte(dte(domain=6))
    result = bench.translate(0xFFFF_0000_5678, ATOMIC)
    assert (result.outcome, result.address) == (Outcome.MEMORY, 0xFFFF_0000_5678)
    assert (result.page_shift, result.domain, result.permissions) == (12, 6, Access(RW))


@pytest.mark.parametrize(
    ("permissions", "access", "allowed"),
    [
        (R, READ, True),
        (R, WRITE, False),
        (R, ATOMIC, False),
        (W, READ, False),
        (W, WRITE, True),
        (W, ATOMIC, False),
        (0, READ, False),
        (0, WRITE, False),
        (RW, ATOMIC, True),
    ],
)
@pytest.mark.parametrize("mode", [0, 4])
def test_dte_permissions_limit_every_mode(
    bench: Amdvi, mode: int, permissions: int, access: Access, allowed: bool
) -> None:
    if mode:
        bench.attach(permissions=permissions, domain=1).map(0x5000, 0x5000)
    else:
        bench.set_dte(dte(permissions=permissions))
    result = bench.translate(0x5000, access, length=8)
    assert result.ok is allowed
    if not allowed:
        flags = PR | PE | (RW_FLAG if access & WRITE else 0)
        assert (result.outcome, bench.event().flags) == (Outcome.ABORTED, flags)


@pytest.mark.parametrize("entry", [dte(), dte(v=0), dte(low=1 << 96), dte(tv=0)])
def test_translation_request_without_ats_is_invalid(bench: Amdvi, entry: int) -> None:
    bench.set_dte(entry)
    assert bench.translate(0x5000, at=TRANSLATION_REQUEST).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags, event.address) == (INVALID_REQUEST, TR, 0x5000)


@pytest.mark.parametrize("entry", [dte(), dte(v=0), dte(low=1 << 96)])
def test_pretranslated_request_without_ats_is_invalid(bench: Amdvi, entry: int) -> None:
    bench.set_dte(entry)
    assert bench.translate(0x5000, WRITE, at=TRANSLATED).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags) == (INVALID_REQUEST, 1 << 9)


def test_pretranslated_request_passes_a_unit_that_is_off() -> None:
    bench = Amdvi(on=False)
    assert bench.translate(0x5000, at=TRANSLATED).address == 0x5000


@pytest.mark.parametrize(
    ("at", "on"),
    [(TRANSLATION_REQUEST, False), (AddressType.RESERVED, False), (AddressType.RESERVED, True)],
)
def test_address_type_that_is_not_valid_is_unsupported(at: AddressType, on: bool) -> None:
    bench = Amdvi(on=on)
    result = bench.translate(0x5000, at=at)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.UNSUPPORTED, 0, False)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (RequestFlag.NONE, 0x001 | 0x004),
        (RequestFlag.PRIVILEGED, 0x001),
        (RequestFlag.EXECUTE, 0x001 | 0x002 | 0x004),
    ],
)
def test_pasid_without_guest_translation_is_a_page_fault(
    bench: Amdvi, flags: RequestFlag, expected: int
) -> None:
    bench.set_dte(dte(domain=3))
    assert bench.translate(0x5000, pasid=0xA_BCDE, flags=flags).fault == PAGE_FAULT
    event = bench.event()
    assert event.flags == expected
    assert event.low >> 16 & 0xF == 0xA
    assert event.low >> 32 & 0xFFFF == 0xBCDE


def test_pasid_does_not_matter_without_v(bench: Amdvi) -> None:
    assert bench.translate(0x5000, pasid=1).address == 0x5000


# ---- special ranges (7.1, 7.2, 10.2) ----------------------------------------------------------

IOCTL, SYSMGT = 99, 104
PORT_IO, SYSTEM, RESERVED_HT = 0xFD_FC00_0000, 0xFD_F910_0000, 0xFD_0000_0000
INTERRUPT_HT = 0xFD_F800_0000


@pytest.mark.parametrize(
    ("address", "fields", "access", "kind"),
    [
        (PORT_IO, 0, READ, 2),
        (PORT_IO + 0x1FF_FFFC, 0, WRITE, 2),
        (SYSTEM, 0, WRITE, 3),
        (SYSTEM, 0, READ, 4),
        (SYSTEM + 0xF_FFFC, 2 << SYSMGT, WRITE, 3),
        (SYSTEM, 2 << SYSMGT, READ, 4),
        (RESERVED_HT, 0, WRITE, 6),
        (RESERVED_HT, 0, READ, 0),
        (INTERRUPT_HT - 4, 0, WRITE, 6),
        (INTERRUPT_HT, 0, READ, 0),
    ],
)
def test_special_range_is_refused(
    bench: Amdvi, address: int, fields: int, access: Access, kind: int
) -> None:
    bench.set_dte(dte(low=fields))
    assert bench.translate(address, access).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags, event.address) == (INVALID_REQUEST, kind << 9, address)


@pytest.mark.parametrize(
    ("address", "fields"),
    [
        (PORT_IO, 1 << IOCTL),
        (SYSTEM, 1 << SYSMGT),
        (PORT_IO + 0x1FF_FFFC, 1 << IOCTL),
        (SYSTEM + 0xF_FFFC, 1 << SYSMGT),
    ],
)
def test_special_range_is_forwarded(bench: Amdvi, address: int, fields: int) -> None:
    bench.set_dte(dte(tv=0, low=fields))
    result = bench.translate(address, WRITE)
    assert (result.outcome, result.address) == (Outcome.MEMORY, address)


@pytest.mark.parametrize(
    ("address", "fields"),
    [
        (PORT_IO, 2 << IOCTL),
        (SYSTEM, 3 << SYSMGT),
        (0xFD_F900_0000, 0),
        (0xFD_F920_0000, 0),
        (0xFD_FB00_0000, 0),
        (0xFD_FE00_0000, 0),
        (0xFE_2000_0000, 0),
        (0xFF_FFFF_FFFC, 0),
    ],
)
def test_special_range_is_translated(bench: Amdvi, address: int, fields: int) -> None:
    bench.attach(low=fields).map(address, 0x9000)
    assert bench.reads(address) == 0x9000 | address & 0xFFF


@pytest.mark.parametrize(("address", "fields"), [(PORT_IO, 2 << IOCTL), (SYSTEM, 3 << SYSMGT)])
def test_special_range_that_would_need_a_table_is_invalid(
    bench: Amdvi, address: int, fields: int
) -> None:
    bench.set_dte(dte(tv=0, low=fields))
    assert bench.translate(address, WRITE).fault == INVALID_REQUEST
    assert bench.event().flags == 7 << 9


@pytest.mark.parametrize("address", [PORT_IO, SYSTEM, RESERVED_HT])
def test_special_range_passes_without_v(bench: Amdvi, address: int) -> None:
    assert bench.reads(address) == address


@pytest.mark.parametrize("address", [0xFC_FFFF_FFFC, 0x100_0000_0000])
def test_special_range_has_no_neighbours(bench: Amdvi, address: int) -> None:
    bench.set_dte(dte())
    assert bench.reads(address) == address


def test_special_range_is_not_hidden_by_a_large_page(bench: Amdvi) -> None:
    bench.attach().map(0x80_0000_0000, 0, shift=39)
    assert bench.reads(0xFC_0000_0000) == 0x7C_0000_0000
    assert bench.translate(PORT_IO, READ).fault == INVALID_REQUEST
    assert bench.translate(0xFEE0_0000, READ).fault != 0


# ---- caching (13) -----------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [dte(v=0), dte(), dte(tv=0)])
def test_dte_is_cached_whatever_its_valid_bits(bench: Amdvi, entry: int) -> None:
    bench.set_dte(entry)
    bench.translate(0x5000)
    (cached,) = bench.unit.entries(CacheId.CONTEXT)
    assert (cached.requester, cached.output, cached.negative) == (
        DEVICE,
        entry & (1 << 64) - 1,
        False,
    )


def test_dte_is_read_once(bench: Amdvi) -> None:
    bench.set_dte(dte(v=0))
    for _ in range(3):
        bench.translate(0x5000)
    assert bench.counter("ctxt_cache_lookup") == 3
    assert bench.counter("ctxt_cache_hit") == 2
    assert bench.counter("iommu_mrds") == 1


def test_unit_that_is_off_reads_no_dte() -> None:
    bench = Amdvi(efr=EVERYTHING)
    bench.write("Control", RUNNING & ~1)
    bench.translate(0x5000)
    assert bench.counter("ctxt_cache_lookup") == 0
