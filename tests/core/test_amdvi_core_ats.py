"""Device-TLBs of AMD-Vi: requests, completions, INVALIDATE_IOTLB_PAGES (AMD-Vi 8, 9, 10)."""

from __future__ import annotations

from typing import Any

import pytest
from amdvi_core_bench import (
    ATOMIC,
    COMMANDS,
    DEVICE,
    EVERYTHING_ADDRESS,
    HOLE,
    ILLEGAL_COMMAND,
    ILLEGAL_DTE,
    INVALID_REQUEST,
    INVALIDATION_TIMEOUT,
    MASTER_ABORT,
    OTHER,
    READ,
    RUNNING,
    RW,
    RZ,
    SMALL,
    STORE,
    TABLE_ERROR,
    TR,
    WRITE,
    Amdvi,
    R,
    W,
    completion_wait,
    dte,
    invalidate_all,
    invalidate_device_tlb,
    invalidate_devtab,
    invalidate_domain,
    invalidate_pages,
    pte,
)

from iommu_emu.core import (
    Access,
    AddressType,
    Answer,
    Attribute,
    CacheId,
    DeviceTlb,
    InvalidationState,
    IotlbLookup,
    Outcome,
    Owed,
    Port,
    Result,
    Status,
    TableLevel,
    Translation,
)

ASKS, TRANSLATED = AddressType.TRANSLATION_REQUEST, AddressType.TRANSLATED
ATS = 1 << 96  # I (4.2)
EX = 1 << 103
FC, U = 1 << 60, 1 << 59
PAGE, MEMORY = 0x5000, 0x30_0000
MILLISECOND = 1_000_000


def prepared(**arguments: Any) -> Amdvi:
    """Return a unit with IotlbSup, and a page for DEVICE."""
    bench = Amdvi(device_tlbs=True, **arguments)
    bench.attach(low=ATS).map(PAGE, MEMORY)
    return bench


def device(bench: Amdvi, answer: Answer = Answer.AFTER, **how: Any) -> tuple[Port, DeviceTlb]:
    port = bench.port(how.pop("requester", DEVICE))
    tlb = port.add_device_tlb(SMALL.parameters(), answer, **how)
    tlb.enable()
    return port, tlb


def asks(bench: Amdvi, address: int = PAGE, **how: Any) -> Result:
    return bench.translate(address, READ, length=8, at=ASKS, **how)


def invalidate(bench: Amdvi, *commands: tuple[int, int]) -> None:
    bench.poke(STORE, 0)
    bench.submit(*(commands or [invalidate_device_tlb()]), completion_wait(s=1, data=1))


def complete(bench: Amdvi) -> bool:
    return bench.peek(STORE) == 1


# ---- translation requests (8) ---------------------------------------------------------------


@pytest.mark.parametrize("lookup", IotlbLookup)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("entry", [R, W, RW])
@pytest.mark.parametrize("leaf", [R, W, RW])
def test_translation_has_the_effective_permissions(
    entry: int, leaf: int, warm: bool, lookup: IotlbLookup
) -> None:
    bench = prepared(lookup=lookup)
    bench.attach(low=ATS, permissions=entry).map(PAGE, MEMORY, leaf)
    if warm:
        bench.translate(PAGE, READ if entry & leaf & R else WRITE)
        bench.events()
    result = asks(bench)
    granted = entry & leaf
    assert (result.outcome, result.permissions) == (Outcome.MEMORY, granted)
    assert result.address == (MEMORY if granted else 0)
    assert (result.fault, bench.events()) == (0, [])


