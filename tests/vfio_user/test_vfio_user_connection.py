"""Clients that come, go, die and come again; sockets; the loop and its clock."""

import os
import re
import socket
import stat
import struct

import pytest
from vfio_user_client import (
    EVENTFD,
    HEADER,
    MSIX,
    REGION_READ,
    REGION_WRITE,
    TRIGGER,
    Client,
)
from vfio_user_sample import Sample

from iommu_emu.core import StateError, Status
from iommu_emu.machine import Machine
from iommu_emu.pci.function import BUS_MASTER, COMMAND
from iommu_emu.vfio_user import Server

MIB = 1 << 20


def kinds(events):
    return [event.kind for event in events]


# Plugging and unplugging.


def test_function_is_plugged_while_it_has_a_client(client, machine, sample):
    assert machine.fabric.find(0, 0x28) is sample
    client.close()
    assert not sample.attached


def test_function_is_not_plugged_before_the_version_is_agreed_on(endpoint, connect, sample):
    stranger = connect(endpoint, negotiated=False)
    assert stranger.silent
    assert not sample.attached


def test_reconnecting_client_finds_a_function_that_was_reset(endpoint, connect, sample):
    first = connect(endpoint)
    first.write(7, 4, b"\x06\x00")
    first.close()
    resets = sample.resets
    second = connect(endpoint)
    assert sample.resets == resets + 1
    assert second.read(7, 4, 2) == b"\0\0"


def test_client_that_dies_takes_its_descriptors_and_memory_along(
    client, machine, sample, memory, eventfd
):
    client.map(0, MIB, memory)
    client.set_irqs(MSIX, EVENTFD | TRIGGER, fds=[eventfd()])
    client.close()
    assert machine.memory.ranges == []
    assert sample.interrupt_sink is None


def test_client_that_dies_with_a_write_in_flight(client, machine, sample, memory):
    client.map(0, MIB, memory)
    sample.config.write(COMMAND, 2, BUS_MASTER)
    sample.dma.set_latency(1000, 1000)
    completion = sample.dma.write(0, b"too late")
    client.close()
    machine.advance(3000)
    assert completion.status is Status.REMOVED
    assert os.pread(memory, 8, 0) == bytes(8)


def test_client_that_dies_while_its_unmap_waits(client, machine, memory, endpoint):
    client.map(0, MIB, memory)
    view = machine.memory.view(0, 4096)
    client.send(3, struct.pack("<IIQQ", 24, 0, 0, MIB))
    assert client.silent
    client.sock.close()
    del view
    client.server.run_until(lambda: endpoint.connection is None, 5)
    assert endpoint.connection is None
    assert machine.memory.ranges == []


@pytest.mark.parametrize("length", range(1, 40, 3))
def test_client_that_dies_inside_a_message(client, endpoint, connect, length):
    message = HEADER.pack(1, REGION_WRITE, 40, 0, 0) + struct.pack("<QII", 0, 0, 8) + bytes(8)
    client.send_raw(message[:length])
    client.close()
    assert endpoint.connection is None
    assert connect(endpoint).read(0, 0, 4) == bytes(4)


def test_client_that_dies_before_it_reads_the_answer(client, endpoint, connect):
    client.send(REGION_READ, struct.pack("<QII", 0, 0, 4096))
    client.close()
    assert connect(endpoint).read(0, 0, 4) == bytes(4)


def test_function_may_move_while_nobody_has_it(endpoint, connect, machine, sample):
    endpoint.address = "00:07.0"
    connect(endpoint)
    assert machine.fabric.find(0, 0x38) is sample


def test_function_does_not_move_under_its_client(client, endpoint):
    with pytest.raises(StateError, match="unplug it before it moves"):
        endpoint.address = "00:07.0"


def test_messages_in_pieces_are_put_together(client):
    message = HEADER.pack(7, REGION_READ, 32, 0, 0) + struct.pack("<QII", 0, 0, 4)
    for index in range(len(message)):
        client.send_raw(message[index : index + 1])
        client.server.run_once(0)
    assert client.receive().body[16:] == bytes(4)


def test_messages_without_pause_are_answered_in_order(client):
    message = HEADER.pack(7, REGION_READ, 32, 0, 0) + struct.pack("<QII", 0, 0, 4)
    sent = [HEADER.pack(i, *HEADER.unpack(message[:16])[1:]) + message[16:] for i in range(200)]
    client.send_raw(b"".join(sent))
    assert [client.receive().id for _ in range(200)] == list(range(200))


def test_client_that_does_not_read_is_not_read_for_ever(client, endpoint):
    request = HEADER.pack(7, REGION_READ, 32, 0, 0) + struct.pack("<QII", 0, 0, 8192)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(2000):
        try:
            client.sock.send(request)
        except BlockingIOError:
            break
        client.server.run_once(0)
    assert len(endpoint.connection._out) < (4 << 20) + 10_000
    assert client.receive().body[16:] == bytes(8192)


# Sockets.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sample.sock"


