"""Protected low and high memory (VT-d 2.11)."""

from __future__ import annotations

import pytest
from core_bench import READ, WRITE, Bench

from iommu_emu.core import IotlbLookup, Outcome, RequestFlag, Status

EPM, PRS = 1 << 31, 1 << 0
BLOCK = 1 << 21  # granularity of the bench: N = 20
LOW = {"PLMBASE": 0x40_0000, "PLMLIMIT": 0x60_0000}  # 4 MiB up to 8 MiB - 1
HIGH = {"PHMBASE": 0x80_0000, "PHMLIMIT": 0x80_0000}  # one block


def protect(bench: Bench, **registers: int) -> Bench:
    """Protect the given regions; the others are made empty (limit below base)."""
    empty = {"PLMBASE": BLOCK, "PLMLIMIT": 0, "PHMBASE": BLOCK, "PHMLIMIT": 0}
    for name, value in (empty | registers).items():
        bench.write(name, value)
    bench.write("PMEN", EPM)
    return bench


def blocked(bench: Bench, address: int, length: int = 4) -> bool:
    result = bench.translate(address, WRITE, length=length)
    assert not result.recorded
    assert result.fault == 0
    return result.outcome is Outcome.UNSUPPORTED


def test_protected_memory_status_follows_the_control(bench: Bench) -> None:
    assert bench.read("PMEN") == 0
    bench.write("PMEN", EPM)
    assert bench.read("PMEN") == EPM | PRS
    bench.write("PMEN", PRS)
    assert bench.read("PMEN") == 0


@pytest.mark.parametrize("name", ["PLMBASE", "PLMLIMIT", "PHMBASE", "PHMLIMIT"])
@pytest.mark.parametrize("shift", [12, 16, 21, 32])
def test_protected_memory_granularity_is_found_by_writing_ones(name: str, shift: int) -> None:
    bench = Bench(protected_shift=shift)
    bits = 32 if name[1] == "L" else 64
    bench.write(name, (1 << bits) - 1)
    assert bench.read(name) == (1 << bits) - (1 << shift)


@pytest.mark.parametrize("name", ["PLMBASE", "PLMLIMIT", "PHMBASE", "PHMLIMIT"])
def test_protected_memory_registers_are_locked_while_on(bench: Bench, name: str) -> None:
    bench.write(name, 0x40_0000)
    bench.write("PMEN", EPM)
    bench.write(name, 0x60_0000)
    assert bench.read(name) == 0x40_0000
    bench.write("PMEN", 0)
    bench.write(name, 0x60_0000)
    assert bench.read(name) == 0x60_0000


def test_protected_memory_control_is_not_locked(bench: Bench) -> None:
    bench.write("PMEN", EPM)
    bench.write("PMEN", 0)
    assert bench.read("PMEN") == 0


@pytest.mark.parametrize(
    ("registers", "first", "last"),
    [(LOW, 0x40_0000, 0x7F_FFFF), (HIGH, 0x80_0000, 0x9F_FFFF)],
    ids=["low", "high"],
)
def test_protected_memory_region_is_exact(
    bench: Bench, registers: dict[str, int], first: int, last: int
) -> None:
    protect(bench, **registers)
    assert not blocked(bench, first - 4)
    assert blocked(bench, first)
    assert blocked(bench, last - 3)
    assert not blocked(bench, last + 1)


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [(0x3F_FFFC, 4, False), (0x3F_FFFD, 4, True), (0x7F_FFFF, 4, True), (0x80_0000, 4, False)],
)
def test_protected_memory_counts_every_byte_of_a_request(
    bench: Bench, address: int, length: int, expected: bool
) -> None:
    protect(bench, **LOW)
    assert blocked(bench, address, length) is expected


def test_protected_memory_zero_length_read_counts_its_address(bench: Bench) -> None:
    protect(bench, **LOW)
    for address, outcome in ((0x40_0000, Outcome.UNSUPPORTED), (0x3F_FFFC, Outcome.MEMORY)):
        result = bench.translate(address, READ, length=0, flags=RequestFlag.ZERO_LENGTH)
        assert result.outcome is outcome


@pytest.mark.parametrize(("base", "limit"), [(0x40_0000, 0x20_0000), (0x20_0000, 0)])
def test_protected_memory_limit_below_base_is_empty(bench: Bench, base: int, limit: int) -> None:
    protect(bench, PLMBASE=base, PLMLIMIT=limit, PHMBASE=base, PHMLIMIT=limit)
    for address in (0, limit, base, base + BLOCK):
        assert not blocked(bench, address)


def test_protected_memory_equal_base_and_limit_is_one_block(bench: Bench) -> None:
    protect(bench, PLMBASE=0, PLMLIMIT=0)
    assert blocked(bench, 0)
    assert blocked(bench, BLOCK - 4)
    assert not blocked(bench, BLOCK)


def test_protected_memory_high_region_may_be_above_4_gib(bench: Bench) -> None:
    protect(bench, PHMBASE=0x12_0000_0000, PHMLIMIT=0x12_0020_0000)
    assert blocked(bench, 0x12_0000_0000)
    assert blocked(bench, 0x12_003F_FFFC)
    assert not blocked(bench, 0x11_FFFF_F000)
    assert not blocked(bench, 0x02_0000_0000)


