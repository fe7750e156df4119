"""Transfers with zero latency: split, translated, copied, completed; atomics, BARs, the outbox."""

from __future__ import annotations

import pytest
from core_bench import DEVICE, HOLE, IRE, RAM, RW, SIRTP, Bench, R, W

from iommu_emu.core import (
    Access,
    AddressType,
    AtomicKind,
    Completion,
    MessageKind,
    RequestFlag,
    Status,
)

PAGE = 0x1000
BAR = 0x1000_0000
OWNER = 0xC0FFEE


@pytest.fixture
def unit() -> Bench:
    """IOVA pages 5, 6 and 8 are mapped, backwards; page 9 is read-only, page 10 write-only."""
    bench = Bench(transactions=4096)
    table = bench.attach()
    for page, output, bits in ((5, 0x20, RW), (6, 0x1F, RW), (8, 0x1D, RW), (9, 0x1C, R)):
        table.map(page << 12, output << 16, bits)
    table.map(10 << 12, 0x1B << 16, W)
    bench.enable()
    return bench


def details(completion: Completion) -> tuple[Status, int, int, int]:
    """Status, fault, address of the failing request, bytes done before it."""
    found = completion.details
    assert found is not None
    return found.status, found.fault, found.address, found.done


# ---- reads and writes -----------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 64, 4095, 4096])
def test_dma_write_lands_where_the_tables_say(unit: Bench, length: int) -> None:
    data = bytes(n % 251 + 1 for n in range(length))
    assert unit.port().write(0x5000, data).ok
    assert unit.machine.read(0x20_0000, length) == data
    assert unit.machine.read(0x20_0000 + length, 1) == b"\0"


@pytest.mark.parametrize("length", [1, 7, 4096, 5000, 8192])
def test_dma_read_returns_what_is_there(unit: Bench, length: int) -> None:
    first, second = bytes(range(256)) * 16, bytes(range(255, -1, -1)) * 16
    unit.machine.write(0x20_0000, first)
    unit.machine.write(0x1F_0000, second)
    completion = unit.port().read(0x5000, length)
    assert completion.ok
    assert completion.data == (first + second)[:length]


def test_dma_is_split_at_page_boundaries(unit: Bench) -> None:
    assert unit.port().write(0x5FFE, b"abcd").ok
    assert unit.machine.read(0x20_0FFE, 2) == b"ab"
    assert unit.machine.read(0x1F_0000, 2) == b"cd"


def test_dma_transfer_of_16_mib(unit: Bench) -> None:
    bench = Bench(transactions=4096)
    data = bytes(range(256)) * (1 << 16)
    assert bench.port().write(0x100_0000, data).ok
    assert bench.port().read(0x100_0000, len(data)).data == data
    with pytest.raises(ValueError, match="length"):
        bench.port().read(0, len(data) + 1)
    with pytest.raises(ValueError, match="length"):
        bench.port().write(0, data + b"x")


def test_dma_each_page_has_its_own_fault(unit: Bench) -> None:
    completion = unit.port().write(0x6FFC, bytes(PAGE))
    assert details(completion) == (Status.UNSUPPORTED_REQUEST, 0x05, 0x7000, 4)
    assert unit.record(0).address == 0x7000
    assert completion.cause is not None
    assert completion.cause.name == "LGN.2"


def test_dma_pages_behind_a_fault_are_requests_of_their_own(unit: Bench) -> None:
    """5.6: each page is independent; the completion tells of the first failure."""
    data = b"\xee" * (4 * PAGE)
    completion = unit.port().write(0x5000, data)
    assert details(completion) == (Status.UNSUPPORTED_REQUEST, 0x05, 0x7000, 2 * PAGE)
    assert unit.machine.read(0x1F_0000, PAGE) == data[:PAGE]
    assert unit.machine.read(0x1D_0000, PAGE) == data[:PAGE]
    assert len(unit.records()) == 1


def test_dma_every_faulting_page_is_recorded(unit: Bench) -> None:
    unit.port().write(0x1_0000, bytes(3 * PAGE))
    assert [record.address for record in unit.records()] == [0x1_0000, 0x1_1000, 0x1_2000]


