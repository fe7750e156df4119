"""Whatever a client sends: an error reply or the end of its connection, and nothing is left."""

import gc
import os
import socket
import struct
from contextlib import contextmanager, suppress
from errno import E2BIG, EINVAL

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vfio_user_client import (
    DMA_MAP,
    ERROR,
    EVENTFD,
    GET_INFO,
    HEADER,
    MSIX,
    RESET,
    SET_IRQS,
    TRIGGER,
    VERSION,
    Client,
    Refused,
    descriptors,
    sealed_memory,
)
from vfio_user_sample import Sample

from iommu_emu.machine import Machine
from iommu_emu.vfio_user import Server
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


@pytest.fixture(autouse=True)
def _tidy():
    """Descriptors are counted here: none of other tests' garbage may go in between."""
    gc.collect()


@pytest.mark.parametrize(
    ("size", "flags", "error"),
    [(0, 0, EINVAL), (15, 0, EINVAL), ((1 << 20) + 4097, 0, E2BIG), (0xFFFF_FFFF, 0, E2BIG)],
)
def test_header_with_an_impossible_size_ends_the_connection(client, size, flags, error):
    client.send_raw(HEADER.pack(9, GET_INFO, size, flags, 0))
    reply = client.receive()
    assert (reply.id, reply.flags & ERROR, reply.error) == (9, ERROR, error)
    assert client.ended


@pytest.mark.parametrize("kind", [2, 3, 15])
def test_header_of_no_known_type_ends_the_connection(client, kind):
    client.send_raw(HEADER.pack(9, GET_INFO, 32, kind, 0) + bytes(16))
    assert client.ended


def test_large_message_is_taken_up_to_the_limit(client):
    body = struct.pack("<QII", 0, 0, 0) + bytes((1 << 20) + 4096 - 32)
    with pytest.raises(Refused) as refused:
        client.call(10, body)
    assert refused.value.errno == EINVAL


@pytest.mark.parametrize("command", [VERSION, GET_INFO, RESET, 99])
def test_descriptors_of_a_command_that_takes_none_are_closed(client, command, eventfd):
    fd = eventfd()
    before = descriptors()
    with pytest.raises(Refused) as refused:
        client.call(command, bytes(32), [fd])
    assert refused.value.errno == EINVAL
    assert descriptors(before) == before


@pytest.mark.parametrize("number", [17, 64, 253])
def test_flood_of_descriptors_is_closed(client, number, eventfd):
    fd = eventfd()
    before = descriptors()
    body = struct.pack("<IIIII", 20, EVENTFD | TRIGGER, MSIX, 0, 8)
    with pytest.raises(Refused) as refused:
        client.call(SET_IRQS, body, [fd] * number)
    assert refused.value.errno == EINVAL
    assert descriptors(before) == before


def test_descriptors_that_come_with_half_a_header_are_closed(client, eventfd, endpoint):
    before = descriptors()
    client.send_raw(HEADER.pack(1, DMA_MAP, 48, 0, 0)[:7], [eventfd()])
    client.server.run_once(0)
    assert descriptors(before + 2) == before + 2
    client.close()
    assert endpoint.connection is None
    assert descriptors(before) == before - 1  # the server's end of the connection


def test_descriptors_of_every_byte_of_a_header_belong_to_its_message(client, memory, machine):
    message = HEADER.pack(1, DMA_MAP, 48, 0, 0) + struct.pack("<IIQQQ", 32, 3, 0, 0, 4096)
    client.send_raw(message[:4])
    client.send_raw(message[4:], [memory])
    assert client.receive().error == 0
    assert machine.memory.ranges == [(0, 4096)]


def test_descriptors_of_a_body_are_not_taken_for_the_next_message(client, eventfd):
    before = descriptors()
    body = struct.pack("<IIII", 16, 0, 0, 0)
    client.send_raw(HEADER.pack(1, GET_INFO, 32, 0, 0))
    client.send_raw(body, [eventfd()])
    assert client.receive().error == 0
    client.call(RESET)
    assert descriptors(before + 1) == before + 1


# Anything at all.

WORDS = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 20, 24, 32, 33, 36, 48, 4096, 0xFFFF_FFFF])
FIELDS = st.one_of(WORDS, st.integers(0, 0xFFFF_FFFF)).map(lambda word: struct.pack("<I", word))
BODIES = st.one_of(
    st.binary(max_size=64),
    st.lists(FIELDS, max_size=12).map(b"".join),
    st.builds(
        lambda region, offset, count, data: struct.pack("<QII", offset, region, count) + data,
        st.integers(0, 9),
        st.sampled_from([0, 4, 0x10, 0x40, 0x42, 4092, 8188]),
        st.integers(0, 16),
        st.binary(max_size=16),
    ),
    st.builds(
        lambda flags, base, size: struct.pack("<IIQQQ", 32, flags, 0, base << 12, size << 12),
        st.integers(0, 4),
        st.integers(0, 8),
        st.integers(0, 5),
    ),
    st.builds(
        lambda base, size: struct.pack("<IIQQ", 24, 0, base << 12, size << 12),
        st.integers(0, 8),
        st.integers(0, 5),
    ),
    st.builds(
        lambda flags, index, start, count, data: (
            struct.pack("<IIIII", 20, flags, index, start, count) + data
        ),
        st.integers(0, 63),
        st.integers(0, 5),
        st.integers(0, 9),
        st.integers(0, 3),
        st.binary(max_size=4),
    ),
)
KINDS = st.sampled_from(
    ["memory", "unsealed", "short", "eventfd", "full eventfd", "pipe", "socket"]
)
MESSAGES = st.tuples(
    st.integers(0, 20),
    BODIES,
    st.sampled_from([0, 0, 0, 0x10, 0x20, 1, 2]),
    st.sampled_from([0] * 8 + [-16, -4, 4, 16]),
    st.lists(KINDS, max_size=3),
)


