"""DMA as tasks: cut, sent again, waited for, given up."""

import pytest

from iommu_emu import Machine
from iommu_emu.devices import Device
from iommu_emu.devices.dma import LONGEST, PAUSE, DmaError, DmaTasks, Wait

HERE, THERE = 1 << 20, 2 << 20
BEHIND = 1 << 30  # there is no RAM
LATENCY = 100


class Bed:
    """A device whose tasks note what they saw."""

    def __init__(self, latency=0, **options):
        self.machine = Machine(8 << 20, **options)
        self.memory = self.machine.memory
        self.device = self.machine.attach(Device())
        self.device.dma.set_latency(latency, 0)
        self.seen = []
        self.sent = []  # address and bytes of each DMA
        self._note("read", lambda address, length: (address, length))
        self._note("write", lambda address, data: (address, len(data)))

    def _note(self, name, what):
        way = getattr(self.device.dma, name)

        def send(*arguments):
            self.sent.append(what(*arguments[:2]))
            return way(*arguments)

        setattr(self.device.dma, name, send)

    def tasks(self, **options):
        self.dma = DmaTasks(self.device, **options)
        return self.dma

    def read(self, address, length):
        try:
            self.seen.append((yield from self.dma.read(address, length)))
        except DmaError as error:
            self.seen.append(str(error))

    def copy(self, source, target, length):
        data = yield from self.dma.read(source, length)
        yield from self.dma.write(target, data)
        self.seen.append("copied")

    def park(self):
        self.seen.append(self.dma.current)
        yield Wait.PARKED
        self.seen.append("resumed")


@pytest.fixture
def bed():
    return Bed()


@pytest.fixture
def slow():
    return Bed(LATENCY)


@pytest.mark.parametrize("latency", [0, LATENCY])
def test_dma_task_does_one_dma_after_the_other(latency):
    bed = Bed(latency)
    bed.memory.write(HERE, b"data")
    bed.tasks().start(bed.copy(HERE, THERE, 4))
    bed.machine.advance(2 * latency)
    assert (bed.memory.read(THERE, 4), bed.seen, bed.dma.running) == (b"data", ["copied"], 0)


def test_dma_is_cut_at_64_kib(bed):
    bed.tasks().start(bed.copy(HERE + 16, THERE - 16, LONGEST))
    cut = LONGEST - 16
    assert bed.sent == [(HERE + 16, cut), (HERE + LONGEST, 16), (THERE - 16, 16), (THERE, cut)]


def test_dma_is_cut_at_pages_if_the_fabric_has_few_transactions():
    bed = Bed(transactions=15)
    bed.tasks().start(bed.read(HERE, 3 * 4096))
    assert bed.sent == [(HERE + n, 4096) for n in range(0, 3 * 4096, 4096)]


def test_dma_goes_on_at_0_behind_the_last_address(bed):
    bed.tasks().start(bed.read((1 << 64) + HERE, 4))
    assert bed.sent == [(HERE, 4)]


@pytest.mark.parametrize("latency", [0, LATENCY])
def test_dma_out_of_reach_is_an_error(latency):
    bed = Bed(latency)
    bed.tasks().start(bed.read(BEHIND, 4))
    bed.machine.advance(latency)
    assert bed.seen == ["UNSUPPORTED_REQUEST"]


def test_dma_that_finds_no_room_is_sent_again_from_the_clock():
    bed = Bed(LATENCY, transactions=1)
    bed.device.dma.write(THERE, b"first")
    bed.tasks().start(bed.read(THERE, 5))
    bed.machine.advance(PAUSE - 1)
    assert bed.sent[1:] == [(THERE, 5)]
    bed.machine.advance(1 + LATENCY)
    assert bed.seen == [b"first"]