@pytest.mark.parametrize(("address", "read", "code"), [(0x9000, False, 5), (0xA000, True, 6)])
def test_dma_without_permission_moves_nothing(
    unit: Bench, address: int, read: bool, code: int
) -> None:
    unit.machine.write(0x1B_0000, b"secret")
    port = unit.port()
    completion = port.read(address, 6) if read else port.write(address, b"attack")
    assert (completion.fault, completion.data) == (code, b"")
    assert unit.machine.read(0x1C_0000, 6) == bytes(6)


@pytest.mark.parametrize("zlr", [True, False])
def test_dma_zero_length_read(zlr: bool) -> None:
    bench = Bench(zero_length_reads=zlr)
    bench.attach().map(0x5000, 0x20_0000, W)
    bench.enable()
    completion = bench.port().read(0x5000, 0)
    assert completion.fault == (0 if zlr else 6)
    assert completion.data == b""


@pytest.mark.parametrize("address", [0xA000, 0xFEE0_0000])
def test_dma_zero_length_flag_does_not_open_a_page_to_real_reads(unit: Bench, address: int) -> None:
    unit.machine.write(0x1B_0000, b"secret!!")
    completion = unit.port().transfer(Access.READ, address, 8, flags=RequestFlag.ZERO_LENGTH)
    assert completion.status is Status.UNSUPPORTED_REQUEST
    assert completion.data == b""


@pytest.mark.parametrize("length", [0, 16 << 20])
def test_dma_of_an_empty_write_is_refused(unit: Bench, length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        unit.port().write(0x5000, bytes(length + 1 if length else 0))


def test_dma_last_dword_of_the_address_space_faults(unit: Bench) -> None:
    completion = unit.port().write((1 << 64) - 4, b"last")
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 0x04)
    assert unit.record(0).valid


@pytest.mark.parametrize("length", [5, 4096])
def test_dma_past_the_end_of_the_address_space_is_unsupported(unit: Bench, length: int) -> None:
    port = unit.port()
    assert port.read((1 << 64) - 4, length).status is Status.UNSUPPORTED_REQUEST
    assert port.write((1 << 64) - 4, bytes(length)).status is Status.UNSUPPORTED_REQUEST


@pytest.mark.parametrize("address", [-1, 1 << 64])
def test_dma_address_has_64_bits(unit: Bench, address: int) -> None:
    with pytest.raises(ValueError, match="address"):
        unit.port().read(address, 4)


def test_dma_completion_of_a_success_has_no_fault(unit: Bench) -> None:
    port = unit.port()
    assert port.write(0x7000, b"x").fault == 5
    completion = port.write(0x5000, b"x")
    assert (completion.status, completion.fault, completion.cause) == (Status.DONE, 0, None)


def test_dma_carries_the_attributes_of_the_request(unit: Bench) -> None:
    completion = unit.port().transfer(Access.READ, 0x5000, 4, pasid=3)
    assert details(completion)[:2] == (Status.UNSUPPORTED_REQUEST, 0x31)
    completion = unit.port().transfer(Access.READ, 0x5000, 4, at=AddressType.TRANSLATED)
    assert details(completion)[:2] == (Status.UNSUPPORTED_REQUEST, 0x0D)


def test_dma_aborted_is_a_completer_abort() -> None:
    bench = Bench(device_tlb=True)
    bench.attach(tt=1).set(0x5000, 1, 0x20_0000 | RW | 1 << 62)
    bench.enable()
    completion = bench.port().transfer(Access.READ, 0x5000, 8, at=AddressType.TRANSLATION_REQUEST)
    assert details(completion)[:2] == (Status.COMPLETER_ABORT, 0x0C)


def test_dma_requester_may_change(unit: Bench) -> None:
    unit.attach(0x0200, domain=2).map(0x5000, 0x30_0000)
    port = unit.port()
    port.write(0x5000, b"first")
    port.set_requester(0x0200)
    port.write(0x5000, b"second")
    assert unit.machine.read(0x20_0000, 5) == b"first"
    assert unit.machine.read(0x30_0000, 6) == b"second"


