"""Translation requests and translated requests of VT-d (VT-d 5.2, 6, 8.2, 8.4)."""

from __future__ import annotations

import pytest
from ats_bench import MEMORY, PAGE, ats_bench, translation
from core_bench import DEVICE, PS, READ, RW, SNP, TE, WRITE, Bench, R, W

from iommu_emu.core import (
    AddressType,
    Attribute,
    CacheId,
    IotlbLookup,
    Outcome,
    RequestFlag,
    Result,
    Status,
    Translation,
)

ASKS, TRANSLATED = AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED
NOTHING = Translation(0, 4096, False, False, False, False)


def asks(bench: Bench, address: int = PAGE, **arguments: object) -> Result:
    return bench.translate(address, READ, length=8, at=ASKS, **arguments)


# ---- what is granted (6.2) ---------------------------------


@pytest.mark.parametrize("bits", [R, W, RW])
@pytest.mark.parametrize("warm", [False, True])
def test_translation_has_the_effective_permissions(bits: int, warm: bool) -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(PAGE, MEMORY, bits)
    if warm:
        bench.translate(PAGE, READ if bits & R else WRITE)
    result = asks(bench)
    assert (result.outcome, result.address, result.permissions) == (Outcome.MEMORY, MEMORY, bits)
    assert (result.fault, result.cause, result.recorded) == (0, None, False)


def test_translation_of_a_page_that_grants_nothing_is_no_fault() -> None:
    bench = ats_bench()
    table = bench.attach(tt=1)
    table.map(PAGE, MEMORY, R)
    entry = table.entry(PAGE, 2)
    bench.poke(entry, bench.peek(entry) & ~R)
    result = asks(bench)
    assert (result.outcome, result.address, result.permissions) == (Outcome.MEMORY, 0, 0)
    assert (result.fault, bench.records(), result.domain) == (0, [], 1)


@pytest.mark.parametrize("address", [0x9000, 1 << 48])
def test_translation_of_what_is_not_there_is_no_fault(address: int) -> None:
    bench = ats_bench()
    assert asks(bench, address).permissions == 0
    assert translation(bench.port(), address) == NOTHING
    assert (bench.records(), bench.read("FSTS")) == ([], 0)


@pytest.mark.parametrize(
    ("level", "size", "code"),
    [(1, 0x1000, 0), (2, 0x20_0000, 0xF_F000 | 1 << 11), (3, 0x4000_0000, 0x1FFF_F000 | 1 << 11)],
)
def test_translation_tells_the_size_of_the_page(level: int, size: int, code: int) -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(0x4000_0000, 0x8000_0000, level=level)
    port = bench.port()
    address = 0x4000_0000 + size - 0x1000
    completion = port.translation_request(address)
    assert completion.data == (0x8000_0000 | code | RW).to_bytes(8, "little")
    assert translation(port, address) == Translation(0x8000_0000, size, True, True, False, False)


def test_translation_size_is_that_of_the_fragment_beside_the_interrupt_range() -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(0x20_0000, 0xFEE0_0000, RW, level=2)
    assert translation(bench.port(), 0x30_5000).size == 4096


@pytest.mark.parametrize("entry", [MEMORY | RW, MEMORY | RW | SNP])
def test_translation_is_non_snooped_as_the_leaf_says(entry: int) -> None:
    bench = ats_bench()
    bench.attach(tt=1).set(PAGE, 1, entry)
    assert translation(bench.port(), PAGE).non_snooped is bool(entry & SNP)


@pytest.mark.parametrize(
    ("flag", "bits", "granted"), [(True, RW, R), (True, W, 0), (False, RW, RW), (False, W, W)]
)
def test_translation_without_write_where_the_unit_knows_the_flag(
    flag: bool, bits: int, granted: int
) -> None:
    bench = ats_bench(no_write_flag=flag)
    bench.attach(tt=1).map(PAGE, MEMORY, bits)
    assert asks(bench, flags=RequestFlag.NO_WRITE).permissions == granted


def test_translation_fills_the_iotlb() -> None:
    bench = ats_bench()
    asks(bench)
    (entry,) = bench.unit.entries(CacheId.IOTLB)
    assert (entry.address, entry.output, entry.requester) == (PAGE, MEMORY, DEVICE)


@pytest.mark.parametrize("lookup", IotlbLookup)
def test_translation_is_taken_from_the_iotlb(lookup: IotlbLookup) -> None:
    bench = ats_bench(lookup=lookup)
    table = bench.attach(tt=1)
    table.map(PAGE, MEMORY)
    bench.translate(PAGE)
    table.map(PAGE, MEMORY + 0x1000)
    assert asks(bench).address == MEMORY


