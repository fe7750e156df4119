"""DMA_MAP and DMA_UNMAP: whose memory a device reaches, and when it is let go."""

import os
import struct
from errno import EACCES, EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM, ENOSPC
from types import SimpleNamespace

import pytest
from vfio_user_client import DMA_MAP, DMA_UNMAP, Refused, sealed_memory
from vfio_user_sample import Sample

from iommu_emu.core import Status
from iommu_emu.pci.function import BUS_MASTER, COMMAND
from iommu_emu.vfio_user import guest_memory

MIB = 1 << 20


def refusal(call, *arguments, **named):
    with pytest.raises(Refused) as refused:
        call(*arguments, **named)
    return refused.value.errno


@pytest.fixture
def master(client, sample):
    """The sample device, allowed to send."""
    sample.config.write(COMMAND, 2, BUS_MASTER)
    return sample


@pytest.fixture
def second(server, connect):
    """A client of another function of the same machine."""
    return connect(server.serve(Sample(), None, "00:06.0"))


# What a map does.


def test_map_lets_a_device_write_the_clients_memory(client, master, memory):
    assert client.map(0, MIB, memory) == b""
    assert master.dma.write(0x1000, b"hello").ok
    assert os.pread(memory, 5, 0x1000) == b"hello"


def test_map_lets_a_device_read_from_an_offset_of_the_file(client, master, memory):
    os.pwrite(memory, b"guest", 0x5000)
    client.map(0x10_0000, MIB, memory, offset=0x4000)
    assert master.dma.read(0x10_1000, 5).data == b"guest"


def test_map_ends_where_it_says(client, master, memory, machine):
    client.map(0, MIB, memory)
    assert machine.memory.ranges == [(0, MIB)]
    assert master.dma.write(MIB, b"beyond").status is Status.UNSUPPORTED_REQUEST


def test_map_keeps_no_descriptor_of_a_file_it_has(client, memory):
    client.map(0, MIB, memory)
    before = len(os.listdir("/proc/self/fd"))
    client.map(MIB, MIB, memory, offset=MIB)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("flags", "offset", "base", "size"),
    [
        (0, 0, 0, MIB),
        (4, 0, 0, MIB),
        (7, 0, 0, MIB),
        (3, 0, 0, 0),
        (3, 0, 1, MIB),
        (3, 0, 0, MIB + 1),
        (3, 1, 0, MIB),
        (3, 0, (1 << 64) - 4096, 8192),
        (3, 16 * MIB, 0, 4096),
        (3, 0, 0, 16 * MIB + 4096),
        (3, (1 << 64) - 4096, 0, 8192),
    ],
)
def test_map_of_impossible_numbers_is_invalid(client, machine, memory, flags, offset, base, size):
    assert refusal(client.map, base, size, memory, offset, flags) == EINVAL
    assert machine.memory.ranges == []


@pytest.mark.parametrize("body", [b"", bytes(31), struct.pack("<IIQQQ", 31, 3, 0, 0, 4096)])
def test_map_must_be_whole(client, memory, body):
    assert refusal(client.call, DMA_MAP, body, (memory,)) == EINVAL


def test_map_takes_one_descriptor(client, memory):
    body = struct.pack("<IIQQQ", 32, 3, 0, 0, MIB)
    assert refusal(client.call, DMA_MAP, body, (memory, memory)) == EINVAL


@pytest.mark.parametrize("base", [0, 0x1000, MIB - 4096])
def test_map_over_a_map_exists(client, memory, base):
    client.map(0, MIB, memory)
    assert refusal(client.map, base, 4096, memory, base) == EEXIST


def test_maps_of_a_client_are_limited(client, memory):
    for page in range(256):
        client.map(page << 13, 4096)
    assert refusal(client.map, 256 << 13, 4096) == ENOSPC


def test_maps_that_the_machine_has_no_room_for_are_refused_whole(client, server, memory, unit):
    taken = 256 - 1  # of the machine's 256 ranges, one is the unit's registers
    for page in range(taken):
        client.map(page << 13, 4096, memory, page << 12)
    assert refusal(client.map, taken << 13, 4096, memory, taken << 12) == ENOSPC
    assert len(server.memory.ranges) == taken
    assert refusal(client.unmap, taken << 13, 4096) == ENOENT


# Files that are not to be trusted.


def test_map_refuses_a_file_that_can_shrink(client, machine):
    fd = sealed_memory(MIB, seals=0)
    assert refusal(client.map, 0, MIB, fd) == EACCES
    os.close(fd)
    assert machine.memory.ranges == []


def test_map_refuses_a_file_that_must_not_be_written(client):
    fd = sealed_memory(MIB, seals=0x2 | 0x8)
    assert refusal(client.map, 0, MIB, fd) == EACCES
    os.close(fd)


def test_map_refuses_a_file_opened_for_reading(client, memory):
    fd = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    assert refusal(client.map, 0, MIB, fd) == EACCES
    os.close(fd)


