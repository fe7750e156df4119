"""Interrupt remapping: formats, entries, source validation, faults, the entry cache (VT-d 10)."""

from __future__ import annotations

import pytest
from core_bench import (
    CFI,
    HOLE,
    IRE,
    SIRTP,
    Bench,
    Record,
    bits,
    interrupt_descriptor,
    without,
)

from iommu_emu.core import CacheId, Completion, Message, Status

TABLE = 0x4_0000
PRESENT = 0x31_0001  # P=1, vector 31h
DEVICE = 0x0010


class Remapper:
    """A bench with an interrupt remapping table of 2**(size+1) entries."""

    def __init__(self, size: int = 7, eime: bool = False, enable: bool = True, **arguments: object):
        arguments = {"extended_interrupts": True, "max_handle_mask": 15} | arguments
        self.bench = Bench(interrupt_remapping=True, **arguments)
        self.bench.write("IRTA", TABLE | eime << 11 | size)
        self.bench.command(SIRTP)
        if enable:
            self.bench.command(IRE)

    def set(self, index: int, low: int, high: int = 0) -> None:
        self.bench.poke(TABLE + 16 * index, low, high)

    def raise_(self, address: int, data: int = 0, requester: int = DEVICE) -> Completion:
        return self.bench.port(requester).write(address, data.to_bytes(4, "little"))

    def remapped(self, index: int, requester: int = DEVICE) -> Completion:
        address = 0xFEE0_0010 | (index & 0x7FFF) << 5 | (index >> 15) << 2
        return self.raise_(address, 0, requester)

    def message(self) -> Message:
        (message,) = self.bench.messages()
        return message

    def record(self) -> Record:
        (record,) = self.bench.records()
        return record


@pytest.fixture
def unit() -> Remapper:
    remapper = Remapper()
    remapper.set(0, PRESENT)
    return remapper


# ---- request formats (10.1, 10.2) -----------------------------------------------------------


@pytest.mark.parametrize("address", [0xFEE0_1000, 0xFEE0_1008, 0xFEE0_0010])
def test_interrupt_disabled_remapping_passes_both_formats(address: int) -> None:
    unit = Remapper(enable=False)
    assert unit.raise_(address, 0xC041).ok
    message = unit.message()
    assert (message.address, message.data) == (address, b"\x41\xc0\0\0")


@pytest.mark.parametrize("address", [0xFEE0_1000, 0xFEE0_0010])
def test_interrupt_disabled_remapping_may_be_told_to_block(address: int) -> None:
    """ECAP.IRREQ: blocked until IRES=1 (2Bh)."""
    unit = Remapper(enable=False, interrupts_blocked_until_remapped=True)
    completion = unit.raise_(address, 0x41)
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 0x2B)
    assert unit.bench.messages() == []


@pytest.mark.parametrize("eime", [False, True])
def test_interrupt_extended_mode_may_be_required(eime: bool) -> None:
    """ECAP.EIMER: with EIME=0 every interrupt is blocked (2Ah)."""
    unit = Remapper(eime=eime, extended_interrupts_required=True)
    unit.set(0, PRESENT)
    assert unit.remapped(0).fault == (0 if eime else 0x2A)


@pytest.mark.parametrize(
    ("eime", "cfi", "passes"),
    [(False, False, False), (False, True, True), (True, False, False), (True, True, False)],
)
def test_interrupt_compatibility_format(eime: bool, cfi: bool, passes: bool) -> None:
    unit = Remapper(eime=eime)
    unit.bench.command(CFI, cfi)
    completion = unit.raise_(0xFEE5_5008, 0x4141)
    assert completion.fault == (0 if passes else 0x25)
    if passes:
        message = unit.message()
        assert (message.address, message.data) == (0xFEE5_5008, b"\x41\x41\0\0")
    else:
        assert unit.record().code == 0x25


@pytest.mark.parametrize("index", [0, 0x123, 0x7FFF, 0xFFFF, *(1 << bit for bit in range(16))])
def test_interrupt_handle_selects_the_entry(index: int) -> None:
    unit = Remapper(size=15)
    unit.set(index, PRESENT | 0xAB << 16)
    assert unit.remapped(index).ok
    assert unit.message().data[0] == 0xBB
    assert unit.remapped(index ^ 0x40).fault == 0x22


