"""A legacy-mode VT-d test as QEMU's own are: iommu-testdev, tables in RAM, all over the socket.

The steps and the places in memory follow what QEMU's iommu-intel-test does.
"""

import pytest
from qtest_peer import Peer

UNIT = 0xFED9_0000
GCMD, GSTS, RTADDR = UNIT + 0x18, UNIT + 0x1C, UNIT + 0x20
FSTS, FECTL, FEDATA, FEADDR = UNIT + 0x34, UNIT + 0x38, UNIT + 0x3C, UNIT + 0x40
IQT, IQA, FRCD = UNIT + 0x88, UNIT + 0x90, UNIT + 0x220
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26
PPF = 1 << 1
FAULT = 1 << 63

TABLES = 0x1000_0000
ROOT, CONTEXT = TABLES, TABLES + 0x1000
LEVELS = {4: TABLES + 0x10000, 3: TABLES + 0x11000, 2: TABLES + 0x12000, 1: TABLES + 0x13000}
QUEUE = TABLES + 0x20000
PAGE = TABLES + 0x10_0000
IOVA = 0x1020_0567
PRESENT, PASS_THROUGH, FOUR_LEVELS = 1, 2 << 2, 2
READ_WRITE = 3

TESTDEV = 0x0005_1B36
BAR = 0xE000_0000
TRIGGER, IOVA_LOW, IOVA_HIGH, LENGTH, RESULT, DOORBELL = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14
ATTRIBUTES, PHYSICAL_LOW, PHYSICAL_HIGH = 0x18, 0x1C, 0x20
BUSY, WRITE_FAILED = 0xFFFF_FFFE, 0xDEAD_0002
PATTERN = 0x1234_5678


@pytest.fixture
def peer():
    arguments = "-machine q35 -smp 1 -m 512 -net none -device intel-iommu -device iommu-testdev"
    with Peer(arguments) as peer:
        peer.qmp_negotiate()
        yield peer


@pytest.fixture
def devfn(peer):
    """The test device, enumerated and enabled as libqos does it."""
    (found,) = [slot << 3 for slot in range(32) if peer.config_read(slot << 3, 0) == TESTDEV]
    peer.config_write(found, 0x10, 0xFFFF_FFFF)
    assert peer.config_read(found, 0x10) == 0xFFFF_F000
    peer.config_write(found, 0x10, BAR)
    peer.config_write(found, 0x04, 0x0007, "w")
    return found


def build_tables(peer, devfn, translation_type):
    for address in (ROOT, CONTEXT, *LEVELS.values()):
        peer.ok(f"memset {address:#x} 0x1000 0")
    peer.write(ROOT, CONTEXT | PRESENT)
    top = 0 if translation_type else LEVELS[4]
    peer.write(CONTEXT + 16 * devfn, top | translation_type | PRESENT)
    peer.write(CONTEXT + 16 * devfn + 8, FOUR_LEVELS)
    for level in (4, 3, 2, 1):
        below = LEVELS.get(level - 1, PAGE)
        index = IOVA >> (12 + 9 * (level - 1)) & 0x1FF
        peer.write(LEVELS[level] + 8 * index, below | READ_WRITE)


def enable(peer):
    peer.write(RTADDR, ROOT)
    peer.write(GCMD, SRTP, 4)
    assert peer.read(GSTS, 4) & SRTP
    peer.write(IQA, QUEUE)
    peer.write(IQT, 0)
    peer.write(GCMD, SRTP | QIE, 4)
    assert peer.read(GSTS, 4) & QIE
    for register, value in ((FECTL, 0), (FEDATA, 0), (FEADDR, 0xFEE0_0000)):
        peer.write(register, value, 4)
    peer.write(GCMD, SRTP | QIE | TE, 4)
    assert peer.read(GSTS, 4) & TE


def dma(peer, physical):
    """Let the device write 4 bytes at IOVA and read them back at a physical address."""
    for register, value in (
        (IOVA_LOW, IOVA),
        (IOVA_HIGH, 0),
        (PHYSICAL_LOW, physical),
        (PHYSICAL_HIGH, 0),
        (LENGTH, 4),
        (ATTRIBUTES, 0),
        (DOORBELL, 1),
    ):
        peer.write(BAR + register, value, 4)
    assert peer.read(BAR + RESULT, 4) == BUSY
    peer.read(BAR + TRIGGER, 4)
    return peer.read(BAR + RESULT, 4)


def test_testdev_is_where_qemu_puts_it(peer, devfn):
    assert devfn == 2 << 3  # behind the VGA


def test_testdev_legacy_pass_through(peer, devfn):
    build_tables(peer, devfn, PASS_THROUGH)
    enable(peer)
    assert dma(peer, IOVA) == 0
    assert peer.read(IOVA, 4) == PATTERN


def test_testdev_legacy_translation(peer, devfn):
    build_tables(peer, devfn, 0)
    enable(peer)
    assert dma(peer, PAGE + 0x567) == 0
    assert peer.read(PAGE + 0x567, 4) == PATTERN
    assert peer.read(IOVA, 4) == 0


def test_testdev_fault_is_recorded(peer, devfn):
    build_tables(peer, devfn, 0)
    enable(peer)
    peer.write(CONTEXT + 16 * devfn, 0)
    assert dma(peer, PAGE + 0x567) == WRITE_FAILED
    assert peer.read(FSTS, 4) == PPF
    assert peer.read(FRCD) == IOVA & ~0xFFF
    high = peer.read(FRCD + 8)
    assert high & FAULT
    assert (high & 0xFFFF, high >> 32 & 0xFF) == (devfn, 2)  # context entry not present


def test_testdev_without_bus_master_writes_nothing(peer, devfn):
    peer.config_write(devfn, 0x04, 0x0002, "w")
    assert dma(peer, IOVA) == WRITE_FAILED
    assert peer.read(IOVA, 4) == 0


def test_testdev_registers_after_system_reset(peer, devfn):
    before = peer.ok(f"read {UNIT:#x} 0x230")
    build_tables(peer, devfn, 0)
    enable(peer)
    assert peer.ok(f"read {UNIT:#x} 0x230") != before
    assert peer.execute("system_reset") == {"return": {}}
    assert peer.events[-1]["event"] == "RESET"
    assert peer.ok(f"read {UNIT:#x} 0x230") == before
    assert peer.config_read(devfn, 0x10) == 0