def test_dma_waits_for_the_bus_master_bit_without_the_clock(bed):
    bed.machine.config_write(bed.device.address, 4, 2, 2)
    bed.tasks().start(bed.read(HERE, 4))
    assert bed.machine.clock.next_event is None
    bed.machine.config_write(bed.device.address, 4, 2, 6)
    bed.dma.unblocked()
    assert bed.seen == [bytes(4)]


def test_dma_budget_leaves_the_rest_to_the_clock(bed):
    bed.tasks(budget=2).start(bed.read(HERE, 5 * LONGEST))
    assert len(bed.sent) == 2
    bed.machine.advance(PAUSE)
    assert len(bed.sent) == 4
    bed.machine.advance(PAUSE)
    assert bed.seen == [bytes(5 * LONGEST)]


def test_dma_budget_begins_anew_with_each_completion(slow):
    slow.tasks(budget=1).start(slow.copy(HERE, THERE, 4))
    slow.machine.advance(2 * LATENCY)
    assert slow.seen == ["copied"]


def test_dma_proceeds_when_a_task_has_gone_on(slow):
    slow.tasks(proceed=lambda: slow.seen.append(slow.dma.running))
    slow.dma.start(slow.read(HERE, 4))
    assert (slow.seen, slow.dma.running) == ([], 1)
    slow.machine.advance(LATENCY)
    assert slow.seen == [bytes(4), 0]


def test_dma_parked_task_goes_on_when_it_is_resumed(bed):
    bed.tasks().start(bed.park())
    assert bed.dma.running == 0
    bed.dma.resume(bed.seen.pop())
    assert bed.seen == ["resumed"]


def test_dma_task_that_raises_is_over(bed):
    def broken():
        yield from bed.dma.read(HERE, 4)
        raise ConnectionError("cable")

    with pytest.raises(ConnectionError):
        bed.tasks().start(broken())
    assert bed.dma.running == 0


def test_dma_is_quiet_when_no_task_runs(slow):
    slow.tasks().start(slow.copy(HERE, THERE, 4))
    slow.dma.quiesce(lambda: slow.seen.append("quiet"))
    slow.machine.advance(2 * LATENCY)
    assert slow.seen == ["copied", "quiet"]


def test_dma_is_quiet_at_once_if_tasks_are_parked(bed):
    bed.tasks().start(bed.park())
    bed.dma.quiesce(lambda: bed.seen.append("quiet"))
    assert bed.seen[1:] == ["quiet"]


def test_dma_stops_when_nothing_is_in_flight(slow):
    slow.tasks().start(slow.copy(HERE, THERE, 4))
    slow.dma.stop(lambda: slow.seen.append("idle"))
    assert slow.seen == []
    slow.machine.advance(LATENCY)
    assert (slow.seen, slow.sent) == (["idle"], [(HERE, 4)])


def test_dma_stops_at_once_if_tasks_wait_for_something_else(bed):
    bed.tasks(budget=1).start(bed.read(HERE, 2 * LONGEST))
    bed.dma.start(bed.park())
    parked = bed.seen.pop()
    bed.dma.stop(lambda: bed.seen.append("idle"))
    bed.dma.resume(parked)
    bed.machine.advance(PAUSE)
    assert (bed.seen, len(bed.sent)) == (["idle"], 1)


@pytest.mark.parametrize("latency", [0, LATENCY])
def test_dma_task_that_stops_all_sends_nothing_more(latency):
    bed = Bed(latency)

    def stopping():
        yield from bed.dma.read(HERE, 4)
        bed.dma.stop(lambda: bed.seen.append("idle"))
        yield from bed.dma.write(THERE, b"late")

    bed.tasks().start(stopping())
    bed.machine.advance(2 * latency)
    assert (bed.seen, bed.sent) == (["idle"], [(HERE, 4)])


def test_dma_starts_nothing_when_all_is_stopped(bed):
    bed.tasks().stop()
    bed.dma.start(bed.read(HERE, 4))
    assert (bed.seen, bed.sent) == ([], [])