def full_eventfd():
    """Return a descriptor that blocks whoever signals it."""
    fd = os.eventfd(0)
    os.eventfd_write(fd, (1 << 64) - 2)
    return [fd]


@contextmanager
def opened(kinds):
    """Yield a descriptor of each kind."""
    make = {
        "memory": lambda: [sealed_memory(16 << 12)],
        "unsealed": lambda: [sealed_memory(16 << 12, seals=0)],
        "short": lambda: [sealed_memory(4096)],
        "eventfd": lambda: [os.eventfd(0)],
        "full eventfd": full_eventfd,
        "pipe": lambda: list(os.pipe()),
        "socket": lambda: [socket.socket(socket.AF_UNIX).detach()],
    }
    fds = []
    try:
        for kind in kinds:
            fds += make[kind]()
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def test_client_whose_own_socket_was_sent_along_is_gone_with_it(client, endpoint):
    client.send_raw(HEADER.pack(1, GET_INFO, 32, 0, 0), [client.sock.fileno()])
    client.close()
    client.server.run_until(lambda: endpoint.connection is None, 10)
    assert endpoint.connection is None


@contextmanager
def stage():
    """Yield a server with a device and a register page; nothing of it may be left behind."""
    before = descriptors()
    machine = Machine(memory=())
    unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000, geometry="tiny-2"))
    with Server(machine) as server:
        yield server, (server.serve(Sample(), None, "00:05.0"), server.serve_unit(unit, None))
        for endpoint in server.endpoints:
            if endpoint.connection is None:
                with dialled(server, endpoint) as client:
                    assert len(client.read(0, 0, 4)) == 4
    assert machine.memory.ranges == []
    assert descriptors(before) == before


@contextmanager
def dialled(server, endpoint, negotiated=True):
    """Yield a client; it hangs up behind it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    endpoint.connect(theirs)
    client = Client(server, ours)
    try:
        if negotiated:
            client.negotiate()
        yield client
    finally:
        client.close()


def attack(client, data, fds=()):
    """Send without caring for answers; False once the server has had enough."""
    try:
        client.send_raw(data, fds)
    except (BrokenPipeError, ConnectionResetError):
        return False
    client.server.run_once(0)
    try:
        return client.sock.recv(1 << 20) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1), st.booleans(), st.lists(MESSAGES, min_size=1, max_size=12))
def test_any_messages_leave_the_server_working(target, negotiated, messages):
    with (
        stage() as (server, endpoints),
        dialled(server, endpoints[target], negotiated) as client,
    ):
        for command, body, flags, lie, kinds in messages:
            size = HEADER.size + max(len(body) + lie, -HEADER.size)
            with opened(kinds) as fds:
                if not attack(client, HEADER.pack(1, command, size, flags, 0) + body, fds):
                    break


@settings(max_examples=100, deadline=None)
@given(st.booleans(), st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=5))
def test_any_bytes_leave_the_server_working(negotiated, chunks):
    with stage() as (server, endpoints), dialled(server, endpoints[0], negotiated) as client:
        for chunk in chunks:
            if not attack(client, chunk):
                break


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_two_clients_that_lie_about_memory_leave_the_server_working(data):
    with (
        stage() as (server, endpoints),
        opened(["memory", "memory"]) as files,
        dialled(server, endpoints[0]) as first,
        dialled(server, endpoints[1]) as second,
    ):
        clients = [first, second]
        for _ in range(data.draw(st.integers(1, 20))):
            client = data.draw(st.sampled_from(clients))
            base, size, offset = (data.draw(st.integers(0, 8)) << 12 for _ in range(3))
            with suppress(Refused):
                if data.draw(st.booleans()):
                    client.map(base, size, data.draw(st.sampled_from([None, *files])), offset)
                else:
                    client.unmap(base, size)
            check_agreement(server)
        for client in clients:
            client.close()
            check_agreement(server)


def check_agreement(server):
    """What the server says is mapped, and nothing else, is the machine's memory."""
    assert server.memory.ranges == server.machine.memory.ranges
    for base, size in server.memory.ranges:
        assert len(server.machine.memory.read(base, size)) == size
