"""Transactions in flight: two stages and ordering (VT-d 2.4, 7.7)."""

from __future__ import annotations

import pytest
from core_bench import (
    DEVICE,
    GLOBAL,
    OTHER,
    Bench,
    ByRegister,
)
from in_flight_bench import FABRIC, MEMORY, NEW, OLD, at, remap, slow

from iommu_emu.core import (
    AtomicKind,
    Completion,
    Status,
)

# ---- two stages -----------------------------------------------------------------------------


def test_in_flight_passes_both_stages(unit: Bench) -> None:
    port = slow(unit)
    completion = port.write(0, b"\x01")
    assert (completion.pending, port.in_flight, at(unit)) == (True, (1, 0), 0)
    unit.machine.advance_to(FABRIC)
    assert (port.in_flight, at(unit)) == ((0, 1), 0)
    unit.machine.advance_to(FABRIC + MEMORY)
    assert (port.in_flight, at(unit)) == ((0, 0), 1)
    assert port.poll() == 1
    assert completion.details is not None
    assert (completion.status, completion.details.time) == (Status.DONE, 150)


def test_in_flight_untranslated_meets_the_tables_at_arrival(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    remap(unit)
    unit.machine.advance_to(1000)
    assert (at(unit), at(unit, base=NEW)) == (0, 1)


def test_in_flight_translated_lands_where_it_was_translated_to(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.machine.advance_to(FABRIC)
    remap(unit)
    ByRegister(unit).iotlb(GLOBAL)
    unit.machine.advance_to(1000)
    assert (at(unit), at(unit, base=NEW)) == (1, 0)


def test_in_flight_fault_is_reported_when_it_completes(unit: Bench) -> None:
    port = slow(unit)
    completion = port.write(0x2_0000, b"\x01")
    assert unit.records() == []
    unit.machine.advance_to(FABRIC)
    assert len(unit.records()) == 1
    assert port.poll() == 0
    unit.machine.advance_to(FABRIC + MEMORY)
    assert port.poll() == 1
    assert (completion.status, completion.fault) == (Status.UNSUPPORTED_REQUEST, 5)


@pytest.mark.parametrize(("fabric", "memory"), [(0, 50), (100, 0)])
def test_in_flight_one_stage_may_be_free(unit: Bench, fabric: int, memory: int) -> None:
    port = slow(unit, DEVICE, fabric, memory)
    port.write(0, b"\x01")
    assert port.in_flight == ((1, 0) if fabric else (0, 1))
    unit.machine.advance_to(fabric + memory - 1)
    assert at(unit) == 0
    unit.machine.advance_to(fabric + memory)
    assert at(unit) == 1


@pytest.mark.parametrize("length", [1, 4096, 3 * 4096])
def test_in_flight_read_brings_its_data(unit: Bench, length: int) -> None:
    data = bytes(n * 7 & 0xFF for n in range(length))
    unit.machine.write(OLD, data)
    port = slow(unit)
    completion = port.read(0, length)
    assert completion.data == b""
    unit.machine.advance_to(1000)
    port.poll()
    assert (completion.status, completion.data) == (Status.DONE, data)


def test_in_flight_read_samples_memory_when_it_gets_there(unit: Bench) -> None:
    port = slow(unit)
    completion = port.read(0, 1)
    unit.machine.advance_to(FABRIC + MEMORY - 1)
    unit.machine.write(OLD, b"\x09")
    unit.machine.advance_to(FABRIC + MEMORY)
    port.poll()
    assert completion.data == b"\x09"


def test_in_flight_atomic(unit: Bench) -> None:
    unit.poke(OLD, 41)
    port = slow(unit)
    completion = port.atomic(AtomicKind.FETCH_ADD, 0, 1)
    assert unit.peek(OLD) == 41
    unit.machine.advance_to(1000)
    port.poll()
    assert completion.data == (41).to_bytes(8, "little")
    assert unit.peek(OLD) == 42


def test_in_flight_compare_swap_keeps_both_operands(unit: Bench) -> None:
    unit.poke(OLD, 41)
    port = slow(unit)
    port.atomic(AtomicKind.COMPARE_SWAP, 0, 99, 41)
    unit.machine.advance_to(1000)
    assert unit.peek(OLD) == 99


def test_in_flight_transfer_reports_its_first_failure(unit: Bench) -> None:
    port = slow(unit)
    completion = port.write(0xF000, bytes(3 * 4096))
    unit.machine.advance_to(1000)
    port.poll()
    found = completion.details
    assert found is not None
    assert (found.status, found.address, found.done) == (Status.UNSUPPORTED_REQUEST, 0x1_0000, 4096)
    assert len(unit.records()) == 2  # each page is a request of its own


def test_in_flight_callback_is_called_once(unit: Bench) -> None:
    seen: list[Completion] = []
    port = slow(unit)
    completion = port.write(0, b"\x01", on_done=seen.append)
    unit.machine.advance_to(1000)
    port.poll()
    port.poll()
    assert seen == [completion]


# ---- ordering -------------------------------------------------------------------------------


def test_in_flight_writes_of_one_requester_stay_in_order(unit: Bench) -> None:
    port = slow(unit)
    for value in range(1, 6):
        port.write(0, bytes([value]))
    unit.machine.advance_to(1000)
    assert at(unit) == 5


@pytest.mark.parametrize(("fabric", "memory"), [(0, 0), (10, 0), (0, 10)])
def test_in_flight_order_holds_when_the_latency_drops(
    unit: Bench, fabric: int, memory: int
) -> None:
    """The second write overtakes the first neither before the unit nor behind it."""
    port = slow(unit)
    port.write(0, b"\x01")
    port.set_latency(fabric, memory)
    port.write(0, b"\x02")
    unit.machine.advance_to(FABRIC - 1)
    assert at(unit) == 0
    unit.machine.advance_to(1000)
    assert at(unit) == 2


@pytest.mark.parametrize(("fabric", "memory"), [(0, 0), (10, 0), (0, 10)])
def test_in_flight_order_holds_behind_the_unit(unit: Bench, fabric: int, memory: int) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.machine.advance_to(FABRIC)
    port.set_latency(fabric, memory)
    port.write(0, b"\x02")
    unit.machine.advance_to(FABRIC + MEMORY - 1)
    assert at(unit) == 0
    unit.machine.advance_to(1000)
    assert at(unit) == 2


def test_in_flight_read_pushes_writes(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x07")
    port.set_latency(0, 0)
    completion = port.read(0, 1)
    unit.machine.advance_to(1000)
    port.poll()
    assert completion.data == b"\x07"


def test_in_flight_interrupt_does_not_pass_writes(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.machine.advance_to(FABRIC)
    port.set_latency(0, 0)
    port.write(0xFEE0_0000, bytes(4))
    unit.machine.advance_to(FABRIC + MEMORY - 1)
    assert unit.messages() == []
    unit.machine.advance_to(FABRIC + MEMORY)
    assert at(unit) == 1
    assert len(unit.messages()) == 1


def test_in_flight_each_write_takes_its_own_time(unit: Bench) -> None:
    port = slow(unit)
    for page in range(3):
        port.write(page << 12, b"\x01")
        unit.machine.advance_to(10 * (page + 1))
    landed = []
    for time in range(FABRIC + MEMORY - 1, FABRIC + MEMORY + 31):
        unit.machine.advance_to(time)
        landed.append(sum(at(unit, page) for page in range(3)))
    assert landed == [0] + [1] * 10 + [2] * 10 + [3] * 11


def test_in_flight_two_requesters_are_independent(unit: Bench) -> None:
    slow(unit).write(0, b"\x01")
    slow(unit, OTHER, 10, 10).write(0x1000, b"\x02")
    unit.machine.advance_to(20)
    assert (at(unit, 0), at(unit, 1)) == (0, 2)


def test_in_flight_requester_is_that_of_sending(unit: Bench) -> None:
    port = slow(unit)
    port.write(0x2_0000, b"\x01")
    port.set_requester(OTHER)
    unit.machine.advance_to(1000)
    assert unit.record(0).requester == DEVICE
