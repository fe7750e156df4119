"""Random runs replay: pools run dry, the outbox fills, devices vanish with requests in flight."""

from __future__ import annotations

from random import Random

import pytest
from core_bench import (
    CFI,
    IRE,
    QIE,
    SIRTP,
    SRTP,
    TE,
    Bench,
    context_descriptor,
    device_descriptor,
    interrupt_descriptor,
    iotlb_descriptor,
    wait_descriptor,
)

from iommu_emu.core import (
    Access,
    AddressType,
    Answer,
    AtomicKind,
    CoreMachine,
    FullError,
    IotlbLookup,
    Journal,
    MessageKind,
    Port,
    Replacement,
    Request,
    RequestFlag,
    Reset,
    play,
)
from iommu_emu.core import ReplayOutcome as Outcome
from iommu_emu.geometry import CacheGeometry
from iommu_emu.timing import Timing

BAR = 0xE000_0000
REQUESTERS = (0x10, 0x11, 0x18, 0x100)
ADDRESSES = (0x5000, 0x5FF0, 0x6000, 0x8000, 0x9000, 0xFEE0_0010, 0xFEE0_0018, 1 << 50, BAR)


class Run:
    """Does random things to a machine with few transactions and a small outbox."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        lookup = self.random.choice(list(IotlbLookup))
        self.bench = Bench(
            lookup=lookup,
            interrupt_remapping=True,
            device_tlb=True,
            timeout=100,
            transactions=6,
            messages=64,
        )
        self.journal = Journal(self.bench.machine)
        self.table = self.bench.attach(tt=1)
        self.table.map(0x5000, 0x20_0000)
        self.table.map(0x8000, BAR)
        for requester in REQUESTERS[1:]:
            self.bench.attach(requester, domain=requester & 7, table=self.table, tt=requester & 1)
        self.bench.poke(0x4_0000, 0x31_0001, 0)
        self.bench.machine.map_bar(BAR, 0x1000, 7)
        self.ports: list[Port] = [self.bench.port(REQUESTERS[0])]
        self.bench.write("IRTA", 0x4_0003)
        for command in (SIRTP, SRTP, TE):
            if command == SRTP:
                self.bench.set_root()
            else:
                self.bench.command(command)
        self.bench.enable_queue()

    def step(self) -> None:
        self.random.choice(
            [self.dma] * 6
            + [self.advance] * 3
            + [self.serve] * 2
            + [self.invalidate] * 2
            + [self.ats] * 2
            + [self.translate, self.tables, self.command, self.port, self.timing, self.rare]
        )()

    def dma(self) -> None:
        random, port = self.random, self.random.choice(self.ports)
        address = random.choice(ADDRESSES) + random.choice((0, 0, 0, 8, 0xFF8))
        kind = random.randrange(5)
        if kind == 0:
            port.read(address, random.choice((0, 4, 80, 5000)))
        elif kind == 1:
            port.atomic(AtomicKind.COMPARE_SWAP, address & ~7, 1, compare=0)
        elif kind == 2:
            data = bytes(random.choice((4, 80)))
            port.transfer(Access.WRITE, address, data, posted=True, at=AddressType.UNTRANSLATED)
        else:
            size = random.choice((4, 4, 4, 80, 5000))
            port.write(address, random.randbytes(1) + bytes(size - 1))

    def advance(self) -> None:
        machine = self.bench.machine
        machine.advance_to(machine.now + self.random.choice((0, 1, 10, 50, 1000)))

    def serve(self) -> None:
        for message in self.bench.messages(MessageKind.BAR_READ):
            data = bytes(message.size) if self.random.randrange(4) else None
            self.bench.machine.answer(message.token, data)
        for port in self.ports:
            port.poll()

    def invalidate(self) -> None:
        choices = [
            iotlb_descriptor(1, dw=1, dr=1),
            iotlb_descriptor(3, 1, 0x5000, dw=1),
            context_descriptor(1),
            interrupt_descriptor(),
            wait_descriptor(write=1, address=0x7000, data=self.random.randrange(100)),
            wait_descriptor(interrupt=1),
            device_descriptor(self.random.choice(REQUESTERS), 0x5000),
            device_descriptor(self.random.choice(REQUESTERS), 0x7000, 1, mip=1),
            (self.random.getrandbits(64), self.random.getrandbits(64)),
        ]
        self.bench.submit(*self.random.choices(choices, weights=[4, 4, 4, 4, 4, 4, 4, 4, 1], k=3))

    def translate(self) -> None:
        self.bench.unit.translate(
            Request(
                self.random.choice(ADDRESSES),
                4,
                self.random.choice(REQUESTERS),
                self.random.choice((Access.READ, Access.WRITE)),
                self.random.choice(list(AddressType)),
                self.random.choice((None, None, 7)),
                RequestFlag.NONE,
            )
        )

    def tables(self) -> None:
        address = self.random.choice((0x5000, 0x6000, 0x9000))
        self.table.map(address, self.random.choice((0x30_0000, 0xFEE0_0000, BAR, 0)))

    def command(self) -> None:
        bench, random = self.bench, self.random
        if random.randrange(2):
            bench.command(random.choice((TE, IRE, CFI, QIE)), random.randrange(3) > 0)
            bench.command(TE)
            bench.command(QIE)
        bench.write("FSTS", 0xFF)
        bench.clear_records()
        bench.write("FECTL", random.choice((0, 1 << 31)))
        bench.write("IECTL", 0)

    def port(self) -> None:
        random = self.random
        kind = random.randrange(5)
        if kind == 0 and len(self.ports) < 5:
            self.ports.append(self.bench.port(random.choice(REQUESTERS)))
        elif kind == 1 and len(self.ports) > 1:
            port = self.ports.pop(random.randrange(len(self.ports)))
            port.destroy()
        elif kind == 2:
            random.choice(self.ports).set_requester(random.choice(REQUESTERS))
        else:
            latency = random.choice((0, 0, 30)), random.choice((0, 0, 20))
            random.choice(self.ports).set_latency(*latency)

    def ats(self) -> None:
        random, port = self.random, self.random.choice(self.ports)
        kind = random.randrange(6)
        if port.device_tlb is None:
            geometry = CacheGeometry(2, 2, random.choice(list(Replacement)))
            port.add_device_tlb(geometry.parameters(), random.choice(list(Answer)))
        elif kind == 0:
            port.device_tlb.enable(random.randrange(4) > 0)
        elif kind == 1:
            port.device_tlb.set_answer(random.choice(list(Answer)), random.choice((0, 20, 200)))
        elif kind == 2:
            port.device_tlb.drop(0x5000, random.choice((0x5000, 0x8000)))
        elif kind == 3:
            port.translation_request(random.choice(ADDRESSES))
        else:
            tags = random.choice((1, 3, random.getrandbits(32)))
            port.complete_invalidation(tags, random.choice((1, 1, 2)))

    def timing(self) -> None:
        random = self.random
        timing = Timing(
            command=random.choice((0, 0, 5)),
            invalidation=random.choice((0, 0, 7)),
            wait=random.choice((0, 3)),
            manual=random.randrange(4) == 0,
        )
        self.bench.unit.set_timing(timing.parameters())
        self.bench.unit.step()

    def rare(self) -> None:
        bench, random = self.bench, self.random
        kind = random.randrange(4)
        if kind == 0:
            first = random.choice(REQUESTERS)
            bench.machine.route(0, first, first, random.choice((None, bench.unit)))
        elif kind == 1:
            try:
                bench.machine.map_bar(BAR, 0x1000, 8)
            except (ValueError, FullError):
                bench.machine.unmap(BAR)
        elif kind == 2 and random.randrange(4) == 0:
            bench.unit.reset(random.choice(list(Reset)))
            bench.enable()
            bench.enable_queue()
        else:
            bench.read("FSTS")


@pytest.mark.parametrize("seed", range(40))
def test_replay_of_a_random_run_is_the_same(seed: int) -> None:
    run = Run(seed)
    for _ in range(400):
        run.step()
    records = run.journal.take()
    machine = CoreMachine(transactions=6, messages=64)
    result = play(machine, records)
    assert (result.outcome, result.position) == (Outcome.SAME, len(records))
    assert machine.units[0].counters() == run.bench.unit.counters()