@pytest.mark.parametrize(
    ("bits", "read_as"),
    [
        (0, Attribute.NON_SNOOPED),
        (FC, Attribute.SNOOP),
        (U, Attribute.NON_SNOOPED | Attribute.UNTRANSLATED_ONLY),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_translation_attributes_are_those_of_the_leaf(
    bits: int, read_as: Attribute, warm: bool
) -> None:
    bench = prepared()
    bench.attach(low=ATS).set(PAGE, 1, pte(MEMORY) | bits)
    if warm:
        bench.translate(PAGE)
    assert asks(bench).attributes == read_as


@pytest.mark.parametrize("shift", [12, 13, 16, 21, 24, 30])
def test_translation_tells_the_size_of_the_page(shift: int) -> None:
    bench = prepared()
    bench.attach(low=ATS).map(0x4000_0000, 0x8000_0000, shift=shift)
    completion = bench.port().translation_request(0x4000_0000)
    found = Translation.decode(completion.data)
    assert (found.address, found.size) == (0x8000_0000, 1 << shift)


@pytest.mark.parametrize("lookup", IotlbLookup)
def test_translation_is_taken_from_the_iotlb(lookup: IotlbLookup) -> None:
    bench = prepared(lookup=lookup)
    table = bench.attach(low=ATS)
    table.map(PAGE, MEMORY)
    bench.translate(PAGE)
    table.map(PAGE, MEMORY + 0x1000)
    assert asks(bench).address == MEMORY


def test_translation_without_page_tables_is_the_identity() -> None:
    bench = prepared()
    bench.set_dte(dte(low=ATS, permissions=W))
    result = asks(bench)
    assert (result.address, result.permissions) == (PAGE, W)


@pytest.mark.parametrize(
    "leaf", [0, pte(MEMORY) | 1 << 55, pte(MEMORY) | 5 << 9], ids=["absent", "reserved", "level"]
)
@pytest.mark.parametrize("np_cache", [False, True])
def test_translation_of_a_page_that_faults_grants_nothing(leaf: int, np_cache: bool) -> None:
    bench = prepared(np_cache=np_cache)
    bench.attach(low=ATS).set(PAGE, 1, leaf)
    for _ in range(2):
        result = asks(bench)
        assert (result.outcome, result.permissions, result.fault) == (Outcome.MEMORY, 0, 0)
    assert bench.events() == []


def test_translation_beyond_the_table_grants_nothing() -> None:
    bench = prepared()
    assert asks(bench, 1 << 48).permissions == 0
    assert bench.events() == []


def test_translation_of_a_table_that_cannot_be_read_is_an_event() -> None:
    bench = prepared()
    bench.set_dte(dte(mode=4, root=HOLE, low=ATS))
    assert asks(bench).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags) == (TABLE_ERROR, TR | MASTER_ABORT)


def test_translation_by_an_illegal_entry_is_an_event() -> None:
    bench = prepared()
    bench.set_dte(dte(low=ATS | 1 << 63))
    assert asks(bench).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags) == (ILLEGAL_DTE, TR | RZ)


@pytest.mark.parametrize("entry", [dte(), dte(v=0, low=ATS), dte(tv=0, low=ATS)])
def test_translation_needs_i_v_and_tv(entry: int) -> None:
    bench = prepared()
    bench.set_dte(entry)
    assert asks(bench).outcome is Outcome.ABORTED
    event = bench.event()
    assert (event.code, event.flags, event.address) == (INVALID_REQUEST, TR, PAGE)


@pytest.mark.parametrize(
    ("address", "special"),
    [
        (0xFEE0_0000, True),
        (0xFD_0000_0000, True),
        (0xFD_F7FF_F000, True),
        (0xFD_F8FF_F000, True),
        (0xFD_F900_0000, False),
        (0xFD_F910_0000, True),
        (0xFD_F920_0000, False),
        (0xFD_FC00_0000, True),
        (0xFD_FE00_0000, False),
    ],
)
def test_translation_of_a_special_range_is_invalid(address: int, special: bool) -> None:
    bench = prepared()
    bench.set_dte(dte(low=ATS | 3 << 104 | 2 << 99))  # even where SysMgt and IoCtl say translate
    result = asks(bench, address)
    assert result.outcome is (Outcome.ABORTED if special else Outcome.MEMORY)
    found = [(event.code, event.flags) for event in bench.events()]
    assert found == ([(INVALID_REQUEST, TR | 1 << 9)] if special else [])


@pytest.mark.parametrize("excluded", [True, False])
def test_translation_of_the_exclusion_range_is_for_untranslated_requests(excluded: bool) -> None:
    bench = prepared()
    bench.write("ExclLimit", 0x9000)
    bench.write("ExclBase", 0x8000 | 1)
    bench.attach(low=ATS | excluded * EX)
    result = asks(bench, 0x8000)
    if excluded:
        assert (result.address, result.permissions) == (0x8000, RW)
        assert result.attributes & Attribute.UNTRANSLATED_ONLY
    else:
        assert result.permissions == 0


def test_translation_with_pasid_grants_nothing() -> None:
    bench = prepared()
    assert asks(bench, pasid=1).permissions == 0
    assert bench.events() == []


@pytest.mark.parametrize("access", [WRITE, ATOMIC])
def test_translation_request_is_a_read(access: Access) -> None:
    bench = prepared()
    result = bench.translate(PAGE, access, length=8, at=ASKS)
    assert (result.outcome, result.fault, bench.events()) == (Outcome.UNSUPPORTED, 0, [])


