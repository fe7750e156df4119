"""Event descriptors are signalled without blocking, whatever their other owner does to them."""

import os

import pytest

from iommu_emu.vfio_user import event_fd

FULL = (1 << 64) - 2  # the most that can be written; signalling goes one further and stops there
MANY = 1000  # more than the kernel keeps completions of


@pytest.fixture
def blocking(eventfd):
    """An event descriptor whose write and read block."""
    return eventfd(flags=os.EFD_CLOEXEC)


@pytest.fixture(params=["asynchronous", "written"])
def way(request, monkeypatch):
    """Both ways to signal."""
    if request.param == "written":
        monkeypatch.setattr(event_fd, "_aio", lambda process: None)
    return request.param


def test_event_fd_counts_signals(way, blocking):
    for _ in range(MANY):
        event_fd.signal_event(blocking)
    assert os.eventfd_read(blocking) == MANY


def test_event_fd_that_is_full_blocks_nobody(way, blocking):
    os.eventfd_write(blocking, FULL)
    event_fd.signal_event(blocking)
    event_fd.signal_event(blocking)
    assert os.eventfd_read(blocking) == {"asynchronous": FULL + 1, "written": FULL}[way]


def test_event_fd_is_signalled_without_touching_its_flags(blocking):
    event_fd.signal_event(blocking)
    assert os.get_blocking(blocking)


def test_event_fd_that_aio_refuses_is_written(blocking, monkeypatch):
    monkeypatch.setattr(event_fd._Aio, "signal", lambda self, fd: False)
    event_fd.signal_event(blocking)
    assert os.eventfd_read(blocking) == 1


@pytest.mark.parametrize("machine", ["x86_64", "riscv64"])
def test_event_fd_does_without_aio(blocking, monkeypatch, machine):
    """Neither a process that may not have a context nor an unknown machine is an error."""
    numbers = {"x86_64": (-1, -1, -1)}  # no system call: ENOSYS
    monkeypatch.setattr(event_fd, "_SYSTEM_CALLS", numbers)
    monkeypatch.setattr(event_fd.platform, "machine", lambda: machine)
    event_fd._aio.cache_clear()
    try:
        event_fd.signal_event(blocking)
    finally:
        event_fd._aio.cache_clear()
    assert os.eventfd_read(blocking) == 1
