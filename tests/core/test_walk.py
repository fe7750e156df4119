"""Second-stage walks: levels, page sizes, permissions, reserved bits, limits (VT-d 4.8, 5.7)."""

from __future__ import annotations

import pytest
from core_bench import (
    ATOMIC,
    HOLE,
    PS,
    RAM,
    READ,
    RW,
    SNP,
    WRITE,
    Bench,
    R,
    W,
    bits,
    without,
)

from iommu_emu.core import Access, Attribute, IotlbLookup, Outcome, RequestFlag

PAGE_BITS = {1: 12, 2: 21, 3: 30}
NO_WRITE, NO_READ, RESERVED = 0x05, 0x06, 0x0C

# An input address whose index differs at every level, and an offset below the smallest page.
IOVA = 1 << 48 | 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12 | 0x678


def iova_for(levels: int) -> int:
    return IOVA & ((1 << 12 + 9 * levels) - 1)


@pytest.mark.parametrize("leaf", [1, 2, 3])
@pytest.mark.parametrize("levels", [3, 4, 5])
def test_walk_reaches_the_page(bench: Bench, levels: int, leaf: int) -> None:
    iova, shift = iova_for(levels), PAGE_BITS[leaf]
    bench.attach(levels=levels, domain=7).map(iova, 5 << 30, level=leaf)
    bench.enable()
    result = bench.translate(iova)
    assert result.outcome is Outcome.MEMORY
    assert result.address == 5 << 30 | iova & (1 << shift) - 1
    assert result.page_shift == shift
    assert result.permissions is Access.READ | Access.WRITE
    assert result.domain == 7
    assert (result.fault, result.diagnostic, result.recorded) == (0, 0, False)


@pytest.mark.parametrize("bit", range(12, 48))
def test_walk_uses_every_index_bit(bench: Bench, bit: int) -> None:
    bench.attach(levels=4).map(iova_for(4), 0x20_0000)
    bench.enable()
    assert bench.fault(iova_for(4) ^ 1 << bit) == NO_READ


@pytest.mark.parametrize("leaf", [2, 3])
def test_walk_large_page_covers_its_last_byte_and_no_more(bench: Bench, leaf: int) -> None:
    size = 1 << PAGE_BITS[leaf]
    bench.attach().map(size, 2 * size, level=leaf)
    bench.enable()
    assert bench.reads(2 * size - 4) == 3 * size - 4
    assert bench.fault(2 * size) == NO_READ
    assert bench.fault(size - 4) == NO_READ


# ---- permissions (5.7) ----------------------------------------------------------------------

ALLOWED = [
    (R, READ, 0),
    (R, WRITE, NO_WRITE),
    (R, ATOMIC, NO_WRITE),
    (W, READ, NO_READ),
    (W, WRITE, 0),
    (W, ATOMIC, NO_READ),
    (RW, READ, 0),
    (RW, WRITE, 0),
    (RW, ATOMIC, 0),
    (0, READ, NO_READ),
    (0, WRITE, NO_WRITE),
    (0, ATOMIC, NO_WRITE),  # write before read: unconfirmed in 8.3
]


@pytest.mark.parametrize(("bits", "access", "code"), ALLOWED)
def test_walk_leaf_permission(bench: Bench, bits: int, access: Access, code: int) -> None:
    bench.attach().map(0x5000, 0x20_0000, bits)
    bench.enable()
    assert bench.fault(0x5000, access) == code


@pytest.mark.parametrize("level", [2, 3, 4, 5])
@pytest.mark.parametrize(("bits", "access", "code"), ALLOWED)
def test_walk_needs_the_permission_in_every_entry(
    bench: Bench, level: int, bits: int, access: Access, code: int
) -> None:
    table = bench.attach(levels=5)
    table.map(0x5000, 0x20_0000)
    at = table.entry(0x5000, level)
    bench.poke(at, bench.peek(at) & ~RW | bits)
    bench.enable()
    assert bench.fault(0x5000, access) == code