def dial(server, path):
    """Connect to a socket; the server has not seen it yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return Client(server, sock)


def test_socket_is_there_for_its_owner_alone(server, sample, path):
    server.serve(sample, path, "00:05.0")
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_socket_serves_one_client_after_another(server, sample, path):
    server.serve(sample, path, "00:05.0")
    for _ in range(3):
        client = dial(server, path)
        client.negotiate()
        assert client.read(0, 0, 4) == bytes(4)
        client.sock.close()  # the server learns of it when the next one is there


def test_second_client_is_turned_away(server, sample, path, events):
    server.serve(sample, path, "00:05.0")
    first = dial(server, path)
    first.negotiate()
    second = dial(server, path)
    assert second.ended
    second.close()
    assert kinds(events) == ["connected", "refused"]
    assert first.read(0, 0, 4) == bytes(4)
    first.close()


def test_socket_that_nobody_serves_is_replaced(server, sample, path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    server.serve(sample, path, "00:05.0")
    client = dial(server, path)
    assert client.negotiate()
    client.close()


def test_socket_that_is_served_is_left_alone(server, sample, path):
    server.serve(sample, path, "00:05.0")
    with pytest.raises(OSError, match=re.escape(str(path))):
        server.serve(Sample(), path, "00:06.0")


def test_file_in_the_place_of_a_socket_is_left_alone(server, sample, path):
    path.write_text("mine")
    with pytest.raises(OSError, match=re.escape(str(path))):
        server.serve(sample, path, "00:05.0")
    assert path.read_text() == "mine"


def test_socket_path_has_a_limit(server, sample, tmp_path):
    with pytest.raises(ValueError, match="at most 107 bytes"):
        server.serve(sample, tmp_path / ("x" * 107), "00:05.0")


def test_closing_the_server_removes_its_sockets_and_unplugs(machine, sample, path):
    with Server(machine) as server:
        server.serve(sample, path, "00:05.0")
        client = dial(server, path)
        client.negotiate()
    assert not path.exists()
    assert not sample.attached
    assert client.sock.recv(1) == b""
    client.sock.close()


def test_closing_the_server_leaves_anothers_socket(machine, sample, path):
    with Server(machine) as server:
        server.serve(sample, path, "00:05.0")
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


def test_qemu_device_names_socket_and_place(server, sample, path):
    endpoint = server.serve(sample, path, "00:05.0")
    assert endpoint.qemu_device(bus="rp0") == (
        '{"driver": "vfio-user-pci", '
        f'"socket": {{"type": "unix", "path": "{path}"}}, "bus": "rp0"}}'
    )


# What a server refuses.


def test_server_does_the_attaching(server, machine, sample):
    machine.attach(sample, "00:05.0")
    with pytest.raises(StateError, match="attached already"):
        server.serve(sample, None, "00:05.0")


def test_server_serves_a_function_once(server, endpoint, sample):
    with pytest.raises(StateError, match="served already"):
        server.serve(sample, None, "00:06.0")


def test_server_serves_a_unit_once(server, page, unit):
    with pytest.raises(StateError, match="served already"):
        server.serve_unit(unit, None)


def test_server_serves_its_own_machines_units(server, unit):
    with Server(Machine(memory=())) as other, pytest.raises(ValueError, match="is not in"):
        other.serve_unit(unit, None)


def test_machine_has_one_server(server, machine):
    with pytest.raises(StateError, match="one server a machine"):
        Server(machine)


# The loop.


class Hands:
    """A clock source that is moved by hand."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def following(hands):
    """A server whose machine follows a clock."""
    with Server(Machine(memory=(), clock_source=hands)) as server:
        yield server


def test_loop_lets_the_clock_follow_its_source(following, hands):
    hands.now = 5000
    following.run_once(0)
    assert following.machine.clock.now == 5000


def test_loop_fires_timers_that_are_due(following, hands):
    fired = []
    following.machine.clock.call_at(4000, lambda: fired.append(following.machine.clock.now))
    hands.now = 5000
    following.run_once(0)
    assert fired == [4000]


def test_loop_waits_until_the_next_event(following, hands):
    assert following.timeout() is None
    following.machine.clock.call_at(3_000_000_000, lambda: None)
    hands.now = 1_000_000_000
    assert following.timeout() == 2.0


def test_loop_waits_for_an_event_that_is_months_away(following):
    following.machine.clock.call_at(1 << 62, lambda: None)
    called = []
    event = os.eventfd(1)
    following.watch(event, lambda: called.append(os.eventfd_read(event)))
    assert following.run_once()
    following.unwatch(event)
    os.close(event)
    assert called == [1]


def test_loop_is_stepped_where_the_clock_is(server, machine):
    machine.clock.call_at(1, lambda: None)
    assert server.timeout() is None
    server.run_once(0)
    assert machine.clock.now == 0


def test_loop_tells_another_loop_that_there_is_work(server, client):
    import select

    assert select.select([server], [], [], 0)[0] == []
    client.send(REGION_READ, struct.pack("<QII", 0, 0, 4))
    assert select.select([server], [], [], 0)[0] == [server]


def test_run_until_gives_up(server):
    assert not server.run_until(lambda: False, 0.01)


def test_events_name_the_function(client, events):
    client.close()
    assert [(e.kind, e.name) for e in events] == [
        ("connected", "sample"),
        ("disconnected", "sample"),
    ]
    assert events[1].details == {"reason": "the client went away"}
