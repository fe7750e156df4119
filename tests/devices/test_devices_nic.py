"""The ring NIC and its driver: frames, descriptors, interrupts, faults, latencies, bad guests."""

import gc
import itertools
import weakref

import pytest

from iommu_emu import Machine, Status
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Access, Completion, CompletionDetails
from iommu_emu.devices.nic import (
    BUDGET,
    DESCRIPTOR,
    END_OF_FRAME,
    FIFO,
    MAX_FRAME,
    Cause,
    Control,
    DescriptorStatus,
    Nic,
    NicStatus,
    Register,
)
from iommu_emu.devices.nic_driver import NicDriver
from iommu_emu.direction import Direction
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

PAGE = 4096
TABLES = range(1 << 20, 4 << 20)
MEMORY = range(4 << 20, 8 << 20)
RAW = 12 << 20  # RAM that no driver uses
UNMAPPED = 0x50_0000_0000
FABRIC, TO_MEMORY = 100, 50
ADDRESS = "00:04.0"
RX, TX = Register.RECEIVE, Register.TRANSMIT
BOTH = Control.RECEIVE | Control.TRANSMIT
RUNNING = NicStatus.RECEIVE | NicStatus.TRANSMIT
DONE, FAULT, LENGTH = DescriptorStatus
PERMISSIONS = {
    Direction.TO_DEVICE: "r",
    Direction.FROM_DEVICE: "w",
    Direction.BIDIRECTIONAL: "rw",
}


