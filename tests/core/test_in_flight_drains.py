"""Drains: which invalidations and commands wait for which transactions (VT-d 7.7)."""

from __future__ import annotations

import pytest
from core_bench import (
    DEVICE,
    DOMAIN,
    GLOBAL,
    IRE,
    OTHER,
    QIE,
    ROOT_TABLE,
    SELECTIVE,
    SIRTP,
    TE,
    Bench,
    ByRegister,
    interrupt_descriptor,
    iotlb_descriptor,
    wait_descriptor,
)
from in_flight_bench import MEMORY, OLD, at, prepared, slow

from iommu_emu.core import (
    AtomicKind,
    CacheId,
    InvalidationState,
    Port,
)
from iommu_emu.timing import Timing

# ---- drains ---------------------------------------------------------------------------------


def translated_writes(bench: Bench, *pages: int, requester: int = DEVICE) -> Port:
    """Send one write to each page; all are past the unit, none is in memory."""
    port = slow(bench, requester, 0, MEMORY)
    for page in pages:
        port.write(page << 12, b"\x01")
    assert port.in_flight == (0, len(pages))
    return port


@pytest.mark.parametrize("dw", [0, 1])
@pytest.mark.parametrize("dwd", [True, False])
@pytest.mark.parametrize("major", [1, 2])
def test_in_flight_write_drain(way: type[ByRegister], major: int, dwd: bool, dw: int) -> None:
    """As asked and supported; always from version 2 on, where DW is ignored."""
    bench = prepared(major=major, drain_writes=dwd)
    port = translated_writes(bench, 0)
    way(bench).iotlb(GLOBAL, dw=dw)
    drained = bool(major >= 2 or (dwd and dw))
    assert at(bench) == int(drained)
    assert port.in_flight == (0, int(not drained))


@pytest.mark.parametrize("dr", [0, 1])
@pytest.mark.parametrize("drd", [True, False])
@pytest.mark.parametrize("major", [1, 2])
def test_in_flight_read_drain(way: type[ByRegister], major: int, drd: bool, dr: int) -> None:
    bench = prepared(major=major, drain_reads=drd)
    port = slow(bench, DEVICE, 0, MEMORY)
    port.read(0, 4)
    way(bench).iotlb(GLOBAL, dr=dr)
    assert port.in_flight == (0, 0 if major >= 2 or (drd and dr) else 1)


@pytest.mark.parametrize(("dw", "dr"), [(1, 0), (0, 1)])
def test_in_flight_drain_is_of_the_kind_asked_for(unit: Bench, dw: int, dr: int) -> None:
    writer = translated_writes(unit, 0)
    reader = slow(unit, DEVICE, 0, MEMORY)
    reader.read(0, 4)
    ByRegister(unit).iotlb(GLOBAL, dw=dw, dr=dr)
    assert (writer.in_flight[1], reader.in_flight[1]) == (1 - dw, 1 - dr)


def test_in_flight_atomics_drain_with_writes(unit: Bench) -> None:
    port = slow(unit, DEVICE, 0, MEMORY)
    port.atomic(AtomicKind.FETCH_ADD, 0, 1)
    ByRegister(unit).iotlb(GLOBAL, dw=1)
    assert port.in_flight == (0, 0)


@pytest.mark.parametrize(
    ("g", "did", "address", "am", "drained"),
    [
        (GLOBAL, 0, 0, 0, {(DEVICE, 2), (OTHER, 2)}),
        (DOMAIN, 1, 0, 0, {(DEVICE, 2)}),
        (DOMAIN, 2, 0, 0, {(OTHER, 2)}),
        (DOMAIN, 3, 0, 0, set()),
        (SELECTIVE, 1, 0x2000, 0, {(DEVICE, 2)}),
        (SELECTIVE, 1, 0x1000, 0, set()),
        (SELECTIVE, 1, 0x3000, 0, set()),
        (SELECTIVE, 1, 0x3000, 1, {(DEVICE, 2)}),
        (SELECTIVE, 2, 0x2000, 0, {(OTHER, 2)}),
    ],
)
def test_in_flight_drain_scope(
    unit: Bench, way: type[ByRegister], g: int, did: int, address: int, am: int, drained: set[int]
) -> None:
    ports = {(requester, 2): slow(unit, requester, 0, MEMORY) for requester in (DEVICE, OTHER)}
    for port in ports.values():
        port.write(0x2000, b"\x01")
    way(unit).iotlb(g, did, address, am, dw=1)
    assert {key for key, port in ports.items() if port.in_flight == (0, 0)} == drained