def test_dma_through_no_unit_is_untranslated(unit: Bench) -> None:
    port = unit.port(segment=1)
    assert port.write(0x5000, b"direct").ok
    assert unit.machine.read(0x5000, 6) == b"direct"
    for at in (AddressType.TRANSLATED, AddressType.TRANSLATION_REQUEST):
        refused = port.transfer(Access.READ, 0x5000, 8, at=at)
        assert refused.status is Status.UNSUPPORTED_REQUEST


# ---- AtomicOps ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize(
    ("kind", "operand", "compare", "expected"),
    [
        (AtomicKind.FETCH_ADD, 5, None, 105),
        (AtomicKind.FETCH_ADD, -1, None, 99),
        (AtomicKind.SWAP, 7, None, 7),
        (AtomicKind.COMPARE_SWAP, 7, 100, 7),
        (AtomicKind.COMPARE_SWAP, 7, 101, 100),
    ],
)
def test_dma_atomic(
    unit: Bench, kind: AtomicKind, operand: int, compare: int | None, expected: int, size: int
) -> None:
    filler = 0x7777_7777_7777_7777
    unit.poke(0x20_0008, 100 if size == 8 else filler & ~0xFFFF_FFFF | 100, filler)
    mask = (1 << 8 * size) - 1
    completion = unit.port().atomic(kind, 0x5008, operand & mask, compare, size=size)
    assert completion.data == (100).to_bytes(size, "little")
    assert unit.peek(0x20_0008) & mask == expected
    if size == 4:
        assert unit.peek(0x20_0008) >> 32 == filler >> 32
    assert unit.peek(0x20_0010) == filler


@pytest.mark.parametrize(("address", "code"), [(0x9000, 5), (0xA000, 6), (0x7000, 5)])
def test_dma_atomic_needs_both_permissions(unit: Bench, address: int, code: int) -> None:
    unit.poke(0x1B_0000, 1)
    unit.poke(0x1C_0000, 1)
    completion = unit.port().atomic(AtomicKind.FETCH_ADD, address, 1)
    assert (completion.fault, completion.data) == (code, b"")
    assert (unit.peek(0x1B_0000), unit.peek(0x1C_0000)) == (1, 1)
    assert unit.record(0).kind == (1, 1)


def test_dma_atomic_to_a_hole_is_unsupported(bench: Bench) -> None:
    completion = bench.port().atomic(AtomicKind.FETCH_ADD, HOLE, 1)
    assert completion.status is Status.UNSUPPORTED_REQUEST


# ---- BARs and the outbox --------------------------------------------------------------------


@pytest.fixture
def bar(bench: Bench) -> Bench:
    """A BAR of two pages of another function; the unit is off."""
    bench.machine.map_bar(BAR, 2 * PAGE, OWNER)
    return bench


def test_dma_bar_write_is_a_message(bar: Bench) -> None:
    completion = bar.port(0xABCD).write(BAR + 0x123, b"hello")
    assert completion.ok
    (message,) = bar.messages()
    assert (message.kind, message.owner) == (MessageKind.BAR_WRITE, OWNER)
    assert (message.address, message.data, message.size) == (BAR + 0x123, b"hello", 5)
    assert (message.requester, message.segment) == (0xABCD, 0)


def test_dma_bar_write_is_translated_first(bar: Bench) -> None:
    bar.attach().map(0x5000, BAR + PAGE)
    bar.enable()
    assert bar.port().write(0x5010, b"peer").ok
    assert bar.messages()[0].address == BAR + PAGE + 0x10
    assert bar.port().write(0x6010, b"peer").fault == 5
    assert bar.messages() == []


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 200])
def test_dma_bar_write_comes_in_pieces_of_64_bytes(bar: Bench, length: int) -> None:
    data = bytes(n & 0xFF for n in range(length))
    assert bar.port().write(BAR, data).ok
    messages = bar.messages()
    assert [m.address for m in messages] == list(range(BAR, BAR + length, 64))
    assert b"".join(m.data for m in messages) == data