def test_map_refuses_huge_pages(client, memory, monkeypatch):
    """Their owner can give them back: the next access would be a SIGBUS."""
    huge = SimpleNamespace(f_bsize=2 << 20)  # as fstatvfs(3) says of hugetlbfs
    monkeypatch.setattr("os.fstatvfs", lambda fd: huge)
    assert refusal(client.map, 0, MIB, memory) == EACCES


def test_map_refuses_what_is_no_memory_file(client, tmp_path):
    ends = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    folder = os.open(tmp_path, os.O_RDONLY)
    for fd in (*ends, file, folder):
        assert refusal(client.map, 0, 4096, fd) == EINVAL
        os.close(fd)


@pytest.mark.parametrize(("size", "offset"), [(1 << 47, 0), (4096, 1 << 47)])
def test_map_refuses_more_than_the_machine_can_hold(client, machine, size, offset):
    fd = sealed_memory(size + offset)
    assert refusal(client.map, 0, size, fd, offset) in (EINVAL, ENOMEM)
    os.close(fd)
    assert machine.memory.ranges == []


def test_maps_that_are_too_large_together_are_refused(client, second, machine):
    fd = sealed_memory(1 << 47)
    client.map(0, 1 << 40, fd)
    rest = (1 << 47) - (1 << 39)
    assert refusal(second.map, 1 << 39, rest, fd, 1 << 39) in (EINVAL, ENOMEM)
    os.close(fd)
    assert machine.memory.ranges == [(0, 1 << 40)]


def test_refused_map_is_the_clients_to_know(client, events):
    fd = sealed_memory(1 << 62)
    refusal(client.map, 0, 1 << 62, fd)
    os.close(fd)
    assert [e.kind for e in events] == ["connected"]


def test_map_of_one_file_too_many_is_refused(client):
    for index in range(64):
        fd = sealed_memory(4096)
        client.map(index << 12, 4096, fd)
        os.close(fd)
    client.map(64 << 12, 4096)  # without a file
    fd = sealed_memory(4096)
    assert refusal(client.map, 65 << 12, 4096, fd) == ENOSPC
    os.close(fd)


def test_unreachable_memory_is_told_once(client, memory, unit, events):
    for _ in range(2):
        client.map(unit.base, 4096, memory)
        client.unmap(unit.base, 4096)
        client.map(0, MIB)
        client.unmap(0, MIB)
    told = [(e.kind, e.details.get("base")) for e in events]
    assert told == [("connected", None), ("unreachable", unit.base), ("unreachable", 0)]


def test_unreachable_memory_is_told_to_the_next_guest(client, connect, endpoint, events):
    client.map(0, MIB)
    client.close()
    connect(endpoint).map(0, MIB)
    assert [e.kind for e in events] == [
        *("connected", "unreachable", "disconnected"),
        *("connected", "unreachable"),
    ]


def test_map_without_a_file_is_taken_but_not_reached(client, master, machine, events):
    assert client.map(0, MIB) == b""
    assert machine.memory.ranges == []
    assert master.dma.write(0x1000, b"?").status is Status.UNSUPPORTED_REQUEST
    assert [e.kind for e in events] == ["connected", "unreachable"]
    assert client.unmap(0, MIB)


@pytest.mark.parametrize("flags", [1, 2])
def test_map_for_one_direction_is_taken_but_not_reached(client, machine, memory, flags):
    assert client.map(0, MIB, memory, flags=flags) == b""
    assert machine.memory.ranges == []


def test_map_over_registers_is_taken_but_not_reached(client, machine, memory, unit):
    assert client.map(unit.base, 4096, memory) == b""
    assert machine.memory.ranges == []
    assert unit.read("VER") == 0x10


# Unmapping.


def test_unmap_takes_the_memory_away(client, master, memory, machine):
    client.map(0, MIB, memory)
    reply = client.unmap(0, MIB)
    assert reply == struct.pack("<IIQQ", 24, 0, 0, MIB)
    assert machine.memory.ranges == []
    assert master.dma.write(0x1000, b"late").status is Status.UNSUPPORTED_REQUEST


@pytest.mark.parametrize(("base", "size"), [(0, 4096), (4096, MIB), (0, 2 * MIB), (2 * MIB, MIB)])
def test_unmap_must_match_a_map(client, memory, base, size):
    client.map(0, MIB, memory)
    assert refusal(client.unmap, base, size) == ENOENT


@pytest.mark.parametrize("body", [b"", bytes(24), struct.pack("<IIQQ", 24, 4, 0, MIB)])
def test_unmap_must_be_well_formed(client, memory, body):
    client.map(0, MIB, memory)
    assert refusal(client.call, DMA_UNMAP, body) == EINVAL


def test_unmap_of_everything(client, memory, machine):
    client.map(0, MIB, memory)
    client.map(4 * MIB, MIB, memory)
    client.unmap(0, 0, flags=2)
    assert machine.memory.ranges == []


def test_unmap_of_everything_takes_no_range(client, memory):
    client.map(0, MIB, memory)
    assert refusal(client.unmap, 0, MIB, flags=2) == EINVAL


def test_unmap_of_nothing_after_everything_is_fine(client):
    assert client.unmap(0, 0, flags=2) == struct.pack("<IIQQ", 24, 2, 0, 0)


