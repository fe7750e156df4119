"""Message interrupts of devices: the window, IntCtl, 32-bit remapping entries (AMD-Vi 7, 12)."""

from __future__ import annotations

import pytest
from amdvi_core_bench import (
    DEVICE,
    HOLE,
    ILLEGAL_DTE,
    INT,
    INTERRUPTS,
    INVALID_REQUEST,
    MASTER_ABORT,
    OTHER,
    PAGE_FAULT,
    PR,
    READ,
    RZ,
    TABLE_ERROR,
    WRITE,
    Amdvi,
    dte,
    invalidate_devtab,
    invalidate_interrupts,
)

from iommu_emu.core import Access, CacheId, Completion, MessageKind, Outcome

WINDOW = 0xFEE0_0000
ABORT, FORWARD, REMAP = 0, 1, 2
IG, INIT_PASS, EXT_INT_PASS, NMI_PASS = 1 << 133, 1 << 184, 1 << 185, 1 << 186
SMI, NMI, INIT, EXT_INT = 2 << 8, 4 << 8, 5 << 8, 7 << 8
IRT_CACHE_DIS = 1 << 59

# An entry for vector 0x31 at APIC 5 (12.2).
IRTE = 1 | 5 << 8 | 0x31 << 16


def remapping(length: int = 11, fields: int = 0) -> int:
    return dte(iv=1, intctl=REMAP, high=length << 129 | INTERRUPTS << 128 | fields)


@pytest.fixture
def bench() -> Amdvi:
    """A unit whose device has a table of 2048 interrupts, none of them enabled."""
    bench = Amdvi()
    bench.set_dte(remapping())
    return bench


def set_irte(bench: Amdvi, index: int, value: int) -> None:
    bench.machine.write(INTERRUPTS + 4 * index, value.to_bytes(4, "little"))


def send(bench: Amdvi, data: int, address: int = WINDOW) -> Completion:
    return bench.port().write(address, data.to_bytes(4, "little"))


def delivered(bench: Amdvi) -> list[tuple[int, int]]:
    messages = bench.messages(MessageKind.INTERRUPT)
    return [(m.address, int.from_bytes(m.data, "little")) for m in messages]


# ---- the window (7.1) -------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [dte(v=0), dte(tv=0), dte(), dte(v=0, iv=1, intctl=FORWARD)])
@pytest.mark.parametrize("address", [WINDOW, WINDOW + 0xF_FFFC])
def test_interrupt_is_forwarded_as_it_is(bench: Amdvi, address: int, entry: int) -> None:
    bench.set_dte(entry)
    assert send(bench, 0x4031, address).ok
    assert delivered(bench) == [(address, 0x4031)]


def test_interrupt_passes_a_unit_that_is_off() -> None:
    bench = Amdvi()
    bench.set_dte(dte(iv=1, intctl=ABORT))
    bench.write("Control", 0)
    assert send(bench, 0x4031).ok
    assert delivered(bench) == [(WINDOW, 0x4031)]


@pytest.mark.parametrize(
    ("access", "length", "offset"), [(READ, 4, 0), (WRITE, 8, 0), (WRITE, 2, 0), (WRITE, 4, 2)]
)
def test_window_of_a_unit_that_is_off_takes_interrupts_only(
    access: Access, length: int, offset: int
) -> None:
    bench = Amdvi(on=False)
    result = bench.translate(WINDOW + offset, access, length=length)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, 0)


@pytest.mark.parametrize(
    ("access", "length", "kind"),
    [(READ, 4, 0), (READ, 0, 0), (Access.ATOMIC, 4, 0), (WRITE, 8, 6), (WRITE, 1, 6)],
)
def test_window_takes_interrupts_only(bench: Amdvi, access: Access, length: int, kind: int) -> None:
    bench.set_dte(dte(v=0))
    assert bench.translate(WINDOW, access, length=length).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags, event.address) == (INVALID_REQUEST, kind << 9, WINDOW)


def test_window_is_not_page_walked(bench: Amdvi) -> None:
    table = bench.attach()
    table.map(WINDOW, 0x9000)
    assert bench.translate(WINDOW, WRITE).outcome is Outcome.INTERRUPT
    assert bench.counter("iotlb_lookup") == 0


@pytest.mark.parametrize("address", [0xFD_F800_0000, 0xFD_F8FF_FFFC])
def test_interrupt_in_the_hypertransport_range_obeys_intctl(bench: Amdvi, address: int) -> None:
    bench.set_dte(dte(iv=1, intctl=FORWARD))
    assert send(bench, 0x31, address).ok
    assert delivered(bench) == [(address, 0x31)]
    bench.set_dte(dte(iv=1, intctl=ABORT))
    bench.submit(invalidate_devtab())
    assert send(bench, 0x31, address).fault == INVALID_REQUEST
    assert (bench.event().flags, delivered(bench)) == (5 << 9, [])


@pytest.mark.parametrize("address", [WINDOW - 4, WINDOW + 0x10_0000])
def test_window_has_no_neighbours(bench: Amdvi, address: int) -> None:
    bench.set_dte(dte())
    assert bench.translate(address, WRITE).outcome is Outcome.MEMORY


