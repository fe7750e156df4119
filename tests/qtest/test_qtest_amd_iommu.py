"""An AMD-Vi unit driven over the socket: QEMU's own test of it, and a DMA through its tables."""

import pytest
from qtest_peer import Peer

UNIT = 0xFED8_0000
DEVICE_TABLE, COMMAND_BASE, EVENT_BASE, CONTROL = UNIT, UNIT + 0x08, UNIT + 0x10, UNIT + 0x18
COMMAND_HEAD, COMMAND_TAIL, EVENT_TAIL = UNIT + 0x2000, UNIT + 0x2008, UNIT + 0x2018
ENABLE, EVENTS, COMMANDS = 1, 1 << 2, 1 << 12
COMPLETION_WAIT = 1 << 60
LENGTH_256 = 8 << 56

TABLE, LOG, QUEUE = 0x10_0000, 0x12_0000, 0x20_0000
LEVELS = {4: 0x30_0000, 3: 0x30_1000, 2: 0x30_2000, 1: 0x30_3000}
PAGE = 0x40_0000
IOVA = 0x1020_0567
READ_WRITE = 3 << 61
PRESENT = 1
VALID, TRANSLATION_VALID, FOUR_LEVELS = 1, 1 << 1, 4 << 9

TESTDEV = 4 << 3
BAR = 0xE000_0000
TRIGGER, RESULT, DOORBELL = 0x00, 0x10, 0x14
WRITE_FAILED = 0xDEAD_0002


@pytest.fixture
def peer():
    with Peer("-M q35 -nodefaults -device amd-iommu -device iommu-testdev,addr=4.0") as peer:
        yield peer


def map_page(peer):
    for level, table in LEVELS.items():
        below = LEVELS.get(level - 1, PAGE)
        index = IOVA >> (12 + 9 * (level - 1)) & 0x1FF
        peer.write(table + 8 * index, below | level - 1 << 9 | READ_WRITE | PRESENT)
    entry = LEVELS[4] | FOUR_LEVELS | READ_WRITE | TRANSLATION_VALID | VALID
    peer.write(TABLE + 32 * TESTDEV, entry)
    peer.write(TABLE + 32 * TESTDEV + 8, 1)  # domain


def dma(peer, physical):
    peer.config_write(TESTDEV, 0x10, BAR)
    peer.config_write(TESTDEV, 0x04, 6, "w")
    for offset, value in ((0x04, IOVA), (0x0C, 4), (0x18, 0), (0x1C, physical), (DOORBELL, 1)):
        peer.write(BAR + offset, value, 4)
    peer.read(BAR + TRIGGER, 4)
    return peer.read(BAR + RESULT, 4)


def test_amd_command_head_wraps(peer):
    command = COMPLETION_WAIT.to_bytes(16, "little").hex()
    peer.ok(f"write {QUEUE:#x} 0x1000 0x{command * 256}")
    peer.write(COMMAND_BASE, QUEUE | LENGTH_256)
    peer.write(CONTROL, ENABLE | COMMANDS)
    peer.write(COMMAND_TAIL, 255 * 16)
    assert peer.read(COMMAND_HEAD) == 255 * 16
    peer.write(COMMAND_TAIL, 0)
    assert peer.read(COMMAND_HEAD) == 0


def test_amd_translation(peer):
    map_page(peer)
    peer.write(DEVICE_TABLE, TABLE | 0x1F)
    peer.write(CONTROL, ENABLE)
    assert dma(peer, PAGE + 0x567) == 0
    assert peer.read(PAGE + 0x567, 4) == 0x1234_5678


def test_amd_page_fault_is_logged(peer):
    map_page(peer)
    peer.write(LEVELS[4] + 8 * (IOVA >> 39), 0)
    peer.write(DEVICE_TABLE, TABLE | 0x1F)
    peer.write(EVENT_BASE, LOG | LENGTH_256)
    peer.write(CONTROL, ENABLE | EVENTS)
    assert dma(peer, PAGE + 0x567) == WRITE_FAILED
    assert peer.read(EVENT_TAIL) == 16
    first = peer.read(LOG)
    assert (first >> 60, first & 0xFFFF) == (2, TESTDEV)  # IO_PAGE_FAULT
    assert peer.read(LOG + 8) == IOVA
