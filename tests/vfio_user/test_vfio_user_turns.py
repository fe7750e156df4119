"""A client that wants much gets it in turns: others are served in between."""

import struct

import pytest
from vfio_user_client import REGION_READ, REGION_WRITE, WRITE_MULTI
from vfio_user_sample import Sample

from iommu_emu.clock import TURN
from iommu_emu.vfio_user import commands, connection

LENGTH = 64  # bytes of an access in eight pieces
ACCESS = struct.pack("<QII", 0, 0, LENGTH)
DATA = bytes(range(LENGTH))


class Hurry:
    """A clock of which each look takes a whole turn."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += TURN
        return self.now


@pytest.fixture
def other(server, connect):
    """A client of another device of the same server."""
    return connect(server.serve(Sample(), None, "00:06.0"))


@pytest.fixture
def short_turns(other, client, monkeypatch):
    """Everybody's turn is over after one piece of an access, and after one message."""
    monkeypatch.setattr(commands, "monotonic", Hurry())
    monkeypatch.setattr(connection, "monotonic", Hurry())


def test_large_read_lets_others_have_their_turn(short_turns, client, sample, other):
    sample.memory[0][:LENGTH] = DATA
    client.send(REGION_READ, ACCESS)
    assert other.read(0, 0, 4) == bytes(4)
    assert 0 < len(sample.accesses) < LENGTH / 8
    assert client.receive().body == ACCESS + DATA


def test_large_write_lets_others_have_their_turn(short_turns, client, sample, other):
    client.send(REGION_WRITE, ACCESS + DATA)
    assert other.read(0, 0, 4) == bytes(4)
    assert 0 < len(sample.accesses) < LENGTH / 8
    assert client.receive().body == ACCESS
    assert sample.memory[0][:LENGTH] == DATA


def test_many_writes_let_others_have_their_turn(short_turns, client, sample, other):
    writes = b"".join(struct.pack("<QIIQ", 8 * at, 0, 8, at) for at in range(8))
    client.send(WRITE_MULTI, struct.pack("<Q", 8) + writes)
    assert other.read(0, 0, 4) == bytes(4)
    assert 0 < len(sample.accesses) < 8
    assert client.receive().body == struct.pack("<Q", 8)
    assert sample.memory[0][:64] == struct.pack("<8Q", *range(8))


def test_many_messages_let_others_have_their_turn(short_turns, client, sample, server):
    for _ in range(3):
        client.send(REGION_READ, struct.pack("<QII", 0, 0, 4))
    server.run_once(0)
    assert len(sample.accesses) == 1
    assert [client.receive().body[16:] for _ in range(3)] == [bytes(4)] * 3


def test_large_message_in_many_parts_lets_others_have_their_turn(short_turns, client, server):
    """Parts that keep coming are no reason to go on reading: each read counts."""
    reads = []
    original = connection.Connection._receive_some

    def counted(self):
        reads.append(self)
        client.sock.send(b"x")
        return original(self)

    connection.Connection._receive_some = counted
    try:
        client.send_raw(struct.pack("<HHIII", 1, REGION_WRITE, 1 << 20, 0, 0) + b"x")
        server.run_once(0)
    finally:
        connection.Connection._receive_some = original
    assert len(reads) == 1


def test_next_message_waits_for_a_large_access(short_turns, client, sample):
    client.send(REGION_WRITE, ACCESS + DATA)
    client.send(REGION_READ, ACCESS)
    assert client.receive().body == ACCESS
    assert client.receive().body == ACCESS + DATA


def test_function_that_goes_during_a_read_leaves_ones(short_turns, client, sample, server, machine):
    client.send(REGION_READ, ACCESS)
    server.run_once(0)
    machine.remove(sample)
    data = client.receive().body[16:]
    assert (data[:8], data[-8:]) == (bytes(8), b"\xff" * 8)


def test_function_that_goes_during_a_write_takes_no_more(
    short_turns, client, sample, server, machine
):
    client.send(REGION_WRITE, ACCESS + DATA)
    server.run_once(0)
    machine.remove(sample)
    assert client.receive().body == ACCESS
    assert bytes(sample.memory[0][LENGTH - 8 : LENGTH]) == bytes(8)


def test_client_that_goes_during_a_large_access_is_gone(short_turns, client, endpoint):
    client.send(REGION_READ, ACCESS)
    client.server.run_once(0)
    client.close()
    assert endpoint.connection is None
