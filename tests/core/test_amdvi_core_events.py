"""The event log: layouts, wrap, overflow, suppression, interrupts (AMD-Vi 3.6, 10)."""

from __future__ import annotations

import pytest
from amdvi_core_bench import (
    CMD_BUF_EN,
    DEVICE,
    EVENT_INT,
    EVENT_INT_EN,
    EVENT_LOG_EN,
    EVENT_RUN,
    EVENTS,
    HATS_6,
    HOLE,
    ILLEGAL_DTE,
    IOMMU_EN,
    MSI,
    OTHER,
    OVERFLOW,
    PAGE_FAULT,
    RUNNING,
    WRITE,
    Amdvi,
    R,
    dte,
    invalidate_all,
    invalidate_devtab,
)

from iommu_emu import core
from iommu_emu.core import Outcome, TraceKind, Vendor

RING = 256
SE, SA = 1 << 97, 1 << 98


@pytest.fixture
def bench() -> Amdvi:
    """A unit whose device may not read or write anything."""
    bench = Amdvi()
    bench.set_dte(dte(permissions=0))
    return bench


def refuse(bench: Amdvi, count: int = 1, device: int = DEVICE) -> None:
    for _ in range(count):
        assert bench.translate(0x5000, device=device).outcome is Outcome.ABORTED


# ---- the log (3.3, 10.3) ----------------------------------------------------------------------


def test_event_is_16_bytes_at_the_tail(bench: Amdvi) -> None:
    bench.translate(0x1234_5678_9ABC, WRITE)
    assert bench.read("EvtLogTail") == 0x10
    assert bench.peek(EVENTS) == PAGE_FAULT << 60 | 0x070 << 48 | 1 << 32 | DEVICE
    assert bench.peek(EVENTS + 8) == 0x1234_5678_9ABC
    assert bench.peek(EVENTS + 16) == 0


def test_event_that_is_logged_is_reported_as_recorded(bench: Amdvi) -> None:
    assert bench.translate(0x5000).recorded
    bench.write("Control", IOMMU_EN)
    assert not bench.translate(0x5000).recorded


@pytest.mark.parametrize("length", [8, 9])
def test_log_wraps_at_its_length(length: int) -> None:
    bench = Amdvi(on=False)
    bench.set_dte(dte(permissions=0))
    bench.start(0, length=length)
    last = (16 << length) - 16
    bench.write("EvtLogHead", last)
    bench.write("EvtLogTail", last)
    bench.write("Control", RUNNING)
    refuse(bench, 2)
    assert bench.read("EvtLogTail") == 0x10
    assert len(bench.events()) == 2


def test_log_holds_all_but_one_of_its_entries(bench: Amdvi) -> None:
    refuse(bench, RING - 1)
    assert not bench.status(OVERFLOW)
    assert bench.read("EvtLogTail") == 16 * (RING - 1)
    assert len(bench.events()) == RING - 1


def test_log_that_is_full_drops_the_event_and_overflows(bench: Amdvi) -> None:
    refuse(bench, RING - 1)
    assert not bench.translate(0x6000).recorded
    assert bench.status(OVERFLOW)
    assert bench.read("EvtLogTail") == 16 * (RING - 1)
    assert bench.peek(EVENTS + 16 * (RING - 1)) == 0
    assert bench.counter("faults_lost") == 1


def test_log_stays_stopped_until_the_overflow_is_cleared(bench: Amdvi) -> None:
    refuse(bench, RING)
    bench.events()
    refuse(bench)
    assert bench.events() == []
    bench.write("Status", OVERFLOW)
    refuse(bench)
    assert len(bench.events()) == 1
    assert bench.counter("faults_recorded") == RING


@pytest.mark.parametrize("control", [IOMMU_EN, IOMMU_EN | CMD_BUF_EN])
def test_log_that_is_off_logs_nothing(bench: Amdvi, control: int) -> None:
    bench.write("Control", control)
    refuse(bench)
    assert (bench.read("EvtLogTail"), bench.read("Status") & (EVENT_INT | EVENT_RUN)) == (0, 0)


def test_log_without_memory_loses_the_event_and_goes_on(bench: Amdvi) -> None:
    bench.write("Control", IOMMU_EN)
    bench.write("EvtLogBase", HOLE | 8 << 56)
    bench.write("Control", IOMMU_EN | EVENT_LOG_EN)
    refuse(bench)
    assert bench.read("EvtLogTail") == 0x10


# ---- interrupts (3.6) -------------------------------------------------------------------------


@pytest.mark.parametrize("enable", [0, EVENT_INT_EN])
def test_event_sets_its_status_and_interrupts_if_enabled(bench: Amdvi, enable: int) -> None:
    bench.arm_msi()
    bench.write("Control", RUNNING | enable)
    refuse(bench)
    assert bench.status(EVENT_INT)
    assert bench.units_messages() == ([MSI] if enable else [])


def test_event_interrupts_again_while_the_status_bit_is_set(bench: Amdvi) -> None:
    bench.arm_msi()
    bench.write("Control", RUNNING | EVENT_INT_EN)
    refuse(bench, 3)
    assert bench.units_messages() == [MSI] * 3


def test_overflow_interrupts_once(bench: Amdvi) -> None:
    bench.arm_msi()
    refuse(bench, RING - 1)
    bench.write("Control", RUNNING | EVENT_INT_EN)
    refuse(bench, 3)
    assert bench.units_messages() == [MSI]


