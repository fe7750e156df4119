"""The fault event: pending, masked, sent, withdrawn (VT-d 2.8, 2.9)."""

from __future__ import annotations

import pytest
from core_bench import IM, IP, IQE, PFO, PPF, QUEUE, Bench, wait_descriptor

from iommu_emu.core import MessageKind, Reset


@pytest.fixture
def unit() -> Bench:
    """Two fault records; the event is unmasked: vector 42h to FEE01000h."""
    bench = Bench(fault_records=2)
    bench.attach()
    bench.enable()
    bench.enable_queue()
    bench.write("FEDATA", 0x42)
    bench.write("FEADDR", 0xFEE0_1000)
    bench.write("FECTL", 0)
    return bench


def sent(bench: Bench) -> int:
    return len(bench.messages())


def fault(bench: Bench, page: int = 5) -> None:
    bench.translate(page << 12)


def queue_error(bench: Bench) -> None:
    bench.submit((0, 0))


def repair_queue(bench: Bench) -> None:
    bench.poke(QUEUE + bench.read("IQH"), *wait_descriptor(fence=1))
    bench.write("FSTS", IQE)


def test_fault_event_is_a_message(unit: Bench) -> None:
    fault(unit)
    (message,) = unit.messages()
    assert message.kind is MessageKind.UNIT
    assert (message.address, message.data) == (0xFEE0_1000, b"\x42\0\0\0")
    assert (message.owner, message.requester) == (unit.unit.number, 0)
    assert unit.read("FECTL") == 0


@pytest.mark.parametrize("eim", [False, True])
def test_fault_event_upper_address_needs_extended_interrupts(eim: bool) -> None:
    bench = Bench(interrupt_remapping=True, extended_interrupts=eim)
    bench.enable()
    bench.write("FEUADDR", 0xABCD_EF00)
    bench.write("FEADDR", 0xFEE0_1000)
    bench.write("FECTL", 0)
    fault(bench)
    (message,) = bench.messages()
    assert message.address == (0xABCD_EF00 << 32 if eim else 0) | 0xFEE0_1000


def test_fault_event_needs_pending_to_go_from_0_to_1(unit: Bench) -> None:
    fault(unit, 1)
    assert sent(unit) == 1
    fault(unit, 2)
    assert sent(unit) == 0
    unit.clear_record(0)
    fault(unit, 3)  # PPF was still 1
    assert sent(unit) == 0
    unit.clear_records()
    fault(unit, 4)
    assert sent(unit) == 1


def test_fault_event_is_not_raised_by_an_overflow(unit: Bench) -> None:
    for page in range(2):
        fault(unit, page)
    assert sent(unit) == 1
    fault(unit, 2)
    assert unit.read("FSTS") & PFO
    assert sent(unit) == 0


def test_fault_event_queue_error(unit: Bench) -> None:
    queue_error(unit)
    assert sent(unit) == 1
    assert unit.read("FSTS") == IQE


def test_fault_event_is_not_raised_while_another_cause_is_set(unit: Bench) -> None:
    queue_error(unit)
    assert sent(unit) == 1
    fault(unit)
    assert sent(unit) == 0
    repair_queue(unit)
    queue_error(unit)  # PPF is set now
    assert sent(unit) == 0
    unit.clear_records()
    fault(unit)  # IQE is set
    assert sent(unit) == 0


def test_fault_event_is_not_raised_while_the_overflow_stands(unit: Bench) -> None:
    for page in range(3):
        fault(unit, page)
    assert sent(unit) == 1
    unit.clear_records()
    assert unit.read("FSTS") & (PPF | PFO) == PFO
    queue_error(unit)
    assert sent(unit) == 0


def test_fault_event_masked_is_pending(unit: Bench) -> None:
    unit.write("FECTL", IM)
    fault(unit)
    assert sent(unit) == 0
    assert unit.read("FECTL") == IM | IP
    unit.write("FECTL", 0)
    assert sent(unit) == 1
    assert unit.read("FECTL") == 0
    unit.write("FECTL", IM)
    unit.write("FECTL", 0)
    assert sent(unit) == 0