@pytest.mark.parametrize(("length", "drained"), [(4, False), (8, True)])
def test_in_flight_drain_looks_at_the_range_of_a_request(
    unit: Bench, length: int, drained: bool
) -> None:
    """A transfer over two pages is two requests, each of one page."""
    port = slow(unit, DEVICE, 0, MEMORY)
    port.write(0x1FFC, bytes(length))
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x2000, dw=1)
    assert (port.in_flight == (0, 0)) is drained


def test_in_flight_drain_pushes_what_came_before(unit: Bench) -> None:
    """A requester's transactions stay in order: the first lands with the second."""
    port = translated_writes(unit, 0, 1, 2)
    ByRegister(unit).iotlb(SELECTIVE, 1, 0x1000, dw=1)
    assert [at(unit, page) for page in range(3)] == [1, 1, 0]
    assert port.in_flight == (0, 1)
    unit.machine.advance_to(1000)
    assert at(unit, 2) == 1


def test_in_flight_drained_transactions_land_once(unit: Bench) -> None:
    port = translated_writes(unit, 0)
    ByRegister(unit).iotlb(GLOBAL, dw=1)
    unit.machine.write(OLD, b"\x09")
    unit.machine.advance_to(1000)
    assert at(unit) == 9
    assert port.poll() == 1


def test_in_flight_drain_does_not_reach_the_fabric(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    ByRegister(unit).iotlb(GLOBAL, dw=1, dr=1)
    assert port.in_flight == (1, 0)


def test_in_flight_drain_is_over_before_the_wait_completes(unit: Bench) -> None:
    translated_writes(unit, 0)
    unit.enable_queue()
    unit.submit(
        iotlb_descriptor(DOMAIN, 1, dw=1), wait_descriptor(write=1, address=0x2_0000, data=1)
    )
    assert (at(unit), unit.peek(0x2_0000)) == (1, 1)


def test_in_flight_drain_comes_with_the_effect() -> None:
    bench = prepared(timing=Timing(invalidation=10))
    translated_writes(bench, 0)
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1))
    bench.machine.advance_to(9)
    assert at(bench) == 0
    bench.machine.advance_to(10)
    assert at(bench) == 1


@pytest.mark.parametrize("on", [True, False])
def test_in_flight_te_drains_either_way(on: bool) -> None:
    bench = prepared()
    bench.command(TE, not on)
    writer = slow(bench, DEVICE, 0, MEMORY)
    writer.write(OLD if on else 0, b"\x01")
    reader = slow(bench, OTHER, 0, MEMORY)
    reader.read(OLD if on else 0, 4)
    bench.command(TE, on)
    assert at(bench) == 1
    assert (writer.in_flight, reader.in_flight) == ((0, 0), (0, 0))


def test_in_flight_te_does_not_reach_the_fabric(unit: Bench) -> None:
    port = slow(unit)
    port.write(0, b"\x01")
    unit.command(TE, on=False)
    assert port.in_flight == (1, 0)
    unit.machine.advance_to(1000)
    assert unit.machine.read(0, 1) == b"\x01"  # untranslated by now


@pytest.mark.parametrize("bit", [QIE])
def test_in_flight_other_commands_drain_nothing(unit: Bench, bit: int) -> None:
    port = translated_writes(unit, 0)
    unit.command(bit)
    unit.set_root(ROOT_TABLE)
    ByRegister(unit).context(GLOBAL)
    assert port.in_flight == (0, 1)


def test_in_flight_drain_is_of_one_unit(unit: Bench) -> None:
    config = unit.config["unit"] | {"base": 0x1_0000_0000}
    second = unit.machine.create_vtd(unit.config | {"unit": config})
    unit.machine.route(0, OTHER, OTHER, second)
    mine = translated_writes(unit, 0)
    other = slow(unit, OTHER, 0, MEMORY)
    other.write(OLD + 0x1000, b"\x01")
    ByRegister(unit).iotlb(GLOBAL, dw=1)
    assert (mine.in_flight, other.in_flight) == ((0, 0), (0, 1))


def interrupting() -> Bench:
    bench = prepared(interrupt_remapping=True)
    bench.poke(0x4_0000, 0x31_0001, 0)
    bench.write("IRTA", 0x4_0000)
    bench.command(SIRTP)
    return bench


def test_in_flight_ire_drains_interrupts() -> None:
    bench = interrupting()
    port = slow(bench, DEVICE, 0, MEMORY)
    port.write(0xFEE0_1000, bytes(4))
    bench.command(IRE)
    assert port.in_flight == (0, 0)
    assert [m.address for m in bench.messages()] == [0xFEE0_1000]


