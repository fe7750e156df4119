"""How a driver gives the device access to memory: its caller's business.

A direct mapping, the DMA API of an operating system, or anything else with the two methods of
`Mapper`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from iommu_emu.direction import Direction

__all__ = ["BatchMapper", "Mapper", "Untranslated"]


class Mapper(Protocol):
    """Gives a device access to memory, and takes it away."""

    def map(self, physical: int, size: int, direction: Direction) -> int:
        """Return the IOVA by which the device reaches a buffer from now on.

        Args:
            physical: where the CPU sees it; not necessarily the start of a page.
            size: bytes.
            direction: which way the device moves data; rings are BIDIRECTIONAL.
        """

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Take back what `map` returned; same size, same direction."""


@runtime_checkable
class BatchMapper(Mapper, Protocol):
    """A mapper that is asked for several receive buffers at once."""

    def map_batch(self, buffers: Sequence[tuple[int, int]], direction: Direction) -> list[int]:
        """Return the IOVAs by which the device reaches buffers: all of them, or none.

        Args:
            buffers: physical address and bytes of each.
            direction: as for `map`.
        """

    def unmap_batch(self, buffers: Sequence[tuple[int, int]], direction: Direction) -> None:
        """Take back what `map_batch` returned, maybe not all of it, or in another order.

        Args:
            buffers: IOVA and bytes of each.
            direction: as mapped.
        """


class Untranslated:
    """The mapper of a device without an IOMMU before it."""

    def map(self, physical: int, size: int, direction: Direction) -> int:
        """Return the physical address."""
        return physical

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Do nothing."""
