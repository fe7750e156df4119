"""An NVMe controller behind an IOMMU: faults, latencies, backpressure, resets and removal."""

import gc
import weakref

import pytest
from nvme_bed import BLOCK, IOVA, MEMORY, PAGE, UNMAPPED, Bed, pattern

from iommu_emu import Status
from iommu_emu.core import Access, Completion, CompletionDetails
from iommu_emu.devices.driver import Buffer
from iommu_emu.devices.nvme.driver import QueuePair
from iommu_emu.devices.nvme.specification import AdminOpcode, NvmOpcode, StatusCode

CFS = 2
FABRIC, TO_MEMORY = 100, 50
ADDRESS = "00:03.0"


def lose(bed, buffer):
    """Unmap a buffer, as if the driver had freed it too early."""
    bed.domain.unmap(buffer.iova, -(-buffer.size // PAGE) * PAGE)


def only_fault(bed):
    (fault,) = bed.iommu.faults()
    return fault.requester, fault.address & ~0xFFF, fault.access


# ---- faults ----------------------------------------------------------------------------------


def test_nvme_data_goes_through_the_iommu(bed):
    data = pattern(5 * PAGE)
    assert bed.write(0, data).ok
    assert bed.read(0, 5 * PAGE // BLOCK) == data
    assert bed.iommu.faults() == []


@pytest.mark.parametrize(
    ("opcode", "access"), [(NvmOpcode.READ, Access.WRITE), (NvmOpcode.WRITE, Access.READ)]
)
def test_nvme_unmapped_buffer_is_a_fault_and_a_transfer_error(bed, opcode, access):
    reply = bed.command(opcode, prp1=UNMAPPED)
    assert (reply.status, reply.dnr) == (StatusCode.DATA_TRANSFER_ERROR, False)
    assert only_fault(bed) == (bed.nvme.address, UNMAPPED, access)


def test_nvme_goes_on_after_a_transfer_error(bed):
    bed.command(NvmOpcode.READ, prp1=UNMAPPED)
    assert bed.write(0, pattern(BLOCK)).ok
    assert bed.csts == 1


def test_nvme_write_that_faults_half_way_writes_nothing(bed):
    buffer = bed.buffer(b"\xaa" * 2 * PAGE)
    bed.domain.unmap(buffer.iova + PAGE, PAGE)
    reply = bed.driver.transfer(NvmOpcode.WRITE, 0, 16, buffer)
    assert reply.status is StatusCode.DATA_TRANSFER_ERROR
    assert bed.nvme.medium.read(0, 2 * PAGE) == bytes(2 * PAGE)


def test_nvme_read_into_a_read_only_page_is_a_transfer_error(bed):
    bed.domain.map(UNMAPPED, MEMORY.start, PAGE, "r")
    assert bed.command(NvmOpcode.READ, prp1=UNMAPPED).status is StatusCode.DATA_TRANSFER_ERROR
    assert bed.command(NvmOpcode.WRITE, prp1=UNMAPPED).ok


def test_nvme_completion_queue_out_of_reach_is_fatal(bed):
    lose(bed, bed.io.completion)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    assert bed.csts == 1 | CFS
    assert only_fault(bed) == (bed.nvme.address, bed.io.completion.iova, Access.WRITE)
    assert bed.nvme.statistics.fatal_errors == 1


def test_nvme_submission_queue_out_of_reach_is_fatal(bed):
    lose(bed, bed.io.submission)
    bed.driver.ring_tail(1, 1)
    assert bed.csts == 1 | CFS
    assert only_fault(bed) == (bed.nvme.address, bed.io.submission.iova, Access.READ)


def test_nvme_does_nothing_after_a_fatal_error(bed):
    bed.driver.create_queues(2)
    lose(bed, bed.io.completion)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    bed.driver.submit(bed.driver.io[2], NvmOpcode.FLUSH, nsid=1)
    assert bed.driver.peek(bed.driver.io[2]) is None
    assert len(bed.iommu.faults()) == 1


def test_nvme_fatal_error_in_a_burst_stops_the_burst(bed):
    lose(bed, bed.io.completion)
    for _ in range(8):
        bed.driver.put(bed.io, NvmOpcode.FLUSH, nsid=1)
    bed.driver.ring_tail(1, 8)
    assert len(bed.iommu.faults()) == 1


def test_nvme_reset_recovers_from_a_fatal_error(bed):
    lose(bed, bed.io.completion)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    bed.driver.disable()
    assert bed.csts == 0
    bed.driver.enable()
    bed.driver.create_queues(1)
    assert bed.command(NvmOpcode.FLUSH).ok


def test_nvme_forgotten_invalidation_leaves_a_freed_buffer_writable(bed):
    """What a deferred invalidation concedes: the controller still writes the old page."""
    buffer = bed.driver.allocate(PAGE)
    bed.command(NvmOpcode.READ, prp1=buffer.iova)
    bed.nvme.medium.write(0, b"late" * 128)
    bed.domain.unmap(buffer.iova, PAGE, invalidate=False)
    assert bed.command(NvmOpcode.READ, prp1=buffer.iova).ok
    assert bed.memory.read(buffer.physical, 4) == b"late"
    bed.domain.flush()
    reply = bed.command(NvmOpcode.READ, prp1=buffer.iova)
    assert reply.status is StatusCode.DATA_TRANSFER_ERROR


def test_nvme_queue_goes_on_at_0_behind_the_last_address():
    """A submission queue of 128 entries whose first page is the last one that there is."""
    bed = Bed("amdvi").ready()
    domain = bed.iommu.create_domain(levels=6)
    memory = bed.driver.allocate(2 * PAGE)
    domain.map(IOVA, MEMORY.start, len(MEMORY), page_size=PAGE)
    domain.map((1 << 64) - PAGE, memory.physical, PAGE)
    domain.map(0, memory.physical + PAGE, PAGE)
    bed.iommu.attach(domain, bed.nvme.address)
    queue = Buffer(memory.physical, (1 << 64) - PAGE, 2 * PAGE)
    pair = QueuePair(2, 128, queue, bed.io.completion)
    size = 127 << 16 | 2
    assert bed.admin(AdminOpcode.CREATE_SQ, prp1=queue.iova, cdw10=size, cdw11=1 << 16 | 1).ok
    for _ in range(100):
        bed.driver.submit(pair, NvmOpcode.FLUSH, nsid=1)
        reply = bed.driver.wait(bed.io)
    assert (reply.ok, reply.head, reply.cid) == (True, 100, 99)


# ---- latencies -------------------------------------------------------------------------------


@pytest.fixture
def slow(bed):
    """A controller whose DMAs take 150 ns each."""
    bed.nvme.dma.set_latency(FABRIC, TO_MEMORY)
    return bed


def test_nvme_works_with_latencies(slow):
    data = pattern(40 * PAGE)
    assert slow.write(3, data).ok
    assert slow.read(3, len(data) // BLOCK) == data


def test_nvme_read_takes_a_fetch_the_data_and_a_completion(slow):
    before = slow.machine.clock.now
    assert slow.read(0, 1) == bytes(BLOCK)
    # Posted writes land at the end of their way; the fetch was one more way there and back.
    assert slow.machine.clock.now - before == 3 * (FABRIC + TO_MEMORY)


def test_nvme_faults_with_latencies_are_transfer_errors(slow):
    assert slow.command(NvmOpcode.READ, prp1=UNMAPPED).status is StatusCode.DATA_TRANSFER_ERROR
    assert only_fault(slow) == (slow.nvme.address, UNMAPPED, Access.WRITE)


def test_nvme_fatal_error_with_latencies(slow):
    lose(slow, slow.io.completion)
    slow.driver.submit(slow.io, NvmOpcode.FLUSH, nsid=1)
    slow.machine.advance(10_000)
    assert slow.csts == 1 | CFS


def test_nvme_many_commands_with_latencies_complete_once_each(slow):
    for n in range(20):
        slow.driver.put(slow.io, NvmOpcode.READ, nsid=1, prp1=IOVA + (1 << 20), cdw10=n)
    slow.driver.ring_tail(1, 20)
    assert sorted(slow.driver.wait(slow.io).cid for _ in range(20)) == list(range(20))
    slow.machine.advance(10_000)
    assert slow.driver.peek(slow.io) is None


def test_nvme_buffer_unmapped_while_a_read_is_in_the_fabric(slow):
    """A write sent before the unmap arrives after it: it meets the tables in force then."""
    buffer = slow.driver.allocate(PAGE)
    slow.nvme.medium.write(0, b"late" * 128)
    slow.driver.submit(slow.io, NvmOpcode.READ, nsid=1, prp1=buffer.iova)
    slow.machine.advance(FABRIC + TO_MEMORY + 10)  # fetched; the data is in the fabric
    assert slow.nvme.dma.in_flight == (1, 0)
    lose(slow, buffer)
    assert slow.driver.wait(slow.io).status is StatusCode.DATA_TRANSFER_ERROR
    assert slow.content(buffer)[:4] == bytes(4)


def test_nvme_deletes_a_queue_after_its_commands(slow):
    cid = slow.driver.submit(slow.io, NvmOpcode.FLUSH, nsid=1)
    slow.machine.advance(FABRIC)
    slow.driver.submit(slow.driver.admin, AdminOpcode.DELETE_SQ, cdw10=1)
    assert slow.driver.wait(slow.driver.admin).ok
    assert slow.driver.take(slow.io).cid == cid


def test_nvme_deletes_a_queue_after_the_commands_that_it_is_fetching(slow):
    slow.driver.submit(slow.driver.admin, AdminOpcode.DELETE_SQ, cdw10=1)
    slow.driver.submit(slow.io, NvmOpcode.FLUSH, nsid=1)
    assert slow.driver.wait(slow.io).ok
    assert slow.driver.peek(slow.driver.admin) is None
    assert slow.driver.wait(slow.driver.admin).ok


def test_nvme_queue_that_is_being_deleted_is_not_deleted_twice(slow):
    slow.driver.submit(slow.io, NvmOpcode.FLUSH, nsid=1)
    slow.driver.put(slow.driver.admin, AdminOpcode.DELETE_SQ, cdw10=1)
    slow.driver.submit(slow.driver.admin, AdminOpcode.DELETE_SQ, cdw10=1)
    replies = [slow.driver.wait(slow.driver.admin) for _ in range(2)]
    assert {reply.status for reply in replies} == {
        StatusCode.SUCCESS,
        StatusCode.INVALID_QUEUE_IDENTIFIER,
    }


# ---- backpressure ----------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", ["vtd", "amdvi"])
def test_nvme_waits_for_room_in_the_fabric(vendor):
    bed = Bed(vendor, transactions=20).ready()
    bed.nvme.dma.set_latency(FABRIC, TO_MEMORY)
    data = pattern(4 * PAGE)
    bed.nvme.medium.write(0, data)
    buffers = [bed.driver.allocate(PAGE) for _ in range(24)]
    for n, buffer in enumerate(buffers):
        bed.driver.put(bed.io, NvmOpcode.READ, nsid=1, prp1=buffer.iova, cdw10=n, cdw12=7)
    bed.driver.ring_tail(1, 24)
    replies = [bed.driver.wait(bed.io) for _ in range(24)]
    assert all(reply.ok for reply in replies)
    for n, buffer in enumerate(buffers):
        assert bed.content(buffer) == bed.nvme.medium.read(n * BLOCK, PAGE)


@pytest.mark.parametrize("transactions", [1, 15, 16])
def test_nvme_transfers_more_than_the_fabric_takes_at_once(transactions):
    bed = Bed("vtd", transactions=transactions).ready()
    bed.nvme.dma.set_latency(FABRIC, TO_MEMORY)
    data = pattern(40 * PAGE)
    assert bed.write(0, data).ok
    assert bed.read(0, len(data) // BLOCK) == data


class FullFabric:
    """Lets a port's first write to `address` through up to its first `done` bytes."""

    def __init__(self, port, address, done):
        self.port, self.write_on = port, port.write
        self.address, self.done = address, done
        self.later: list[int] = []  # the addresses of what was sent then
        port.write = self.write

    def write(self, address, data, on_done=None):
        if address != self.address:
            self.later.append(address)
            return self.write_on(address, data, on_done)
        self.address = None
        if self.done:
            self.write_on(address, data[: self.done])
        return Completion(b"", CompletionDetails(Status.BUSY, address, self.done, 0))


@pytest.mark.parametrize("done", [0, BLOCK])
def test_nvme_sends_on_what_the_fabric_had_no_room_for(nvme, done):
    data = pattern(2 * BLOCK)
    nvme.nvme.medium.write(0, data)
    buffer = nvme.driver.allocate(2 * BLOCK)
    fabric = FullFabric(nvme.nvme.dma, buffer.iova, done)
    assert nvme.driver.transfer(NvmOpcode.READ, 0, 2, buffer).ok
    assert fabric.later[0] == buffer.iova + done
    assert nvme.content(buffer) == data


def test_nvme_sends_an_interrupt_that_had_no_room(nvme):
    FullFabric(nvme.nvme.dma, 0xFEE0_0000, 0)
    nvme.command(NvmOpcode.FLUSH)
    nvme.machine.advance(1_000)
    assert [interrupt.vector for interrupt in nvme.machine.interrupts] == [0x41]


def test_nvme_waits_for_its_bus_master_bit(bed):
    bed.machine.config_write(ADDRESS, 4, 2, 2)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    bed.machine.advance(1_000_000)
    assert bed.driver.peek(bed.io) is None
    bed.machine.config_write(ADDRESS, 4, 2, 6)
    assert bed.driver.take(bed.io).ok


def test_nvme_leaves_the_clock_alone_while_it_must_not_send(bed):
    bed.machine.config_write(ADDRESS, 4, 2, 2)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    assert bed.machine.clock.next_event is None


# ---- reset and removal with commands in flight -----------------------------------------------


def start_read(bed):
    """Start a read; its data is in the fabric afterwards."""
    buffer = bed.driver.allocate(PAGE)
    bed.driver.submit(bed.io, NvmOpcode.READ, nsid=1, prp1=buffer.iova, cdw12=7)
    bed.machine.advance(FABRIC + TO_MEMORY + 10)
    return buffer


def test_nvme_is_disabled_when_nothing_of_it_is_in_flight(slow):
    start_read(slow)
    slow.driver.disable()
    assert slow.csts == 1
    slow.machine.advance(FABRIC + TO_MEMORY)
    assert slow.csts == 0
    assert slow.nvme.dma.in_flight == (0, 0)


def test_nvme_posts_no_completion_after_a_reset(slow):
    start_read(slow)
    slow.driver.disable()
    slow.machine.advance(1_000_000)
    assert slow.driver.peek(slow.io) is None
    assert slow.machine.interrupts == []


def test_nvme_enabled_again_too_early_becomes_ready_later(slow):
    start_read(slow)
    slow.driver.disable()
    slow.driver.enable(check=False)
    slow.machine.advance(FABRIC + TO_MEMORY)
    assert slow.csts == 1
    assert slow.admin(AdminOpcode.KEEP_ALIVE).ok


def test_nvme_function_reset_forgets_what_is_in_flight(slow):
    start_read(slow)
    slow.nvme.reset()
    slow.machine.advance(1_000_000)
    assert slow.driver.peek(slow.io) is None
    assert slow.nvme.bar_read(0, 0x1C, 4) == 0


def test_nvme_shutdown_waits_for_its_commands(slow):
    start_read(slow)
    slow.driver.shut_down()
    assert slow.csts == 1 | 1 << 2
    slow.machine.advance(10_000)
    assert slow.csts == 1 | 2 << 2
    assert slow.driver.take(slow.io).ok


def test_nvme_shutdown_completes_though_a_queue_is_out_of_reach(slow):
    slow.driver.put(slow.io, NvmOpcode.FLUSH, nsid=1)
    slow.driver.submit(slow.io, NvmOpcode.FLUSH, nsid=1)
    slow.machine.advance(FABRIC)
    slow.driver.shut_down()
    lose(slow, slow.io.completion)
    slow.machine.service()  # the drain of the invalidation made the data land
    slow.machine.advance(10_000)
    assert slow.csts == 1 | CFS | 2 << 2


def test_nvme_reset_gives_up_what_was_held_back(bed):
    bed.machine.config_write(ADDRESS, 4, 2, 2)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    bed.driver.disable()
    assert bed.csts == 0
    bed.machine.config_write(ADDRESS, 4, 2, 6)
    bed.machine.advance(1_000_000)
    assert bed.driver.peek(bed.io) is None


def test_nvme_removed_with_commands_in_flight_completes_none(slow):
    start_read(slow)
    slow.machine.remove(slow.nvme)
    slow.machine.advance(1_000_000)
    assert slow.driver.peek(slow.io) is None
    assert slow.nvme.dma.blocked is Status.REMOVED


def test_nvme_removed_during_backpressure_stops_its_clock(bed):
    bed.machine.config_write(ADDRESS, 4, 2, 2)
    bed.driver.submit(bed.io, NvmOpcode.FLUSH, nsid=1)
    bed.machine.remove(bed.nvme)
    assert bed.machine.clock.next_event is None


def test_nvme_leaves_nothing_behind_when_it_is_removed(slow):
    start_read(slow)
    gone = weakref.ref(slow.nvme.engine)
    slow.machine.remove(slow.nvme)
    slow.machine.advance(1_000_000)
    slow.nvme = slow.driver = None
    gc.collect()
    assert gone() is None


def test_nvme_plugged_in_again_works(slow):
    slow.write(1, pattern(BLOCK))
    start_read(slow)
    slow.machine.remove(slow.nvme)
    slow.machine.advance(1_000_000)
    slow.machine.attach(slow.nvme, ADDRESS)
    slow.ready()
    assert slow.read(1, 1) == pattern(BLOCK)