def test_protected_memory_off_blocks_nothing(bench: Bench) -> None:
    protect(bench, **LOW)
    bench.write("PMEN", 0)
    assert not blocked(bench, 0x40_0000)


@pytest.mark.parametrize("registers", [LOW, HIGH], ids=["low", "high"])
def test_protected_memory_regions_are_independent(registers: dict[str, int]) -> None:
    bench = protect(Bench(), **registers)
    assert blocked(bench, 0x40_0000) is (registers is LOW)
    assert blocked(bench, 0x80_0000) is (registers is HIGH)


@pytest.mark.parametrize(("low", "high"), [(True, False), (False, True)])
def test_protected_memory_missing_region_is_empty(low: bool, high: bool) -> None:
    bench = Bench(protected_low=low, protected_high=high)
    bench.write("PMEN", EPM)  # both 0..0 if they are there
    assert bench.read("PMEN") == EPM | PRS
    assert blocked(bench, 0)
    for name in ("PLMBASE", "PHMBASE"):
        bench.write("PMEN", 0)
        bench.write(name, 0x40_0000)
        bench.write(name.replace("BASE", "LIMIT"), 0x40_0000)
        bench.write("PMEN", EPM)
    assert not blocked(bench, 0)


def test_protected_memory_needs_a_region() -> None:
    bench = Bench(protected_low=False, protected_high=False)
    bench.write("PMEN", EPM)
    assert bench.read("PMEN") == 0
    assert not blocked(bench, 0)


# ---- which requests (version dependent) -----------------------------------------------------


def mapped(major: int, tt: int, lookup: IotlbLookup = IotlbLookup.BY_REQUESTER) -> Bench:
    bench = Bench(major=major, lookup=lookup)
    table = bench.attach(levels=5, tt=tt)
    table.map(0x40_0000, 0x40_0000)
    bench.enable()
    return protect(bench, **LOW)


@pytest.mark.parametrize("major", [1, 2])
def test_protected_memory_untranslated_requests_with_translation_off(major: int) -> None:
    assert blocked(protect(Bench(major=major), **LOW), 0x40_0000)


@pytest.mark.parametrize("lookup", IotlbLookup)
@pytest.mark.parametrize("major", [1, 2, 4])
@pytest.mark.parametrize("warm", [False, True])
def test_protected_memory_translated_by_page_tables(
    major: int, warm: bool, lookup: IotlbLookup
) -> None:
    """Older units exempt what went through the page tables."""
    bench = mapped(major, 0, lookup)
    if warm:
        bench.translate(0x40_0000, WRITE)
    assert blocked(bench, 0x40_0000) is (major >= 2)


@pytest.mark.parametrize("lookup", IotlbLookup)
@pytest.mark.parametrize("major", [1, 2])
@pytest.mark.parametrize("warm", [False, True])
def test_protected_memory_passed_through(major: int, warm: bool, lookup: IotlbLookup) -> None:
    bench = mapped(major, 2, lookup)
    if warm:
        bench.translate(0x40_0000, WRITE)
    assert blocked(bench, 0x40_0000)


def test_protected_memory_counts_the_output_not_the_input() -> None:
    bench = Bench(major=2)
    table = bench.attach()
    table.map(0x40_0000, 0x20_0000)
    table.map(0x5000, 0x40_0000)
    bench.enable()
    protect(bench, **LOW)
    assert not blocked(bench, 0x40_0000)
    assert blocked(bench, 0x5000)


def test_protected_memory_reaches_what_was_cached_before() -> None:
    """Switching it on must reach requests that hit the IOTLB."""
    bench = Bench(major=2)
    bench.attach().map(0x5000, 0x40_0000)
    bench.enable()
    assert not blocked(bench, 0x5000)
    protect(bench, **LOW)
    assert blocked(bench, 0x5000)
    bench.write("PMEN", 0)
    assert not blocked(bench, 0x5000)


def test_protected_memory_exempts_the_walks_of_the_unit() -> None:
    bench = Bench(major=2)
    bench.attach().map(0x5000, 0x40_0000)
    bench.enable()
    protect(bench, PLMBASE=0, PLMLIMIT=BLOCK)  # root, context and paging tables
    assert bench.reads(0x5000) == 0x40_0000


def test_protected_memory_blocked_dma_writes_nothing(bench: Bench) -> None:
    protect(bench, **LOW)
    assert bench.port().write(0x40_0000, b"\xff" * 8).status is Status.UNSUPPORTED_REQUEST
    assert bench.peek(0x40_0000) == 0


def test_protected_memory_spares_interrupts(bench: Bench) -> None:
    protect(bench, PLMBASE=0xFEE0_0000, PLMLIMIT=0xFEE0_0000)
    assert bench.translate(0xFEE0_0000, WRITE).outcome is Outcome.INTERRUPT


def test_protected_memory_is_off_after_reset(bench: Bench) -> None:
    protect(bench, **LOW)
    bench.unit.reset()
    assert bench.read("PMEN") == 0
    assert not blocked(bench, 0x40_0000)
    bench.write("PLMBASE", 0x60_0000)  # and not locked
    assert bench.read("PLMBASE") == 0x60_0000