# ---- translated requests (8) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "passes"),
    [
        (dte(low=ATS), True),
        (dte(low=ATS, permissions=0), True),
        (dte(tv=0, low=ATS), True),
        (dte(), False),
        (dte(v=0, low=ATS), False),
    ],
)
def test_translated_request_needs_i_and_v(entry: int, passes: bool) -> None:
    bench = prepared()
    bench.set_dte(entry)
    result = bench.translate(MEMORY, WRITE, at=TRANSLATED)
    assert result.outcome is (Outcome.MEMORY if passes else Outcome.ABORTED)
    found = [(event.code, event.flags) for event in bench.events()]
    assert found == ([] if passes else [(INVALID_REQUEST, 1 << 9)])


# ---- through the device-TLB -------------------------------------------------------------------


def test_transfer_is_translated_once_then_hits() -> None:
    bench = prepared()
    port, tlb = device(bench)
    assert port.write(PAGE, b"hello").ok
    assert port.read(PAGE, 5).data == b"hello"
    assert bench.machine.read(MEMORY, 5) == b"hello"
    assert tlb.counters()["translation_requests"] == 1


def test_transfer_to_an_untranslated_only_page_is_untranslated() -> None:
    bench = prepared()
    bench.attach(low=ATS).set(PAGE, 1, pte(MEMORY) | U)
    port, tlb = device(bench)
    assert port.write(PAGE, b"hello").ok
    assert bench.machine.read(MEMORY, 5) == b"hello"
    assert tlb.entries()[0].attributes & Attribute.UNTRANSLATED_ONLY
    bench.set_dte(dte(v=0))  # translated requests were refused now
    bench.submit((2 << 60 | DEVICE, 0))
    assert port.read(0x0, 1).status is Status.COMPLETER_ABORT
    assert port.read(PAGE, 1).ok


def test_stale_use_of_a_page_that_is_gone() -> None:
    bench = prepared()
    bench.unit.watch(True)
    entry = bench.attach(low=ATS).map(PAGE, MEMORY)
    port, _ = device(bench)
    port.read(PAGE, 1)
    bench.poke(entry, 0)
    assert port.read(PAGE, 1).ok
    (use,), _ = bench.unit.stale_uses()
    assert (use.cache, use.level, use.owed) == (CacheId.DEVICE_TLB, 1, Owed.DEVICE_TLB_PAGE)
    assert (use.entry, use.after) == (entry, 0)


def test_stale_use_of_an_entry_that_changed() -> None:
    bench = prepared()
    bench.unit.watch(True)
    port, _ = device(bench)
    port.read(PAGE, 1)
    bench.attach(low=ATS, domain=2).map(PAGE, 0x40_0000)
    bench.submit((2 << 60 | DEVICE, 0))
    port.read(PAGE, 1)
    (use,), _ = bench.unit.stale_uses()
    assert (use.cache, use.level) == (CacheId.DEVICE_TLB, TableLevel.CONTEXT)
    assert use.owed is Owed.DEVICE_TLB_ALL


# ---- INVALIDATE_IOTLB_PAGES (9) ---------------------------------------------------------------


def test_command_needs_iotlb_sup() -> None:
    bench = Amdvi()
    bench.submit(invalidate_device_tlb())
    assert bench.event().code == ILLEGAL_COMMAND


@pytest.mark.parametrize("bit", range(65, 76))
def test_command_reserved_bits_are_illegal(bit: int) -> None:
    bench = prepared()
    low, high = invalidate_device_tlb()
    bench.submit((low, high | 1 << bit - 64))
    event = bench.event()
    assert (event.code, event.address) == (ILLEGAL_COMMAND, COMMANDS)


@pytest.mark.parametrize("bit", [16, 23, 48, 55, 56, 59])
def test_command_pasid_counts_for_nothing(bit: int) -> None:
    bench = prepared()
    port, tlb = device(bench)
    port.read(PAGE, 1)
    low, high = invalidate_device_tlb(DEVICE, PAGE)
    invalidate(bench, (low | 1 << bit, high))
    assert (complete(bench), tlb.entries()) == (True, [])


@pytest.mark.parametrize(
    ("address", "s", "left"),
    [
        (0x5000, 0, {0x4000, 0x6000}),
        (0x4000, 1, {0x6000}),
        (0x5000, 1, set()),
        (EVERYTHING_ADDRESS, 1, set()),
        (0xFFFF_FFFF_FFFF_F000, 1, set()),
        (0x9000, 0, {0x4000, 0x5000, 0x6000}),
    ],
)
def test_command_drops_its_range(address: int, s: int, left: set[int]) -> None:
    bench = prepared()
    table = bench.attach(low=ATS)
    port, tlb = device(bench)
    for page in (0x4000, 0x5000, 0x6000):
        table.map(page, MEMORY + page)
        port.read(page, 1)
    invalidate(bench, invalidate_device_tlb(DEVICE, address, s=s))
    assert complete(bench)
    assert {entry.address for entry in tlb.entries()} == left
    assert len(bench.unit.entries(CacheId.IOTLB)) == 3