def test_window_with_pasid_is_no_window(bench: Amdvi) -> None:
    bench.set_dte(dte())
    assert bench.translate(WINDOW, WRITE, pasid=1).fault == PAGE_FAULT


@pytest.mark.parametrize("field", [1 << 2, 1 << 180 | 1 << 128])
def test_interrupt_of_a_device_with_an_illegal_entry_is_refused(bench: Amdvi, field: int) -> None:
    bench.set_dte(dte(low=field))
    assert send(bench, 0x31).fault == ILLEGAL_DTE
    assert delivered(bench) == []
    event = bench.event()
    assert (event.code, event.flags) == (ILLEGAL_DTE, INT | RZ)
    assert event.address == 0xFD_F800_0000


def test_interrupt_looks_at_the_device_table_once(bench: Amdvi) -> None:
    bench.set_dte(dte())
    send(bench, 0x31)
    assert bench.counter("ctxt_cache_lookup") == 1


# ---- IntCtl and the pass bits (12.1) ----------------------------------------------------------


@pytest.mark.parametrize("data", [0x31, 0x131])  # fixed, arbitrated
def test_interrupt_is_refused_with_intctl_0(bench: Amdvi, data: int) -> None:
    bench.set_dte(dte(iv=1, intctl=ABORT))
    assert send(bench, data, WINDOW + 0x1_2000).fault == INVALID_REQUEST
    assert delivered(bench) == []
    event = bench.event()
    assert (event.code, event.flags, event.device) == (INVALID_REQUEST, 5 << 9, DEVICE)
    assert event.address == 0xFD_F801_2000


@pytest.mark.parametrize("intctl", [ABORT, FORWARD, REMAP])
@pytest.mark.parametrize(
    ("mode", "bit"), [(NMI, NMI_PASS), (INIT, INIT_PASS), (EXT_INT, EXT_INT_PASS)]
)
def test_interrupt_of_another_type_needs_its_pass_bit(
    bench: Amdvi, mode: int, bit: int, intctl: int
) -> None:
    others = (NMI_PASS | INIT_PASS | EXT_INT_PASS) & ~bit
    bench.set_dte(dte(iv=1, intctl=intctl, high=bit))
    assert send(bench, mode).ok
    assert delivered(bench) == [(WINDOW, mode)]
    bench.set_dte(dte(iv=1, intctl=intctl, high=others))
    bench.submit(invalidate_devtab())
    assert send(bench, mode).fault == PAGE_FAULT
    assert bench.event().flags == INT


@pytest.mark.parametrize("mode", [NMI, INIT, EXT_INT])
def test_interrupt_of_another_type_needs_physical_mode(bench: Amdvi, mode: int) -> None:
    bench.set_dte(remapping(fields=NMI_PASS | INIT_PASS | EXT_INT_PASS))
    assert send(bench, mode, WINDOW + 4).fault == PAGE_FAULT


@pytest.mark.parametrize("intctl", [ABORT, FORWARD, REMAP])
def test_smi_is_forwarded(bench: Amdvi, intctl: int) -> None:
    bench.set_dte(dte(iv=1, intctl=intctl))
    assert send(bench, SMI).ok
    assert delivered(bench) == [(WINDOW, SMI)]


@pytest.mark.parametrize("mode", [3 << 8, 6 << 8])
def test_interrupt_of_a_reserved_type_is_a_page_fault(bench: Amdvi, mode: int) -> None:
    bench.set_dte(remapping(fields=NMI_PASS | INIT_PASS | EXT_INT_PASS))
    assert send(bench, mode).fault == PAGE_FAULT
    assert bench.event().flags == INT


# ---- remapping (12.1, 12.2) -------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2, 0xFF, 0x1FF])
def test_remapping_uses_the_entry_that_the_data_names(bench: Amdvi, index: int) -> None:
    set_irte(bench, index, IRTE)
    assert send(bench, index).ok
    assert delivered(bench) == [(WINDOW | 5 << 12, 0x31)]
    assert not send(bench, index ^ 1).ok


@pytest.mark.parametrize(
    ("entry", "address", "data"),
    [
        (1 | 0xFF << 8 | 0xFE << 16, WINDOW | 0xFF << 12, 0xFE),
        (1 | 1 << 6 | 3 << 8 | 0x31 << 16, WINDOW | 3 << 12 | 4, 0x31),  # logical
        (1 | 1 << 2 | 0x31 << 16, WINDOW, 0x131),  # arbitrated
        (1 | 1 << 5 | 0x31 << 16, WINDOW, 0x31),  # RqEoi changes nothing here
    ],
)
def test_remapping_composes_the_message(bench: Amdvi, entry: int, address: int, data: int) -> None:
    set_irte(bench, 7, entry)
    send(bench, 7)
    assert delivered(bench) == [(address, data)]


def test_remapping_keeps_the_other_bits_of_the_message(bench: Amdvi) -> None:
    set_irte(bench, 7, IRTE)
    send(bench, 0xABCD_C007, WINDOW | 0xAB << 12 | 0x8)
    assert delivered(bench) == [(WINDOW | 5 << 12 | 8, 0xABCD_C031)]