def test_walk_reports_the_permissions_of_the_whole_path(bench: Bench) -> None:
    table = bench.attach()
    table.map(0x5000, 0x20_0000, RW)
    at = table.entry(0x5000, 3)
    bench.poke(at, bench.peek(at) & ~W)
    bench.enable()
    assert bench.translate(0x5000).permissions is Access.READ


@pytest.mark.parametrize("zlr", [True, False])
@pytest.mark.parametrize(("leaf", "code"), [(R, 0), (W, None), (RW, 0), (0, NO_READ)])
def test_walk_zero_length_read(zlr: bool, leaf: int, code: int | None) -> None:
    bench = Bench(zero_length_reads=zlr)
    bench.attach().map(0x5000, 0x20_0000, leaf)
    bench.enable()
    expected = (0 if zlr else NO_READ) if code is None else code  # write-only: 5.5
    for _ in range(2):  # from the tables, then from the IOTLB
        result = bench.translate(0x5000, length=0, flags=RequestFlag.ZERO_LENGTH)
        assert result.fault == expected


def test_walk_zero_length_read_lets_no_real_read_through(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000, W)
    bench.enable()
    assert bench.fault(0x5000) == NO_READ


# ---- reserved and ignored bits (4.8) --------------------------------------------------------


def reserved_bits(level: int, leaf: bool, haw: int, snoop: bool) -> list[int]:
    found = [*bits((51, haw)), 62]
    if not leaf:
        return found + [11] + ([7] if level > 3 else [])
    if not snoop:
        found.append(11)
    return found + bits((PAGE_BITS[level] - 1, 12)) if level > 1 else found


def reserved_cases() -> list[tuple[int, bool, int, bool, int]]:
    return [
        (level, leaf, haw, snoop, bit)
        for level in range(1, 6)
        for leaf in (False, True)
        if (level > 1 or leaf) and (level < 4 or not leaf)
        for haw, snoop in ((39, True), (46, False))
        for bit in reserved_bits(level, leaf, haw, snoop)
    ]


@pytest.mark.parametrize(("level", "leaf", "haw", "snoop", "bit"), reserved_cases())
def test_walk_reserved_bit(level: int, leaf: bool, haw: int, snoop: bool, bit: int) -> None:
    bench = Bench(haw=haw, snoop_control=snoop)
    table = bench.attach(levels=5)
    if leaf:
        at = table.map(0x4000_0000, 0x4000_0000, level=level)
    else:
        table.map(0x4000_0000, 0x4000_0000)
        at = table.entry(0x4000_0000, level)
    bench.poke(at, bench.peek(at) | 1 << bit)
    bench.enable()
    assert bench.fault(0x4000_0000) == RESERVED


def ignored_cases() -> list[tuple[int, bool, int]]:
    cases = []
    for level in range(1, 6):
        for leaf in (False, True):
            if (level == 1 and not leaf) or (level > 3 and leaf):
                continue
            address = bits((38, PAGE_BITS[level] if leaf else 12))
            used = [0, 1, *address, *reserved_bits(level, leaf, 39, True)]
            if level > 1:
                used.append(7)
            if leaf:
                used.append(11)
            cases += [(level, leaf, bit) for bit in without(range(64), used)]
    return cases


@pytest.mark.parametrize(("level", "leaf", "bit"), ignored_cases())
def test_walk_ignored_bit(bench: Bench, level: int, leaf: bool, bit: int) -> None:
    table = bench.attach(levels=5)
    if leaf:
        at = table.map(0x4000_0000, 0x8000_0000, level=level)
    else:
        table.map(0x4000_0000, 0x8000_0000)
        at = table.entry(0x4000_0000, level)
    bench.poke(at, bench.peek(at) | 1 << bit)
    bench.enable()
    result = bench.translate(0x4000_0000)
    assert (result.address, result.attributes) == (0x8000_0000, Attribute.NONE)