def test_dma_bar_read_is_answered_later(bar: Bench) -> None:
    port = bar.port()
    completion = port.read(BAR + 8, 4)
    assert completion.pending
    (message,) = bar.messages()
    assert (message.kind, message.address, message.size) == (MessageKind.BAR_READ, BAR + 8, 4)
    assert message.owner == OWNER
    assert port.poll() == 0
    bar.machine.answer(message.token, b"data")
    assert port.poll() == 1
    assert (completion.status, completion.data) == (Status.DONE, b"data")


@pytest.mark.parametrize("order", [1, -1])
def test_dma_bar_read_pieces_may_be_answered_in_any_order(bar: Bench, order: int) -> None:
    port = bar.port()
    completion = port.read(BAR, 150)
    messages = bar.messages()
    assert [m.size for m in messages] == [64, 64, 22]
    for n, message in list(enumerate(messages))[::order]:
        assert port.poll() == 0
        bar.machine.answer(message.token, bytes([n + 1]) * message.size)
    assert port.poll() == 1
    assert completion.data == b"\1" * 64 + b"\2" * 64 + b"\3" * 22


def test_dma_bar_read_refused_is_unsupported(bar: Bench) -> None:
    port = bar.port()
    completion = port.read(BAR, 128)
    first, second = bar.messages()
    bar.machine.answer(first.token, None)
    bar.machine.answer(second.token, bytes(64))
    port.poll()
    assert (completion.status, completion.data) == (Status.UNSUPPORTED_REQUEST, b"")


def test_dma_bar_answer_must_fit(bar: Bench) -> None:
    port = bar.port()
    completion = port.read(BAR, 4)
    (message,) = bar.messages()
    for data in (b"", b"abc", b"abcde"):
        with pytest.raises(ValueError, match="token"):
            bar.machine.answer(message.token, data)
    bar.machine.answer(message.token, b"abcd")
    port.poll()
    assert completion.data == b"abcd"


def test_dma_bar_answer_needs_an_open_token(bar: Bench) -> None:
    port = bar.port()
    port.read(BAR, 4)
    (message,) = bar.messages()
    wrong = (message.token + 1, message.token | 0xFFF)
    for token in (*wrong, message.token + (1 << 12), message.token + (1 << 18)):
        with pytest.raises(ValueError, match="token"):
            bar.machine.answer(token, b"abcd")
    bar.machine.answer(message.token, b"abcd")
    with pytest.raises(ValueError, match="token"):
        bar.machine.answer(message.token, b"abcd")
    port.poll()
    port.read(BAR, 4)  # the same transaction again, under another token
    with pytest.raises(ValueError, match="token"):
        bar.machine.answer(message.token, b"abcd")


def test_dma_bar_answer_to_one_piece_counts_once(bar: Bench) -> None:
    port = bar.port()
    completion = port.read(BAR, 128)
    first, second = bar.messages()
    bar.machine.answer(first.token, b"a" * 64)
    with pytest.raises(ValueError, match="token"):
        bar.machine.answer(first.token, b"b" * 64)
    assert port.poll() == 0
    bar.machine.answer(second.token, b"c" * 64)
    port.poll()
    assert completion.data == b"a" * 64 + b"c" * 64


def test_dma_bar_access_may_end_with_the_window_not_beyond(bar: Bench) -> None:
    bar.machine.map_bar(BAR + 2 * PAGE, PAGE, OWNER + 1)
    assert bar.port().write(BAR + 2 * PAGE - 4, b"last").ok
    assert bar.port().write(BAR + 2 * PAGE - 4, b"both sides").ok  # split at the page
    assert [m.owner for m in bar.messages()] == [OWNER, OWNER, OWNER + 1]


def test_dma_bar_atomic_is_unsupported(bar: Bench) -> None:
    completion = bar.port().atomic(AtomicKind.FETCH_ADD, BAR, 1)
    assert completion.status is Status.UNSUPPORTED_REQUEST
    assert bar.messages() == []