@pytest.mark.parametrize(
    "command",
    [
        invalidate_pages(address=PAGE),
        invalidate_domain(),
        invalidate_devtab(),
        invalidate_all(),
    ],
)
def test_other_commands_leave_device_tlbs_alone(command: tuple[int, int]) -> None:
    bench = prepared()
    port, tlb = device(bench)
    port.read(PAGE, 1)
    invalidate(bench, command)
    assert complete(bench)
    assert [entry.address for entry in tlb.entries()] == [PAGE]


def test_wait_holds_until_the_function_answers() -> None:
    bench = prepared()
    device(bench, delay=500)
    invalidate(bench)
    bench.machine.advance_to(499)
    assert (complete(bench), bench.unit.invalidation_state) == (
        False,
        InvalidationState.IN_PROGRESS,
    )
    bench.machine.advance_to(500)
    assert (complete(bench), bench.unit.invalidation_state) == (True, InvalidationState.IDLE)


def test_outstanding_commands_of_a_queue_are_limited() -> None:
    bench = prepared()
    port, _ = device(bench, Answer.ASK)
    command = invalidate_device_tlb(most=2)
    bench.submit(command, command, invalidate_device_tlb(OTHER, most=2, queue=DEVICE))
    assert bench.read("CmdBufHead") == 32
    port.complete_invalidation(1)
    assert bench.read("CmdBufHead") == 48


@pytest.mark.parametrize(("field", "timeout"), [(n, 10 ** (n - 1)) for n in range(1, 7)])
def test_timeout_is_what_control_says(field: int, timeout: int) -> None:
    bench = prepared()
    device(bench, Answer.NEVER)
    bench.write("Control", RUNNING | field << 5)
    bench.submit(completion_wait())
    invalidate(bench)
    bench.machine.advance_to(timeout * MILLISECOND - 1)
    assert (complete(bench), bench.events()) == (False, [])
    bench.machine.advance_to(timeout * MILLISECOND)
    event = bench.event()
    assert (event.code, event.flags, event.device) == (INVALIDATION_TIMEOUT, 0, DEVICE)
    assert event.address == COMMANDS + 16
    assert complete(bench)  # the command counts as complete (8)


@pytest.mark.parametrize("field", [0, 7])
def test_timeout_may_never_come(field: int) -> None:
    bench = prepared()
    bench.write("Control", RUNNING | field << 5)
    invalidate(bench)
    bench.machine.advance_to(1 << 62)
    assert (complete(bench), bench.events()) == (False, [])


@pytest.mark.parametrize("answer", [Answer.WRONG_TAG, Answer.NEVER])
def test_answer_that_is_wrong_is_none(answer: Answer) -> None:
    bench = prepared()
    device(bench, answer)
    bench.write("Control", RUNNING | 1 << 5)
    invalidate(bench)
    assert (complete(bench), bench.events()) == (False, [])
    bench.machine.advance_to(MILLISECOND)
    assert (complete(bench), bench.event().code) == (True, INVALIDATION_TIMEOUT)


def test_answer_too_late_is_ignored() -> None:
    bench = prepared()
    _, tlb = device(bench, delay=2 * MILLISECOND)
    bench.write("Control", RUNNING | 1 << 5)
    invalidate(bench)
    bench.machine.advance_to(2 * MILLISECOND)
    assert (len(bench.events()), tlb.counters()["invalidation_answers"]) == (1, 1)


def test_absent_function_times_out() -> None:
    bench = prepared()
    bench.write("Control", RUNNING | 1 << 5)
    invalidate(bench, invalidate_device_tlb(OTHER))
    bench.machine.advance_to(MILLISECOND)
    event = bench.event()
    assert (event.code, event.device, complete(bench)) == (INVALIDATION_TIMEOUT, OTHER, True)


def test_reset_forgets_what_is_outstanding() -> None:
    bench = prepared()
    bench.write("Control", RUNNING | 1 << 5)
    device(bench, Answer.NEVER)
    invalidate(bench)
    bench.unit.reset()
    bench.start()
    assert bench.unit.invalidation_state is InvalidationState.IDLE
    bench.machine.advance_to(MILLISECOND)
    assert (complete(bench), bench.events()) == (False, [])