@pytest.mark.parametrize("level", range(1, 6))
def test_walk_not_present_entry_has_no_reserved_bits(bench: Bench, level: int) -> None:
    bench.attach(levels=5).set(0x4000_0000, level, ~RW & (1 << 64) - 1)
    bench.enable()
    assert bench.fault(0x4000_0000, READ) == NO_READ
    assert bench.fault(0x4000_0000, WRITE) == NO_WRITE


@pytest.mark.parametrize("access_bit", [R, W])
def test_walk_reserved_bits_count_with_either_permission(bench: Bench, access_bit: int) -> None:
    bench.attach().set(0x4000_0000, 1, 0x20_0000 | access_bit | 1 << 62)
    bench.enable()
    assert bench.fault(0x4000_0000, READ) == RESERVED
    assert bench.fault(0x4000_0000, WRITE) == RESERVED


@pytest.mark.parametrize(
    ("sizes", "level", "code"),
    [
        (set(), 2, RESERVED),
        (set(), 3, RESERVED),
        ({21}, 2, 0),
        ({21}, 3, RESERVED),
        ({21, 30}, 2, 0),
        ({21, 30}, 3, 0),
    ],
)
def test_walk_page_size_must_be_supported(sizes: set[int], level: int, code: int) -> None:
    bench = Bench(large_pages=frozenset(sizes))
    bench.attach().map(0x4000_0000, 0x8000_0000, level=level)
    bench.enable()
    result = bench.translate(0x4000_0000)
    assert result.fault == code
    if code:
        assert result.cause is not None
        assert result.cause.condition.endswith("page size not supported at this level")


@pytest.mark.parametrize(
    ("value", "level", "name"),
    [
        (1 << 39 | 0x20_0000 | RW, 1, "address above the host address width"),
        (0x20_1000 | RW | PS, 2, "large page not aligned"),
        (0x40_1000 | RW | PS, 3, "large page not aligned"),
        (0x20_0000 | RW | SNP, 2, "SNP where it is reserved"),
        (0x20_0000 | RW | 1 << 62, 1, "bit 62 without SSIRWE"),
        (0x20_0000 | RW | 1 << 62, 3, "bit 62 without SSIRWE"),
        (0x20_0000 | RW | PS, 4, "page size not supported at this level"),
    ],
)
def test_walk_diagnostic_names_the_reserved_field(
    bench: Bench, value: int, level: int, name: str
) -> None:
    bench.attach().set(0x4000_0000, level, value)
    bench.enable()
    cause = bench.translate(0x4000_0000).cause
    assert cause is not None
    assert cause.condition == f"second-stage entry: {name}"


@pytest.mark.parametrize(("bits", "attribute"), [(0, Attribute.NONE), (SNP, Attribute.SNOOP)])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_walk_snoop_control(bench: Bench, level: int, bits: int, attribute: Attribute) -> None:
    bench.attach().map(0x4000_0000, 0x8000_0000, RW | bits, level)
    bench.enable()
    assert bench.translate(0x4000_0000).attributes is attribute
    assert bench.translate(0x4000_0000).attributes is attribute  # and from the IOTLB


# ---- fetch errors, address limits -----------------------------------------------------------


@pytest.mark.parametrize("levels", [3, 4, 5])
def test_walk_fetch_error_at_the_top(bench: Bench, levels: int) -> None:
    bench.set_context(0x10, HOLE | 1, 1 << 8 | levels - 2)
    bench.enable()
    assert bench.fault(0x5000) == 0x03


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_walk_fetch_error_below_the_top(bench: Bench, level: int) -> None:
    bench.attach(levels=5).set(0x5000, level, HOLE | RW)
    bench.enable()
    assert bench.fault(0x5000) == 0x07


def test_walk_fetch_error_just_behind_ram(bench: Bench) -> None:
    bench.attach().set(0x5000, 2, RAM | RW)
    bench.enable()
    assert bench.fault(0x5000) == 0x07