@pytest.mark.parametrize(("length", "last"), [(0, 0), (1, 1), (5, 31), (9, 511)])
def test_remapping_index_is_limited_by_the_table(bench: Amdvi, length: int, last: int) -> None:
    bench.set_dte(remapping(length))
    set_irte(bench, last, IRTE)
    set_irte(bench, last + 1, IRTE)
    assert send(bench, last).ok
    # Index 512 cannot be said: bits 10:8 of the data tell the type.
    if last < 511:
        assert send(bench, last + 1).fault == PAGE_FAULT
        event = bench.event()
        assert (event.flags, event.domain) == (INT, 1)
        assert event.address == 0xFD_F800_0000


@pytest.mark.parametrize(
    ("entry", "flags"),
    [
        (IRTE & ~1, INT),
        (IRTE | 2 << 2, INT | PR | RZ),  # IntType
        (IRTE | 7 << 2, INT | PR | RZ),
        (IRTE | 1 << 7, INT | PR | RZ),  # GuestMode
        (IRTE | 1 << 24, INT | PR | RZ),
        (IRTE | 1 << 31, INT | PR | RZ),
    ],
)
def test_remapping_bad_entry_is_a_page_fault(bench: Amdvi, entry: int, flags: int) -> None:
    set_irte(bench, 3, entry)
    completion = send(bench, 3)
    assert (completion.status.name, completion.fault) == ("COMPLETER_ABORT", PAGE_FAULT)
    assert delivered(bench) == []
    assert bench.event().flags == flags


@pytest.mark.parametrize("entry", [2, IRTE & ~1 | 2, IRTE | 2 | 1 << 7])
def test_remapping_entry_can_suppress_its_event(bench: Amdvi, entry: int) -> None:
    set_irte(bench, 3, entry)
    assert send(bench, 3).fault == PAGE_FAULT
    assert bench.events() == []


def test_remapping_device_can_suppress_its_events(bench: Amdvi) -> None:
    bench.set_dte(remapping(3, IG))
    assert send(bench, 3).fault == PAGE_FAULT
    assert send(bench, 8).fault == PAGE_FAULT
    assert send(bench, NMI).fault == PAGE_FAULT
    assert bench.events() == []


def test_remapping_entry_that_cannot_be_read_is_a_hardware_error(bench: Amdvi) -> None:
    bench.set_dte(dte(iv=1, intctl=REMAP, high=11 << 129 | HOLE << 128, domain=4))
    assert send(bench, 3).fault == TABLE_ERROR
    event = bench.event()
    assert (event.code, event.flags) == (TABLE_ERROR, INT | MASTER_ABORT)
    assert event.address == HOLE + 8  # 63:3 of the entry's address


def test_remapping_does_not_need_v(bench: Amdvi) -> None:
    bench.set_dte(remapping() & ~3)
    set_irte(bench, 3, IRTE)
    assert send(bench, 3).ok
    assert delivered(bench) == [(WINDOW | 5 << 12, 0x31)]


@pytest.mark.parametrize(("valid", "logged"), [(0, 1), (1, 0)])
def test_remapping_fault_is_suppressed_by_sa_of_a_valid_half_only(
    bench: Amdvi, valid: int, logged: int
) -> None:
    bench.set_dte(remapping(fields=1 << 98) & ~1 | valid)
    assert send(bench, 3).fault == PAGE_FAULT
    assert len(bench.events()) == logged


# ---- the interrupt cache (13) -----------------------------------------------------------------


def test_remapping_entry_stays_cached_until_its_invalidation(bench: Amdvi) -> None:
    set_irte(bench, 3, IRTE)
    send(bench, 3)
    set_irte(bench, 3, 0)
    assert send(bench, 3).ok
    bench.submit(invalidate_interrupts(OTHER))
    assert send(bench, 3).ok
    bench.submit(invalidate_interrupts(DEVICE))
    assert not send(bench, 3).ok


def test_remapping_entry_is_cached_by_device_and_index(bench: Amdvi) -> None:
    set_irte(bench, 3, IRTE)
    send(bench, 3)
    (entry,) = bench.unit.entries(CacheId.INTERRUPT)
    assert (entry.requester, entry.address, entry.output) == (DEVICE, 3, IRTE)


@pytest.mark.parametrize("np_cache", [False, True])
def test_remapping_disabled_entry_is_cached_only_with_np_cache(np_cache: bool) -> None:
    bench = Amdvi(np_cache=np_cache)
    bench.set_dte(remapping())
    assert not send(bench, 3).ok
    set_irte(bench, 3, IRTE)
    assert send(bench, 3).ok is not np_cache


def test_remapping_caches_nothing_with_irtcachedis(bench: Amdvi) -> None:
    bench.write("Control", bench.read("Control") | IRT_CACHE_DIS)
    set_irte(bench, 3, IRTE)
    send(bench, 3)
    set_irte(bench, 3, 0)
    assert not send(bench, 3).ok
    assert bench.unit.entries(CacheId.INTERRUPT) == []
