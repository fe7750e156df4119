"""What a client learns of a function, and its accesses to BARs and configuration space."""

import struct
from errno import EINVAL, ENOTSUP

import pytest
from vfio_user_client import (
    CONFIG,
    DIRTY_PAGES,
    DMA_READ,
    DMA_WRITE,
    ERR,
    FEATURE,
    GET_INFO,
    GET_IRQ_INFO,
    GET_REGION_INFO,
    GET_REGION_IO_FDS,
    INTX,
    MIG_READ,
    MIG_WRITE,
    MSI,
    MSIX,
    NO_REPLY,
    REGION_READ,
    REGION_WRITE,
    REQ,
    RESET,
    WRITE_MULTI,
    Refused,
)

from iommu_emu.devices import Edu


def refusal(client, command, body=b"", fds=()):
    with pytest.raises(Refused) as refused:
        client.call(command, body, fds)
    return refused.value.errno


# What there is.


def test_device_info_is_a_pci_device_that_can_be_reset(client):
    reply = client.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert struct.unpack("<IIII", reply) == (16, 3, 9, 5)


@pytest.mark.parametrize("command", [GET_INFO, GET_REGION_INFO, GET_IRQ_INFO])
def test_info_needs_room_for_its_reply(client, command):
    assert refusal(client, command, struct.pack("<I", 15) + bytes(28)) == EINVAL


@pytest.mark.parametrize("command", [GET_INFO, GET_REGION_INFO, GET_IRQ_INFO])
def test_info_needs_its_whole_request(client, command):
    assert refusal(client, command, struct.pack("<I", 32)) == EINVAL


def test_region_info_is_the_size_of_each_bar(client):
    sizes = [client.region_info(index) for index in range(9)]
    absent = (0, 0)
    assert sizes == [
        (3, 8192),
        absent,
        (3, 65536),
        absent,
        absent,
        absent,
        absent,
        (3, 4096),
        absent,
    ]


def test_region_info_of_a_conventional_function_has_256_bytes_of_configuration(server, connect):
    client = connect(server.serve(Edu(), None, "00:06.0"))
    assert client.region_info(CONFIG) == (3, 256)


def test_region_info_knows_no_tenth_region(client):
    assert refusal(client, GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)) == EINVAL


def test_irq_info_counts_the_vectors(client):
    info = [client.irq_info(index) for index in (INTX, MSI, MSIX, ERR, REQ)]
    assert info == [(7, 1), (3, 4), (3, 8), (1, 1), (1, 1)]


def test_irq_info_of_a_function_without_interrupts_has_error_and_request_only(page, connect):
    client = connect(page)
    assert [client.irq_info(i)[1] for i in (INTX, MSI, MSIX, ERR, REQ)] == [0, 0, 0, 1, 1]


def test_irq_info_knows_no_sixth_type(client):
    assert refusal(client, GET_IRQ_INFO, struct.pack("<IIII", 16, 0, 5, 0)) == EINVAL


@pytest.mark.parametrize("command", [GET_REGION_IO_FDS, DIRTY_PAGES, FEATURE, MIG_READ, MIG_WRITE])
def test_commands_of_optional_features_are_not_supported(client, command):
    assert refusal(client, command, bytes(16)) == ENOTSUP


@pytest.mark.parametrize("command", [0, DMA_READ, DMA_WRITE, 19, 0xFFFF])
def test_commands_that_no_client_sends_are_invalid(client, command):
    assert refusal(client, command, bytes(16)) == EINVAL


# BARs.


def test_region_read_returns_what_the_model_says(client, sample):
    sample.memory[0][0x10:0x18] = bytes(range(8))
    assert client.read(0, 0x10, 8) == bytes(range(8))


def test_region_write_reaches_the_model(client, sample):
    client.write(0, 0x20, b"\x11\x22\x33\x44")
    assert sample.memory[0][0x20:0x24] == b"\x11\x22\x33\x44"


@pytest.mark.parametrize(
    ("offset", "count", "pieces"),
    [
        (0, 1, [(0, 1)]),
        (0, 2, [(0, 2)]),
        (0, 4, [(0, 4)]),
        (0, 8, [(0, 8)]),
        (4, 8, [(4, 4), (8, 4)]),
        (1, 8, [(1, 1), (2, 2), (4, 4), (8, 1)]),
        (0, 20, [(0, 8), (8, 8), (16, 4)]),
        (0, 0, []),
    ],
)
def test_region_access_is_split_into_aligned_pieces(client, sample, offset, count, pieces):
    client.read(0, offset, count)
    client.write(0, offset, bytes(count))
    assert sample.accesses == [("read", 0, *p) for p in pieces] + [("write", 0, *p) for p in pieces]


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (0, 8192, 1),
        (0, 8190, 4),
        (0, (1 << 64) - 4, 8),
        (0, 0, 0xFFFF_FFFF),
        (1, 0, 4),
        (6, 0, 4),
        (8, 0, 4),
        (9, 0, 4),
        (9, 0, 0),
        (0xFFFF_FFFF, 0, 4),
        (CONFIG, 4094, 4),
    ],
)
def test_region_access_must_be_inside_the_region(client, sample, region, offset, count):
    head = struct.pack("<QII", offset, region, count)
    assert refusal(client, REGION_READ, head) == EINVAL
    assert refusal(client, REGION_WRITE, head + bytes(min(count, 64))) == EINVAL
    assert sample.accesses == []