@pytest.mark.parametrize("levels", [3, 4, 5])
@pytest.mark.parametrize("mgaw", [39, 40, 48, 57])
def test_walk_input_limit_is_the_smaller_of_mgaw_and_agaw(levels: int, mgaw: int) -> None:
    bench = Bench(guest_address_width=mgaw)
    table = bench.attach(levels=levels)
    last = (1 << min(mgaw, 12 + 9 * levels)) - 0x1000
    table.map(last, 0x20_0000)
    bench.enable()
    assert bench.reads(last) == 0x20_0000
    assert bench.fault(last + 0x1000) == 0x04


@pytest.mark.parametrize("bit", range(48, 64))
def test_walk_input_limit_looks_at_every_bit(bench: Bench, bit: int) -> None:
    bench.attach(levels=4).map(0x5000, 0x20_0000)
    bench.enable()
    assert bench.fault(0x5000 | 1 << bit) == 0x04


@pytest.mark.parametrize("haw", [39, 46, 52])
def test_walk_output_reaches_the_host_address_width(haw: int) -> None:
    bench = Bench(haw=haw)
    top = (1 << haw) - 0x1000
    bench.attach().map(0x5000, top)
    bench.enable()
    assert bench.reads(0x5123) == top | 0x123


# ---- output in the interrupt range (5.4, LGN.4) ---------------------------------------------


@pytest.mark.parametrize(
    ("output", "code"),
    [(0xFEDF_F000, 0), (0xFEE0_0000, 0x0E), (0xFEEF_F000, 0x0E), (0xFEF0_0000, 0)],
)
@pytest.mark.parametrize("access", [READ, WRITE, ATOMIC])
def test_walk_output_in_interrupt_range(
    bench: Bench, access: Access, output: int, code: int
) -> None:
    bench.attach().map(0x5000, output)
    bench.enable()
    for _ in range(2):
        assert bench.fault(0x5000, access) == code


@pytest.mark.parametrize("lookup", list(IotlbLookup))
@pytest.mark.parametrize("caching_mode", [False, True])
@pytest.mark.parametrize(
    ("permissions", "denied", "code", "allowed"),
    [(W, READ, 6, WRITE), (R, WRITE, 5, READ)],
    ids=["write-only", "read-only"],
)
def test_walk_output_in_interrupt_range_stays_blocked_after_a_denied_access(
    permissions: int,
    denied: Access,
    code: int,
    allowed: Access,
    caching_mode: bool,
    lookup: IotlbLookup,
) -> None:
    """Permission is judged first, the output last (8.3): the first fault must cache nothing."""
    bench = Bench(caching_mode=caching_mode, lookup=lookup)
    bench.attach().map(0x5000, 0xFEE0_0000, permissions)
    bench.enable()
    for access, expected in ((denied, code), (allowed, 0x0E), (allowed, 0x0E), (denied, code)):
        assert bench.fault(0x5000, access) == expected


@pytest.mark.parametrize(("level", "output"), [(2, 0xFEE0_0000), (3, 0xC000_0000)])
@pytest.mark.parametrize("inside_first", [False, True])
def test_walk_large_page_faults_only_inside_the_interrupt_range(
    bench: Bench, level: int, output: int, inside_first: bool
) -> None:
    bench.attach().map(0x4000_0000, output, level=level)
    bench.enable()
    inside = 0x4000_0000 + 0xFEE0_0000 - output
    outside = inside + 0x10_0000
    for iova in (inside, outside) if inside_first else (outside, inside):
        expected = 0x0E if iova == inside else 0
        assert bench.fault(iova) == expected
        assert bench.fault(iova) == expected


def test_walk_permission_is_checked_before_the_output(bench: Bench) -> None:
    bench.attach().map(0x5000, 0xFEE0_0000, R)
    bench.enable()
    assert bench.fault(0x5000, WRITE) == NO_WRITE
