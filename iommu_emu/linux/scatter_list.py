"""How a scatter list becomes one range of input addresses, and what the device sees (os 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from iommu_emu.linux.bounce import Extent
from iommu_emu.linux.swiotlb import align_up, check_mask

__all__ = ["BusAddress", "Piece", "finalise", "lay_out"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of a scatter list, laid out.

    Attributes:
        extent: whole granules to map; padding behind the entry included.
        offset: of the entry's first byte in them.
        size: bytes of the entry.
    """

    extent: Extent
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class BusAddress:
    """An entry in a BAR that the device reaches without passing the IOMMU: it stays as it is."""

    address: int
    size: int


def _translated(address: int, size: int) -> bool:
    return False


def lay_out(
    segments: Sequence[tuple[int, int]],
    granule: int,
    boundary: int,
    stays_below: Callable[[int, int], bool] = _translated,
) -> list[Piece | BusAddress]:
    """Lay entries out one after the other, so that none crosses a boundary.

    What keeps an entry off the boundary is padding behind the one before it, and is mapped to
    whatever lies behind that one in memory. The range must begin at a boundary if it is longer.

    Args:
        segments: physical address and bytes of each entry.
        granule: bytes of the IOMMU's smallest page.
        boundary: no entry crosses a multiple of this plus one.
        stays_below: whether the device reaches an entry without passing the IOMMU.

    Raises:
        ValueError: if the boundary is no power of two less one, or below the granule.
    """
    check_mask("boundary", boundary)
    if boundary < granule - 1:
        raise ValueError(f"boundary must be at least {granule - 1:#x}, not {boundary:#x}")
    pieces: list[Piece | BusAddress] = []
    last: tuple[int, Piece] | None = None  # where the last piece to be mapped is, and itself
    end = 0
    for physical, size in segments:
        if stays_below(physical, size):
            pieces.append(BusAddress(physical, size))
            continue
        offset = physical % granule
        length = align_up(offset + size, granule)
        padding = -end & boundary
        if last is not None and padding and padding < length - 1:
            at, before = last
            extended = replace(before.extent, size=before.extent.size + padding)
            pieces[at] = replace(before, extent=extended)
            end += padding
        piece = Piece(Extent(end, physical - offset, length), offset, size)
        last = len(pieces), piece
        pieces.append(piece)
        end += length
    return pieces


def finalise(
    first: int, pieces: Sequence[Piece | BusAddress], max_segment: int, boundary: int
) -> list[tuple[int, int]]:
    """Return the entries that a device sees: address and bytes.

    An entry joins the one before it if it begins a granule, the one before ended with one, no
    boundary is between them, and both together are not too long.

    Args:
        first: input address of the first granule.
        pieces: what `lay_out` returned.
        max_segment: bytes of an entry at most.
        boundary: as for `lay_out`.
    """
    entries: list[tuple[int, int]] = []
    length = 0  # of the entry that may be joined; 0: none may
    for piece in pieces:
        if isinstance(piece, BusAddress):
            entries.append((piece.address, piece.size))
            length = 0
            continue
        start = first + piece.extent.iova_offset
        joins = length and not piece.offset and start & boundary
        if joins and max_segment - length >= piece.size:
            length += piece.size
            entries[-1] = entries[-1][0], length
        else:
            length = piece.size
            entries.append((start + piece.offset, length))
        if piece.offset + piece.size < piece.extent.size:
            length = 0
    return entries
