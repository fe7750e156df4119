"""The trace ring: what is recorded, in which order, and what falls out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_bench import (
    DEVICE,
    GLOBAL,
    WRITE,
    Bench,
    iotlb_descriptor,
    wait_descriptor,
)

from iommu_emu.core import CoreMachine, StateError, TraceKind


@pytest.fixture
def unit() -> Bench:
    bench = Bench(trace_events=256)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.trace(True)
    return bench


def events(bench: Bench, kind: TraceKind | None = None) -> list[Any]:
    found = bench.machine.trace_read()
    return [e for e in found if kind is None or e["kind"] == kind]


def test_trace_is_off_until_it_is_switched_on() -> None:
    bench = Bench(trace_events=256)
    bench.translate(0x5000)
    bench.read("VER")
    bench.port().write(0x5000, b"x")
    assert events(bench) == []


def test_trace_needs_a_ring() -> None:
    with pytest.raises(StateError, match="trace_events"):
        CoreMachine().trace(True)


def test_trace_translation(unit: Bench) -> None:
    for _ in range(2):  # from the tables, then from the IOTLB
        unit.translate(0x5678, WRITE)
    for event in events(unit, TraceKind.TRANSLATE):
        assert (event["address"], event["a"], event["b"]) == (0x5678, 0x20_0678, WRITE)
        assert (event["requester"], event["code"], event["unit"]) == (DEVICE, 0, 0)
    assert len(events(unit)) == 2


def test_trace_fault_comes_before_its_translation(unit: Bench) -> None:
    unit.translate(0x6000)
    fault, translation = events(unit)
    assert (fault["kind"], fault["address"], fault["code"]) == (TraceKind.FAULT, 0x6000, 6)
    assert fault["a"] == unit.translate(0x6000).diagnostic
    assert (translation["kind"], translation["code"]) == (TraceKind.TRANSLATE, 6)


def test_trace_mmio(unit: Bench) -> None:
    unit.write("FEDATA", 0x42)
    unit.read("FEDATA")
    unit.unit.mmio_write(0x3D, 4, 1)  # refused: not an access
    write, read = events(unit)
    assert (write["kind"], write["address"], write["a"]) == (TraceKind.MMIO_WRITE, 0x3C, 0x42)
    assert (read["kind"], read["address"], read["a"]) == (TraceKind.MMIO_READ, 0x3C, 0x42)
    assert (write["code"], read["code"]) == (4, 4)


def test_trace_command(unit: Bench) -> None:
    unit.enable_queue()
    first, second = iotlb_descriptor(GLOBAL), wait_descriptor(fence=1)
    unit.submit(first, second)
    assert [(e["a"], e["b"]) for e in events(unit, TraceKind.COMMAND)] == [first, second]


def test_trace_dma(unit: Bench) -> None:
    port = unit.port()
    port.write(0x5FFC, b"12345678")
    (landed,) = events(unit, TraceKind.DMA)
    assert (landed["address"], landed["a"], landed["b"]) == (0x5FFC, 0x20_0FFC, 4)
    assert landed["requester"] == DEVICE


def test_trace_dma_in_flight_is_recorded_when_it_lands(unit: Bench) -> None:
    port = unit.port()
    port.set_latency(100, 50)
    port.write(0x5000, b"x")
    unit.machine.advance_to(1000)
    kinds = [(e["kind"], e["time"]) for e in events(unit)]
    assert kinds == [(TraceKind.TRANSLATE, 100), (TraceKind.DMA, 150)]


def test_trace_message(unit: Bench) -> None:
    unit.port().write(0xFEE0_1000, bytes(4))
    (message,) = events(unit, TraceKind.MESSAGE)
    assert (message["address"], message["requester"]) == (0xFEE0_1000, DEVICE)


def test_trace_sequence_counts_from_0(unit: Bench) -> None:
    for _ in range(10):
        unit.translate(0x5000)
    assert [e["sequence"] for e in events(unit)] == list(range(10))


def test_trace_ring_keeps_the_newest(unit: Bench) -> None:
    for n in range(300):
        unit.translate(0x5000 + 4 * n)
    kept = [e["sequence"] for e in events(unit)]
    assert kept == list(range(44, 300))


def test_trace_off_again_keeps_what_was_recorded(unit: Bench) -> None:
    unit.translate(0x5000)
    unit.machine.trace(False)
    unit.translate(0x5000)
    assert len(events(unit)) == 1
    unit.machine.trace(True)
    unit.translate(0x5000)
    assert [e["sequence"] for e in events(unit)] == [0, 1]


def test_trace_and_watch_work_together(unit: Bench) -> None:
    unit.unit.watch(True)
    unit.translate(0x5000)
    unit.poke(unit.context_entry(), 0)
    unit.translate(0x5000)
    assert len(events(unit, TraceKind.TRANSLATE)) == 2
    assert len(unit.unit.stale_uses()[0]) == 1
    unit.machine.trace(False)
    unit.translate(0x5000)
    assert len(unit.unit.stale_uses()[0]) == 1


def run() -> Any:
    bench = Bench(trace_events=1024, compress=True)
    bench.machine.trace(True)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.enable_queue()
    port = bench.port()
    port.set_latency(30, 7)
    for n in range(20):
        port.write(0x5000 + 0x1000 * (n % 3), bytes([n]))
        bench.machine.advance_to(20 * n)
        if n % 5 == 0:
            bench.submit(iotlb_descriptor(GLOBAL, dw=1), wait_descriptor(interrupt=1))
    bench.machine.advance_to(10_000)
    return bench.machine.trace_read()


def test_trace_of_the_same_inputs_is_the_same() -> None:
    first, second = run(), run()
    assert len(first) > 60
    assert np.array_equal(first, second)


def test_trace_tells_units_apart(unit: Bench) -> None:
    config = unit.config["unit"] | {"base": 0x1_0000_0000}
    second = unit.machine.create_vtd(unit.config | {"unit": config})
    second.mmio_read(0, 4)
    (event,) = events(unit)
    assert event["unit"] == second.number == 1