@pytest.mark.parametrize("bit", range(16))
def test_interrupt_every_subhandle_bit_counts(bit: int) -> None:
    unit = Remapper(size=15)
    unit.set(1 << bit, PRESENT)
    assert unit.raise_(0xFEE0_0018, 1 << bit).ok


@pytest.mark.parametrize(("handle", "subhandle", "index"), [(5, 0, 5), (5, 3, 8), (0, 0xFF, 0xFF)])
def test_interrupt_subhandle_is_added(handle: int, subhandle: int, index: int) -> None:
    unit = Remapper()
    unit.set(index, PRESENT)
    assert unit.raise_(0xFEE0_0018 | handle << 5, subhandle).ok


def test_interrupt_subhandle_counts_with_shv_only(unit: Remapper) -> None:
    assert unit.raise_(0xFEE0_0010, 0xFFFF_0005).ok


@pytest.mark.parametrize("bit", range(16, 32))
def test_interrupt_reserved_data_with_subhandle(unit: Remapper, bit: int) -> None:
    assert unit.raise_(0xFEE0_0018, 1 << bit).fault == 0x20


@pytest.mark.parametrize("size", [0, 3, 7, 15])
def test_interrupt_index_must_be_in_the_table(size: int) -> None:
    unit = Remapper(size=size)
    last = (2 << size) - 1
    unit.set(last, PRESENT)
    assert unit.remapped(last).ok
    if size < 15:
        assert unit.remapped(last + 1).fault == 0x21


def test_interrupt_index_sum_is_not_cut_to_16_bits() -> None:
    unit = Remapper(size=15)
    unit.set(0, PRESENT)
    assert unit.raise_(0xFEE0_0018 | 0x7FFF << 5 | 1 << 2, 1).fault == 0x21


# ---- fetch ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "code"), [(HOLE, 0x23), (1 << 39, 0x21), (1 << 63, 0x21)])
def test_interrupt_entry_must_be_readable(address: int, code: int) -> None:
    unit = Remapper(enable=False)
    unit.bench.write("IRTA", address | 7)
    unit.bench.command(SIRTP)
    unit.bench.command(IRE)
    assert unit.remapped(0).fault == code


def test_interrupt_entry_not_present_ignores_the_rest(unit: Remapper) -> None:
    unit.set(1, (1 << 64) - 4, (1 << 64) - 1)
    assert unit.remapped(1).fault == 0x22


RESERVED = bits((14, 12), 15, (31, 24), (127, 84))


@pytest.mark.parametrize("bit", RESERVED)
def test_interrupt_entry_reserved_bit(bit: int) -> None:
    unit = Remapper(eime=True)
    value = PRESENT | 1 << bit
    unit.set(0, value & (1 << 64) - 1, value >> 64)
    assert unit.remapped(0).fault == 0x24


@pytest.mark.parametrize("bit", bits((39, 32), (63, 48)))
@pytest.mark.parametrize("eime", [False, True])
def test_interrupt_entry_destination_bits_depend_on_the_mode(eime: bool, bit: int) -> None:
    unit = Remapper(eime=eime)
    unit.set(0, PRESENT | 1 << bit)
    assert unit.remapped(0).fault == (0 if eime else 0x24)


FIELDS = bits((1, 0), (7, 5), (63, 32), (83, 64))


@pytest.mark.parametrize("bit", without(range(84), [*RESERVED, *FIELDS]))
def test_interrupt_entry_other_bits_are_legal(unit: Remapper, bit: int) -> None:
    unit.set(0, PRESENT ^ 1 << bit)
    assert unit.remapped(0).ok


@pytest.mark.parametrize("mode", range(8))
def test_interrupt_entry_delivery_mode(unit: Remapper, mode: int) -> None:
    unit.set(0, PRESENT | mode << 5)
    completion = unit.remapped(0)
    if mode in (3, 6):
        assert completion.fault == 0x24
    else:
        assert unit.message().data[1] & 7 == mode


# ---- the message that comes out (10.3) ------------------------------------------------------


@pytest.mark.parametrize(("destination", "address"), [(0, 0xFEE0_0000), (0xA5, 0xFEEA_5000)])
@pytest.mark.parametrize("rh", [0, 1])
@pytest.mark.parametrize("dm", [0, 1])
def test_interrupt_message_address(
    unit: Remapper, destination: int, address: int, rh: int, dm: int
) -> None:
    unit.set(0, PRESENT | destination << 40 | rh << 3 | dm << 2)
    unit.remapped(0)
    assert unit.message().address == address | rh << 3 | dm << 2