def test_fault_event_is_masked_after_reset(bench: Bench) -> None:
    bench.enable()
    fault(bench)
    assert sent(bench) == 0
    assert bench.read("FECTL") == IM | IP


def test_fault_event_message_is_what_the_registers_say_when_it_is_sent(unit: Bench) -> None:
    unit.write("FECTL", IM)
    fault(unit)
    unit.write("FEDATA", 0x99)
    unit.write("FEADDR", 0xFEE0_3000)
    unit.write("FECTL", 0)
    (message,) = unit.messages()
    assert (message.address, message.data[0]) == (0xFEE0_3000, 0x99)


def test_fault_event_pending_is_withdrawn_when_every_cause_is_gone(unit: Bench) -> None:
    unit.write("FECTL", IM)
    fault(unit)
    queue_error(unit)
    unit.clear_records()
    assert unit.read("FECTL") == IM | IP  # IQE is left
    repair_queue(unit)
    assert unit.read("FECTL") == IM
    unit.write("FECTL", 0)
    assert sent(unit) == 0


def test_fault_event_pending_stays_while_the_overflow_stands(unit: Bench) -> None:
    unit.write("FECTL", IM)
    for page in range(3):
        fault(unit, page)
    unit.clear_records()
    assert unit.read("FECTL") == IM | IP
    unit.write("FSTS", PFO)
    assert unit.read("FECTL") == IM


def test_fault_event_pending_bit_is_read_only(unit: Bench) -> None:
    unit.write("FECTL", IM | IP)
    assert unit.read("FECTL") == IM
    unit.write("FECTL", IP)
    assert sent(unit) == 0


def test_fault_event_ip_survives_writes_to_the_control_register(unit: Bench) -> None:
    unit.write("FECTL", IM)
    fault(unit)
    unit.write("FECTL", IM)
    assert unit.read("FECTL") == IM | IP


def test_fault_event_is_held_while_the_outbox_is_full() -> None:
    bench = Bench(messages=64)
    bench.attach()
    bench.enable()
    port = bench.port()
    for _ in range(64):
        assert port.write(0xFEE0_0000, b"\x31\0\0\0").ok
    bench.write("FEADDR", 0xFEE0_1000)
    bench.write("FECTL", 0)
    fault(bench)
    assert bench.read("FECTL") == IP
    assert len(bench.messages(MessageKind.INTERRUPT)) == 64
    (message,) = bench.messages()
    assert (message.kind, message.address) == (MessageKind.UNIT, 0xFEE0_1000)
    assert bench.read("FECTL") == 0


def test_fault_event_of_a_suppressed_fault_is_none(unit: Bench) -> None:
    unit.attach(0x18, fpd=True)
    unit.translate(0x5000, requester=0x18)
    assert sent(unit) == 0
    assert unit.read("FSTS") == 0


@pytest.mark.parametrize("kind", [Reset.WARM, Reset.POWER_ON])
def test_fault_event_control_returns_to_masked_at_reset(unit: Bench, kind: Reset) -> None:
    unit.write("FECTL", IM)
    fault(unit)
    unit.unit.reset(kind)
    assert unit.read("FECTL") == IM


def test_fault_event_messages_of_two_units_tell_who_sent_them(unit: Bench) -> None:
    second = unit.machine.create_vtd(
        unit.config | {"unit": unit.config["unit"] | {"base": 0xFEDA_0000}}
    )
    unit.machine.route(0, 0x100, 0x1FF, second)
    for offset, value in ((0x20, 0x1000), (0x18, 1 << 30), (0x18, 1 << 31), (0x38, 0)):
        second.mmio_write(offset, 4, value)
    unit.port(0x100).read(0x5000, 4)
    (message,) = unit.messages()
    assert message.owner == second.number == 1
