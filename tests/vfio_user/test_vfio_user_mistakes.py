"""Mistakes in what is served, and in who listens: a connection ends, the server does not."""

import os
import resource
import socket
import struct
from contextlib import contextmanager, suppress
from errno import EACCES, EIO, EMFILE

import pytest
from vfio_user_client import (
    CONFIG,
    DMA_WRITE,
    ERROR,
    EVENTFD,
    HEADER,
    INTX,
    REGION_READ,
    REGION_WRITE,
    REPLY,
    TRIGGER,
    UNMASK,
    Refused,
)
from vfio_user_sample import Sample

from iommu_emu.vfio_user import Server


class Mistake(Exception):  # noqa: N818 - is one
    """Raised by what is served."""


def wrong(*arguments):
    raise Mistake("of a model")


def kinds(events):
    return [event.kind for event in events]


@pytest.fixture
def other(server, connect):
    """A client of another device of the same server."""
    return connect(server.serve(Sample(), None, "00:06.0"))


# Device models.


def test_models_mistake_ends_its_clients_connection(client, sample, events, monkeypatch, caplog):
    monkeypatch.setattr(sample, "bar_read", wrong)
    client.send(REGION_READ, struct.pack("<QII", 0, 0, 4))
    reply = client.receive()
    assert (reply.flags, reply.error) == (REPLY | ERROR, EIO)
    assert client.ended
    assert kinds(events) == ["connected", "error", "disconnected"]
    assert events[1].details == {"reason": "Mistake: of a model"}
    assert caplog.records[0].exc_info[0] is Mistake


def test_models_mistake_leaves_other_clients_alone(client, sample, other, monkeypatch):
    monkeypatch.setattr(sample, "bar_read", wrong)
    client.send(REGION_READ, struct.pack("<QII", 0, 0, 4))
    assert client.ended
    assert other.read(0, 0, 4) == bytes(4)


def test_models_mistake_is_not_that_of_the_model_that_reaches_it(
    server, client, sample, connect, monkeypatch
):
    reached = Sample()
    other = connect(server.serve(reached, None, "00:06.0"))
    monkeypatch.setattr(reached, "bar_read", wrong)
    monkeypatch.setattr(sample, "bar_write", lambda *access: reached.access_read(0, 0, 4))
    client.send(REGION_WRITE, struct.pack("<QII", 0, 0, 4) + bytes(4))
    assert other.ended
    assert client.receive().error == EIO
    assert client.read(0, 0, 4) == bytes(4)


def test_models_mistake_is_gone_with_the_connection(client, endpoint, connect, sample, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sample, "bar_read", wrong)
        client.send(REGION_READ, struct.pack("<QII", 0, 0, 4))
        assert client.ended
    assert connect(endpoint).read(0, 0, 4) == bytes(4)


def test_models_mistake_in_a_completion_is_its_own(client, sample, other, machine, memory):
    client.map(0, 1 << 20, memory)
    client.write(CONFIG, 4, b"\x04\x00")
    sample.dma.set_latency(0, 1000)
    sample.dma.write(0, b"data", on_done=wrong)
    machine.core.advance_to(1000)  # it has landed; the loop will say so
    assert client.ended
    assert other.read(0, 0, 4) == bytes(4)


def test_models_mistake_at_its_removal_keeps_nothing(client, sample, machine, memory, monkeypatch):
    client.map(0, 1 << 20, memory)
    monkeypatch.setattr(sample, "on_removed", wrong)
    client.close()
    assert machine.memory.ranges == []
    assert sample.interrupt_sink is None


def test_models_mistake_behind_an_event_descriptor(client, sample, eventfd, monkeypatch):
    unmask = eventfd()
    client.set_irqs(INTX, EVENTFD | TRIGGER, fds=[eventfd()])
    client.set_irqs(INTX, EVENTFD | UNMASK, fds=[unmask])
    monkeypatch.setattr("iommu_emu.vfio_user.interrupts.Interrupts._act", wrong)
    os.eventfd_write(unmask, 1)
    assert client.ended


def test_mistake_of_nobodys_ends_every_connection(client, other, machine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(machine, "service", wrong)
        client.server.run_once(0)
    assert client.ended
    assert other.ended


def test_mistake_of_nobodys_without_connections_is_the_callers(server, machine, monkeypatch):
    monkeypatch.setattr(machine, "service", wrong)
    with pytest.raises(Mistake):
        server.run_once(0)


# Replies that lie.


@pytest.mark.parametrize(
    ("error", "told"),
    [(EACCES, EACCES), (4095, 4095), (0, EIO), (4096, EIO), (1 << 31, EIO), (0xFFFF_FFFF, EIO)],
)
def test_error_of_a_reply_is_an_errno(client, endpoint, error, told):
    errors = []
    endpoint.write_memory(0xFEE0_0000, b"data", lambda error, body: errors.append(error))
    sent = client.receive()
    client.send_raw(HEADER.pack(sent.id, DMA_WRITE, HEADER.size, REPLY | ERROR, error))
    assert client.silent
    assert errors == [told]


# Listeners.


@pytest.fixture
def deaf(machine, tmp_path):
    """The endpoint, at a socket, of a server whose listener raises at every event."""
    server = Server(machine, wrong)
    yield server.serve(Sample(), tmp_path / "sock", "00:05.0")
    server.close()


def test_listeners_mistake_comes_out_of_the_loop_once_the_client_is_served(deaf):
    server = deaf._server
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(deaf.path))
        with pytest.raises(Mistake):
            server.run_once(0)
        assert deaf.connection is not None
        assert not server.run_once(0)


def test_listeners_mistake_comes_out_of_close_once_everything_is_gone(deaf):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    deaf.connect(theirs)
    with pytest.raises(Mistake):
        deaf._server.close()
    assert not deaf.path.exists()
    assert ours.recv(1) == b""
    ours.close()


# Descriptors.


@contextmanager
def no_descriptor_left():
    """While it lasts, this process gets no further file descriptor."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def test_client_is_turned_away_without_descriptors(server, events, tmp_path):
    endpoint = server.serve(Sample(), tmp_path / "sock", "00:05.0")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(endpoint.path))
        with no_descriptor_left():
            server.run_once(0)
        assert [event.details for event in events] == [{"reason": "no file descriptor is left"}]
        assert sock.recv(1) == b""


def test_descriptor_that_did_not_arrive_is_an_error(client, memory):
    with no_descriptor_left(), pytest.raises(Refused) as refused:
        client.map(0, 1 << 20, memory)
    assert refused.value.errno == EMFILE
    client.map(0, 1 << 20, memory)
