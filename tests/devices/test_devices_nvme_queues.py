"""NVMe queues: phase tags, wrapping, full queues, interrupts, and bounds on what a guest asks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvme_bed import MEMORY, PAGE, Bed, pattern

from iommu_emu.devices import Nvme
from iommu_emu.devices.nvme.engine import BUDGET, BURST
from iommu_emu.devices.nvme.specification import AdminOpcode, Feature, NvmOpcode, StatusCode
from iommu_emu.devices.nvme.structures import COMPLETION, Completion

FLUSH = NvmOpcode.FLUSH
MICROSECOND = 1_000


class MsiNvme(Nvme):
    """A controller with two MSI vectors instead of MSI-X."""

    msix_vectors = 0
    msi_vectors = 2


def flush(bed, count=1, *, ring=True):
    """Put `count` Flush commands into queue 1; the command IDs count on."""
    for _ in range(count):
        bed.driver.put(bed.io, FLUSH, nsid=1)
    if ring:
        bed.driver.ring_tail(1, bed.io.tail)


def entry(bed, index):
    """Return an entry of completion queue 1 as it is in memory."""
    address = bed.io.completion.physical + COMPLETION.size * index
    return Completion._make(COMPLETION.unpack(bed.memory.read(address, COMPLETION.size)))


def posted(bed, *, ring=True):
    """Return the command IDs of all completions that are there, and consume them."""
    replies = []
    while (reply := bed.driver.take(bed.io, ring=ring)) is not None:
        replies.append(reply.cid)
    return replies


# ---- entries ---------------------------------------------------------------------------------


def test_nvme_completion_entry(nvme):
    flush(nvme, 3)
    assert entry(nvme, 2) == Completion(result=0, head=3, queue=1, cid=2, status=1)


def test_nvme_phase_tag_changes_when_the_queue_wraps():
    bed = Bed().ready(entries=4)
    for _ in range(6):
        flush(bed)
        bed.driver.take(bed.io)
    assert [entry(bed, n).status & 1 for n in range(4)] == [0, 0, 1, 1]
    assert [entry(bed, n).cid for n in range(4)] == [4, 5, 2, 3]


def test_nvme_queue_of_two_entries():
    bed = Bed().ready(entries=2)
    assert [bed.command(FLUSH).cid for _ in range(5)] == [0, 1, 2, 3, 4]


def test_nvme_commands_around_the_end_of_the_queue_complete():
    bed = Bed().ready(entries=8)
    flush(bed, 5)
    posted(bed)
    flush(bed, 7)
    assert posted(bed) == [5, 6, 7, 8, 9, 10, 11]


def test_nvme_command_is_taken_when_the_doorbell_rings(nvme):
    flush(nvme, ring=False)
    assert posted(nvme) == []
    nvme.driver.ring_tail(1, 1)
    assert posted(nvme) == [0]


@pytest.mark.parametrize("value", [32, 33, 0xFFFF, 0xFFFF_FFFF])
def test_nvme_tail_outside_the_queue_is_ignored(nvme, value):
    flush(nvme, ring=False)
    nvme.driver.ring_tail(1, value)
    assert posted(nvme) == []
    nvme.driver.ring_tail(1, 1)
    assert posted(nvme) == [0]


def test_nvme_tail_that_overtakes_the_head_is_ignored():
    bed = Bed().ready(entries=4)
    bed.machine.config_write("00:03.0", 4, 2, 2)  # no bus mastering: nothing is fetched
    bed.driver.ring_tail(1, 3)
    bed.driver.ring_tail(1, 1)
    assert bed.nvme.statistics.doorbell_errors == 1


# ---- a full completion queue -----------------------------------------------------------------


def test_nvme_full_completion_queue_holds_completions_back():
    bed = Bed().ready(entries=4)
    flush(bed, 3)
    flush(bed, 3)
    assert [entry(bed, n).cid for n in range(3)] == [0, 1, 2]
    assert entry(bed, 3) == Completion(0, 0, 0, 0, 0)
    assert posted(bed) == [0, 1, 2, 3, 4, 5]


def test_nvme_full_completion_queue_goes_on_one_by_one():
    bed = Bed().ready(entries=4)
    flush(bed, 3)
    flush(bed, 3)
    bed.driver.take(bed.io)
    assert (entry(bed, 3).cid, entry(bed, 0).cid) == (3, 0)


def test_nvme_full_completion_queue_goes_on_with_all_there_is_room_for(nvme):
    nvme.admin(AdminOpcode.DELETE_SQ, cdw10=1)
    nvme.admin(AdminOpcode.DELETE_CQ, cdw10=1)
    pair = nvme.io
    for opcode, memory, size in (
        (AdminOpcode.CREATE_CQ, pair.completion, 4),
        (AdminOpcode.CREATE_SQ, pair.submission, 32),
    ):
        dword11 = 1 << 16 | 3
        assert nvme.admin(opcode, prp1=memory.iova, cdw10=size - 1 << 16 | 1, cdw11=dword11).ok
    flush(nvme, 8)
    nvme.driver.ring_head(1, 3)
    assert [entry(nvme, n).cid for n in range(4)] == [4, 5, 2, 3]


def test_nvme_full_completion_queue_does_not_hold_up_other_queues():
    bed = Bed().ready(entries=4)
    for _ in range(3):
        flush(bed, 3)
    assert bed.admin(AdminOpcode.KEEP_ALIVE).ok


def test_nvme_full_completion_queue_survives_a_reset():
    bed = Bed().ready(entries=4)
    flush(bed, 3)
    flush(bed, 3)
    bed.driver.disable()
    bed.driver.enable()
    bed.driver.create_queues(1)
    assert bed.command(FLUSH).ok


def test_nvme_submission_queue_is_deleted_when_its_completions_are_posted():
    bed = Bed().ready(entries=4)
    flush(bed, 3)
    flush(bed, 3)  # one is fetched; its completion finds no room
    bed.driver.submit(bed.driver.admin, AdminOpcode.DELETE_SQ, cdw10=1)
    assert bed.driver.peek(bed.driver.admin) is None
    assert posted(bed) == [0, 1, 2, 3]
    assert bed.driver.take(bed.driver.admin).ok


# ---- bounds and fairness ---------------------------------------------------------------------


def test_nvme_one_doorbell_starts_a_bounded_number_of_commands():
    bed = Bed().ready(entries=1024)
    flush(bed, 1000)
    assert posted(bed, ring=False) == list(range(BUDGET))
    bed.machine.advance(16 * MICROSECOND)
    assert posted(bed, ring=False) == list(range(BUDGET, 1000))


def test_nvme_reset_stops_what_the_clock_was_to_start():
    bed = Bed().ready(entries=1024)
    flush(bed, 1000)
    bed.driver.disable()
    assert bed.machine.clock.next_event is None


def test_nvme_queues_take_turns():
    bed = Bed().ready(entries=256)
    bed.driver.create_queues(2, 256)
    bed.machine.config_write("00:03.0", 4, 2, 2)  # hold everything until all is there
    for qid in (1, 2):
        for _ in range(2 * BURST):
            bed.driver.put(bed.driver.io[qid], FLUSH, nsid=1)
        bed.driver.ring_tail(qid, 2 * BURST)
    bed.machine.interrupts.clear()
    bed.machine.config_write("00:03.0", 4, 2, 6)
    vectors = [interrupt.vector - 0x40 for interrupt in bed.machine.interrupts]
    assert vectors == [1] * BURST + [0] * BURST + [1] * BURST + [0] * BURST


def test_nvme_arbitration_burst_limits_a_turn():
    bed = Bed().ready(entries=256)
    bed.driver.create_queues(2, 256)
    bed.set_feature(Feature.ARBITRATION, 1)  # two commands
    bed.machine.config_write("00:03.0", 4, 2, 2)
    for qid in (1, 2):
        for _ in range(4):
            bed.driver.put(bed.driver.io[qid], FLUSH, nsid=1)
        bed.driver.ring_tail(qid, 4)
    bed.machine.interrupts.clear()
    bed.machine.config_write("00:03.0", 4, 2, 6)
    vectors = [interrupt.vector - 0x40 for interrupt in bed.machine.interrupts]
    assert vectors == [1, 1, 0, 0, 1, 1, 0, 0]


# ---- interrupts ------------------------------------------------------------------------------


def test_nvme_completion_sends_the_vector_of_its_queue(nvme):
    flush(nvme)
    assert [interrupt.vector for interrupt in nvme.machine.interrupts] == [0x41]


def test_nvme_completion_is_in_memory_when_its_interrupt_arrives():
    bed = Bed().ready()
    bed.nvme.dma.set_latency(100, 50)
    flush(bed)
    while not bed.machine.interrupts:
        assert bed.machine.clock.run_to_next_event()
    assert entry(bed, 0).status & 1 == 1


def test_nvme_admin_completion_sends_vector_0(nvme):
    nvme.admin(AdminOpcode.KEEP_ALIVE)
    assert [interrupt.vector for interrupt in nvme.machine.interrupts] == [0x40]


def test_nvme_masked_vector_is_pending_and_sent_when_unmasked(nvme):
    control = nvme.nvme.msix.table + 16 + 12
    nvme.driver.write(control, 1)
    flush(nvme, 2)
    assert nvme.machine.interrupts == []
    assert nvme.driver.read(nvme.nvme.msix.pending_bits) == 2
    nvme.driver.write(control, 0)
    assert [interrupt.vector for interrupt in nvme.machine.interrupts] == [0x41]


def test_nvme_interrupt_mask_register_means_nothing_to_msix(nvme):
    nvme.driver.write(0x0C, 0xFFFF_FFFF)
    flush(nvme)
    assert [interrupt.vector for interrupt in nvme.machine.interrupts] == [0x41]


def test_nvme_completion_queue_without_interrupts_sends_none(nvme):
    memory = nvme.driver.allocate(PAGE)
    nvme.admin(AdminOpcode.CREATE_CQ, prp1=memory.iova, cdw10=7 << 16 | 2, cdw11=1 << 16 | 1)
    queue = nvme.driver.allocate(PAGE)
    nvme.admin(AdminOpcode.CREATE_SQ, prp1=queue.iova, cdw10=7 << 16 | 2, cdw11=2 << 16 | 1)
    nvme.memory.write(queue.physical, b"\0\0\x09\0\x01".ljust(64, b"\0"))
    nvme.machine.interrupts.clear()
    nvme.driver.ring_tail(2, 1)
    assert nvme.memory.read_u16(memory.physical + 12) == 9
    assert nvme.machine.interrupts == []


@pytest.fixture
def pin():
    """A controller whose driver has left MSI-X off."""
    return Bed().ready(msix=False)


def test_nvme_pin_is_asserted_until_the_completion_is_consumed(pin):
    flush(pin, 2)
    assert pin.nvme.intx
    pin.driver.take(pin.io)
    assert pin.nvme.intx
    pin.driver.take(pin.io)
    assert not pin.nvme.intx


def test_nvme_pin_follows_the_interrupt_mask(pin):
    pin.driver.write(0x0C, 1)
    flush(pin)
    assert not pin.nvme.intx
    pin.driver.write(0x10, 1)
    assert pin.nvme.intx


def test_nvme_pin_is_released_by_a_controller_reset(pin):
    flush(pin)
    pin.driver.disable()
    assert not pin.nvme.intx


def test_nvme_pin_is_released_when_its_queue_is_deleted(pin):
    flush(pin)
    pin.admin(AdminOpcode.DELETE_SQ, cdw10=1)
    assert pin.nvme.intx
    pin.admin(AdminOpcode.DELETE_CQ, cdw10=1)
    assert not pin.nvme.intx


def test_nvme_with_msi_alone_uses_it():
    bed = Bed(nvme=MsiNvme())
    at = bed.nvme.config.find(0x05)
    bed.machine.config_write("00:03.0", at + 4, 4, 0xFEE0_0000)
    bed.machine.config_write("00:03.0", at + 12, 2, 0x60)
    bed.machine.config_write("00:03.0", at + 2, 2, 1 << 4 | 1)
    bed.driver.enable()
    bed.driver.create_queues(1, vector=1)
    bed.machine.interrupts.clear()
    flush(bed)
    assert [interrupt.vector for interrupt in bed.machine.interrupts] == [0x61]
    assert not bed.nvme.intx
    with pytest.raises(RuntimeError, match="INVALID_INTERRUPT_VECTOR"):
        bed.driver.create_queues(2, vector=2)


def test_nvme_pin_sends_no_messages(pin):
    flush(pin)
    assert pin.machine.interrupts == []


# ---- hostile guests --------------------------------------------------------------------------

BAR = 0xE000_0000
QUADWORDS = st.one_of(
    st.sampled_from([0, 1, MEMORY.start, MEMORY.start + PAGE, 1 << 63, (1 << 64) - 1]),
    st.sampled_from([BAR, BAR + 0x1000, BAR + 0x2000, 0xFEE0_0000]),  # registers, interrupts
    st.integers(0, (1 << 64) - 1),
)
DWORDS = st.one_of(
    st.sampled_from([0, 1, 2, 0x1_0001, 0x1F_0002, 0x7FFF_FFFF, 0xFFFF_FFFF]),
    st.integers(0, (1 << 32) - 1),
)
COMMANDS = st.fixed_dictionaries(
    {
        "flags": st.sampled_from([0, 0, 0, 1, 0x40, 0xFF]),
        "nsid": st.sampled_from([0, 1, 1, 2, 0xFFFF_FFFF]),
        "prp1": QUADWORDS,
        "prp2": QUADWORDS,
        **{f"cdw{n}": DWORDS for n in range(10, 16)},
    }
)
OPCODES = st.one_of(st.sampled_from(sorted({*AdminOpcode, *NvmOpcode})), st.integers(0, 255))
ACTIONS = st.one_of(
    st.tuples(st.just("admin"), OPCODES, COMMANDS),
    st.tuples(st.just("io"), OPCODES, COMMANDS),
    st.tuples(st.just("register"), st.integers(0, 0x1FFF), DWORDS),
    st.tuples(st.just("doorbell"), st.integers(0, 140), DWORDS),
    st.tuples(st.just("time"), st.integers(0, 10_000), st.none()),
)


@given(st.lists(ACTIONS, max_size=30), st.sampled_from([0, 0, 70]))
@settings(max_examples=60, deadline=None)
def test_nvme_survives_whatever_a_guest_does(actions, latency):
    bed = Bed().ready()
    bed.nvme.dma.set_latency(latency, latency)
    for kind, what, value in actions:
        if kind in ("admin", "io"):
            bed.driver.submit(bed.io if kind == "io" else bed.driver.admin, what, **value)
        elif kind == "register":
            bed.driver.write(what & ~3, value)
        elif kind == "doorbell":
            bed.driver.write(0x1000 + 4 * what, value)
        else:
            bed.machine.advance(what)
    bed.machine.advance(100_000)
    # Whatever state that was, a function reset makes it usable.
    bed.nvme.reset()
    bed.nvme.dma.set_latency(0, 0)
    bed.machine.advance(100_000)
    bed.nvme.place_bar(0, BAR)
    bed.machine.config_write("00:03.0", 4, 2, 6)
    bed.ready()
    assert bed.write(0, pattern(512)).ok
    assert bed.read(0, 1) == pattern(512)


def test_nvme_reads_its_own_registers_into_its_own_registers(nvme):
    """A buffer may be a BAR: the data goes to the registers, and nothing recurses."""
    bar = nvme.nvme.bar_address(0)
    nvme.nvme.medium.write(0, b"\xff" * 512)
    assert nvme.command(NvmOpcode.READ, prp1=bar + 0x1000).ok
    assert nvme.nvme.statistics.doorbell_errors > 0
    assert nvme.command(NvmOpcode.WRITE, prp1=bar).ok
    assert nvme.nvme.medium.read(8, 4) == b"\0\x04\x01\0"  # VS


def test_nvme_unknown_io_command_changes_no_status_of_others(nvme):
    statuses = [nvme.command(opcode).status for opcode in (FLUSH, 0x7D, FLUSH)]
    assert statuses == [StatusCode.SUCCESS, StatusCode.INVALID_OPCODE, StatusCode.SUCCESS]