# ---- faults (8.2) ---------------------------------


@pytest.mark.parametrize("bits", [RW, W])
def test_translation_into_the_interrupt_range_is_aborted(bits: int) -> None:
    bench = ats_bench()
    bench.attach(tt=1).map(PAGE, 0xFEE0_1000, bits)
    result = asks(bench)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.ABORTED, 0x0E, True)
    assert [(record.code, record.at) for record in bench.records()] == [(0x0E, 1)]


@pytest.mark.parametrize(
    ("entry", "status", "code"),
    [
        (MEMORY | RW | 1 << 62, Status.COMPLETER_ABORT, 0x0C),
        (MEMORY | RW | PS, Status.DONE, 0),  # bit 7 of a 4 KiB page is ignored
    ],
)
def test_translation_of_a_malformed_entry(entry: int, status: Status, code: int) -> None:
    bench = ats_bench()
    bench.attach(tt=1).set(PAGE, 1, entry)
    completion = bench.port().translation_request(PAGE)
    assert (completion.status, completion.fault) == (status, code)


@pytest.mark.parametrize("tt", [0, 2])
@pytest.mark.parametrize("at", [ASKS, TRANSLATED])
def test_context_without_ats_refuses(tt: int, at: AddressType) -> None:
    bench = ats_bench()
    bench.attach(tt=tt, levels=5)
    result = bench.translate(PAGE, READ, length=8, at=at)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.UNSUPPORTED, 0x0D, True)


@pytest.mark.parametrize("at", [ASKS, TRANSLATED])
def test_translation_off_is_unsupported_and_silent(at: AddressType) -> None:
    bench = ats_bench(enabled=False)
    result = bench.translate(PAGE, READ, length=8, at=at)
    assert (result.outcome, result.fault, result.recorded) == (Outcome.UNSUPPORTED, 0, False)


# ---- interrupt range (8.4) ---------------------------------


@pytest.mark.parametrize("address", [0xFEE0_0000, 0xFEEF_F000])
@pytest.mark.parametrize("attached", [True, False])
def test_interrupt_range_is_to_be_written_untranslated(address: int, attached: bool) -> None:
    bench = ats_bench()
    if not attached:  # no table is read for it
        bench.set_context(DEVICE, 0, 0)
    result = asks(bench, address)
    assert (result.outcome, result.page_shift, result.permissions) == (Outcome.MEMORY, 12, W)
    assert result.attributes is Attribute.UNTRANSLATED_ONLY
    found = translation(bench.port(), address)
    assert (found.read, found.write, found.untranslated_only) == (False, True, True)
    assert (found.size, bench.records(), bench.counter("iommu_mrds")) == (4096, [], 0)


@pytest.mark.parametrize(("flag", "granted"), [(True, 0), (False, W)])
def test_interrupt_range_grants_nothing_to_who_will_not_write(flag: bool, granted: int) -> None:
    bench = ats_bench(no_write_flag=flag)
    assert asks(bench, 0xFEE0_0000, flags=RequestFlag.NO_WRITE).permissions == granted


def test_interrupt_range_with_pasid_is_a_request_with_pasid() -> None:
    assert asks(ats_bench(), 0xFEE0_0000, pasid=1).fault == 0x31


def test_interrupt_range_refuses_translated_requests() -> None:
    bench = ats_bench()
    result = bench.translate(0xFEE0_0000, WRITE, at=TRANSLATED)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, 0x0E)


# ---- translated requests (6.3) ---------------------------------


@pytest.mark.parametrize(("address", "code"), [((1 << 39) - 4, 0), (1 << 39, 0x04)])
def test_translated_request_reaches_all_of_memory(address: int, code: int) -> None:
    assert ats_bench().translate(address, WRITE, at=TRANSLATED).fault == code


def test_translated_request_meets_no_page_table() -> None:
    bench = ats_bench()
    port = bench.port()
    assert port.transfer(WRITE, 0x30_0000, b"past", at=TRANSLATED).ok
    assert bench.machine.read(0x30_0000, 4) == b"past"
    assert bench.unit.entries(CacheId.IOTLB) == []


@pytest.mark.parametrize("major", [1, 2])
def test_protected_memory_blocks_translated_requests_not_translations(major: int) -> None:
    bench = ats_bench(major=major, enabled=False)
    bench.write("PLMBASE", MEMORY)
    bench.write("PLMLIMIT", MEMORY)
    bench.write("PMEN", 1 << 31)
    bench.command(TE)
    assert asks(bench).address == MEMORY
    result = bench.translate(MEMORY, READ, at=TRANSLATED)
    assert (result.outcome, result.recorded) == (Outcome.UNSUPPORTED, False)
