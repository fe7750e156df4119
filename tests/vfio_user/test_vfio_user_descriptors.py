"""Which descriptors of a client are taken, and how the others are closed."""

import os
import select
import socket

import pytest
from vfio_user_client import sealed_memory

from iommu_emu.vfio_user.descriptors import discard, is_event, is_memory


@pytest.fixture(
    params=["memory", "event", "pipe", "socket", "epoll", "device", "file", "path", "folder"]
)
def descriptor(request, tmp_path):
    """A kind of descriptor, and one of it."""
    (tmp_path / "file").touch()
    make = {
        "memory": lambda: sealed_memory(4096),
        "event": lambda: os.eventfd(0),
        "pipe": lambda: os.dup(request.getfixturevalue("pipe")[0]),
        "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
        "epoll": lambda: os.dup(request.getfixturevalue("epoll").fileno()),
        "device": lambda: os.open("/dev/zero", os.O_RDWR),
        "file": lambda: os.open(f"/proc/{os.getpid()}/stat", os.O_RDONLY),
        "path": lambda: os.open(tmp_path / "file", os.O_PATH),
        "folder": lambda: os.open(tmp_path, os.O_RDONLY),
    }
    fd = make[request.param]()
    yield request.param, fd
    os.close(fd)


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def epoll():
    with select.epoll() as epoll:
        yield epoll


def test_descriptor_of_memory_or_events_is_told_from_all_others(descriptor):
    kind, fd = descriptor
    assert (is_memory(fd), is_event(fd)) == (kind == "memory", kind == "event")


def test_descriptor_named_like_an_event_is_none(tmp_path):
    with open(tmp_path / "anon_inode:[eventfd]", "w") as file:
        assert not is_event(file.fileno())


def test_discarded_descriptor_is_closed():
    reading, writing = os.pipe()
    discard(writing)
    assert os.read(reading, 1) == b""  # comes with the last writer's end
    os.close(reading)
