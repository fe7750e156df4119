"""Backpressure, and removal with transactions in flight (pci 8)."""

from __future__ import annotations

import pytest
from core_bench import (
    OTHER,
    TE,
    Bench,
)
from in_flight_bench import FABRIC, MEMORY, NEW, at, prepared, remap, slow

from iommu_emu.core import (
    Access,
    Completion,
    Status,
)

# ---- backpressure ---------------------------------------------------------------------------


def test_in_flight_pool_is_finite() -> None:
    bench = prepared(transactions=4)
    port = slow(bench)
    for _ in range(4):
        assert port.write(0, b"\x01").pending
    assert port.write(0, b"\x02").status is Status.BUSY
    assert slow(bench, OTHER).write(0, b"\x02").status is Status.BUSY
    bench.machine.advance_to(1000)
    assert at(bench) == 1
    port.poll()
    assert port.write(0, b"\x03").pending


def test_in_flight_untaken_completions_hold_their_transactions() -> None:
    bench = prepared(transactions=1)
    port = slow(bench)
    port.write(0, b"\x01")
    bench.machine.advance_to(1000)
    assert port.write(0, b"\x02").status is Status.BUSY
    assert port.poll() == 1
    assert port.write(0, b"\x02").pending


def test_in_flight_posted_writes_free_themselves() -> None:
    bench = prepared(transactions=1)
    port = slow(bench)
    for value in (1, 2, 3):
        assert port.transfer(Access.WRITE, 0, bytes([value]), posted=True).ok
        bench.machine.advance_to(bench.machine.now + 1000)
        assert at(bench) == value
    assert port.poll() == 0


@pytest.mark.parametrize(("pages", "status"), [(3, Status.PENDING), (4, Status.BUSY)])
def test_in_flight_transfer_is_sent_whole_or_not_at_all(pages: int, status: Status) -> None:
    bench = prepared(transactions=4)
    slow(bench).write(0xF000, b"\xff")
    port = slow(bench)
    assert port.write(0, b"\x01" * 4096 * pages).status is status
    assert port.in_flight[0] == (3 if status is Status.PENDING else 0)
    bench.machine.advance_to(1000)
    assert at(bench) == (1 if status is Status.PENDING else 0)


def test_in_flight_transfer_that_never_fits_is_refused() -> None:
    bench = prepared(transactions=2)
    with pytest.raises(ValueError, match="0x0"):
        slow(bench).write(0, bytes(3 * 4096))


def test_in_flight_unaligned_transfer_needs_one_more() -> None:
    bench = prepared(transactions=3)
    slow(bench).write(0, b"\x01")
    assert slow(bench).write(0xFFF, bytes(4098)).status is Status.BUSY
    assert slow(bench).write(0xFFF, bytes(4097)).pending


def test_in_flight_every_transaction_returns_to_the_pool() -> None:
    bench = prepared(transactions=8)
    port = slow(bench)
    for round_ in range(20):
        completion = port.write(0, bytes(4096 * 8))
        assert completion.pending
        bench.machine.advance_to(bench.machine.now + 1000)
        assert port.poll() == 1
        assert port.read(0x2_0000 if round_ % 2 else 0, 4).pending
        bench.machine.advance_to(bench.machine.now + 1000)
        assert port.poll() == 1


# ---- removal (pci 8) ------------------------------------------------------------------------


def test_in_flight_at_removal_still_arrives(unit: Bench) -> None:
    port = slow(unit)
    seen: list[Completion] = []
    completion = port.write(0, b"\x01", on_done=seen.append)
    port.remove()
    assert completion.status is Status.REMOVED
    remap(unit)
    unit.machine.advance_to(1000)
    assert (at(unit), at(unit, base=NEW)) == (0, 1)
    assert seen == []


def test_in_flight_at_removal_still_faults(unit: Bench) -> None:
    port = slow(unit)
    port.write(0x2_0000, b"\x01")
    port.remove()
    unit.machine.advance_to(1000)
    assert unit.record(0).code == 5


@pytest.mark.parametrize("destroy", [False, True])
@pytest.mark.parametrize("moment", [0, FABRIC, FABRIC + MEMORY])
def test_in_flight_removal_gives_everything_back(moment: int, destroy: bool) -> None:
    bench = prepared(transactions=4)
    port = slow(bench)
    port.write(0, bytes(4 * 4096))
    bench.machine.advance_to(moment)
    (port.destroy if destroy else port.remove)()
    bench.machine.advance_to(1000)
    again = slow(bench)
    assert again.write(0, bytes(4 * 4096)).pending


def test_in_flight_removal_frees_nothing_twice() -> None:
    bench = prepared(transactions=2)
    gone = slow(bench)
    gone.write(0, b"\x01")
    bench.machine.advance_to(1000)
    assert gone.poll() == 1
    gone.remove()
    assert slow(bench).write(0, b"\x02" * 8192).pending
    assert slow(bench).write(0xF000, b"\x03").status is Status.BUSY


def test_in_flight_removal_leaves_other_ports_alone(unit: Bench) -> None:
    first, second = slow(unit), slow(unit, OTHER)
    first.write(0, b"\x01")
    completion = second.write(0x1000, b"\x02")
    first.destroy()
    unit.machine.advance_to(1000)
    assert second.poll() == 1
    assert completion.ok
    assert (at(unit, 0), at(unit, 1)) == (1, 2)


def test_in_flight_bar_read_of_a_removed_port_may_be_answered(unit: Bench) -> None:
    unit.command(TE, on=False)
    unit.machine.map_bar(0x1000_0000, 4096, 1)
    port = unit.port()
    port.read(0x1000_0000, 4)
    (message,) = unit.messages()
    port.destroy()
    unit.machine.answer(message.token, b"late")
    with pytest.raises(ValueError, match="token"):
        unit.machine.answer(message.token, b"late")
