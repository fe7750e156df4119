"""Requests to the interrupt address range FEExxxxxh (VT-d 5.4)."""

from __future__ import annotations

import pytest
from core_bench import ATOMIC, DEVICE, READ, TE, WRITE, Bench

from iommu_emu.core import Access, MessageKind, Outcome, RequestFlag, Status

FIRST, LAST = 0xFEE0_0000, 0xFEEF_FFFC
NOT_AN_INTERRUPT = 0x29


@pytest.fixture
def unit(bench: Bench) -> Bench:
    """Enabled, with page tables that map the range to RAM: they must never be used."""
    table = bench.attach()
    for page in (0xFEE0_0000, 0xFEEF_F000, 0xFEDF_F000, 0xFEF0_0000):
        table.map(page, 0x20_0000)
    bench.enable()
    return bench


@pytest.mark.parametrize("address", [FIRST, FIRST + 0x1000, LAST])
def test_interrupt_range_dword_write_is_an_interrupt(unit: Bench, address: int) -> None:
    result = unit.translate(address, WRITE)
    assert (result.outcome, result.address, result.fault) == (Outcome.INTERRUPT, address, 0)


@pytest.mark.parametrize("address", [FIRST - 0x1000, LAST + 4])
def test_interrupt_range_neighbours_are_memory(unit: Bench, address: int) -> None:
    result = unit.translate(address & ~0xFFF, WRITE)
    assert (result.outcome, result.address) == (Outcome.MEMORY, 0x20_0000)


ILLEGAL = [
    (READ, 0, 4),
    (READ, 0, 64),
    (ATOMIC, 0, 4),
    (ATOMIC, 0, 8),
    (WRITE, 0, 1),
    (WRITE, 0, 2),
    (WRITE, 0, 8),
    (WRITE, 0, 64),
    (WRITE, 2, 4),
]


@pytest.mark.parametrize(("access", "offset", "length"), ILLEGAL)
def test_interrupt_range_anything_else_is_blocked(
    unit: Bench, access: Access, offset: int, length: int
) -> None:
    result = unit.translate(FIRST + offset, access, length=length)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, NOT_AN_INTERRUPT)
    assert result.recorded
    assert (unit.record(0).code, unit.record(0).requester) == (NOT_AN_INTERRUPT, DEVICE)


def test_interrupt_range_zero_length_read_completes(unit: Bench) -> None:
    result = unit.translate(FIRST, READ, length=0, flags=RequestFlag.ZERO_LENGTH)
    assert (result.outcome, result.fault) == (Outcome.DISCARDED, 0)


def test_interrupt_range_zero_length_read_dma(unit: Bench) -> None:
    assert unit.port().read(FIRST, 0).status is Status.DONE


def test_interrupt_range_is_never_cached(unit: Bench) -> None:
    for access in (WRITE, READ):
        unit.translate(FIRST, access)
    assert unit.counter("iotlb_lookup") == 0
    assert unit.counter("iommu_mrds") == 0


def test_interrupt_range_needs_no_context_entry(bench: Bench) -> None:
    bench.enable()
    assert bench.translate(FIRST, WRITE).outcome is Outcome.INTERRUPT


def test_interrupt_range_comes_before_the_translation_mode(bench: Bench) -> None:
    bench.set_root(0x1000 | 2 << 10)
    bench.command(TE)
    assert bench.translate(FIRST, WRITE).outcome is Outcome.INTERRUPT


def test_interrupt_range_with_pasid_is_no_interrupt(unit: Bench) -> None:
    result = unit.translate(FIRST, WRITE, pasid=1)
    assert (result.outcome, result.fault) == (Outcome.UNSUPPORTED, 0x31)


def test_interrupt_range_disabled_unit_still_interrupts(bench: Bench) -> None:
    assert bench.translate(FIRST, WRITE).outcome is Outcome.INTERRUPT


def test_interrupt_range_fault_does_not_depend_on_fpd(bench: Bench) -> None:
    bench.attach(fpd=True).map(0x5000, 0x20_0000)
    bench.enable()
    bench.translate(0x5000)
    assert bench.translate(FIRST, READ).recorded  # 29h is not qualified


def test_interrupt_range_message_reaches_the_outbox(unit: Bench) -> None:
    unit.machine.route(3, 0, 0xFFFF, unit.unit)
    assert unit.port(0xABCD, segment=3).write(FIRST + 0x1008, b"\x31\x40\0\0").ok
    (message,) = unit.messages()
    assert message.kind is MessageKind.INTERRUPT
    assert (message.address, message.data) == (FIRST + 0x1008, b"\x31\x40\0\0")
    assert (message.segment, message.requester) == (3, 0xABCD)


def test_interrupt_range_blocked_dma_leaves_no_message(unit: Bench) -> None:
    completion = unit.port().write(FIRST, bytes(8))
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, NOT_AN_INTERRUPT)
    assert unit.messages() == []


@pytest.mark.parametrize(
    ("address", "data", "status", "messages"),
    [
        (FIRST, b"\x31\0\0\0", Status.DONE, 1),
        (LAST, b"\x31\0\0\0", Status.DONE, 1),
        (FIRST, bytes(8), Status.UNSUPPORTED_REQUEST, 0),
        (FIRST + 2, b"\x31\0\0\0", Status.UNSUPPORTED_REQUEST, 0),
    ],
)
def test_interrupt_range_without_any_iommu(
    bench: Bench, address: int, data: bytes, status: Status, messages: int
) -> None:
    bench.machine.route(0, 0, 0xFFFF, None)
    assert bench.port().write(address, data).status is status
    assert len(bench.messages()) == messages


def test_interrupt_range_read_without_any_iommu(bench: Bench) -> None:
    bench.machine.route(0, 0, 0xFFFF, None)
    assert bench.port().read(FIRST, 4).status is Status.UNSUPPORTED_REQUEST
