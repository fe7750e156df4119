"""Where programs keep their tables, queues and data, and where nothing is.

RAM is in three pieces, the same on both sides: below the hole of a PC at 640 KiB, from 1 MiB, and
above 4 GiB. Programs keep what they use in two arenas, which are compared after each program; all
RAM is cleared before.
"""

from __future__ import annotations

PAGE = 0x1000

RAM_BELOW_4G = 2 << 20
RAM_ABOVE_4G = 1 << 20

LOW = 0x0010_0000
LOW_PAGES = 64
HIGH = 0x1_0000_0000
HIGH_PAGES = 8

ROOTS = tuple(LOW + PAGE * n for n in range(2))
CONTEXTS = tuple(LOW + PAGE * n for n in range(2, 6))
TABLES = tuple(LOW + PAGE * n for n in range(6, 36)) + tuple(HIGH + PAGE * n for n in range(4))
DATA = tuple(LOW + PAGE * n for n in range(36, 46)) + tuple(HIGH + PAGE * n for n in range(4, 8))
TARGETS = (*DATA[1:8], *DATA[10:])  # data pages behind which a longer write meets no table
JUNK = tuple(LOW + PAGE * n for n in range(56, 59))  # no table, though entries may say so
INTERRUPT_TABLES = (LOW + PAGE * 46,)
QUEUES = (LOW + PAGE * 48, LOW + PAGE * 50)  # two pages each
STATUS = LOW + PAGE * 52
DUMPS = (LOW + PAGE * 54, LOW + PAGE * 55)  # what the edu devices' buffers hold at the end
PATTERN = LOW + PAGE * 60  # four pages of what iommu-testdev writes
PATTERN_WORD = 0x12345678

HOLES = (0xD000_0000, 0x20_0000_0000)  # no RAM and no device there

FILLED = {page: 0x10 + n for n, page in enumerate(DATA)} | dict(
    zip(JUNK, (0x01, 0x13, 0x80), strict=True)
)
"""What every byte of a data or junk page is at the start."""

RAM = ((0, 640 << 10), (1 << 20, RAM_BELOW_4G - (1 << 20)), (HIGH, RAM_ABOVE_4G))
REGIONS = ((LOW, LOW_PAGES * PAGE), (HIGH, HIGH_PAGES * PAGE))

TABLE_REGIONS = (
    (ROOTS[0], DATA[0] - ROOTS[0]),
    (INTERRUPT_TABLES[0], PAGE),
    (HIGH, 4 * PAGE),
)
"""Where tables are."""


def inside(address: int, length: int = 1) -> bool:
    """Whether a piece of memory lies in the arenas."""
    return any(base <= address and address + length <= base + size for base, size in REGIONS)


def kind(address: int) -> str:
    """Return what a page of the arenas is for: "data", "status", "dump", or "tables"."""
    page = address & ~(PAGE - 1)
    if page in DATA:
        return "data"
    if page in DUMPS:
        return "dump"
    return "status" if page == STATUS else "tables"


def likely(address: int) -> tuple[int, ...]:
    """Return the bytes that a data page can hold, () for another page.

    They are what pages are filled with, iommu-testdev's pattern, and an edu's empty buffer.
    """
    if address & ~(PAGE - 1) not in DATA:
        return ()
    return (0, *FILLED.values(), *PATTERN_WORD.to_bytes(4, "little"))


def image() -> tuple[bytes, ...]:
    """Return what the arenas hold at the start of a program."""
    memory = {base: bytearray(size) for base, size in REGIONS}
    for page, value in FILLED.items():
        base = max(base for base, _ in REGIONS if base <= page)
        memory[base][page - base : page - base + PAGE] = bytes([value]) * PAGE
    pattern = PATTERN_WORD.to_bytes(4, "little") * PAGE
    memory[LOW][PATTERN - LOW : PATTERN - LOW + len(pattern)] = pattern
    return tuple(bytes(piece) for piece in memory.values())
