"""Host (v1) page tables: levels, every page size, skipped levels, permissions (AMD-Vi 5)."""

from __future__ import annotations

import pytest
from amdvi_core_bench import (
    ATOMIC,
    DEVICE,
    HOLE,
    MASTER_ABORT,
    PAGE_FAULT,
    PE,
    PR,
    READ,
    RW,
    RW_FLAG,
    RZ,
    TABLE_ERROR,
    WRITE,
    Amdvi,
    R,
    W,
    pde,
    pte,
)

from iommu_emu.core import Access, Attribute, Outcome

# An input address whose index differs at every level, and an offset below the smallest page.
IOVA = 6 << 57 | 1 << 48 | 2 << 39 | 3 << 30 | 4 << 21 | 5 << 12 | 0x678
OUTPUT = 0xD_5A5A_A5A5_A000

# Every page size (5.2, 5.3).
SHIFTS = range(12, 52)


def iova_for(levels: int) -> int:
    return IOVA & ((1 << 12 + 9 * levels) - 1)


def level_of(shift: int) -> int:
    return (shift - 12) // 9 + 1


@pytest.fixture
def bench() -> Amdvi:
    return Amdvi()


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 6])
def test_walk_reaches_the_page(bench: Amdvi, levels: int) -> None:
    iova = iova_for(levels)
    bench.attach(levels=levels, domain=7).map(iova, 0x1234_5000)
    result = bench.translate(iova)
    assert (result.outcome, result.address) == (Outcome.MEMORY, 0x1234_5678)
    assert (result.page_shift, result.domain) == (12, 7)
    assert result.permissions is Access(RW)
    assert (result.fault, result.diagnostic, result.recorded) == (0, 0, False)


@pytest.mark.parametrize("bit", range(12, 64))
def test_walk_uses_every_index_bit(bench: Amdvi, bit: int) -> None:
    bench.attach(levels=6).map(IOVA, 0x9000)
    assert bench.reads(IOVA ^ 1 << bit) is None


@pytest.mark.parametrize("shift", SHIFTS)
def test_walk_page_of_every_size(bench: Amdvi, shift: int) -> None:
    size = 1 << shift
    output = OUTPUT >> shift << shift
    bench.attach(levels=6).map(IOVA, output, shift=shift)
    result = bench.translate(IOVA)
    assert result.address == output | IOVA & size - 1
    assert result.page_shift == shift


@pytest.mark.parametrize("shift", SHIFTS)
def test_walk_page_covers_its_last_byte_and_no_more(bench: Amdvi, shift: int) -> None:
    first, size = IOVA >> shift << shift, 1 << shift
    bench.attach(levels=6).map(IOVA, 0, shift=shift)
    assert bench.reads(IOVA) == IOVA - first
    assert bench.reads(first) == 0
    assert bench.reads(first + size - 4) == size - 4
    assert bench.reads(first + size) is None
    assert bench.reads(first - 4) is None


@pytest.mark.parametrize("shift", [21, 30, 39, 48])
def test_walk_ignores_the_low_address_bits_of_a_plain_large_page(bench: Amdvi, shift: int) -> None:
    table = bench.attach(levels=6)
    table.set(IOVA, level_of(shift), pte(1 << shift, RW, shift) | 0x1000)
    assert bench.reads(IOVA) == 1 << shift | IOVA & (1 << shift) - 1


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_walk_refuses_an_encoded_size_that_is_not_of_the_level(bench: Amdvi, level: int) -> None:
    own = 12 + 9 * (level - 1)
    table = bench.attach(levels=6)
    below, above = min(own, 51), own + 9
    for shift in {below, above} & set(range(13, 53)):
        table.set(IOVA, level, 1 | 7 << 9 | (1 << shift - 1) - 0x1000 | RW << 61)
        assert bench.translate(IOVA).fault == PAGE_FAULT
        assert bench.event().flags == PR


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_walk_refuses_a_size_without_a_0_bit(bench: Amdvi, level: int) -> None:
    bench.attach(levels=6).set(IOVA, level, 1 | 7 << 9 | 0x000F_FFFF_FFFF_F000 | RW << 61)
    assert bench.translate(IOVA).fault == PAGE_FAULT
    assert bench.event().flags == PR