@pytest.mark.parametrize("data", [b"", b"\0\0\0", bytes(5)])
def test_region_write_must_bring_its_data(client, sample, data):
    assert refusal(client, REGION_WRITE, struct.pack("<QII", 0, 0, 4) + data) == EINVAL
    assert sample.accesses == []


def test_region_write_without_reply_is_done_and_not_answered(client, sample):
    body = struct.pack("<QII", 0, 0, 4) + b"\1\2\3\4"
    client.send(REGION_WRITE, body, flags=NO_REPLY)
    assert client.silent
    assert sample.memory[0][:4] == b"\1\2\3\4"


def test_error_without_reply_is_not_answered(client):
    client.send(REGION_WRITE, b"", flags=NO_REPLY)
    assert client.silent
    assert client.read(0, 0, 4) == bytes(4)


def test_region_writes_that_come_together_are_done_in_order(client, sample):
    body = struct.pack("<Q", 2)
    body += struct.pack("<QII8s", 0, 0, 4, b"\1\2\3\4") + struct.pack(
        "<QII8s", 2, 0, 2, b"\x55\x66"
    )
    assert client.call(WRITE_MULTI, body) == struct.pack("<Q", 2)
    assert sample.memory[0][:4] == b"\1\2\x55\x66"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<Q", 1),
        struct.pack("<Q", 1 << 60),
        struct.pack("<Q", 1) + struct.pack("<QII8s", 0, 0, 9, bytes(8)),
        struct.pack("<Q", 1) + struct.pack("<QII8s", 8192, 0, 4, bytes(8)),
        struct.pack("<Q", 1) + struct.pack("<QII8s", 0, 0, 4, bytes(8)) + b"x",
    ],
    ids=["empty", "none there", "too many", "9 bytes", "outside", "more behind"],
)
def test_region_writes_that_come_together_must_be_well_formed(client, sample, body):
    assert refusal(client, WRITE_MULTI, body) == EINVAL
    assert sample.accesses == []


def test_region_access_to_a_removed_function_reads_all_ones(client, machine, sample):
    machine.remove(sample)
    assert client.read(0, 0, 4) == b"\xff" * 4
    client.write(0, 0, b"\0\0\0\0")
    assert sample.accesses == []


# Configuration space.


def test_config_read_returns_the_whole_space_at_once(client, sample):
    config = client.read(CONFIG, 0, 4096)
    assert config[:4] == bytes.fromhex("34127856")
    assert config == sample.config.get(0, 4096).to_bytes(4096, "little")


def test_config_write_obeys_the_masks(client, sample):
    client.write32(CONFIG, 0, 0xFFFF_FFFF)
    client.write(CONFIG, 4, b"\xff\xff")
    assert client.read32(CONFIG, 0) == 0x5678_1234
    assert sample.config.get(4, 2) == 0x0507


def test_config_write_of_all_ones_to_a_bar_sizes_it(client):
    client.write32(CONFIG, 0x10, 0xFFFF_FFFF)
    assert client.read32(CONFIG, 0x10) == 0xFFFF_E000


def test_config_write_decodes_the_bar_where_the_guest_put_it(client, machine):
    client.write(0, 0, b"\x78\x56\x34\x12")
    client.write32(CONFIG, 0x10, 0xFE00_0000)
    assert machine.mmio_read(0xFE00_0000, 4) == 0xFFFF_FFFF
    client.write(CONFIG, 4, b"\x02\x00")
    assert machine.mmio_read(0xFE00_0000, 4) == 0x1234_5678


def test_config_write_larger_than_a_dword_is_split(client):
    client.write(CONFIG, 0x18, bytes.fromhex("0000000001000000"))
    assert client.read(CONFIG, 0x18, 8) == bytes.fromhex("0400000001000000")


def test_plugged_function_waits_for_the_guests_firmware(client, sample):
    assert client.read(CONFIG, 4, 2) == b"\0\0"
    assert client.read32(CONFIG, 0x10) == 0
    assert sample.attached


# Reset.


def test_reset_resets_the_function(client, sample):
    client.write(CONFIG, 4, b"\x06\x00")
    before = sample.resets
    assert client.call(RESET) == b""
    assert sample.resets == before + 1
    assert client.read(CONFIG, 4, 2) == b"\0\0"
