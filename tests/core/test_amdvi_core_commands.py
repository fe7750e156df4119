"""The command buffer: order, wrap, errors, restarts, states, draining (AMD-Vi 3.3, 3.4, 9)."""

from __future__ import annotations

import gc
import weakref

import pytest
from amdvi_core_bench import (
    BASE,
    CMD_BUF_EN,
    CMD_RUN,
    COM_WAIT_INT,
    COM_WAIT_INT_EN,
    COMMAND_ERROR,
    COMMANDS,
    DEVICE,
    EVENT_LOG_EN,
    EVENT_RUN,
    EVERYTHING,
    HATS_6,
    HOLE,
    ILLEGAL_COMMAND,
    IOMMU_EN,
    MASTER_ABORT,
    MSI,
    RUNNING,
    STORE,
    Amdvi,
    completion_wait,
    dte,
    invalidate_all,
    invalidate_devtab,
    invalidate_domain,
    invalidate_interrupts,
    invalidate_pages,
    pte,
)

from iommu_emu.core import CacheId, InvalidationState, Reset, TraceKind
from iommu_emu.timing import Timing

IDLE, SUBMITTED, IN_PROGRESS = InvalidationState

PREFETCH = (6 << 60 | DEVICE, 0)
LEGAL = {
    "completion-wait": completion_wait(s=1, i=1, data=1),
    "devtab": invalidate_devtab(),
    "pages": invalidate_pages(1, 0x5000, s=1, pde=1),
    "interrupts": invalidate_interrupts(),
    "prefetch": PREFETCH,
    "all": invalidate_all(),
}
# Bits that each command defines (9.1); the opcode is bits 63:60.
DEFINED = {
    "completion-wait": {0, 1, 2, *range(3, 52), *range(64, 128)},
    "devtab": set(range(16)),
    "pages": {*range(20), *range(32, 48), 64, 65, *range(76, 128)},
    "interrupts": set(range(16)),
    "prefetch": {*range(16), *range(24, 52), 64, 68, *range(76, 128)},
    "all": set(),
}
RESERVED = [
    (name, bit)
    for name, defined in DEFINED.items()
    for bit in sorted(set(range(128)) - defined - set(range(60, 64)))
]


@pytest.fixture
def bench() -> Amdvi:
    return Amdvi()


def stopped_at(bench: Amdvi) -> int | None:
    """Offset of the command that stopped the ring; None: it runs."""
    return None if bench.status(CMD_RUN) else bench.read("CmdBufHead")


# ---- COMPLETION_WAIT (9.2) --------------------------------------------------------------------


def test_wait_stores_8_bytes(bench: Amdvi) -> None:
    bench.poke(STORE, 0, 0x1111, 0)
    bench.submit(completion_wait(s=1, address=STORE + 8, data=0xFEDC_BA98_7654_3210))
    assert [bench.peek(STORE + 8 * n) for n in range(3)] == [0, 0xFEDC_BA98_7654_3210, 0]


def test_wait_without_s_stores_nothing(bench: Amdvi) -> None:
    bench.submit(completion_wait(i=1, data=7))
    assert bench.peek(STORE) == 0


def test_wait_without_s_takes_any_address(bench: Amdvi) -> None:
    bench.submit(completion_wait(address=HOLE))
    assert stopped_at(bench) is None