def test_walk_refuses_the_size_above_the_largest(bench: Amdvi) -> None:
    bench.attach(levels=6).set(IOVA, 5, 1 | 7 << 9 | (1 << 51) - 0x1000 | RW << 61)  # 2**52
    assert bench.translate(IOVA).fault == PAGE_FAULT


@pytest.mark.parametrize("next_level", [0, 7])
def test_walk_level_6_has_no_leaf(bench: Amdvi, next_level: int) -> None:
    bench.attach(levels=6).set(IOVA, 6, 1 | next_level << 9 | RW << 61)
    assert bench.translate(IOVA).fault == PAGE_FAULT
    assert bench.event().flags == PR


# ---- levels (5.2) -----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_walk_address_beyond_the_table_is_a_fault(bench: Amdvi, levels: int) -> None:
    limit = 1 << 12 + 9 * levels
    table = bench.attach(levels=levels, domain=3)
    table.map(0, 0x8000)  # where the address would wrap around to
    table.map(limit - 0x1000, 0x9000)
    assert bench.reads(limit - 4) == 0x9FFC
    assert bench.translate(limit).fault == PAGE_FAULT
    event = bench.event()
    assert (event.flags, event.domain, event.address) == (0, 3, limit)


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5, 6])
def test_walk_next_level_must_be_below(bench: Amdvi, level: int) -> None:
    table = bench.attach(levels=6)
    for next_level in range(level, 7):
        table.set(IOVA, level, pde(bench.table(), next_level))
        assert bench.translate(IOVA).fault == PAGE_FAULT
        assert bench.event().flags == PR


@pytest.mark.parametrize(
    ("level", "next_level"), [(a, b) for a in range(3, 7) for b in range(1, a - 1)]
)
def test_walk_skips_levels(bench: Amdvi, level: int, next_level: int) -> None:
    reach, own = 12 + 9 * next_level, 12 + 9 * (level - 1)
    iova = IOVA >> own << own | IOVA & (1 << reach) - 1
    below = bench.table()
    bench.attach(levels=6).set(iova, level, pde(below, next_level))
    index_shift = reach - 9
    bench.poke(below + 8 * (iova >> index_shift & 0x1FF), pte(0, RW, index_shift))
    output = iova & (1 << index_shift) - 1
    assert bench.reads(iova) == output
    # Cached or not, the bits of the levels between must be 0.
    for bit in range(reach, own):
        assert bench.translate(iova | 1 << bit).fault == PAGE_FAULT
        assert bench.event().flags == PR
    assert bench.reads(iova) == output


# ---- reserved and ignored bits (5.1) ----------------------------------------------------------


@pytest.mark.parametrize("bit", range(52, 61))
@pytest.mark.parametrize("level", [2, 3, 4, 5, 6])
def test_walk_directory_entry_reserved_bit(bench: Amdvi, level: int, bit: int) -> None:
    table = bench.attach(levels=6)
    table.map(IOVA, 0x9000)
    at = table.entry(IOVA, level)
    bench.poke(at, bench.peek(at) | 1 << bit)
    assert bench.translate(IOVA, WRITE).fault == PAGE_FAULT
    assert bench.event().flags == PR | RZ | RW_FLAG


@pytest.mark.parametrize("bit", range(52, 59))
@pytest.mark.parametrize("shift", [12, 13, 21, 22, 30, 39, 48])
def test_walk_leaf_reserved_bit(bench: Amdvi, shift: int, bit: int) -> None:
    table = bench.attach(levels=6)
    table.set(IOVA, level_of(shift), pte(0, RW, shift) | 1 << bit)
    assert bench.translate(IOVA).fault == PAGE_FAULT
    assert bench.event().flags == PR | RZ


@pytest.mark.parametrize("bit", [1, 2, 3, 4, 5, 6, 7, 8, 59, 63])
def test_walk_leaf_other_bits_do_not_matter(bench: Amdvi, bit: int) -> None:
    bench.attach().set(0x5000, 1, pte(0x9000) | 1 << bit)
    result = bench.translate(0x5000)
    assert (result.address, result.attributes) == (0x9000, Attribute.NONE)


@pytest.mark.parametrize("bit", [1, 2, 3, 4, 5, 6, 7, 8, 63])
def test_walk_directory_other_bits_do_not_matter(bench: Amdvi, bit: int) -> None:
    table = bench.attach()
    table.map(0x5000, 0x9000)
    at = table.entry(0x5000, 2)
    bench.poke(at, bench.peek(at) | 1 << bit)
    assert bench.reads(0x5000) == 0x9000