class PageMapper:
    """Maps the pages that a buffer touches, at addresses that are never used again.

    `left` is how many calls of `map` succeed.
    """

    def __init__(self, domain):
        self.domain = domain
        self.next = 0x40_0000_0000
        self.live = {}
        self.left = float("inf")

    def map(self, physical, size, direction):
        if not self.left:
            raise MemoryError("no IOVA left")
        self.left -= 1
        offset = physical % PAGE
        pages = -(-(offset + size) // PAGE) * PAGE
        iova, self.next = self.next + offset, self.next + pages + PAGE
        self.domain.map(
            iova - offset, physical - offset, pages, PERMISSIONS[direction], page_size=PAGE
        )
        self.live[iova] = (size, direction, pages)
        return iova

    def unmap(self, iova, size, direction):
        mapped_size, mapped_direction, pages = self.live.pop(iova)
        assert (size, direction) == (mapped_size, mapped_direction)
        self.domain.unmap(iova - iova % PAGE, pages)


class Bed:
    """A machine with a NIC at 00:04.0, behind an IOMMU of `vendor` if that is given."""

    def __init__(self, vendor=None, *, max_frame=MAX_FRAME, driver=None, **options):
        self.machine = Machine(16 << 20, **options)
        self.memory = self.machine.memory
        self.nic = self.machine.attach(Nic(max_frame=max_frame), ADDRESS)
        self.iommu = self.domain = self.mapper = None
        if vendor is not None:
            if vendor == "vtd":
                unit = VtdUnit(self.machine, VtdConfig(base=0xFED9_0000))
                self.iommu = VtdDriver(self.machine, unit, TABLES)
            else:
                unit = AmdviUnit(self.machine, AmdviConfig(base=0xFEB8_0000))
                self.iommu = AmdviDriver(self.machine, unit, TABLES, buses=1)
            self.iommu.start()
            self.domain = self.iommu.create_domain()
            self.iommu.attach(self.domain, self.nic.address)
            self.mapper = PageMapper(self.domain)
        self.driver = NicDriver(
            self.machine, self.nic, MEMORY, self.mapper, **{"entries": 16} | (driver or {})
        )

    def ready(self):
        self.driver.use_msix()
        self.driver.start()
        self.machine.interrupts.clear()
        return self

    @property
    def status(self):
        return self.driver.read(Register.STATUS)

    @property
    def causes(self):
        return self.driver.read(Register.CAUSE)

    @property
    def vectors(self):
        """Vectors that came from the device, not from the IOMMU."""
        sent = self.machine.interrupts
        return [interrupt.vector for interrupt in sent if interrupt.source == "device"]

    # Rings by hand, as a driver of another mind has them.

    def ring(self, register, size=8, base=RAW):
        """Tell the controller of a ring at an IOVA."""
        self.driver.write(register + Register.BASE_LOW, base & 0xFFFF_FFFF)
        self.driver.write(register + Register.BASE_HIGH, base >> 32)
        self.driver.write(register + Register.SIZE, size)

    def describe(self, index, address, length, flags=0):
        """Write a descriptor of the ring whose physical address is RAW."""
        self.memory.write(RAW + 16 * index, DESCRIPTOR.pack(address, length, flags, 0))

    def written_back(self, index):
        """Length, flags and status of a descriptor."""
        return DESCRIPTOR.unpack(self.memory.read(RAW + 16 * index, 16))[1:]

    def enable(self, control=BOTH):
        self.driver.write(Register.CONTROL, int(control))

    def tail(self, register, value):
        self.driver.write(register + Register.TAIL, value)

    def head(self, register):
        return self.driver.read(register + Register.HEAD)

    def raw(self, register, *descriptors, size=8, base=RAW):
        """Start a ring with descriptors of (address, length, flags)."""
        self.ring(register, size, base)
        for index, descriptor in enumerate(descriptors):
            self.describe(index, *descriptor)
        self.enable(Control.RECEIVE if register == RX else Control.TRANSMIT)
        self.tail(register, len(descriptors))


@pytest.fixture
def bare():
    """A NIC without an IOMMU before it, switched off."""
    return Bed()


@pytest.fixture
def nic():
    """A NIC without an IOMMU before it, started by the driver."""
    return Bed().ready()


@pytest.fixture(params=["vtd", "amdvi"])
def bed(request):
    """A NIC behind an IOMMU of either vendor, started by the driver."""
    return Bed(request.param).ready()


@pytest.fixture
def slow(bed):
    """The same, whose DMAs take 150 ns each."""
    bed.nic.dma.set_latency(FABRIC, TO_MEMORY)
    return bed


def frame(length, seed=0):
    """Return bytes in which no two places look alike."""
    return b"".join((seed << 20 | n).to_bytes(4, "little") for n in range(-(-length // 4)))[:length]


def only_fault(bed):
    (fault,) = bed.iommu.faults()
    return fault.requester, fault.address & ~0xFFF, fault.access


# ---- frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 60, 1500, 2048, 2049, MAX_FRAME])
def test_nic_receives_what_came_from_the_network(bed, length):
    bed.nic.receive(frame(length))
    assert bed.driver.poll() == [frame(length)]


@pytest.mark.parametrize("length", [1, 60, 1500, 2048])
def test_nic_sends_what_the_driver_posts(bed, length):
    assert bed.driver.send(frame(length))
    assert list(bed.nic.sent) == [frame(length)]


def test_nic_gathers_a_frame_from_its_descriptors(bed):
    bed.driver.send(b"header", frame(1500), b"trailer")
    assert list(bed.nic.sent) == [b"header" + frame(1500) + b"trailer"]


def test_nic_receives_many_rings_full_in_order(bed):
    frames = [frame(100 + n, n) for n in range(100)]
    received = []
    for sent in frames:
        bed.nic.receive(sent)
        received += bed.driver.poll()
    assert received == frames


def test_nic_sends_many_rings_full_in_order(bed):
    frames = [frame(100 + n, n) for n in range(100)]
    for sent in frames:
        assert bed.driver.send(sent)
        assert bed.driver.reclaim() == 1
    assert list(bed.nic.sent) == frames


def test_nic_counts_what_it_received_and_sent(nic):
    nic.nic.receive(frame(100))
    nic.nic.receive(frame(200))
    nic.driver.send(frame(300))
    counts = nic.nic.statistics
    assert (counts.rx_frames, counts.rx_bytes, counts.tx_frames, counts.tx_bytes) == (
        2,
        300,
        1,
        300,
    )


def test_nic_cable_joins_two_controllers(nic):
    other = nic.machine.attach(Nic("other"), "00:05.0")
    driver = NicDriver(nic.machine, other, range(8 << 20, 12 << 20))
    driver.start()
    nic.nic.connect(other)
    nic.driver.send(b"ping")
    assert driver.poll() == [b"ping"]
    driver.send(b"pong")
    assert nic.driver.poll() == [b"pong"]


def test_nic_gives_frames_to_whoever_holds_the_wire(nic):
    nic.nic.wire = lambda sent: nic.nic.receive(sent.upper())
    nic.driver.send(b"echo")
    assert nic.driver.poll() == [b"ECHO"]
    assert not nic.nic.sent


def test_nic_goes_on_after_the_wire_raised(nic):
    def broken(_):
        raise ConnectionError("cable")

    nic.nic.wire = broken
    with pytest.raises(ConnectionError):
        nic.driver.send(b"lost")
    nic.nic.wire = None
    nic.driver.send(b"kept")
    assert list(nic.nic.sent) == [b"kept"]


def test_nic_keeps_the_last_1024_frames(nic):
    for n in range(1025):
        nic.driver.send(n.to_bytes(2, "little"))
        nic.driver.reclaim()
    assert (len(nic.nic.sent), nic.nic.sent[0]) == (1024, b"\x01\x00")


def test_nic_rejects_an_empty_frame_from_the_wire(nic):
    with pytest.raises(ValueError, match="frame must have at least 1 byte"):
        nic.nic.receive(b"")


@pytest.mark.parametrize("limit", [63, 65536])
def test_nic_rejects_a_frame_limit_out_of_range(limit):
    with pytest.raises(ValueError, match=f"max_frame must be in 64..65535, not {limit}"):
        Nic(max_frame=limit)


# ---- identity and registers ------------------------------------------------------------------


def test_nic_is_an_ethernet_controller(bare):
    assert bare.machine.config_read(ADDRESS, 8, 4) >> 8 == 0x020000
    assert bare.machine.config_read(ADDRESS, 0, 4) == 0x4E43_1234


def test_nic_limit_register_is_the_longest_frame(bare):
    assert bare.driver.read(Register.LIMIT) == MAX_FRAME


def test_nic_ring_base_has_64_bits_and_multiples_of_16(bare):
    bare.machine.mmio_write(bare.nic.bar_address(0) + TX, 8, 0x1234_5678_9ABC_DEFF)
    value = bare.machine.mmio_read(bare.nic.bar_address(0) + TX, 8)
    assert value == 0x1234_5678_9ABC_DEF0


@pytest.mark.parametrize("register", [Register.BASE_LOW, Register.BASE_HIGH, Register.SIZE])
def test_nic_ring_registers_are_locked_while_the_ring_is_on(nic, register):
    before = nic.driver.read(RX + register)
    nic.driver.write(RX + register, 0x40)
    assert nic.driver.read(RX + register) == before


@pytest.mark.parametrize("size", [1, 2])
def test_nic_takes_no_accesses_of_less_than_4_bytes(bare, size):
    at = bare.nic.bar_address(0) + RX + Register.SIZE
    bare.machine.mmio_write(at, size, 0x11)
    assert bare.driver.read(RX + Register.SIZE) == 0
    bare.driver.write(RX + Register.SIZE, 0x22)
    assert bare.machine.mmio_read(at, size) == 0


@pytest.mark.parametrize("offset", [0x14, 0xFC, 0x114, 0x1FC, 0x214, 0xFFC])
def test_nic_reads_0_where_no_register_is(bare, offset):
    bare.driver.write(offset, 0xFFFF_FFFF)
    assert bare.driver.read(offset) == 0


# ---- descriptors -----------------------------------------------------------------------------


def test_nic_writes_length_and_end_of_frame_into_receive_descriptors(bare):
    bare.raw(RX, (RAW + PAGE, 64, 0), (RAW + PAGE, 64, 0))
    bare.nic.receive(frame(100))
    assert [bare.written_back(n) for n in range(2)] == [(64, 0, DONE), (36, END_OF_FRAME, DONE)]


def test_nic_writes_the_status_alone_into_transmit_descriptors(bare):
    bare.raw(TX, (RAW + PAGE, 64, 0xFF00), (RAW + PAGE, 36, 0xFF01))
    assert [bare.written_back(n) for n in range(2)] == [(64, 0xFF00, DONE), (36, 0xFF01, DONE)]


def test_nic_moves_the_head_over_what_it_has_done(bare):
    bare.raw(TX, *[(RAW + PAGE, 64, END_OF_FRAME)] * 7)
    assert bare.head(TX) == 7
    bare.tail(TX, 2)
    assert bare.head(TX) == 2


def test_nic_skips_receive_buffers_without_room(bare):
    bare.raw(RX, (RAW + PAGE, 0, 0), (RAW + PAGE, 64, 0))
    bare.nic.receive(frame(10))
    assert [bare.written_back(n) for n in range(2)] == [(0, 0, DONE), (10, END_OF_FRAME, DONE)]


def test_nic_reports_an_empty_frame(bare):
    bare.raw(TX, (RAW + PAGE, 0, 0), (RAW + PAGE, 0, END_OF_FRAME))
    assert bare.written_back(1) == (0, END_OF_FRAME, DONE | LENGTH)
    assert (bare.nic.statistics.tx_length, len(bare.nic.sent)) == (1, 0)


def test_nic_does_not_send_a_frame_beyond_the_limit():
    bed = Bed(max_frame=100)
    bed.raw(TX, (RAW, 64, 0), (RAW, 37, 0), (RAW, 1, END_OF_FRAME), (RAW, 100, END_OF_FRAME))
    statuses = [bed.written_back(n)[2] for n in range(4)]
    assert statuses == [DONE, DONE | LENGTH, DONE | LENGTH, DONE]
    assert [len(sent) for sent in bed.nic.sent] == [100]


def test_nic_drops_a_frame_beyond_the_limit():
    bed = Bed(max_frame=100).ready()
    bed.nic.receive(frame(101))
    bed.nic.receive(frame(100))
    assert bed.driver.poll() == [frame(100)]
    assert bed.nic.statistics.rx_oversize == 1


def test_nic_drops_a_frame_without_descriptor(bare):
    bare.raw(RX)
    bare.nic.receive(frame(10))
    bare.tail(RX, 1)
    assert (bare.nic.statistics.rx_no_descriptor, bare.head(RX)) == (1, 0)
    assert bare.causes == Cause.NO_DESCRIPTOR


def test_nic_frame_that_has_begun_waits_for_descriptors(bare):
    bare.raw(RX, (RAW + PAGE, 64, 0))
    bare.nic.receive(frame(100))
    assert (bare.written_back(0), bare.causes) == ((64, 0, DONE), 0)
    bare.describe(1, RAW + PAGE + 64, 64)
    bare.tail(RX, 2)
    assert bare.written_back(1) == (36, END_OF_FRAME, DONE)
    assert bare.memory.read(RAW + PAGE, 100) == frame(100)


def test_nic_misses_frames_while_receiving_is_off(bare):
    bare.nic.receive(frame(10))
    assert bare.nic.statistics.rx_missed == 1


# ---- interrupts ------------------------------------------------------------------------------


def test_nic_receiving_and_transmitting_have_their_own_vectors(nic):
    nic.nic.receive(b"in")
    assert nic.vectors == [0x40]
    nic.driver.send(b"out")
    assert nic.vectors == [0x40, 0x41]


def test_nic_interrupts_once_until_the_cause_is_cleared(nic):
    for _ in range(3):
        nic.nic.receive(b"in")
    assert nic.vectors == [0x40]
    nic.driver.write(Register.CAUSE, Cause.RECEIVED)
    nic.nic.receive(b"in")
    assert nic.vectors == [0x40, 0x40]


def test_nic_masked_cause_interrupts_when_it_is_enabled(nic):
    nic.driver.write(Register.ENABLE, 0)
    nic.nic.receive(b"in")
    assert (nic.vectors, nic.causes) == ([], Cause.RECEIVED)
    nic.driver.write(Register.ENABLE, Cause.RECEIVED)
    assert nic.vectors == [0x40]


def test_nic_sends_a_vector_again_whose_other_cause_is_left(nic):
    nic.nic.happened(Cause.NO_DESCRIPTOR | Cause.RECEIVED)
    nic.driver.write(Register.CAUSE, Cause.RECEIVED)
    assert (nic.vectors, nic.causes) == ([0x40, 0x40], Cause.NO_DESCRIPTOR)


def test_nic_pin_is_up_while_an_enabled_cause_is(bare):
    bare.driver.start(causes=int(Cause.RECEIVED))
    bare.driver.send(b"out")
    assert not bare.nic.intx
    bare.nic.receive(b"in")
    assert bare.nic.intx
    bare.driver.write(Register.CAUSE, Cause.RECEIVED)
    assert not bare.nic.intx


def test_nic_interrupts_after_its_write_back(slow):
    seen = []
    slow.machine.on_interrupt = lambda interrupt: seen.append(slow.driver.poll())
    slow.nic.receive(b"in")
    slow.machine.advance(1_000)
    assert seen == [[b"in"]]


# ---- faults ----------------------------------------------------------------------------------


def test_nic_receive_buffer_out_of_reach_loses_the_frame_alone(bed):
    first = bed.driver.rx.buffers[0]
    bed.domain.unmap(first.iova & ~0xFFF, PAGE)
    bed.nic.receive(b"lost")
    assert only_fault(bed) == (bed.nic.address, first.iova & ~0xFFF, Access.WRITE)
    bed.nic.receive(b"kept")
    bed.domain.map(first.iova & ~0xFFF, first.physical & ~0xFFF, PAGE)  # for the driver's unmap
    received = bed.driver.take()
    assert (received.data, received.last, received.status) == (b"", True, DONE | FAULT)
    assert bed.driver.poll() == [b"kept"]
    assert bed.nic.statistics.rx_faults == 1


def test_nic_transmit_buffer_out_of_reach_loses_the_frame_alone(bed):
    bed.driver.post(b"head", b"lost", b"tail")
    buffer = bed.driver.tx.buffers[1]
    at = bed.driver.tx.physical + DESCRIPTOR.size
    bed.memory.write(at, DESCRIPTOR.pack(UNMAPPED, buffer.size, 0, 0))
    bed.driver.send(b"kept")
    bed.driver.reclaim()
    assert only_fault(bed) == (bed.nic.address, UNMAPPED, Access.READ)
    assert list(bed.driver.statuses) == [DONE | FAULT, DONE]
    assert list(bed.nic.sent) == [b"kept"]
    assert bed.nic.statistics.tx_faults == 1


@pytest.mark.parametrize(
    ("direction", "access"),
    [(Direction.TO_DEVICE, Access.WRITE), (Direction.FROM_DEVICE, Access.READ)],
)
def test_nic_buffer_mapped_for_the_other_direction_is_a_fault(bed, direction, access):
    bed.driver.stop()
    base = bed.mapper.map(RAW, PAGE, Direction.BIDIRECTIONAL)
    iova = bed.mapper.map(RAW + PAGE, PAGE, direction)
    register = RX if access is Access.WRITE else TX
    bed.raw(register, (iova, 64, END_OF_FRAME), base=base)
    bed.nic.receive(b"in")
    assert bed.written_back(0)[2] == DONE | FAULT
    assert only_fault(bed) == (bed.nic.address, iova, access)


@pytest.mark.parametrize(
    ("register", "failed", "cause"),
    [
        (RX, NicStatus.RECEIVE_FAILED, Cause.RECEIVE_FAILED),
        (TX, NicStatus.TRANSMIT_FAILED, Cause.TRANSMIT_FAILED),
    ],
)
def test_nic_ring_whose_descriptors_are_out_of_reach_fails(bed, register, failed, cause):
    bed.driver.stop()
    bed.ring(register, base=UNMAPPED, size=16)
    bed.enable()
    bed.driver.write(Register.CAUSE, 0x1F)
    bed.tail(register, 1)
    bed.nic.receive(b"in")
    assert bed.status & failed == failed
    assert bed.causes & cause == cause
    assert only_fault(bed) == (bed.nic.address, UNMAPPED, Access.READ)


@pytest.mark.parametrize("register", [RX, TX])
def test_nic_ring_that_cannot_be_written_back_fails(bed, register):
    bed.driver.stop()
    base = bed.mapper.map(RAW, PAGE, Direction.TO_DEVICE)
    buffer = bed.mapper.map(RAW + PAGE, PAGE, Direction.BIDIRECTIONAL)
    bed.raw(register, (buffer, 64, END_OF_FRAME), base=base)
    bed.nic.receive(b"in")
    failed = NicStatus.RECEIVE_FAILED if register == RX else NicStatus.TRANSMIT_FAILED
    assert (bed.status, bed.head(register)) == (failed, 0)
    assert only_fault(bed) == (bed.nic.address, base, Access.WRITE)


def test_nic_one_ring_fails_without_the_other(bed):
    bed.domain.unmap(bed.driver.tx.iova, PAGE)
    bed.driver.send(b"out")
    bed.nic.receive(b"in")
    assert bed.driver.poll() == [b"in"]
    assert bed.status == NicStatus.RECEIVE | NicStatus.TRANSMIT_FAILED
    assert bed.vectors == [0x41, 0x40]


def test_nic_failed_ring_works_again_after_off_and_on(bare):
    bare.raw(TX, (RAW, 1, END_OF_FRAME), size=1)
    assert bare.status == NicStatus.TRANSMIT_FAILED
    bare.enable(0)
    bare.raw(TX, (RAW, 1, END_OF_FRAME))
    assert (bare.status, len(bare.nic.sent)) == (NicStatus.TRANSMIT, 1)


def test_nic_forgotten_invalidation_leaves_a_freed_buffer_writable(bed):
    """What a deferred invalidation concedes: the controller still writes the old page."""
    bed.driver.stop()
    base = bed.mapper.map(RAW, PAGE, Direction.BIDIRECTIONAL)
    iova = bed.mapper.map(RAW + PAGE, PAGE, Direction.FROM_DEVICE)
    bed.raw(RX, *[(iova, 64, 0)] * 3, base=base)
    bed.nic.receive(b"warm")
    bed.domain.unmap(iova, PAGE, invalidate=False)
    bed.nic.receive(b"late")
    assert bed.memory.read(RAW + PAGE, 4) == b"late"
    bed.domain.flush()
    bed.nic.receive(b"more")
    assert [bed.written_back(n)[2] for n in range(3)] == [DONE, DONE, DONE | FAULT]


# ---- latencies -------------------------------------------------------------------------------


def test_nic_works_with_latencies(slow):
    frames = [frame(1500, n) for n in range(10)]
    for sent in frames:
        slow.driver.send(sent)
        slow.nic.receive(sent)
    slow.machine.advance(100_000)
    assert list(slow.nic.sent) == frames
    assert slow.driver.poll() == frames


def test_nic_frame_takes_a_fetch_its_data_and_a_write_back(slow):
    slow.nic.receive(frame(1500))
    slow.machine.advance(3 * (FABRIC + TO_MEMORY) - 1)
    assert slow.driver.take() is None
    slow.machine.advance(1)
    assert slow.driver.take().data == frame(1500)


def test_nic_buffer_unmapped_while_a_frame_is_in_the_fabric(slow):
    """A write sent before the unmap arrives after it: it meets the tables in force then."""
    buffer = slow.driver.rx.buffers[0]
    slow.nic.receive(b"late")
    slow.machine.advance(FABRIC + TO_MEMORY + 10)  # fetched; the data is in the fabric
    assert slow.nic.dma.in_flight == (1, 0)
    slow.domain.unmap(buffer.iova & ~0xFFF, PAGE)
    slow.machine.advance(1_000)
    assert only_fault(slow) == (slow.nic.address, buffer.iova & ~0xFFF, Access.WRITE)
    assert slow.memory.read(buffer.physical, 4) == bytes(4)
    assert slow.nic.statistics.rx_faults == 1


def test_nic_fetch_that_faults_later_fails_the_ring(slow):
    slow.domain.unmap(slow.driver.rx.iova, PAGE)
    slow.nic.receive(b"in")
    assert slow.status == RUNNING
    slow.machine.advance(1_000)
    assert slow.status == NicStatus.RECEIVE_FAILED | NicStatus.TRANSMIT


def test_nic_frames_that_wait_for_the_ring_are_bounded(slow):
    for _ in range(FIFO + 10):
        slow.nic.receive(b"in")
    assert slow.nic.statistics.rx_missed == 10


# ---- backpressure ----------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
@pytest.mark.parametrize("transactions", [1, 3])
def test_nic_sends_more_than_the_fabric_takes_at_once(vendor, transactions):
    bed = Bed(vendor, transactions=transactions, driver={"buffer_size": 9000}).ready()
    bed.nic.dma.set_latency(FABRIC, TO_MEMORY)
    bed.driver.send(frame(9000))
    bed.nic.receive(frame(9000, 1))
    bed.machine.advance(100_000)
    assert list(bed.nic.sent) == [frame(9000)]
    assert bed.driver.poll() == [frame(9000, 1)]


class FullFabric:
    """Lets a port's first request to `address` through up to its first `done` bytes."""

    def __init__(self, port, address, done=0):
        self.ways = {"read": port.read, "write": port.write}
        self.address, self.done = address, done
        self.later: list[int] = []  # the addresses of what was sent then
        port.read, port.write = self.read, self.write

    def read(self, address, length, on_done=None):
        return self.send("read", address, length, on_done)

    def write(self, address, data, on_done=None):
        if address == self.address and self.done:
            self.ways["write"](address, data[: self.done])
        return self.send("write", address, data, on_done)

    def send(self, way, address, what, on_done):
        if address != self.address:
            self.later.append(address)
            return self.ways[way](address, what, on_done)
        self.address = None
        return Completion(b"", CompletionDetails(Status.BUSY, address, self.done, 0))


@pytest.mark.parametrize("done", [0, 512])
def test_nic_writes_on_from_the_clock_what_found_no_room(nic, done):
    buffer = nic.driver.rx.buffers[0]
    fabric = FullFabric(nic.nic.dma, buffer.iova, done)
    nic.nic.receive(frame(1500))
    assert nic.driver.take() is None
    nic.machine.advance(1_000)
    assert fabric.later[1] == buffer.iova + done
    assert nic.driver.poll() == [frame(1500)]


def test_nic_reads_again_from_the_clock_what_found_no_room(nic):
    FullFabric(nic.nic.dma, nic.driver.free[0])
    nic.driver.send(frame(1500))
    assert not nic.nic.sent
    nic.machine.advance(1_000)
    assert list(nic.nic.sent) == [frame(1500)]


def test_nic_waits_for_its_bus_master_bit(bed):
    bed.machine.config_write(ADDRESS, 4, 2, 2)
    bed.driver.send(b"out")
    bed.nic.receive(b"in")
    assert (list(bed.nic.sent), bed.machine.clock.next_event) == ([], None)
    bed.machine.config_write(ADDRESS, 4, 2, 6)
    assert list(bed.nic.sent) == [b"out"]
    assert bed.driver.poll() == [b"in"]


# ---- switching off, reset, removal -----------------------------------------------------------


def start_both(bed):
    """Start a frame each way; their buffers are being moved afterwards."""
    bed.driver.send(b"out")
    bed.nic.receive(b"in")
    bed.machine.advance(FABRIC + TO_MEMORY + 10)
    assert bed.nic.dma.in_flight == (2, 0)


def test_nic_ring_is_off_when_nothing_of_it_is_in_flight(slow):
    start_both(slow)
    slow.enable(0)
    assert slow.status == RUNNING
    slow.machine.advance(FABRIC + TO_MEMORY)
    assert (slow.status, slow.nic.dma.in_flight) == (0, (0, 0))


def test_nic_switched_off_writes_nothing_back(slow):
    start_both(slow)
    slow.enable(0)
    slow.machine.advance(100_000)
    assert (slow.driver.take(), slow.driver.reclaim(), slow.vectors) == (None, 0, [])


def test_nic_switched_on_too_early_starts_when_it_has_stopped(slow):
    start_both(slow)
    slow.enable(0)
    slow.enable()
    slow.machine.advance(FABRIC + TO_MEMORY)
    assert (slow.status, slow.head(RX)) == (RUNNING, 0)
    slow.tail(RX, 1)
    slow.nic.receive(b"in")
    slow.machine.advance(1_000)
    assert slow.driver.take().data == b"in"


def test_nic_reset_bit_is_set_until_nothing_is_in_flight(slow):
    start_both(slow)
    slow.enable(Control.RESET)
    assert slow.driver.read(Register.CONTROL) == Control.RESET
    slow.machine.advance(FABRIC + TO_MEMORY)
    registers = [slow.driver.read(at) for at in (0x00, 0x04, 0x08, 0x0C, 0x100, 0x108, 0x208)]
    assert registers == [0] * 7


def test_nic_takes_no_register_writes_while_it_resets(slow):
    start_both(slow)
    slow.enable(Control.RESET)
    slow.enable()
    slow.machine.advance(100_000)
    assert slow.status == 0


def test_nic_reset_at_rest_is_over_at_once(nic):
    nic.enable(Control.RESET)
    assert (nic.driver.read(Register.CONTROL), nic.status) == (0, 0)


def test_nic_function_reset_forgets_what_is_in_flight(slow):
    start_both(slow)
    slow.nic.reset()
    slow.machine.advance(100_000)
    assert (slow.driver.take(), list(slow.nic.sent)) == (None, [])
    assert slow.nic.bar_read(0, Register.STATUS, 4) == 0


def test_nic_removed_in_the_middle_says_nothing_more(slow):
    start_both(slow)
    slow.machine.remove(slow.nic)
    slow.machine.advance(100_000)
    slow.nic.receive(b"in")
    assert (slow.driver.take(), list(slow.nic.sent), slow.vectors) == (None, [], [])
    assert slow.nic.statistics.rx_missed == 2


def test_nic_removed_during_backpressure_stops_its_clock(nic):
    FullFabric(nic.nic.dma, nic.driver.free[0])
    nic.driver.send(b"out")
    nic.machine.remove(nic.nic)
    nic.machine.advance(10_000)
    assert (nic.machine.clock.next_event, list(nic.nic.sent)) == (None, [])


def test_nic_wire_may_remove_the_controller(nic):
    nic.nic.wire = lambda _: nic.machine.remove(nic.nic)
    nic.driver.post(b"first")
    nic.driver.post(b"second")
    nic.driver.kick()
    assert nic.nic.statistics.tx_frames == 1


def test_nic_leaves_nothing_behind_when_it_is_removed(slow):
    start_both(slow)
    gone = weakref.ref(slow.nic)
    slow.machine.remove(slow.nic)
    slow.machine.advance(100_000)
    slow.nic = slow.driver = None
    gc.collect()
    assert gone() is None


def test_nic_plugged_in_again_works(slow):
    start_both(slow)
    slow.machine.remove(slow.nic)
    slow.driver.stop()
    slow.machine.attach(slow.nic, ADDRESS)
    slow.ready()
    slow.nic.receive(b"again")
    slow.machine.advance(1_000)
    assert slow.driver.poll() == [b"again"]


# ---- guests of bad will ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4097, 0xFFFF_FFFF])
def test_nic_ring_of_an_impossible_size_fails(bare, size):
    bare.raw(TX, size=size)
    assert (bare.status, bare.causes) == (NicStatus.TRANSMIT_FAILED, Cause.TRANSMIT_FAILED)
    assert bare.nic.statistics.ring_failures == 1


def test_nic_ring_beyond_the_last_address_fails(bare):
    bare.ring(TX, size=4096, base=(1 << 64) - 4096)
    bare.enable()
    assert bare.status & NicStatus.TRANSMIT_FAILED


@pytest.mark.parametrize("tail", [8, 0xFFFF_FFFF])
def test_nic_ignores_a_tail_outside_the_ring(bare, tail):
    bare.raw(TX)
    bare.tail(TX, tail)
    assert bare.driver.read(TX + Register.TAIL) == 0
    assert bare.nic.statistics.doorbell_errors == 1


def test_nic_ignores_a_tail_that_takes_descriptors_back(bare):
    bare.raw(RX, *[(RAW + PAGE, 64, 0)] * 4)
    bare.tail(RX, 3)
    assert (bare.driver.read(RX + Register.TAIL), bare.nic.statistics.doorbell_errors) == (4, 1)


def test_nic_ignores_a_doorbell_of_a_ring_that_is_off(bare):
    bare.ring(TX)
    bare.tail(TX, 1)
    assert bare.nic.statistics.doorbell_errors == 1


@pytest.mark.parametrize("transactions", [1, 256])
def test_nic_buffer_beyond_the_last_address_is_a_fault(transactions):
    bed = Bed(transactions=transactions)
    bed.raw(TX, ((1 << 64) - 8, 64, END_OF_FRAME), ((1 << 64) - 8000, 9000, END_OF_FRAME))
    assert [bed.written_back(n)[2] for n in range(2)] == [DONE | FAULT] * 2


def test_nic_doorbell_starts_a_bounded_number_of_dmas(bare):
    bare.ring(TX, size=4096)
    bare.memory.write(RAW, DESCRIPTOR.pack(RAW, 1, END_OF_FRAME, 0) * 4096)
    bare.enable(Control.TRANSMIT)
    calls = itertools.count()
    send = bare.nic.dma.read
    bare.nic.dma.read = lambda *arguments: (next(calls), send(*arguments))[1]
    bare.tail(TX, 4095)
    assert next(calls) <= BUDGET
    assert 0 < bare.head(TX) < 4095
    bare.machine.advance(1_000_000)
    assert bare.nic.statistics.tx_frames == 4095


def test_nic_frame_without_end_reads_no_more_than_the_limit(bare):
    read = []
    send = bare.nic.dma.read
    bare.nic.dma.read = lambda at, length, done: read.append((at, length)) or send(at, length, done)
    bare.raw(TX, *[(RAW + PAGE, 4096, 0)] * 7)
    bare.describe(7, RAW + PAGE, 4096)
    for tail in (6, 5, 4, 3):
        bare.tail(TX, tail)
    assert read.count((RAW + PAGE, 4096)) == MAX_FRAME // 4096
    assert (bare.head(TX), bare.nic.statistics.tx_length) == (3, 0)


def test_nic_buffer_in_its_own_registers_does_no_harm(bare):
    bare.ring(RX)
    bare.describe(0, bare.nic.bar_address(0) + RX + Register.TAIL, 4)
    bare.enable(Control.RECEIVE)
    bare.tail(RX, 1)
    bare.nic.receive((7).to_bytes(4, "little"))
    bare.machine.advance(1_000)
    assert bare.driver.read(RX + Register.TAIL) == 7


# ---- the driver ------------------------------------------------------------------------------


def test_nic_driver_unmaps_everything_when_it_stops(bed):
    bed.driver.send(b"out")
    bed.nic.receive(b"in")
    bed.driver.stop()
    assert (bed.mapper.live, bed.status, bed.iommu.faults()) == ({}, 0, [])


def test_nic_driver_stops_with_frames_in_flight(slow):
    start_both(slow)
    slow.driver.stop()
    assert (slow.mapper.live, slow.iommu.faults()) == ({}, [])


def test_nic_driver_starts_again(bed):
    buffers = len(bed.driver.free)
    bed.driver.stop()
    bed.driver.start()
    bed.nic.receive(b"in")
    assert (bed.driver.poll(), len(bed.driver.free)) == ([b"in"], buffers)


def test_nic_driver_is_not_started_twice(nic):
    with pytest.raises(RuntimeError, match="stop it first"):
        nic.driver.start()


@pytest.mark.parametrize("left", [0, 1, 2, 10])
def test_nic_driver_leaves_nothing_mapped_if_it_cannot_start(left):
    bed = Bed("vtd")
    buffers = len(bed.driver.free)
    bed.mapper.left = left
    with pytest.raises(MemoryError):
        bed.driver.start()
    assert (bed.mapper.live, len(bed.driver.free), bed.status) == ({}, buffers, 0)


def test_nic_driver_posts_all_parts_of_a_frame_or_none(bed):
    mapped, buffers = dict(bed.mapper.live), len(bed.driver.free)
    bed.mapper.left = 2
    with pytest.raises(MemoryError):
        bed.driver.post(b"one", b"two", b"three")
    assert (bed.mapper.live, len(bed.driver.free)) == (mapped, buffers)


def test_nic_driver_says_when_its_ring_is_full(bed):
    assert all(bed.driver.post(b"out") for _ in range(15))
    assert not bed.driver.post(b"out")
    bed.driver.kick()
    assert bed.driver.reclaim() == 15
    assert bed.driver.post(b"out")


def test_nic_driver_throws_away_a_frame_longer_than_any(nic):
    """A device that forgets to end its frame neither fills memory nor spoils what follows."""
    for flags in [0] * 40 + [END_OF_FRAME]:
        at = nic.driver.rx.physical + DESCRIPTOR.size * nic.driver.rx.head
        nic.memory.write(at, DESCRIPTOR.pack(0, 2048, flags, DONE))
        assert nic.driver.poll() == []
    at = nic.driver.rx.physical + DESCRIPTOR.size * nic.driver.rx.head
    nic.memory.write(at, DESCRIPTOR.pack(0, 100, END_OF_FRAME, DONE))
    assert nic.driver.poll() == [bytes(100)]


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "1..15 parts, not 0"), ((b"",), "1..2048 bytes"), ((bytes(2049),), "1..2048 bytes")],
)
def test_nic_driver_rejects_frames_that_it_cannot_describe(nic, parts, message):
    with pytest.raises(ValueError, match=message):
        nic.driver.send(*parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entries": 1}, "entries must be in 2..4096, not 1"),
        ({"buffer_size": 63}, "buffer_size must be in 64..65535, not 63"),
        ({"memory": range(PAGE)}, "memory must have at least 0x42000 bytes, not 0x1000"),
    ],
)
def test_nic_driver_rejects_what_cannot_be(bare, arguments, message):
    with pytest.raises(ValueError, match=message):
        NicDriver(bare.machine, bare.nic, **{"memory": MEMORY} | arguments)
