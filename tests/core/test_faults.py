"""Every fault of legacy mode, and the fault recording registers (VT-d 2.8, 2.10, 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from core_bench import (
    ATOMIC,
    DEVICE,
    HOLE,
    PFO,
    PPF,
    READ,
    ROOT_TABLE,
    TE,
    WRITE,
    Bench,
    R,
    W,
    geometry,
)

from iommu_emu import core
from iommu_emu.core import (
    Access,
    AddressType,
    IotlbLookup,
    Outcome,
    RequestFlag,
    Reset,
    Vendor,
)
from iommu_emu.geometry import CacheGeometry
from iommu_emu.vtd.faults import FaultRecord

TRANSLATION_REQUEST, TRANSLATED = AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED
UR, CA, ZERO, EFFECTIVE, NONE = "UR", "CA", "zero", "effective", "-"


@dataclass(frozen=True)
class Case:
    """One row of the table in 8.2, and how to get there.

    tr, td: what a translation request and a translated request get; NONE: cannot occur.
    """

    name: str
    code: int
    qualified: bool
    tr: str
    td: str
    build: Callable[[Bench], object]
    address: int = 0x5000
    access: Access = READ
    untranslated: bool = True
    rtaddr: int = ROOT_TABLE
    pasid: int | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.access.name}"


def no_root(bench: Bench) -> None:
    pass


def bad_root(bench: Bench) -> None:
    bench.attach(tt=1)
    bench.poke(bench.root_entry(0), bench.peek(bench.root_entry(0)) | 2)


def lost_context_table(bench: Bench) -> None:
    bench.poke(bench.root_entry(0), HOLE | 1, 0)


def no_context(bench: Bench) -> None:
    bench.set_context(DEVICE, 0, 0)


def context(low: int, high: int) -> Callable[[Bench], None]:
    def build(bench: Bench) -> None:
        bench.set_context(DEVICE, low, high)

    return build


def entry(level: int, value: int) -> Callable[[Bench], None]:
    def build(bench: Bench) -> None:
        bench.attach(tt=1, levels=5).set(0x5000, level, value)

    return build


def attached(tt: int) -> Callable[[Bench], None]:
    def build(bench: Bench) -> None:
        bench.attach(tt=tt, levels=5).map(0x5000, 0x20_0000)

    return build


ATS = 1 << 2  # TT=01 in the low quadword

CASES = [
    Case("LRT.1", 0x08, False, CA, UR, no_root, rtaddr=HOLE),
    Case("LRT.2", 0x01, False, UR, UR, no_root),
    Case("LRT.3", 0x0A, False, CA, UR, bad_root),
    Case("LCT.1", 0x09, False, CA, UR, lost_context_table),
    Case("LCT.2", 0x02, True, UR, UR, no_context),
    Case("LCT.3", 0x0B, True, CA, UR, context(0x1001 | 1 << 4, 3)),
    Case("LCT.4.1", 0x03, True, CA, UR, context(0x1001 | ATS, 7)),
    Case("LCT.4.2", 0x03, True, CA, UR, context(0x100D, 3)),
    Case("LCT.4.3", 0x03, True, CA, NONE, context(HOLE | ATS | 1, 3)),
    Case("LCT.5", 0x0D, True, UR, UR, attached(0), untranslated=False),
    Case("LCT.5", 0x0D, True, UR, UR, attached(2), untranslated=False),
    Case("LGN.1.1", 0x04, True, ZERO, NONE, attached(1), address=1 << 57),
    Case("LGN.1.2", 0x04, True, NONE, UR, attached(1), address=1 << 39, untranslated=False),
    Case("LGN.1.3", 0x04, True, NONE, NONE, attached(2), address=1 << 39),
    Case("LGN.2", 0x05, True, NONE, NONE, entry(1, 0x20_0000 | R), access=WRITE),
    Case("LGN.2", 0x05, True, NONE, NONE, entry(1, 0x20_0000 | R), access=ATOMIC),
    Case("LGN.2", 0x05, True, NONE, NONE, entry(1, 0), access=WRITE),
    Case("LGN.3", 0x06, True, EFFECTIVE, NONE, entry(1, 0x20_0000 | W)),
    Case("LGN.3", 0x06, True, NONE, NONE, entry(1, 0x20_0000 | W), access=ATOMIC),
    Case("LGN.3", 0x06, True, ZERO, NONE, entry(1, 0)),
    Case("LSS.1", 0x07, True, CA, NONE, entry(2, HOLE | R)),
    Case("LSS.2", 0x0C, True, CA, NONE, entry(1, 0x20_0000 | R | 1 << 62)),
    Case("LSS.2", 0x0C, True, CA, NONE, entry(2, 0x20_1000 | R | 1 << 7)),
    Case("LSS.2", 0x0C, True, CA, NONE, entry(3, 0x20_0000 | R | 1 << 11)),
    Case("LSS.2", 0x0C, True, CA, NONE, entry(4, 0x20_0000 | R | 1 << 7)),
    Case("LSS.2", 0x0C, True, CA, NONE, entry(5, 0x20_0000 | R | 1 << 40)),
    Case("LGN.4", 0x0E, True, CA, NONE, entry(1, 0xFEE0_0000 | R)),
    Case("LGN.4", 0x0E, True, NONE, UR, attached(1), address=0xFEE0_0000, untranslated=False),
    Case("RTA.1.1", 0x30, False, CA, UR, attached(1), rtaddr=ROOT_TABLE | 3 << 10),
    Case("RTA.1.2", 0x30, False, CA, UR, attached(1), rtaddr=ROOT_TABLE | 2 << 10),
    Case("RTA.1.3", 0x30, False, CA, UR, attached(1), rtaddr=ROOT_TABLE | 1 << 10),
    Case("RTA.2", 0x31, False, UR, UR, attached(1), pasid=1),
]


def prepared(case: Case, fpd: bool = False, **arguments: object) -> Bench:
    bench = Bench(device_tlb=True, **arguments)
    case.build(bench)
    if fpd and bench.peek(bench.root_entry(0)) == 0x10_0001:
        at = bench.context_entry()
        bench.poke(at, bench.peek(at) | 2)
    bench.set_root(case.rtaddr)
    bench.command(TE)
    return bench


def ask(bench: Bench, case: Case, at: AddressType) -> core.Result:
    return bench.translate(case.address, case.access, at=at, pasid=case.pasid)


@pytest.mark.parametrize("case", [c for c in CASES if c.untranslated], ids=str)
def test_faults_untranslated_request(case: Case) -> None:
    bench = prepared(case)
    result = ask(bench, case, AddressType.UNTRANSLATED)
    assert result.outcome is Outcome.UNSUPPORTED
    assert (result.fault, result.recorded) == (case.code, True)
    assert result.cause is not None
    assert result.cause.name == case.name
    assert result.permissions is Access.NONE
    (record,) = bench.records()
    assert (record.code, record.requester, record.at) == (case.code, DEVICE, 0)
    assert record.address == case.address & ((1 << 57) - 1)  # above the largest AGAW: 0


def recordable() -> list[tuple[Case, AddressType]]:
    return [
        (case, at)
        for case in CASES
        for at, answer in (
            (AddressType.UNTRANSLATED, UR if case.untranslated else NONE),
            (TRANSLATION_REQUEST, case.tr),
            (TRANSLATED, case.td),
        )
        if answer in (UR, CA)
    ]


@pytest.mark.parametrize(("case", "at"), recordable(), ids=str)
def test_faults_fpd_suppresses_the_record_of_qualified_faults(case: Case, at: AddressType) -> None:
    bench = prepared(case, fpd=True)
    result = ask(bench, case, at)
    assert (result.fault, result.recorded) == (case.code, not case.qualified)
    assert len(bench.records()) == (0 if case.qualified else 1)
    assert not result.ok


@pytest.mark.parametrize("case", [c for c in CASES if c.tr != NONE], ids=str)
def test_faults_translation_request(case: Case) -> None:
    bench = prepared(case)
    result = ask(bench, case, TRANSLATION_REQUEST)
    recorded = case.tr in (UR, CA)
    outcome = {UR: Outcome.UNSUPPORTED, CA: Outcome.ABORTED}.get(case.tr, Outcome.MEMORY)
    assert (result.outcome, result.recorded) == (outcome, recorded)
    assert [(r.code, r.at) for r in bench.records()] == ([(case.code, 1)] if recorded else [])
    if case.tr == EFFECTIVE:
        assert (result.permissions, result.address) == (Access.WRITE, 0x20_0000)
    else:
        assert result.permissions is Access.NONE


@pytest.mark.parametrize("case", [c for c in CASES if c.td != NONE], ids=str)
def test_faults_translated_request(case: Case) -> None:
    bench = prepared(case)
    result = ask(bench, case, TRANSLATED)
    assert result.outcome is Outcome.UNSUPPORTED
    assert (result.fault, result.recorded) == (case.code, True)
    assert [(r.code, r.at) for r in bench.records()] == [(case.code, 2)]


def test_faults_table_lists_the_specification() -> None:
    """The exported table has the rows of the cases above and of 10.7, and no others."""
    interrupts = {
        (f"IR.{code:02X}", code, code in (0x22, 0x24, 0x26))
        for code in (0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x29, 0x2A, 0x2B)
    }
    expected = interrupts | {(case.name, case.code, case.qualified) for case in CASES}
    rows = [row for row in core.faults(Vendor.VTD) if row.code]
    assert {(row.name, row.code, row.qualified) for row in rows} == expected


def test_faults_table_has_a_first_row_for_none() -> None:
    assert core.faults(Vendor.VTD)[0].name == "none"


# ---- what a record holds (2.10) -------------------------------------------------------------


@pytest.fixture
def faulting() -> Bench:
    """Every request of requester DEVICE to an unmapped page faults."""
    bench = Bench(fault_records=4)
    bench.attach()
    bench.enable()
    return bench


@pytest.mark.parametrize(
    ("access", "code", "kind"), [(WRITE, 5, (0, 0)), (READ, 6, (1, 0)), (ATOMIC, 5, (1, 1))]
)
def test_faults_record_tells_the_access(
    faulting: Bench, access: Access, code: int, kind: tuple[int, int]
) -> None:
    faulting.translate(0x7123, access)
    record = faulting.record(0)
    assert (record.valid, record.code, record.kind) == (True, code, kind)
    assert (record.address, record.requester) == (0x7000, DEVICE)


def test_faults_record_holds_nothing_else(faulting: Bench) -> None:
    faulting.translate(0x7123, READ)
    expected = 1 << 127 | 1 << 126 | 6 << 96 | DEVICE << 64 | 0x7000
    assert faulting.record(0).raw == expected


@pytest.mark.parametrize(("levels", "width"), [({3}, 39), ({3, 4}, 48), ({3, 4, 5}, 57)])
def test_faults_record_has_address_bits_up_to_the_largest_width(
    levels: set[int], width: int
) -> None:
    bench = Bench(levels=frozenset(levels))
    bench.attach(levels=3)
    bench.enable()
    bench.translate((1 << 64) - 0x1000)
    assert bench.record(0).address == (1 << width) - 0x1000


def test_faults_record_has_no_address_type_without_device_tlb(faulting: Bench) -> None:
    faulting.translate(0x7000, at=TRANSLATED)
    assert (faulting.record(0).code, faulting.record(0).at) == (0x0D, 0)


@pytest.mark.parametrize("pasid", [False, True])
@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        (RequestFlag.NONE, 0),
        (RequestFlag.PRIVILEGED, 1 << 93),
        (RequestFlag.EXECUTE, 1 << 94),
    ],
)
def test_faults_record_has_the_pasid_prefix_if_the_unit_knows_it(
    pasid: bool, flags: RequestFlag, bits: int
) -> None:
    bench = Bench(pasid=pasid)
    bench.enable()
    bench.translate(0x7000, pasid=0xABCDE, flags=flags)
    bench.translate(0x8000, flags=flags)  # no prefix: nothing of it is recorded
    prefix = 1 << 95 | 0xABCDE << 104 | bits if pasid else 0
    assert bench.record(0).raw == 1 << 127 | 1 << 126 | 0x31 << 96 | DEVICE << 64 | 0x7000 | prefix
    assert bench.record(1).raw == 1 << 127 | 1 << 126 | 0x01 << 96 | DEVICE << 64 | 0x8000


def test_faults_record_decodes_in_python(faulting: Bench) -> None:
    faulting.translate(0x7123, ATOMIC)
    record = FaultRecord.decode(faulting.record(0).raw)
    assert record is not None
    assert (record.requester, record.address, record.code) == (DEVICE, 0x7000, 5)
    assert record.access is ATOMIC


def test_faults_record_of_a_hit_is_the_same(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000, R)
    bench.enable()
    bench.translate(0x5000)
    assert bench.fault(0x5ABC, WRITE) == 5
    assert (bench.record(0).address, bench.record(0).code) == (0x5000, 5)


@pytest.mark.parametrize("fpd", [False, True])
def test_faults_fpd_counts_for_a_hit(fpd: bool) -> None:
    bench = Bench()
    bench.attach(fpd=fpd).map(0x5000, 0x20_0000, R)
    bench.enable()
    bench.translate(0x5000)
    result = bench.translate(0x5000, WRITE)
    assert (result.outcome, result.recorded) == (Outcome.UNSUPPORTED, not fpd)


@pytest.mark.parametrize("lookup", IotlbLookup)
@pytest.mark.parametrize("first", [0x10, 0x18])
def test_faults_fpd_is_that_of_the_requester(lookup: IotlbLookup, first: int) -> None:
    """10h has FPD and 18h has not; they share a domain, and perhaps an IOTLB entry."""
    bench = Bench(lookup=lookup)
    table = bench.attach(0x10, fpd=True)
    table.map(0x5000, 0x20_0000, R)
    bench.attach(0x18, table=table)
    bench.enable()
    bench.translate(0x5000, requester=first)
    assert not bench.translate(0x5000, WRITE, 0x10).recorded
    assert bench.translate(0x5000, WRITE, 0x18).recorded


@pytest.mark.parametrize("fpd", [False, True])
def test_faults_fpd_counts_from_the_context_cache(fpd: bool) -> None:
    bench = Bench()
    bench.attach(fpd=fpd).map(0x5000, 0x20_0000, R)
    bench.enable()
    bench.translate(0x5000)
    assert bench.translate(0x6000).recorded is not fpd


def test_faults_fpd_counts_in_a_context_entry_that_is_not_present(bench: Bench) -> None:
    bench.set_context(DEVICE, 2, 0)
    bench.enable()
    result = bench.translate(0x5000)
    assert (result.fault, result.recorded) == (0x02, False)


def test_faults_leave_the_iotlb_alone(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000, R)
    bench.enable()
    bench.translate(0x5000)
    assert bench.fault(0x5000, WRITE) == 5
    reads = bench.counter("iommu_mrds")
    assert bench.reads(0x5000) == 0x20_0000
    assert bench.counter("iommu_mrds") == reads


# ---- the ring (8.1, 2.8) --------------------------------------------------------------------


def pages(bench: Bench) -> list[int]:
    return [record.address >> 12 for record in bench.records()]


@pytest.mark.parametrize("count", [1, 2, 8, 256])
def test_faults_ring_has_nfr_plus_one_records(count: int) -> None:
    bench = Bench(fault_records=count)
    bench.attach()
    bench.enable()
    for page in range(count + 1):
        assert bench.translate(page << 12).recorded is (page < count)
    assert pages(bench) == list(range(count))
    assert bench.read("FSTS") == PFO | PPF


def test_faults_ring_wraps(faulting: Bench) -> None:
    for page in range(6):
        faulting.translate(page << 12)
        faulting.clear_record(page % 4)
    faulting.translate(6 << 12)
    assert pages(faulting) == [6]
    assert faulting.record(2).valid
    assert faulting.record(1).address == 5 << 12  # kept after F was cleared


def test_faults_first_pending_record_is_latched(faulting: Bench) -> None:
    faulting.translate(0)
    faulting.clear_record(0)
    faulting.translate(1 << 12)
    assert faulting.read("FSTS") == PPF | 1 << 8
    faulting.translate(2 << 12)
    assert faulting.read("FSTS") == PPF | 1 << 8
    faulting.clear_record(1)
    faulting.clear_record(2)
    faulting.translate(3 << 12)
    assert faulting.read("FSTS") == PPF | 3 << 8


def test_faults_pending_is_the_or_of_all_records(faulting: Bench) -> None:
    for page in range(3):
        faulting.translate(page << 12)
    for index in (1, 0):
        faulting.clear_record(index)
        assert faulting.read("FSTS") & PPF
    faulting.clear_record(2)
    assert not faulting.read("FSTS") & PPF


def test_faults_pending_cannot_be_cleared_by_writing_status(faulting: Bench) -> None:
    faulting.translate(0)
    faulting.write("FSTS", 0xFFFF_FFFF)
    assert faulting.read("FSTS") == PPF


def test_faults_overflow_blocks_recording_until_it_is_cleared(faulting: Bench) -> None:
    for page in range(5):
        faulting.translate(page << 12)
    faulting.clear_record(0)
    assert not faulting.translate(5 << 12).recorded  # PFO is still set
    faulting.write("FSTS", PFO)
    assert faulting.read("FSTS") & PFO == 0
    assert faulting.translate(6 << 12).recorded
    assert faulting.record(0).address == 6 << 12


def test_faults_overflow_cleared_with_a_full_ring_comes_back(faulting: Bench) -> None:
    for page in range(5):
        faulting.translate(page << 12)
    faulting.write("FSTS", PFO)
    assert not faulting.translate(6 << 12).recorded
    assert faulting.read("FSTS") & PFO
    assert pages(faulting) == [0, 1, 2, 3]


def test_faults_lost_ones_are_counted(faulting: Bench) -> None:
    for page in range(7):
        faulting.translate(page << 12)
    assert faulting.counter("faults_recorded") == 4
    assert faulting.counter("faults_lost") == 3


def test_faults_clearing_f_needs_a_one(faulting: Bench) -> None:
    faulting.translate(0)
    offset, _ = faulting.place("FRCD", 0)
    faulting.unit.mmio_write(offset + 12, 4, 0x7FFF_FFFF)
    faulting.unit.mmio_write(offset, 8, (1 << 64) - 1)
    assert faulting.record(0).valid


def test_faults_record_can_be_cleared_by_a_quadword(faulting: Bench) -> None:
    faulting.translate(0)
    faulting.unit.mmio_write(faulting.place("FRCD", 0)[0] + 8, 8, 1 << 63)
    assert faulting.records() == []
    assert not faulting.read("FSTS") & PPF


def test_faults_recording_restarts_at_the_first_record_when_all_is_off(faulting: Bench) -> None:
    faulting.translate(0)
    before = faulting.record(0)
    faulting.command(TE, on=False)
    assert faulting.record(0) == before  # records and status are not touched
    assert faulting.read("FSTS") == PPF
    faulting.clear_record(0)
    faulting.command(TE)
    faulting.translate(1 << 12)
    assert faulting.record(0).address == 1 << 12


def test_faults_recording_does_not_restart_while_interrupts_are_remapped() -> None:
    bench = Bench(interrupt_remapping=True)
    bench.attach()
    bench.enable()
    bench.command(1 << 25)  # IRE
    bench.translate(0)
    bench.command(TE, on=False)
    bench.command(TE)
    bench.translate(1 << 12)
    assert [bench.record(i).address >> 12 for i in range(2)] == [0, 1]
    bench.command(TE, on=False)
    bench.command(1 << 25, on=False)
    bench.clear_records()
    bench.command(TE)
    bench.translate(2 << 12)
    assert bench.record(0).address == 2 << 12


def test_faults_compression_is_off_by_default(faulting: Bench) -> None:
    faulting.translate(0)
    faulting.translate(0)
    assert len(faulting.records()) == 2


def test_faults_compression_drops_a_requester_that_has_a_record() -> None:
    bench = Bench(compress=True)
    bench.attach(0x10)
    bench.attach(0x18)
    bench.enable()
    assert bench.translate(0, requester=0x10).recorded
    assert bench.translate(0, requester=0x18).recorded
    assert not bench.translate(0x1000, requester=0x10).recorded
    assert not bench.translate(0x1000, requester=0x18).recorded
    assert not bench.read("FSTS") & PFO
    bench.clear_record(0)
    assert bench.translate(0x2000, requester=0x10).recorded
    assert [record.address >> 12 for record in bench.records()] == [0, 2]


@pytest.mark.parametrize(("kind", "kept"), [(Reset.WARM, True), (Reset.POWER_ON, False)])
def test_faults_records_are_sticky(faulting: Bench, kind: Reset, kept: bool) -> None:
    for page in range(5):
        faulting.translate(page << 12)
    status, raw = faulting.read("FSTS"), faulting.record(3).raw
    faulting.unit.reset(kind)
    assert faulting.read("FSTS") == (status if kept else 0)
    assert faulting.record(3).raw == (raw if kept else 0)


def test_faults_are_the_same_with_tiny_caches() -> None:
    bench = Bench(shape=geometry(iotlb=CacheGeometry(1, 1), paging=CacheGeometry(1, 1)))
    table = bench.attach()
    table.map(0x5000, 0x20_0000)
    table.map(0x40_0000, 0x20_1000)
    bench.enable()
    for _ in range(3):
        assert bench.reads(0x5000) == 0x20_0000
        assert bench.reads(0x40_0000) == 0x20_1000
        assert bench.fault(0x6000) == 6