@pytest.mark.parametrize("shift", [12, 13, 21, 39])
def test_walk_fc_forces_snooping(bench: Amdvi, shift: int) -> None:
    table = bench.attach()
    table.set(0, level_of(shift), pte(0, RW, shift) | 1 << 60)
    assert bench.translate(0).attributes is Attribute.SNOOP
    assert bench.translate(0).attributes is Attribute.SNOOP  # from the IOTLB


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_walk_entry_without_pr_is_not_looked_at(bench: Amdvi, level: int) -> None:
    bench.attach(domain=0xABCD).set(0x5000, level, ((1 << 64) - 1) & ~1)
    result = bench.translate(0x5018, WRITE)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.ABORTED, PAGE_FAULT, True)
    event = bench.event()
    assert (event.code, event.device, event.domain) == (PAGE_FAULT, DEVICE, 0xABCD)
    assert (event.flags, event.address) == (RW_FLAG, 0x5018)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_walk_entry_that_cannot_be_read_is_a_hardware_error(bench: Amdvi, level: int) -> None:
    table = bench.attach(domain=5, levels=4)
    if level < 4:
        table.set(0x5000, level + 1, pde(HOLE, level))
    else:
        table.root = HOLE
        bench.attach(domain=5, table=table)
    assert bench.translate(0x5000).fault == TABLE_ERROR
    event = bench.event()
    assert (event.code, event.domain, event.flags) == (TABLE_ERROR, 5, MASTER_ABORT)
    assert event.address == HOLE + 8 * (0x5000 >> 12 + 9 * (level - 1) & 0x1FF)


# ---- permissions (5.2 step 6) -----------------------------------------------------------------

NEEDS = {READ: R, WRITE: W, ATOMIC: RW}


@pytest.mark.parametrize("access", [READ, WRITE, ATOMIC])
@pytest.mark.parametrize("permissions", [0, R, W, RW])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_walk_permissions_of_every_level_count(
    bench: Amdvi, level: int, permissions: int, access: Access
) -> None:
    table = bench.attach()
    table.map(0x5000, 0x9000)
    at = table.entry(0x5000, level)
    bench.poke(at, bench.peek(at) & ~(3 << 61) | permissions << 61)
    result = bench.translate(0x5000, access, length=8)
    allowed = permissions & NEEDS[access] == NEEDS[access]
    assert result.ok is allowed
    if allowed:
        assert result.permissions is Access(permissions)
    else:
        write = RW_FLAG if access & WRITE else 0
        assert bench.event().flags == PR | PE | write


def test_walk_zero_length_read_needs_read_permission(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 0x9000, W)
    assert bench.translate(0x5000, length=0).fault == PAGE_FAULT


def test_walk_faults_below_before_it_checks_permissions(bench: Amdvi) -> None:
    table = bench.attach()
    table.set(0x5000, 2, pde(bench.table(), 1, permissions=R))
    assert bench.translate(0x5000, WRITE).fault == PAGE_FAULT
    assert bench.event().flags == RW_FLAG  # not present, rather than not permitted


def test_walk_output_above_the_host_address_width_reaches_nothing(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 1 << 51)
    assert bench.reads(0x5000) == 1 << 51
    assert not bench.port().read(0x5000, 4).ok


def test_walk_through_the_dma_path(bench: Amdvi) -> None:
    table = bench.attach()
    table.map(0x5000, 0x10_0000)
    table.map(0x6000, 0x12_0000)
    port = bench.port()
    assert port.write(0x5FFC, b"abcdefgh").ok
    assert bench.machine.read(0x10_0FFC, 4) == b"abcd"
    assert bench.machine.read(0x12_0000, 4) == b"efgh"
    assert port.read(0x5FFC, 8).data == b"abcdefgh"


def test_walk_fault_in_the_dma_path_is_a_completer_abort(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 0x10_0000)
    completion = bench.port().write(0x5FFC, b"abcdefgh")
    assert (completion.status.name, completion.fault) == ("COMPLETER_ABORT", PAGE_FAULT)
    assert completion.details is not None
    assert (completion.details.done, completion.details.address) == (4, 0x6000)