@pytest.mark.parametrize("g", [0, 1])
def test_in_flight_interrupt_entry_invalidation_drains_interrupts(g: int) -> None:
    bench = interrupting()
    bench.command(IRE)
    bench.enable_queue()
    port = slow(bench, DEVICE, 0, MEMORY)
    port.write(0xFEE0_0010, bytes(4))
    bench.submit(interrupt_descriptor(g), wait_descriptor(write=1, address=0x2_0000, data=1))
    assert bench.peek(0x2_0000) == 1
    assert len(bench.messages()) == 1


# ---- drains that have to wait for room in the outbox ------------------------------------------


def held_back(**arguments: object) -> tuple[Bench, Port]:
    """The outbox is full: an interrupt and a write behind it are past the unit, and stuck."""
    bench = prepared(messages=64, **arguments)
    filler = bench.port(OTHER)
    for _ in range(64):
        assert filler.write(0xFEE0_0000, bytes(4)).ok
    port = bench.port()
    port.write(0xFEE0_0000, bytes(4))
    port.write(0, b"\x01")
    assert (port.in_flight, at(bench)) == ((0, 2), 0)
    return bench, port


def test_in_flight_register_drain_waits_for_the_outbox() -> None:
    bench, port = held_back()
    bench.translate(0x1000)
    ByRegister(bench).iotlb(DOMAIN, 1, dw=1)
    assert bench.read("IOTLB") >> 63 == 1
    assert len(bench.unit.entries(CacheId.IOTLB)) == 2  # nothing has happened yet
    assert not bench.unit.step()
    bench.messages()
    assert bench.read("IOTLB") >> 63 == 0
    assert (port.in_flight, at(bench)) == ((0, 0), 1)
    assert bench.unit.entries(CacheId.IOTLB) == []


def test_in_flight_queued_drain_waits_for_the_outbox() -> None:
    bench, _ = held_back()
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1), wait_descriptor(write=1, address=0x2_0000, data=1))
    assert (bench.read("IQH"), bench.peek(0x2_0000)) == (0, 0)
    assert bench.unit.invalidation_state is InvalidationState.IN_PROGRESS
    bench.messages()
    assert (bench.read("IQH"), bench.peek(0x2_0000), at(bench)) == (32, 1, 1)


def test_in_flight_queued_drain_of_another_domain_does_not_wait() -> None:
    bench, port = held_back()
    bench.enable_queue()
    bench.submit(iotlb_descriptor(DOMAIN, 2, dw=1))
    assert bench.read("IQH") == 16
    assert port.in_flight == (0, 2)


def test_in_flight_timed_drain_goes_on_when_there_is_room() -> None:
    bench, _ = held_back(timing=Timing(invalidation=100))
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1), iotlb_descriptor(GLOBAL))
    bench.machine.advance_to(1000)
    assert bench.read("IQH") == 0
    bench.messages()
    assert bench.read("IQH") == 16
    bench.machine.advance_to(1099)
    assert bench.read("IQH") == 16
    bench.machine.advance_to(1100)
    assert bench.read("IQH") == 32


def test_in_flight_drain_that_waits_is_forgotten_by_reset() -> None:
    bench, _ = held_back(timing=Timing(invalidation=100))
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL, dw=1))
    bench.machine.advance_to(100)
    bench.unit.reset()
    bench.messages()
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL))
    bench.machine.advance_to(199)
    assert bench.read("IQH") == 0
    bench.machine.advance_to(200)
    assert bench.read("IQH") == 16


def test_in_flight_te_waits_for_its_drain() -> None:
    bench, _ = held_back()
    bench.command(TE, on=False)
    assert bench.status(TE)
    bench.messages()
    assert not bench.status(TE)
    assert at(bench) == 1


def test_in_flight_ire_waits_for_its_drain() -> None:
    bench, _ = held_back(interrupt_remapping=True)
    bench.command(IRE)
    assert not bench.status(IRE)
    bench.messages()
    assert bench.status(IRE)


def test_in_flight_command_that_waits_is_forgotten_by_reset() -> None:
    bench, _ = held_back(interrupt_remapping=True)
    bench.command(IRE)
    bench.unit.reset()
    bench.messages()
    assert bench.read("GSTS") == 0


def test_in_flight_interrupt_entry_invalidation_waits_for_its_drain() -> None:
    bench, _ = held_back(interrupt_remapping=True)
    bench.enable_queue()
    bench.submit(interrupt_descriptor())
    assert bench.read("IQH") == 0
    bench.messages()
    assert bench.read("IQH") == 16
