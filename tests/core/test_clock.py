"""Virtual time: it moves when it is told to, and runs what is due in order."""

from __future__ import annotations

import pytest
from core_bench import GLOBAL, Bench, ByRegister, wait_descriptor

from iommu_emu.core import CoreMachine
from iommu_emu.timing import Timing

STATUS = 0x2_0000


def test_clock_starts_at_0_with_nothing_to_do() -> None:
    machine = CoreMachine()
    assert (machine.now, machine.next_event) == (0, None)


def test_clock_advances_and_never_goes_back() -> None:
    machine = CoreMachine()
    machine.advance_to(100)
    machine.advance_to(50)
    assert machine.now == 100
    machine.advance_to((1 << 64) - 1)
    assert machine.now == (1 << 64) - 1


def test_clock_runs_nothing_early(bench: Bench) -> None:
    port = bench.port()
    port.set_latency(100, 0)
    port.write(0x5000, b"x")
    assert bench.machine.next_event == 100
    bench.machine.advance_to(99)
    assert bench.machine.read(0x5000, 1) == b"\0"
    bench.machine.advance_to(100)
    assert bench.machine.read(0x5000, 1) == b"x"
    assert bench.machine.next_event is None


def test_clock_runs_chains_of_events_in_one_go(bench: Bench) -> None:
    port = bench.port()
    port.set_latency(100, 50)
    completion = port.write(0x5000, b"x")
    bench.machine.advance_to(1000)
    port.poll()
    assert completion.details is not None
    assert (completion.ok, completion.details.time) == (True, 150)
    assert bench.machine.now == 1000


def test_clock_order_is_by_time_whatever_the_order_of_scheduling(bench: Bench) -> None:
    """Each event writes its latency to one place: what stands there last was due last."""
    latencies = [700, 100, 500, 300, 900, 200, 800, 400, 600, 150, 250]
    for n, latency in enumerate(latencies):
        port = bench.port(n)
        port.set_latency(latency, 0)
        port.write(0x5000, latency.to_bytes(2, "little"))
    for latency in sorted(latencies):
        assert bench.machine.next_event == latency
        bench.machine.advance_to(latency)
        assert bench.machine.read(0x5000, 2) == latency.to_bytes(2, "little")


def test_clock_equal_times_run_in_the_order_of_scheduling(bench: Bench) -> None:
    ports = [bench.port(n) for n in range(8)]
    for n, port in enumerate(ports):
        port.set_latency(100, 0)
        port.write(0xFEE0_0000, bytes([n, 0, 0, 0]))
    bench.machine.advance_to(100)
    assert [message.data[0] for message in bench.messages()] == list(range(8))


def test_clock_messages_carry_their_time(bench: Bench) -> None:
    port = bench.port()
    port.set_latency(100, 20)
    port.write(0xFEE0_0000, bytes(4))
    bench.machine.advance_to(500)
    (message,) = bench.messages()
    assert message.time == 120


def test_clock_cancelled_events_do_not_run() -> None:
    bench = Bench(timing=Timing(invalidation=100))
    ports = [bench.port(n) for n in range(6)]
    for n, port in enumerate(ports):
        port.set_latency(50 * (n + 1), 0)
        port.write(0x5000, bytes([n + 1]))
    ByRegister(bench).iotlb(GLOBAL)
    bench.unit.reset()  # cancels in the middle of the heap
    for n in range(6):
        assert bench.machine.next_event == 50 * (n + 1)
        bench.machine.advance_to(50 * (n + 1))
        assert bench.machine.read(0x5000, 1) == bytes([n + 1])


def test_clock_two_units_keep_their_own_time() -> None:
    bench = Bench(timing=Timing(wait=100))
    unit = bench.config["unit"] | {"base": 0x1_0000_0000}
    second = bench.machine.create_vtd(bench.config | {"unit": unit})
    bench.enable_queue()
    bench.submit(wait_descriptor(write=1, address=STATUS, data=1))
    bench.machine.advance_to(30)
    second.mmio_write(0x90, 8, 0x9000)
    bench.poke(0x9000, *wait_descriptor(write=1, address=STATUS + 8, data=1))
    second.mmio_write(0x88, 8, 16)
    second.mmio_write(0x18, 4, 1 << 26)
    seen = []
    for time in (99, 100, 129, 130):
        bench.machine.advance_to(time)
        seen.append((bench.peek(STATUS), bench.peek(STATUS + 8)))
    assert seen == [(0, 0), (1, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize("time", [-1, 1 << 64])
def test_clock_takes_64_bits(time: int) -> None:
    with pytest.raises(ValueError, match="time"):
        CoreMachine().advance_to(time)