def test_dma_over_ram_and_bar_is_done_in_parts(bench: Bench) -> None:
    bench.machine.map_bar(RAM, PAGE, OWNER)
    port = bench.port()
    assert port.write(RAM - 4, b"ram.bar.").ok
    assert bench.machine.read(RAM - 4, 4) == b"ram."
    assert [m.data for m in bench.messages()] == [b"bar."]
    completion = port.read(RAM - 4, 8)
    assert completion.pending
    bench.machine.answer(bench.messages()[0].token, b"BAR!")
    port.poll()
    assert completion.data == b"ram.BAR!"
    assert completion.details is not None
    assert completion.details.done == 8


def test_dma_fault_behind_a_bar_page_is_reported(bar: Bench) -> None:
    completion = bar.port().write(BAR + PAGE, bytes(PAGE + 4))
    assert details(completion) == (Status.UNSUPPORTED_REQUEST, 0, BAR + 2 * PAGE, PAGE)


# ---- outbox ---------------------------------------------------------------------------------


def test_dma_outbox_is_first_in_first_out(bench: Bench) -> None:
    port = bench.port()
    for n in range(100):
        port.write(0xFEE0_0000, bytes([n, 0, 0, 0]))
    assert bench.machine.outbox_size == 100
    seen = [m.data[0] for m in bench.messages()] + [m.data[0] for m in bench.messages()]
    assert seen == list(range(100))
    assert bench.machine.outbox_size == 0
    assert bench.messages() == []


def test_dma_outbox_full_holds_messages_back() -> None:
    bench = Bench(messages=64)
    port = bench.port()
    for n in range(64):
        assert port.write(0xFEE0_0000, bytes([n, 0, 0, 0])).ok
    held = [port.write(0xFEE0_0000, bytes([64 + n, 0, 0, 0])) for n in range(3)]
    assert all(completion.pending for completion in held)
    assert port.in_flight == (0, 3)
    assert [m.data[0] for m in bench.messages()] == list(range(64))
    assert port.in_flight == (0, 0)
    assert port.poll() == 3
    assert all(completion.ok for completion in held)
    assert [m.data[0] for m in bench.messages()] == [64, 65, 66]


def test_dma_outbox_takes_a_bar_page_whole_or_not_at_all(bar: Bench) -> None:
    bench = Bench(messages=64)
    bench.machine.map_bar(BAR, PAGE, OWNER)
    port = bench.port()
    port.write(0xFEE0_0000, bytes(4))
    held = port.write(BAR, bytes(PAGE))  # 64 pieces: one too many
    assert held.pending
    assert bench.machine.outbox_size == 1
    bench.messages()
    port.poll()
    assert held.ok
    assert bench.machine.outbox_size == 64


def test_dma_interrupt_is_remapped_on_the_way() -> None:
    bench = Bench(interrupt_remapping=True)
    bench.poke(0x4_0000, 0x31_0001 | 0x0700 << 32, 0)
    bench.write("IRTA", 0x4_0000)
    bench.command(SIRTP)
    bench.command(IRE)
    assert bench.port().write(0xFEE0_0010, bytes(4)).ok
    (message,) = bench.messages()
    assert (message.address, message.data) == (0xFEE0_7000, b"\x31\x40\0\0")
    assert (message.kind, message.requester) == (MessageKind.INTERRUPT, DEVICE)


# ---- ports ----------------------------------------------------------------------------------


def test_dma_removed_port_sends_nothing(unit: Bench) -> None:
    port = unit.port()
    port.remove()
    assert port.write(0x5000, b"x").status is Status.REMOVED
    assert port.read(0x5000, 1).status is Status.REMOVED
    assert unit.peek(0x20_0000) == 0


def test_dma_destroyed_port_is_refused(unit: Bench) -> None:
    port = unit.port()
    port.destroy()
    assert port.write(0x5000, b"x").status is Status.REMOVED
    port.destroy()


def test_dma_two_ports_do_not_disturb_each_other(unit: Bench) -> None:
    first, second = unit.port(), unit.port()
    first.destroy()
    assert second.write(0x5000, b"x").ok
    assert unit.machine.read(0x20_0000, 1) == b"x"
