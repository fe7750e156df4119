"""What the journal tells of each call, of time, and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from core_bench import (
    DEVICE,
    GLOBAL,
    OTHER,
    READ,
    WRITE,
    Bench,
    iotlb_descriptor,
    wait_descriptor,
)
from journal_bench import rows, started

from iommu_emu.core import (
    AtomicKind,
    ConfigValue,
    MessageKind,
    Outcome,
    RecordKind,
    Request,
    RequestFlag,
    Reset,
    Status,
)
from iommu_emu.timing import Timing

BAR = 0xE000_0000
MSI = 0xFEE0_1000


@pytest.fixture
def bench() -> Bench:
    """A page at 5000h of domain 1; translation is off and nothing was used yet."""
    bench = Bench()
    bench.attach().map(0x5000, 0x20_0000)
    return bench


# ---- every input --------------------------------------------------------------------------------


def test_journal_mmio(bench: Bench) -> None:
    journal = started(bench)
    bench.write("FEDATA", 0x42)
    bench.read("FEDATA")
    assert rows(journal) == [
        (RecordKind.MMIO_WRITE, 4, 0, 0, 0x3C, 0x42),
        (RecordKind.MMIO_READ, 4, 0, 0, 0x3C, 0x42),
    ]


def test_journal_translation_with_what_the_unit_read(bench: Bench) -> None:
    journal = started(bench)
    bench.enable()
    journal.take()
    bench.translate(0x5678, WRITE)
    told = rows(journal)
    assert told[0] == (RecordKind.TRANSLATE, WRITE, DEVICE, 0, 0x5678, 4)
    root = bench.peek(bench.root_entry(0))
    low, high = bench.peek(bench.context_entry()), bench.peek(bench.context_entry() + 8)
    assert told[1] == (RecordKind.FETCH, 2, 0, 0, bench.root_entry(0), root)
    assert told[2] == (RecordKind.FETCH, 2, 0, 0, bench.context_entry(), low, high)
    assert [r[:2] for r in told[3:7]] == [(RecordKind.FETCH, 1)] * 4
    assert told[6][-1] == 0x20_0003
    assert told[7][:6] == (RecordKind.TRANSLATED, Outcome.MEMORY, DEVICE, 1, 0x5678, 0x20_0678)
    assert len(told) == 8


def test_journal_translation_from_the_cache_reads_nothing(bench: Bench) -> None:
    journal = started(bench)
    bench.enable()
    bench.translate(0x5000)
    journal.take()
    bench.translate(0x5000)
    assert [r[0] for r in rows(journal)] == [RecordKind.TRANSLATE, RecordKind.TRANSLATED]


def test_journal_translation_with_every_attribute(bench: Bench) -> None:
    journal = started(bench)
    bench.translate(0x5000, READ, OTHER, length=0, pasid=0x12345, flags=RequestFlag.EXECUTE)
    flags = RequestFlag.EXECUTE | RequestFlag.HAS_PASID
    assert rows(journal)[0] == (
        RecordKind.TRANSLATE,
        READ,
        OTHER,
        0,
        0x5000,
        0,
        0x12345,
        flags,
    )


def test_journal_batch_is_one_translation_after_the_other(bench: Bench) -> None:
    journal = started(bench)
    request = Request(0x1000, 4, DEVICE, READ)
    bench.unit.translate_batch(request, np.array([0x1000, 0x2000], dtype=np.uint64))
    told = rows(journal)
    assert [(r[0], r[4]) for r in told] == [
        (RecordKind.TRANSLATE, 0x1000),
        (RecordKind.TRANSLATED, 0x1000),
        (RecordKind.TRANSLATE, 0x2000),
        (RecordKind.TRANSLATED, 0x2000),
    ]


def test_journal_dma_that_is_done_has_no_completion(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    journal.take()
    assert port.write(0x5FF0, bytes(32)).ok
    assert [r[:6] for r in rows(journal)] == [
        (RecordKind.DMA, WRITE, 0, 0, 0x5FF0, 32),
        (RecordKind.TRANSLATED, Outcome.MEMORY, DEVICE, 0, 0x5FF0, 0x5FF0),
        (RecordKind.TRANSLATED, Outcome.MEMORY, DEVICE, 0, 0x6000, 0x6000),
    ]


def test_journal_dma_that_fails_has_its_completion(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    bench.enable()
    bench.translate(0x5000)
    journal.take()
    completion = port.read(0x5FF0, 32)
    told = rows(journal, RecordKind.COMPLETION)
    diagnostic = completion.details.diagnostic
    assert told == [(RecordKind.COMPLETION, 0, 0, 0, Status(1), 16, 0, 0x6000, diagnostic)]


def test_journal_dma_in_flight_lands_in_an_advance(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    port.set_latency(100, 50)
    assert rows(journal)[-1] == (RecordKind.LATENCY, 0, 0, 0, 100, 50)
    port.write(0x5000, b"x")
    bench.machine.advance_to(1000)
    port.poll()
    told = [r for r in rows(journal) if r[0] is not RecordKind.TRANSLATED]
    assert told == [
        (RecordKind.DMA, WRITE, 0, 0, 0x5000, 1),
        (RecordKind.COMPLETION, 0, 0, 0, Status.PENDING, 0, 0, 0x5000),
        (RecordKind.ADVANCE, 0, 0, 0, 1000),
        (RecordKind.TIME, 0, 0, 0, 100),
        (RecordKind.DMA_TAKE, 0, 0, 0),
        (RecordKind.COMPLETION, 0, 0, 0, Status.DONE, 1, 0, 0x5000),
    ]


def test_journal_atomic(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    journal.take()
    port.atomic(AtomicKind.SWAP, 0x5000, 1, size=4)
    assert rows(journal)[0] == (RecordKind.DMA, 3, 0, 0, 0x5000, 4, 0, 0, AtomicKind.SWAP << 8)


def test_journal_interrupt_tells_what_the_write_carries(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    journal.take()
    port.write(MSI, b"\x41\0\0\0")
    told = [r for r in rows(journal) if r[0] is not RecordKind.TRANSLATED]
    assert told[:3] == [
        (RecordKind.DMA, WRITE, 0, 0, MSI, 4),
        (RecordKind.PAYLOAD, 4, 0, 0, 0x41),
        (RecordKind.MESSAGE, MessageKind.INTERRUPT, DEVICE, 0, MSI, 0x41, 4),
    ]


def test_journal_bar_write_tells_what_it_carries(bench: Bench) -> None:
    journal = started(bench)
    bench.machine.map_bar(BAR, 0x1000, 7)
    port = bench.port()
    journal.take()
    port.write(BAR + 8, bytes(range(100)))
    told = rows(journal, RecordKind.PAYLOAD, RecordKind.MESSAGE)
    assert [r[:4] for r in told] == [
        (RecordKind.PAYLOAD, 40, 0, 0),
        (RecordKind.PAYLOAD, 40, 0, 0),
        (RecordKind.PAYLOAD, 20, 0, 0),
        (RecordKind.MESSAGE, MessageKind.BAR_WRITE, DEVICE, 7),
        (RecordKind.MESSAGE, MessageKind.BAR_WRITE, DEVICE, 7),
    ]
    assert told[0][4] == int.from_bytes(bytes(range(8)), "little")


def test_journal_bar_read_and_its_answers(bench: Bench) -> None:
    journal = started(bench)
    bench.machine.map_bar(BAR, 0x1000, 7)
    port = bench.port()
    port.read(BAR, 80)
    (first, second) = bench.messages(MessageKind.BAR_READ)
    journal.take()
    bench.machine.answer(first.token, bytes(64))
    bench.machine.answer(second.token, None)
    assert rows(journal) == [
        (RecordKind.ANSWER, 1, 0, first.token, 64),
        (RecordKind.ANSWER, 0, 0, second.token),
    ]


def test_journal_taking_messages_tells_how_many(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    for _ in range(3):
        port.write(MSI, bytes(4))
    journal.take()
    bench.messages()
    assert rows(journal) == [(RecordKind.TAKE, 0, 0, 3)]


def test_journal_invalidation_tells_descriptors_and_status_writes(bench: Bench) -> None:
    journal = started(bench)
    bench.enable_queue()
    journal.take()
    flush, wait = iotlb_descriptor(GLOBAL), wait_descriptor(write=1, address=0x7000, data=9)
    bench.submit(flush, wait)
    told = rows(journal, RecordKind.FETCH, RecordKind.STORE)
    assert [r[:2] for r in told] == [
        (RecordKind.FETCH, 2),
        (RecordKind.FETCH, 2),
        (RecordKind.STORE, 4),
    ]
    assert told[1][5:] == wait
    assert told[2][4:] == (0x7000, 9)


def test_journal_unit_message(bench: Bench) -> None:
    journal = started(bench)
    bench.write("FEDATA", 0x55)
    bench.write("FEADDR", MSI)
    bench.write("FECTL", 0)
    bench.enable()
    bench.translate(0x9000)
    (message,) = rows(journal, RecordKind.MESSAGE)
    assert message == (RecordKind.MESSAGE, MessageKind.UNIT, 0, 0, MSI, 0x55, 4)


CALLS: dict[str, tuple[Callable[[Bench], object], tuple[Any, ...]]] = {
    "map": (
        lambda b: b.machine.map_bar(BAR, 0x1000, 7),
        (RecordKind.BAR, 0, 0, 7, BAR, 0x1000),
    ),
    "unmap": (lambda b: b.machine.unmap(0), (RecordKind.UNMAP, 0, 0, 0)),
    "route": (
        lambda b: b.machine.route(1, 2, 3, b.unit),
        (RecordKind.ROUTE, 1, 1, 0, 2, 3),
    ),
    "route to none": (
        lambda b: b.machine.route(1, 2, 3, None),
        (RecordKind.ROUTE, 0, 1, 0, 2, 3),
    ),
    "port": (lambda b: b.port(OTHER, 4), (RecordKind.PORT, 0, OTHER, 0, 4)),
    "reset": (
        lambda b: b.unit.reset(Reset.POWER_ON),
        (RecordKind.RESET, Reset.POWER_ON, 0, 0),
    ),
    "step": (lambda b: b.unit.step(), (RecordKind.STEP, 0, 0, 0)),
    "timing": (
        lambda b: b.unit.set_timing(Timing(command=1, invalidation=2, wait=3).parameters()),
        (RecordKind.TIMING, 0, 0, 0, 1, 2, 3),
    ),
    "by hand": (
        lambda b: b.unit.set_timing(Timing(manual=True).parameters()),
        (RecordKind.TIMING, 1, 0, 0),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_journal_call(bench: Bench, name: str) -> None:
    call, record = CALLS[name]
    journal = started(bench)
    call(bench)
    assert rows(journal) == [record]


def test_journal_port_calls(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    port.set_requester(OTHER)
    port.destroy()
    assert rows(journal) == [
        (RecordKind.PORT, 0, DEVICE, 0),
        (RecordKind.REQUESTER, 0, OTHER, 0),
        (RecordKind.PORT_REMOVE, 0, 0, 0),
        (RecordKind.PORT_DESTROY, 0, 0, 0),
    ]


def test_journal_unit_made_later(bench: Bench) -> None:
    journal = started(bench)
    config = bench.config["unit"] | {"base": 1 << 32}
    bench.machine.create_vtd(bench.config | {"unit": config})
    told = rows(journal)
    assert told[0] == (RecordKind.CONFIG, 0, ConfigValue.BASE, 0, 1 << 32)
    assert told[-1] == (RecordKind.UNIT, 0, 0, 0)


def test_journal_tells_that_a_call_was_refused(bench: Bench) -> None:
    journal = started(bench)
    with pytest.raises(ValueError, match="overlaps"):
        bench.machine.map_bar(0, 0x1000, 7)
    overlap = (1 << 64) - 3
    assert rows(journal)[1] == (RecordKind.RETURN, 0, 0, 0, overlap)


def test_journal_tells_that_a_step_moved(bench: Bench) -> None:
    journal = started(bench)
    bench.enable_queue()
    bench.unit.set_timing(Timing(manual=True).parameters())
    bench.submit(iotlb_descriptor(GLOBAL))
    journal.take()
    bench.unit.step()
    assert [r[0] for r in rows(journal)] == [
        RecordKind.STEP,
        RecordKind.FETCH,
        RecordKind.RETURN,
    ]


# ---- time ----------------------------------------------------------------------------------


def test_journal_advance_is_told_with_the_next_input(bench: Bench) -> None:
    journal = started(bench)
    for time in (10, 20, 30):
        bench.machine.advance_to(time)
    assert rows(journal) == []
    bench.read("VER")
    assert rows(journal) == [
        (RecordKind.ADVANCE, 0, 0, 0, 30),
        (RecordKind.MMIO_READ, 4, 0, 0, 0, bench.read("VER")),
    ]


def test_journal_advance_through_an_event_is_told_before_it(bench: Bench) -> None:
    bench.unit.set_timing(Timing(command=7).parameters())
    journal = started(bench)
    bench.enable_queue()
    bench.submit(iotlb_descriptor(GLOBAL))
    journal.take()
    bench.machine.advance_to(10)
    bench.machine.advance_to(12)
    bench.read("VER")
    assert [(r[0], *r[4:5]) for r in rows(journal)][:-1] == [
        (RecordKind.ADVANCE, 10),
        (RecordKind.TIME, 7),
        (RecordKind.FETCH, 0x8000),
        (RecordKind.ADVANCE, 12),
    ]


# ---- what it need not tell ---------------------------------------------------------------------


def test_journal_leaves_out_what_changes_nothing(bench: Bench) -> None:
    port = bench.port()
    journal = started(bench)
    bench.poke(0x9000, 1)
    bench.peek(0x9000)
    bench.machine.arm_store(0x9000, 0x9000, 1)
    bench.unit.counters()
    bench.unit.watch(True)
    bench.machine.take_messages()
    bench.unit.mmio_read(1, 4)  # refused: no access
    assert port.in_flight == (0, 0)
    assert rows(journal) == []


def test_journal_leaves_out_polling(bench: Bench) -> None:
    journal = started(bench)
    port = bench.port()
    port.set_latency(100, 0)
    port.read(0x5000, 4)
    journal.take()
    port.poll()
    assert rows(journal) == []


def test_journal_leaves_out_the_detectors_second_look(bench: Bench) -> None:
    bench.unit.watch(True)
    journal = started(bench)
    bench.enable()
    bench.translate(0x5000)
    journal.take()
    bench.translate(0x5000)
    assert rows(journal, RecordKind.FETCH) == []
    assert len(bench.unit.stale_uses()[0]) == 0


def test_journal_fetch_is_what_the_unit_read_not_what_an_armed_store_left(bench: Bench) -> None:
    journal = started(bench)
    entry = bench.context_entry()
    low = bench.peek(entry)
    bench.machine.arm_store(entry, entry, 0)
    bench.enable()
    bench.translate(0x5000)
    (fetch,) = [r for r in rows(journal, RecordKind.FETCH) if r[4] == entry]
    assert fetch[5] == low
    assert bench.peek(entry) == 0