@pytest.mark.parametrize(
    ("destination", "address"),
    [
        (0x0000_00A5, 0xFEEA_5000),
        (0x1234_56A5, 0x1234_5600_FEEA_5000),
        (0xFFFF_FFFF, 0xFFFF_FF00_FEEF_F000),
    ],
)
def test_interrupt_message_address_in_extended_mode(destination: int, address: int) -> None:
    unit = Remapper(eime=True)
    unit.set(0, PRESENT | destination << 32)
    unit.remapped(0)
    assert unit.message().address == address


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("vector", [0x10, 0xFE])
def test_interrupt_message_data(unit: Remapper, vector: int, level: int) -> None:
    unit.set(0, vector << 16 | level << 4 | 1)
    unit.remapped(0)
    assert unit.message().data == (vector | 1 << 14 | level << 15).to_bytes(4, "little")


# ---- source validation (10.4) ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("sq", "ignored"), [(0, 0), (1, 0b100), (2, 0b110), (3, 0b111)], ids=["all", "2", "2:1", "2:0"]
)
@pytest.mark.parametrize("bit", range(16))
def test_interrupt_source_is_compared(sq: int, ignored: int, bit: int) -> None:
    unit = Remapper()
    unit.set(0, PRESENT, 1 << 18 | sq << 16 | 0x1234)
    assert unit.remapped(0, 0x1234).ok
    allowed = 1 << bit & ignored
    assert unit.remapped(0, 0x1234 ^ 1 << bit).fault == (0 if allowed else 0x26)


@pytest.mark.parametrize(
    ("bus", "code"), [(0x1F, 0x26), (0x20, 0), (0x28, 0), (0x30, 0), (0x31, 0x26)]
)
def test_interrupt_source_bus_must_be_in_the_range(bus: int, code: int) -> None:
    unit = Remapper()
    unit.set(0, PRESENT, 2 << 18 | 0x2030)
    assert unit.remapped(0, bus << 8 | 0xFF).fault == code


def test_interrupt_source_is_not_compared_without_validation(unit: Remapper) -> None:
    unit.set(0, PRESENT, 0xFFFF)
    assert unit.remapped(0, 0x1234).ok


def test_interrupt_source_validation_type_3_is_reserved(unit: Remapper) -> None:
    unit.set(0, PRESENT, 3 << 18)
    assert unit.remapped(0).fault == 0x24


def test_interrupt_source_is_checked_before_reserved_fields(unit: Remapper) -> None:
    unit.set(0, PRESENT | 1 << 24, 1 << 18 | 0x9999)
    assert unit.remapped(0).fault == 0x26


# ---- faults (10.7) --------------------------------------------------------------------------

FAULTS = [
    (0x20, False, lambda unit: unit.raise_(0xFEE0_0018, 1 << 31)),
    (0x21, False, lambda unit: unit.remapped(0x1FF)),
    (0x22, True, lambda unit: unit.remapped(2)),
    (0x24, True, lambda unit: unit.remapped(4)),
    (0x25, False, lambda unit: unit.raise_(0xFEE0_1000, 0x41)),
    (0x26, True, lambda unit: unit.remapped(6)),
]


@pytest.mark.parametrize("fpd", [False, True])
@pytest.mark.parametrize(("code", "qualified", "cause"), FAULTS)
def test_interrupt_fault(code: int, qualified: bool, cause: object, fpd: bool) -> None:
    unit = Remapper()
    unit.set(2, fpd << 1)
    unit.set(4, PRESENT | fpd << 1 | 1 << 12)
    unit.set(6, PRESENT | fpd << 1, 1 << 18)
    completion = cause(unit)
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, code)
    assert unit.bench.messages() == []
    recorded = not (fpd and qualified)
    assert [r.code for r in unit.bench.records()] == ([code] if recorded else [])


@pytest.mark.parametrize("index", [2, 0x81, 0xFE])
def test_interrupt_fault_record_holds_the_index(index: int) -> None:
    unit = Remapper()
    unit.remapped(index, 0xABCD)
    record = unit.record()
    assert record.raw & (1 << 64) - 1 == index << 48
    assert (record.requester, record.code) == (0xABCD, 0x22)


