import numpy as np
import pytest

from iommu_emu.core import Access, AtomicKind, RequestFlag, Status

RID = 0x0008


@pytest.fixture
def port(machine):
    return machine.core.create_port(0, RID)


def test_port_write_reaches_ram(machine, port):
    assert port.write(0x1000, b"hello").ok
    assert machine.memory.read(0x1000, 5) == b"hello"


@pytest.mark.parametrize("data", [bytearray(b"abcd"), memoryview(b"abcd"), np.array([0x64636261])])
def test_port_write_takes_any_buffer(machine, port, data):
    port.write(0x1000, data)
    assert machine.memory.read(0x1000, 4) == b"abcd"


def test_port_read_returns_data(machine, port):
    machine.memory.write(0x1000, b"hello")
    assert port.read(0x1000, 5).data == b"hello"


def test_port_read_of_more_than_a_page_returns_all(machine, port):
    machine.memory.write(0x1000, bytes(range(256)) * 64)
    assert port.read(0x1000, 16384).data == bytes(range(256)) * 64


def test_port_zero_length_read_succeeds_without_data(port):
    completion = port.read(0x1000, 0)
    assert (completion.status, completion.data) == (Status.DONE, b"")


def test_port_read_of_a_hole_is_unsupported(port):
    completion = port.read(0x5000_0000, 4)
    assert (completion.status, completion.data) == (Status.UNSUPPORTED_REQUEST, b"")


def test_port_failed_completion_names_the_address_that_failed(port):
    assert port.read(0xFF000, 8192).details.address == 0x10_0000


def test_port_failed_completion_counts_what_was_done(port):
    assert port.write(0xFF000, bytes(8192)).details.done == 4096


def test_port_transfer_past_the_address_space_is_unsupported(port):
    assert port.write((1 << 64) - 4, bytes(8)).status is Status.UNSUPPORTED_REQUEST


@pytest.mark.parametrize(
    ("address", "length", "message"),
    [
        (1 << 64, 4, r"address must be in 0x0\.\.0xffffffffffffffff, not 0x10000000000000000"),
        (-1, 4, r"address must be in 0x0\.\.0xffffffffffffffff, not -0x1"),
        (0, (16 << 20) + 1, r"length must be in 0x0\.\.0x1000000, not 0x1000001"),
        (0, -1, r"length must be in 0x0\.\.0x1000000, not -0x1"),
    ],
)
def test_port_read_refuses_what_no_device_can_send(port, address, length, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        port.read(address, length)


def test_port_write_of_nothing_is_refused(port):
    with pytest.raises(ValueError, match=r"^length must be in 0x1\.\.0x1000000, not 0x0$"):
        port.write(0x1000, b"")


def test_port_fetch_add_returns_the_old_value(machine, port):
    machine.memory.write_u64(0x1000, 40)
    assert port.atomic(AtomicKind.FETCH_ADD, 0x1000, 2).data == (40).to_bytes(8, "little")
    assert machine.memory.read_u64(0x1000) == 42


def test_port_swap_of_4_bytes_leaves_the_next_4(machine, port):
    machine.memory.write_u64(0x1000, 0x1111_1111_2222_2222)
    port.atomic(AtomicKind.SWAP, 0x1000, 0x3333_3333, size=4)
    assert machine.memory.read_u64(0x1000) == 0x1111_1111_3333_3333


@pytest.mark.parametrize(("compare", "after"), [(5, 7), (6, 5)])
def test_port_compare_swap_swaps_only_an_equal_value(machine, port, compare, after):
    machine.memory.write_u64(0x1000, 5)
    port.atomic(AtomicKind.COMPARE_SWAP, 0x1000, 7, compare)
    assert machine.memory.read_u64(0x1000) == after


def test_port_atomic_must_be_aligned(port):
    with pytest.raises(ValueError, match=r"^address must be a multiple of 8, not 0x1004$"):
        port.atomic(AtomicKind.SWAP, 0x1004, 0)


def test_port_compare_belongs_to_compare_swap(port):
    with pytest.raises(ValueError, match="compare belongs to COMPARE_SWAP"):
        port.atomic(AtomicKind.SWAP, 0x1000, 0, 1)


def test_port_transfer_refuses_a_pasid_of_21_bits(port):
    with pytest.raises(ValueError, match=r"^pasid must be in 0x0\.\.0xfffff, not 0x100000$"):
        port.transfer(Access.READ, 0x1000, 4, pasid=1 << 20)


def test_port_transfer_reads_with_attributes(machine, port):
    machine.memory.write(0x1000, b"data")
    assert port.transfer(Access.READ, 0x1000, 4, flags=RequestFlag.NO_SNOOP).data == b"data"


def test_port_pending_read_is_filled_in_when_it_arrives(machine, port):
    machine.memory.write(0x1000, b"late")
    port.set_latency(100, 50)
    completion = port.read(0x1000, 4)
    machine.advance(149)
    assert completion.pending
    machine.advance(1)
    assert (completion.status, completion.data) == (Status.DONE, b"late")


def test_port_pending_completion_says_when_it_landed(machine, port):
    port.set_latency(100, 50)
    completion = port.write(0x1000, b"late")
    machine.advance(1000)
    assert completion.details.time == 150


def test_port_on_done_is_called_at_once_without_latency(port):
    seen = []
    port.read(0x1000, 4, seen.append)
    assert [completion.data for completion in seen] == [bytes(4)]


def test_port_on_done_is_called_with_the_pending_completion(machine, port):
    seen = []
    port.set_latency(10, 0)
    completion = port.write(0x1000, b"x", seen.append)
    assert seen == []
    machine.advance(10)
    assert seen == [completion]


def test_port_posted_write_needs_nobody_to_take_it(machine, port):
    port.set_latency(10, 0)
    assert port.transfer(Access.WRITE, 0x1000, b"posted", posted=True).ok
    machine.advance(10)
    assert machine.memory.read(0x1000, 6) == b"posted"


def test_port_counts_both_stages_of_what_is_in_flight(machine, port):
    port.set_latency(10, 10)
    port.write(0x1000, b"x")
    machine.advance(5)
    port.write(0x2000, b"y")
    machine.advance(5)
    assert port.in_flight == (1, 1)


def test_port_is_busy_when_the_pool_is_full(machine, port):
    port.set_latency(10, 10)
    statuses = [port.write(0x1000, b"x").status for _ in range(257)]
    assert statuses == [Status.PENDING] * 256 + [Status.BUSY]


def test_port_has_room_again_after_completions(machine, port):
    port.set_latency(10, 10)
    for _ in range(256):
        port.write(0x1000, b"x")
    machine.advance(20)
    assert port.write(0x1000, b"x").status is Status.PENDING


def test_port_removed_sends_nothing(machine, port):
    port.remove()
    assert port.write(0x1000, b"x").status is Status.REMOVED
    assert machine.memory.read(0x1000, 1) == b"\0"


def test_port_destroyed_refuses_every_call(port):
    port.destroy()
    assert port.read(0, 4).status is Status.REMOVED
    assert port.in_flight == (0, 0)


def test_port_read_across_ram_and_a_bar_delivers_both_parts(machine, port):
    end = machine.memory.size  # RAM starts at 0
    machine.core.map_bar(end, 0x1000, owner=1)
    machine.memory.write(end - 4, b"ram:")
    completion = port.read(end - 4, 8)
    (message,) = machine.core.take_messages()
    machine.core.answer(message.token, b"bar!")
    port.poll()
    assert (completion.data, completion.details.done) == (b"ram:bar!", 8)