@pytest.mark.parametrize(("i", "enable"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_wait_interrupts_only_with_i_and_the_enable(bench: Amdvi, i: int, enable: int) -> None:
    bench.arm_msi()
    bench.write("Control", RUNNING | (COM_WAIT_INT_EN if enable else 0))
    bench.submit(completion_wait(i=i))
    assert bench.status(COM_WAIT_INT) is bool(i)
    assert bench.units_messages() == ([MSI] if i and enable else [])


def test_wait_interrupts_again_while_the_status_bit_is_set(bench: Amdvi) -> None:
    bench.arm_msi()
    bench.write("Control", RUNNING | COM_WAIT_INT_EN)
    bench.submit(completion_wait(i=1), completion_wait(i=1))
    assert bench.units_messages() == [MSI, MSI]


@pytest.mark.parametrize("target", [HOLE, BASE + 0x2020])
def test_wait_that_cannot_store_stops_the_ring(bench: Amdvi, target: int) -> None:
    bench.submit(completion_wait(), completion_wait(s=1, i=1, address=target))
    assert stopped_at(bench) == 0x10
    assert not bench.status(COM_WAIT_INT)
    event = bench.event()
    assert (event.code, event.flags, event.address) == (
        COMMAND_ERROR,
        MASTER_ABORT,
        COMMANDS + 0x10,
    )


# ---- the ring (3.3) ---------------------------------------------------------------------------


def test_ring_is_empty_when_head_meets_tail(bench: Amdvi) -> None:
    bench.submit(*[completion_wait()] * 5)
    assert (bench.read("CmdBufHead"), bench.read("CmdBufTail")) == (0x50, 0x50)


@pytest.mark.parametrize("length", [8, 9, 15])
def test_ring_wraps_at_its_length(length: int) -> None:
    bench = Amdvi(on=False)
    base = 0x100_0000
    bench.start(0)
    bench.write("CmdBufBase", base | length << 56)
    last = (16 << length) - 16
    bench.write("CmdBufHead", last)
    bench.write("CmdBufTail", last)
    bench.write("Control", RUNNING)
    bench.submit(completion_wait(s=1, data=1), completion_wait(s=1, address=STORE + 8, data=2))
    assert [bench.peek(STORE), bench.peek(STORE + 8)] == [1, 2]
    assert bench.read("CmdBufHead") == 0x10


def test_ring_takes_a_full_turn_but_one(bench: Amdvi) -> None:
    bench.submit(*[completion_wait()] * 255)
    assert bench.read("CmdBufHead") == 255 * 16
    assert bench.counter("descriptors") == 255


def test_ring_runs_commands_in_order(bench: Amdvi) -> None:
    bench.submit(*(completion_wait(s=1, data=n) for n in range(5)))
    assert bench.peek(STORE) == 4


def test_ring_that_is_off_waits(bench: Amdvi) -> None:
    bench.write("Control", RUNNING & ~CMD_BUF_EN)
    bench.submit(completion_wait(s=1, data=3))
    assert bench.peek(STORE) == 0
    bench.write("Control", RUNNING)
    assert bench.peek(STORE) == 3


# ---- errors (9.4) -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEGAL)
def test_command_is_carried_out(bench: Amdvi, name: str) -> None:
    bench.submit(LEGAL[name])
    assert stopped_at(bench) is None
    assert bench.counter("descriptors") == 1


@pytest.mark.parametrize("name", LEGAL)
def test_command_takes_every_bit_that_it_defines(bench: Amdvi, name: str) -> None:
    value = LEGAL[name][0] >> 60 << 60 | sum(1 << bit for bit in DEFINED[name])
    if name == "completion-wait":
        value &= ~1  # no store to the last byte of the address space
    bench.submit((value & (1 << 64) - 1, value >> 64))
    assert stopped_at(bench) is None


@pytest.mark.parametrize(("name", "bit"), RESERVED)
def test_command_with_a_reserved_bit_is_illegal(bench: Amdvi, name: str, bit: int) -> None:
    low, high = LEGAL[name]
    value = (low | high << 64) ^ 1 << bit
    bench.submit(completion_wait(), (value & (1 << 64) - 1, value >> 64))
    assert stopped_at(bench) == 0x10
    event = bench.event()
    assert (event.code, event.low, event.address) == (ILLEGAL_COMMAND, 5 << 60, COMMANDS + 0x10)


@pytest.mark.parametrize("opcode", [0, 4, 7, 9, 10, 11, 12, 13, 14, 15])
def test_command_of_an_unknown_or_absent_feature_is_illegal(bench: Amdvi, opcode: int) -> None:
    bench.submit((opcode << 60, 0))
    assert stopped_at(bench) == 0
    assert bench.event().code == ILLEGAL_COMMAND


@pytest.mark.parametrize("command", [PREFETCH, invalidate_all()])
def test_command_without_its_feature_is_illegal(command: tuple[int, int]) -> None:
    bench = Amdvi(efr=HATS_6)
    bench.submit(command)
    assert stopped_at(bench) == 0
    assert bench.event().code == ILLEGAL_COMMAND


def test_illegal_command_has_no_effect_and_later_ones_wait(bench: Amdvi) -> None:
    bench.set_dte(dte())
    bench.reads(0x5000)
    low, high = invalidate_devtab()
    bench.submit((low | 1 << 20, high), completion_wait(s=1, data=1))
    assert len(bench.unit.entries(CacheId.CONTEXT)) == 1
    assert bench.peek(STORE) == 0


def test_command_that_cannot_be_read_stops_the_ring(bench: Amdvi) -> None:
    bench.write("Control", IOMMU_EN | EVENT_LOG_EN)
    bench.write("CmdBufBase", HOLE | 8 << 56)
    bench.write("Control", RUNNING)
    bench.write("CmdBufTail", 0x10)
    assert stopped_at(bench) == 0
    event = bench.event()
    assert (event.code, event.flags, event.address) == (COMMAND_ERROR, MASTER_ABORT, HOLE)


def test_stopped_ring_stays_stopped_at_the_doorbell(bench: Amdvi) -> None:
    bench.submit((0, 0))
    bench.submit(completion_wait(s=1, data=1))
    assert stopped_at(bench) == 0
    assert bench.peek(STORE) == 0
    assert len(bench.events()) == 1


@pytest.mark.parametrize("control", [RUNNING, RUNNING | COM_WAIT_INT_EN, CMD_BUF_EN | EVENT_LOG_EN])
def test_stopped_ring_stays_stopped_until_its_enable_is_cleared(bench: Amdvi, control: int) -> None:
    bench.submit((0, 0))
    bench.write("Control", control)
    bench.write("Control", RUNNING)
    assert stopped_at(bench) == 0


def test_stopped_ring_goes_on_after_a_restart(bench: Amdvi) -> None:
    bench.submit((0, 0), completion_wait(s=1, data=1))
    bench.write("Control", RUNNING & ~CMD_BUF_EN)
    bench.write("CmdBufHead", 0x10)
    bench.write("Control", RUNNING)
    assert stopped_at(bench) is None
    assert bench.peek(STORE) == 1


def test_stopped_ring_meets_the_same_command_after_a_restart(bench: Amdvi) -> None:
    bench.submit((0, 0))
    bench.write("Control", RUNNING & ~CMD_BUF_EN)
    bench.write("Control", RUNNING)
    assert stopped_at(bench) == 0
    assert [event.code for event in bench.events()] == [ILLEGAL_COMMAND] * 2


def test_stopped_ring_restarts_from_reset_pointers(bench: Amdvi) -> None:
    bench.submit(completion_wait(), (0, 0))
    bench.write("Control", RUNNING & ~CMD_BUF_EN)
    bench.write("CmdBufHead", 0)
    bench.write("CmdBufTail", 0)
    bench.write("Control", RUNNING)
    bench.submit(completion_wait(s=1, data=9))
    assert (bench.peek(STORE), bench.read("CmdBufHead")) == (9, 0x10)


def test_stopped_ring_is_forgotten_by_a_reset(bench: Amdvi) -> None:
    bench.submit((0, 0))
    bench.unit.reset(Reset.WARM)
    bench.start()
    assert bench.read("Status") == CMD_RUN | EVENT_RUN


# ---- states and timing ------------------------------------------------------------------------


def test_states_of_a_command_step_by_step() -> None:
    bench = Amdvi(timing=Timing(manual=True))
    leaf = bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.poke(leaf, 0)
    states = [bench.unit.invalidation_state]
    bench.submit(invalidate_pages(1, 0x5000))
    states.append(bench.unit.invalidation_state)
    assert bench.unit.step()
    states.append(bench.unit.invalidation_state)
    assert (bench.reads(0x5000), bench.read("CmdBufHead")) == (0x9000, 0)
    assert bench.unit.step()
    states.append(bench.unit.invalidation_state)
    assert (bench.reads(0x5000), bench.read("CmdBufHead")) == (None, 0x10)
    assert states == [IDLE, SUBMITTED, IN_PROGRESS, IDLE]
    assert not bench.unit.step()


def test_states_take_their_latencies() -> None:
    bench = Amdvi(timing=Timing(command=10, invalidation=100, wait=1000))
    leaf = bench.attach().map(0x5000, 0x9000)
    bench.reads(0x5000)
    bench.poke(leaf, 0)
    bench.submit(invalidate_pages(1, 0x5000), completion_wait(s=1, data=1))
    bench.machine.advance_to(109)
    assert bench.reads(0x5000) == 0x9000
    bench.machine.advance_to(110)
    assert bench.reads(0x5000) is None
    bench.machine.advance_to(1119)
    assert bench.peek(STORE) == 0
    bench.machine.advance_to(1120)
    assert bench.peek(STORE) == 1
    assert bench.unit.invalidation_state is IDLE


def test_disable_waits_for_the_command_in_progress() -> None:
    bench = Amdvi(timing=Timing(manual=True))
    bench.submit(completion_wait(s=1, data=1), completion_wait(s=1, data=2))
    bench.unit.step()
    bench.write("Control", RUNNING & ~CMD_BUF_EN)
    assert bench.status(CMD_RUN)
    bench.write("CmdBufBase", HOLE | 8 << 56)
    bench.unit.step()
    assert not bench.status(CMD_RUN)
    assert (bench.peek(STORE), bench.read("CmdBufHead")) == (1, 0x10)
    assert not bench.unit.step()


def test_disable_with_nothing_in_progress_is_at_once() -> None:
    bench = Amdvi(timing=Timing(manual=True))
    bench.submit(completion_wait())
    bench.write("Control", RUNNING & ~CMD_BUF_EN)
    assert not bench.status(CMD_RUN)
    assert bench.unit.invalidation_state is IDLE


def test_reset_forgets_the_command_in_progress() -> None:
    bench = Amdvi(timing=Timing(command=10, wait=10))
    bench.submit(completion_wait(s=1, data=1))
    bench.machine.advance_to(10)
    bench.unit.reset()
    bench.machine.advance_to(100)
    assert bench.peek(STORE) == 0
    assert bench.unit.invalidation_state is IDLE


def test_machine_can_be_destroyed_with_everything_in_progress() -> None:
    bench = Amdvi(timing=Timing(command=10))
    bench.attach().map(0x5000, 0x10_0000)
    in_flight(bench)
    bench.submit(completion_wait())
    machine = weakref.ref(bench.machine)
    del bench
    gc.collect()
    assert machine() is None


def test_latencies_that_become_0_let_the_ring_go_on() -> None:
    bench = Amdvi(timing=Timing(manual=True))
    bench.submit(completion_wait(s=1, data=1))
    bench.unit.set_timing(Timing().parameters())
    assert bench.peek(STORE) == 1


# ---- draining (design) ------------------------------------------------------------------------


def in_flight(bench: Amdvi) -> None:
    """One write is translated and not yet in memory."""
    port = bench.port()
    port.set_latency(0, 1000)
    port.write(0x5000, b"late")


@pytest.mark.parametrize(
    "command",
    [invalidate_pages(1, 0x5000), invalidate_domain(), invalidate_devtab(), invalidate_all()],
)
def test_invalidation_lets_a_translated_write_land_later(
    bench: Amdvi, command: tuple[int, int]
) -> None:
    bench.attach().map(0x5000, 0x10_0000)
    in_flight(bench)
    bench.submit(command)
    assert bench.machine.read(0x10_0000, 4) == bytes(4)
    bench.machine.advance_to(1000)
    assert bench.machine.read(0x10_0000, 4) == b"late"


def test_wait_lands_translated_writes_first(bench: Amdvi) -> None:
    bench.attach().map(0x5000, 0x10_0000)
    in_flight(bench)
    bench.submit(invalidate_pages(1, 0x5000), completion_wait(s=1, data=1))
    assert bench.machine.read(0x10_0000, 4) == b"late"


def test_wait_does_not_land_what_is_still_in_the_fabric(bench: Amdvi) -> None:
    leaf = bench.attach().map(0x5000, 0x10_0000)
    port = bench.port()
    port.set_latency(1000, 0)
    port.write(0x5000, b"late")
    bench.poke(leaf, pte(0x11_0000))
    bench.submit(invalidate_pages(1, 0x5000), completion_wait())
    assert port.in_flight == (1, 0)
    bench.machine.advance_to(1000)
    assert bench.machine.read(0x11_0000, 4) == b"late"


# ---- trace ------------------------------------------------------------------------------------


def test_trace_has_every_command_that_took_effect() -> None:
    bench = Amdvi(trace_events=64, efr=EVERYTHING)
    bench.machine.trace(True)
    commands = [invalidate_devtab(5), completion_wait(s=1, data=7)]
    bench.submit(*commands, (0, 0))
    seen = [
        (int(event["a"]), int(event["b"]))
        for event in bench.machine.trace_read()
        if event["kind"] == TraceKind.COMMAND
    ]
    assert seen == commands
