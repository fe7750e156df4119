"""Physical region pages: where the data of a command lies in memory (4.3)."""

from __future__ import annotations

import struct

from iommu_emu.devices.dma import DmaTasks, Work
from iommu_emu.devices.nvme.specification import CommandError, StatusCode

ENTRY = 8  # bytes

__all__ = ["gather", "pages", "scatter"]


def pages(
    dma: DmaTasks, page_size: int, prp1: int, prp2: int, length: int
) -> Work[list[tuple[int, int]]]:
    """Return address and length of each piece of memory that `length` bytes lie in.

    Args:
        dma: fetches PRP lists.
        page_size: bytes, CC.MPS.
        prp1: PRP entry 1: any DWORD in a page.
        prp2: the second page; with more than two, the PRP list.
        length: bytes, 1 or more. It bounds how many lists are read, however they are chained.

    Raises:
        CommandError: PRP Offset Invalid.
        DmaError: if a list is out of reach.
    """
    offsets = page_size - 1
    first = page_size - (prp1 & offsets)
    # The controller may work with bits 1:0 as if they were 0, or report them as here.
    if prp1 & 3:
        raise CommandError(StatusCode.PRP_OFFSET_INVALID)
    if length <= first:
        return [(prp1, length)]
    rest = length - first
    if rest <= page_size:
        entries = [prp2]
    else:
        entries = yield from _list(dma, page_size, prp2, -(-rest // page_size))
    pieces = [(prp1, first)]
    for entry in entries:
        # Every entry but the first has offset 0.
        if entry & offsets:
            raise CommandError(StatusCode.PRP_OFFSET_INVALID)
        size = min(rest, page_size)
        rest -= size
        start, before = pieces[-1]
        if start + before == entry:  # pages side by side are one DMA
            pieces[-1] = start, before + size
        else:
            pieces.append((entry, size))
    return pieces


def _list(dma: DmaTasks, page_size: int, address: int, count: int) -> Work[list[int]]:
    """Return `count` entries of a list that may go on in other pages."""
    # The list that the command points to may begin anywhere in a page, but at a QWORD.
    if address & (ENTRY - 1):
        raise CommandError(StatusCode.PRP_OFFSET_INVALID)
    entries: list[int] = []
    while True:
        room = (page_size - (address & (page_size - 1))) // ENTRY
        take = min(count, room)
        data = yield from dma.read(address, ENTRY * take)
        entries += struct.unpack(f"<{take}Q", data)
        if count <= room:
            return entries
        # The last entry of the page points to where the list goes on, at offset 0.
        address = entries.pop()
        if address & (page_size - 1):
            raise CommandError(StatusCode.PRP_OFFSET_INVALID)
        count -= room - 1


def gather(dma: DmaTasks, page_size: int, prp1: int, prp2: int, length: int) -> Work[bytes]:
    """Return the data that a command sends; arguments and errors as for `pages`."""
    pieces = yield from pages(dma, page_size, prp1, prp2, length)
    parts = []
    for address, size in pieces:
        parts.append((yield from dma.read(address, size)))
    return b"".join(parts)


def scatter(dma: DmaTasks, page_size: int, prp1: int, prp2: int, data: bytes) -> Work[None]:
    """Store the data that a command asks for; arguments and errors as for `pages`."""
    pieces = yield from pages(dma, page_size, prp1, prp2, len(data))
    at = 0
    for address, size in pieces:
        yield from dma.write(address, data[at : at + size])
        at += size
