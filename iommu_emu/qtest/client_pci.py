"""PCI through a qtest connection: configuration space, bus numbers, BARs.

Under qtest no firmware runs, so nobody has numbered buses or placed BARs.
"""

from __future__ import annotations

from iommu_emu.qtest.client import Batch, Later, QtestClient

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
COMMAND = 0x04
BAR0 = 0x10
BUS_NUMBERS = 0x18
MEMORY_WINDOW = 0x20
MEMORY_AND_MASTER = 0x6
_Q35_HOST_BRIDGE = 0x0000
_PCIEXBAR = 0x60
_PCIEXBAR_ENABLE_256 = 0x1

__all__ = [
    "bar_size",
    "config_read",
    "config_write",
    "ecam_address",
    "enable_ecam",
    "number_bridge",
    "place_bar",
    "turn_on",
]


def config_read(batch: Batch, function: int, offset: int, size: int) -> Later[int]:
    """Read configuration space through the ports 0xcf8 and 0xcfc.

    Args:
        batch: takes the accesses.
        function: bus << 8 | device << 3 | function.
        offset: byte in the first 256.
        size: bytes, 1, 2 or 4.
    """
    batch.port_write(CONFIG_ADDRESS, 4, 1 << 31 | function << 8 | offset & 0xFC)
    return batch.port_read(CONFIG_DATA + (offset & 3), size)


def config_write(batch: Batch, function: int, offset: int, size: int, value: int) -> None:
    """Write configuration space through the ports 0xcf8 and 0xcfc; see `config_read`."""
    batch.port_write(CONFIG_ADDRESS, 4, 1 << 31 | function << 8 | offset & 0xFC)
    batch.port_write(CONFIG_DATA + (offset & 3), size, value)


def enable_ecam(batch: Batch, base: int) -> None:
    """Let q35's host bridge decode configuration space in memory.

    Args:
        batch: takes the accesses.
        base: a multiple of 256 MiB.

    Raises:
        ValueError: if the base is not aligned.
    """
    if base % (256 << 20):
        raise ValueError(f"base must be a multiple of 0x10000000, not {base:#x}")
    config_write(batch, _Q35_HOST_BRIDGE, _PCIEXBAR + 4, 4, base >> 32)
    config_write(batch, _Q35_HOST_BRIDGE, _PCIEXBAR, 4, base & 0xFFFFFFFF | _PCIEXBAR_ENABLE_256)


def ecam_address(base: int, function: int, offset: int) -> int:
    """Return where a byte of configuration space (of 4096) is in memory."""
    return base + (function << 12) + offset


def number_bridge(batch: Batch, bridge: int, secondary: int, subordinate: int) -> None:
    """Give a bridge the numbers of the buses behind it; it is on bus `bridge >> 8`."""
    numbers = bridge >> 8 | secondary << 8 | subordinate << 16
    config_write(batch, bridge, BUS_NUMBERS, 4, numbers)


def bar_size(client: QtestClient, function: int, index: int = 0) -> int:
    """Return the bytes that a memory BAR decodes, 0 if there is none; its address is lost."""
    batch = client.batch()
    offset = BAR0 + 4 * index
    config_write(batch, function, offset, 4, 0xFFFFFFFF)
    config_write(batch, function, offset + 4, 4, 0xFFFFFFFF)
    low = config_read(batch, function, offset, 4)
    high = config_read(batch, function, offset + 4, 4)
    batch.run()
    wide = low.value & 0x7 == 0x4
    mask = low.value & ~0xF | ((high.value if wide else 0xFFFFFFFF) << 32)
    return 0 if not low.value else (1 << 64) - (mask | 0xFFFFFFFF_00000000 * (not wide))


def place_bar(batch: Batch, function: int, index: int, address: int) -> None:
    """Write a 32-bit memory BAR."""
    config_write(batch, function, BAR0 + 4 * index, 4, address)


def turn_on(batch: Batch, function: int) -> None:
    """Let a function decode memory and master the bus."""
    config_write(batch, function, COMMAND, 2, MEMORY_AND_MASTER)