def test_unmap_waits_for_transactions_that_are_translated(client, master, memory, machine):
    client.map(0, MIB, memory)
    master.dma.set_latency(0, 1000)
    master.dma.write(0x2000, b"in flight")
    body = struct.pack("<IIQQ", 24, 0, 0, MIB)
    client.send(DMA_UNMAP, body)
    assert client.silent
    machine.advance(1000)
    assert client.receive().body == body
    assert os.pread(memory, 9, 0x2000) == b"in flight"


def test_unmap_does_not_wait_for_what_is_still_in_the_fabric(client, master, memory, machine):
    client.map(0, MIB, memory)
    master.dma.set_latency(1000, 0)
    completion = master.dma.write(0x2000, b"in flight")
    client.unmap(0, MIB)
    machine.advance(1000)
    assert completion.status is Status.UNSUPPORTED_REQUEST


def test_unmap_waits_for_views(client, memory, machine):
    client.map(0, MIB, memory)
    view = machine.memory.view(0, 4096)
    client.send(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, MIB))
    assert client.silent
    del view
    assert client.receive().body


def test_unmap_of_memory_with_a_view_that_stays_is_busy(client, memory, machine, monkeypatch):
    monkeypatch.setattr(guest_memory, "UNMAP_PATIENCE", 0.02)
    client.map(0, MIB, memory)
    view = machine.memory.view(0, 4096)
    assert refusal(client.unmap, 0, MIB) == EBUSY
    assert machine.memory.ranges == []
    assert view[0] == 0


def test_unmap_does_not_wait_for_ever_for_transactions(
    client, master, memory, machine, monkeypatch
):
    monkeypatch.setattr(guest_memory, "UNMAP_PATIENCE", 0.02)
    client.map(0, MIB, memory)
    master.dma.set_latency(0, 1000)
    completion = master.dma.write(0x2000, b"stuck")
    client.unmap(0, MIB)
    machine.advance(1000)
    assert completion.status is Status.UNSUPPORTED_REQUEST


# Several clients of one guest.


def test_same_memory_of_two_clients_is_one_region(client, second, memory, machine):
    client.map(0, MIB, memory)
    second.map(0, MIB, memory)
    assert machine.memory.ranges == [(0, MIB)]


def test_memory_stays_until_the_last_client_unmaps(client, second, memory, machine):
    client.map(0, MIB, memory)
    second.map(0, MIB, memory)
    client.unmap(0, MIB)
    assert machine.memory.ranges == [(0, MIB)]
    second.unmap(0, MIB)
    assert machine.memory.ranges == []


def test_memory_stays_until_the_last_client_disconnects(client, second, memory, machine):
    client.map(0, MIB, memory)
    second.map(0, MIB, memory)
    client.close()
    assert machine.memory.ranges == [(0, MIB)]
    second.close()
    assert machine.memory.ranges == []


def test_clients_that_see_different_pieces_of_the_same_memory_agree(
    client, second, memory, machine
):
    # Firmware moves a ROM in: one device's view has changed, the other's has not yet.
    client.map(0, 16 * MIB, memory)
    second.map(0, 0xC_0000, memory)
    second.map(0x10_0000, 15 * MIB, memory, offset=0x10_0000)
    assert machine.memory.ranges == [(0, 16 * MIB)]
    client.unmap(0, 16 * MIB)
    assert machine.memory.ranges == [(0, 0xC_0000), (0x10_0000, 15 * MIB)]


def test_maps_of_two_clients_that_overlap_become_one_region(client, second, memory, machine):
    client.map(0, 2 * MIB, memory)
    second.map(MIB, 2 * MIB, memory, offset=MIB)
    assert machine.memory.ranges == [(0, 3 * MIB)]
    client.unmap(0, 2 * MIB)
    assert machine.memory.ranges == [(MIB, 2 * MIB)]


def test_other_memory_at_the_same_addresses_is_refused(client, second, memory, machine):
    client.map(0, MIB, memory)
    other = sealed_memory(MIB)
    assert refusal(second.map, 0, MIB, other) == EEXIST
    os.close(other)
    assert machine.memory.ranges == [(0, MIB)]


def test_same_file_at_another_offset_is_other_memory(client, second, memory):
    client.map(0, MIB, memory)
    assert refusal(second.map, 0, MIB, memory, MIB) == EEXIST


def test_memory_of_a_client_that_has_gone_is_in_nobodys_way(client, second, memory, machine):
    client.map(0, MIB, memory)
    client.close()
    other = sealed_memory(MIB)
    second.map(0, MIB, other)
    machine.memory.write(0, b"other")
    assert os.pread(other, 5, 0) == b"other"
    os.close(other)


def test_splitting_memory_beyond_the_machines_room_leaves_the_rest_out(
    client, second, server, memory, unit
):
    client.map(0, 16 * MIB, memory)
    for page in range(256):
        second.map(page << 13, 4096, memory, offset=page << 13)
    client.unmap(0, 16 * MIB)
    assert len(server.memory.ranges) == 255