def test_entry_is_there_before_its_interrupt(bench: Amdvi) -> None:
    bench.arm_msi()
    bench.write("Control", RUNNING | EVENT_INT_EN)
    refuse(bench)
    (message,) = bench.messages()
    assert message.owner == bench.unit.number
    assert bench.event().code == PAGE_FAULT


def test_interrupt_needs_the_msi_enable(bench: Amdvi) -> None:
    bench.arm_msi()
    bench.write("MsiCapHdr", 0)
    bench.write("Control", RUNNING | EVENT_INT_EN)
    refuse(bench)
    assert bench.units_messages() == []


def test_interrupt_without_msi_registers_is_status_only() -> None:
    bench = Amdvi(efr=HATS_6)
    bench.set_dte(dte(permissions=0))
    bench.arm_msi()
    bench.write("Control", RUNNING | EVENT_INT_EN)
    refuse(bench)
    assert bench.units_messages() == []
    assert bench.status(EVENT_INT)


def test_interrupt_waits_for_room_in_the_outbox() -> None:
    bench = Amdvi(messages=64)
    bench.set_dte(dte(permissions=0))
    bench.arm_msi()
    bench.write("Control", RUNNING | EVENT_INT_EN)
    refuse(bench, 70)
    assert bench.units_messages() == [MSI] * 64
    assert bench.units_messages() == [MSI]  # those held back merged into one
    assert bench.units_messages() == []


# ---- suppression (10.3) -----------------------------------------------------------------------


def test_sa_suppresses_every_page_fault(bench: Amdvi) -> None:
    bench.set_dte(dte(permissions=0, low=SA))
    refuse(bench, 3)
    assert bench.events() == []


def test_se_logs_the_first_page_fault_only(bench: Amdvi) -> None:
    bench.set_dte(dte(permissions=0, low=SE))
    bench.set_dte(dte(permissions=0, low=SE), OTHER)
    refuse(bench, 3)
    refuse(bench, 3, OTHER)
    assert [event.device for event in bench.events()] == [DEVICE, OTHER]


@pytest.mark.parametrize(
    ("command", "logged"),
    [(invalidate_devtab(DEVICE), 1), (invalidate_all(), 1), (invalidate_devtab(OTHER), 0)],
)
def test_se_begins_anew_with_the_entry(bench: Amdvi, command: tuple[int, int], logged: int) -> None:
    bench.set_dte(dte(permissions=0, low=SE))
    refuse(bench)
    bench.events()
    bench.submit(command)
    refuse(bench, 2)
    assert len(bench.events()) == logged


def test_se_counts_only_what_reached_the_log(bench: Amdvi) -> None:
    bench.set_dte(dte(permissions=0, low=SE))
    bench.write("Control", IOMMU_EN)
    refuse(bench)
    bench.write("Control", RUNNING)
    refuse(bench)
    assert len(bench.events()) == 1


@pytest.mark.parametrize(("field", "logged"), [(SA, 0), (SE, 1), (0, 3)])
def test_suppression_holds_for_faults_of_the_iotlb(field: int, logged: int) -> None:
    bench = Amdvi()
    bench.attach(low=field).map(0x5000, 0x9000, R)
    assert bench.reads(0x5000) == 0x9000
    for _ in range(3):
        assert bench.translate(0x5000, WRITE).fault == PAGE_FAULT
    assert len(bench.events()) == logged


@pytest.mark.parametrize("field", [SA, SE])
def test_suppression_is_for_page_faults_only(bench: Amdvi, field: int) -> None:
    bench.set_dte(dte(low=field | 1 << 2))
    bench.translate(0x5000)
    bench.translate(0x5000)
    assert [event.code for event in bench.events()] == [ILLEGAL_DTE] * 2


# ---- the table of causes ----------------------------------------------------------------------


def test_every_cause_has_a_known_code_and_its_name() -> None:
    names = {
        0: {"none", "AT", "interrupt range"},
        1: {"ILLEGAL_DEV_TABLE_ENTRY"},
        2: {"IO_PAGE_FAULT"},
        3: {"DEV_TAB_HARDWARE_ERROR"},
        4: {"PAGE_TAB_HARDWARE_ERROR"},
        5: {"ILLEGAL_COMMAND_ERROR"},
        6: {"COMMAND_HARDWARE_ERROR"},
        7: {"IOTLB_INV_TIMEOUT"},
        8: {"INVALID_DEVICE_REQUEST"},
    }
    found: dict[int, set[str]] = {}
    for row in core.faults(Vendor.AMDVI):
        found.setdefault(row.code, set()).add(row.name)
    assert found == names


def test_result_names_the_cause(bench: Amdvi) -> None:
    cause = bench.translate(0x5000).cause
    assert cause is not None
    assert (cause.name, cause.condition) == ("IO_PAGE_FAULT", "read without read permission")


def test_trace_has_suppressed_events_too() -> None:
    bench = Amdvi(trace_events=64)
    bench.set_dte(dte(permissions=0, low=SA))
    bench.machine.trace(True)
    refuse(bench)
    kinds = [(int(event["kind"]), int(event["code"])) for event in bench.machine.trace_read()]
    assert (TraceKind.FAULT, PAGE_FAULT) in kinds
    assert (TraceKind.TRANSLATE, PAGE_FAULT) in kinds