def test_interrupt_fault_beyond_the_table_holds_the_index() -> None:
    unit = Remapper(size=0)
    unit.remapped(0x1234)
    assert unit.record().raw & (1 << 64) - 1 == 0x1234 << 48


def test_interrupt_faults_are_recorded_while_translation_is_off(unit: Remapper) -> None:
    assert not unit.bench.status(1 << 31)
    unit.remapped(1)
    assert unit.record().code == 0x22


# ---- the interrupt entry cache (9.1, 9.5) ---------------------------------------------------


def cached(unit: Remapper) -> set[int]:
    return {entry.address for entry in unit.bench.unit.entries(CacheId.INTERRUPT)}


def test_interrupt_entries_are_cached(unit: Remapper) -> None:
    unit.remapped(0)
    unit.set(0, 0)
    assert unit.remapped(0).ok
    counters = unit.bench.unit.counters()
    assert (counters["int_cache_lookup"], counters["int_cache_hit_nonposted"]) == (2, 1)
    assert counters["iommu_mrds"] == 1
    (entry,) = unit.bench.unit.entries(CacheId.INTERRUPT)
    assert (entry.output, entry.requester) == (PRESENT, 0)


def test_interrupt_cached_entry_still_checks_its_source(unit: Remapper) -> None:
    unit.set(3, PRESENT, 1 << 18 | DEVICE)
    assert unit.remapped(3, DEVICE).ok
    assert unit.remapped(3, DEVICE ^ 0x100).fault == 0x26


@pytest.mark.parametrize("cm", [False, True])
def test_interrupt_not_present_entry_is_cached_in_caching_mode(cm: bool) -> None:
    unit = Remapper(caching_mode=cm)
    assert unit.remapped(5).fault == 0x22
    unit.set(5, PRESENT)
    assert unit.remapped(5).fault == (0x22 if cm else 0)


INDICES = [0, 1, 2, 3, 4, 7, 8, 15, 16, 255]


@pytest.mark.parametrize(
    ("g", "index", "im", "dropped"),
    [
        (0, 0, 0, set(INDICES)),
        (1, 3, 0, {3}),
        (1, 5, 0, set()),
        (1, 2, 1, {2, 3}),
        (1, 3, 1, {2, 3}),
        (1, 6, 2, {4, 7}),
        (1, 0, 3, {0, 1, 2, 3, 4, 7}),
        (1, 9, 3, {8, 15}),
        (1, 0, 8, set(INDICES)),
        (1, 0x100, 7, set()),
        (1, 0xFFFF, 15, set()),
        (1, 0x7FFF, 15, set(INDICES)),
    ],
)
def test_interrupt_entry_invalidation(g: int, index: int, im: int, dropped: set[int]) -> None:
    unit = Remapper(size=8)
    for each in INDICES:
        unit.set(each, PRESENT)
        assert unit.remapped(each).ok
    unit.bench.enable_queue()
    unit.bench.submit(interrupt_descriptor(g, index, im))
    assert set(INDICES) - cached(unit) == dropped


@pytest.mark.parametrize("name", ["context", "iotlb"])
def test_interrupt_entries_survive_other_invalidations(unit: Remapper, name: str) -> None:
    unit.remapped(0)
    unit.bench.write("CCMD", 1 << 63 | 1 << 61)
    unit.bench.write("IOTLB", 1 << 63 | 1 << 60)
    assert cached(unit) == {0}


def test_interrupt_entry_invalidation_leaves_translations_alone() -> None:
    unit = Remapper()
    unit.bench.attach().map(0x5000, 0x20_0000)
    unit.bench.enable()
    unit.bench.translate(0x5000)
    unit.bench.enable_queue()
    unit.bench.submit(interrupt_descriptor())
    caches = (CacheId.CONTEXT, CacheId.IOTLB, CacheId.PAGING)
    assert [len(unit.bench.unit.entries(cache)) for cache in caches] == [1, 1, 3]


def test_interrupt_of_the_unit_itself_is_not_remapped(unit: Remapper) -> None:
    """A fault event in compatibility format passes although remapping would block it."""
    unit.bench.write("FEADDR", 0xFEE0_1000)
    unit.bench.write("FECTL", 0)
    unit.remapped(1)
    assert unit.message().address == 0xFEE0_1000
