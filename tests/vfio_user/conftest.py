"""A machine with a VT-d unit, a server, and clients of what it serves."""

import os
import socket

import pytest
from vfio_user_client import Client, descriptors, sealed_memory
from vfio_user_sample import Sample

from iommu_emu.machine import Machine
from iommu_emu.vfio_user import Server
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

BASE = 0xFED9_0000
RAM = 16 << 20


@pytest.fixture
def machine():
    return Machine(memory=())


@pytest.fixture
def unit(machine):
    return VtdUnit(machine, VtdConfig(base=BASE, geometry="tiny-2"))


@pytest.fixture
def events():
    return []


@pytest.fixture
def server(machine, events):
    before = descriptors()
    with Server(machine, events.append) as server:
        yield server
    assert descriptors(before) <= before, "descriptors left open"


@pytest.fixture
def connect(server):
    """Connects clients to endpoints; they are closed at the end."""
    clients = []

    def connect(endpoint, negotiated=True):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        client = Client(server, ours)
        clients.append(client)
        endpoint.connect(theirs)
        if negotiated:
            client.negotiate()
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def sample():
    return Sample()


@pytest.fixture
def endpoint(server, sample):
    return server.serve(sample, None, "00:05.0")


@pytest.fixture
def client(connect, endpoint):
    """A client of the sample device that has negotiated."""
    return connect(endpoint)


@pytest.fixture
def page(server, unit):
    """The endpoint of the unit's register page."""
    return server.serve_unit(unit, None)


@pytest.fixture
def memory():
    """16 MiB of the guest's memory: a sealed file."""
    fd = sealed_memory(RAM)
    yield fd
    os.close(fd)


@pytest.fixture
def eventfd():
    """Makes event descriptors that are closed at the end."""
    fds = []

    def make(value=0, flags=os.EFD_NONBLOCK | os.EFD_CLOEXEC):
        fds.append(os.eventfd(value, flags))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)
