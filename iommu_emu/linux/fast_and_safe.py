"""Fast and Safe (SOSP'24): strict protection with fewer invalidations and less to walk.

Buffers that a device gets together, for example for a descriptor of 64 pages, get input
addresses in a row and lose them together: one invalidation serves all of them, and none of them
is used again before. Page tables stay, so the paging-structure caches do as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from iommu_emu.direction import Direction
from iommu_emu.linux.bounce import Extent
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.dma_device import DmaDevice, DmaDomain, Mapping
from iommu_emu.linux.flush_queue import QueueEntry
from iommu_emu.linux.swiotlb import align_up
from iommu_emu.memory import PAGE
from iommu_emu.meter import Work
from iommu_emu.timeline import EventKind

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

RANGE = 256 << 10  # bytes of input addresses that belong together

__all__ = ["FastAndSafe"]


@dataclass(eq=False, slots=True)
class _Range:
    """Input addresses that were allocated at once: the first one, and buffers that are left."""

    first: int
    left: int


class FastAndSafe(DmaApi):
    """Maps and unmaps the buffers of a batch as one; everything else as in Linux, strictly."""

    def __init__(self, linux: Linux) -> None:
        super().__init__(linux)
        self._ranges: dict[tuple[DmaDomain, int], _Range] = {}  # by a buffer's first granule

    def defers(self, mapping: Mapping) -> bool:
        """Return False: nothing waits."""
        return False

    def map_batch(
        self,
        device: DmaDevice,
        buffers: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int = 0,
    ) -> list[int]:
        """Let a device reach several buffers: up to 256 KiB of them at addresses in a row.

        Arguments and errors as in `DmaApi.map_batch`.
        """
        if self.maps_alone(device):
            return super().map_batch(device, buffers, direction, cpu)
        for physical, size in buffers:
            self._check(device, physical, size, direction, cpu)
        done: list[Mapping] = []
        try:
            for group in _groups(buffers):
                done += self._counted(partial(self._map_range, device, group, direction, cpu))
        except Exception:
            for mapping in done:
                self._unmap(mapping, cpu, deferred=False)
            raise
        return [mapping.iova for mapping in done]

    def _map_range(
        self,
        device: DmaDevice,
        buffers: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int,
    ) -> list[Mapping]:
        self.linux.meter.spend(cpu, Work.MAP_CALL)
        extents = []
        offset = 0
        for physical, size in buffers:
            before = physical % PAGE
            extents.append(Extent(offset, physical - before, align_up(before + size, PAGE)))
            offset += extents[-1].size
        start = self._map_extents(device, extents, direction, cpu)
        together = _Range(start, len(buffers))
        made = []
        for extent, (physical, size) in zip(extents, buffers, strict=True):
            first = start + extent.iova_offset
            iova = first + physical % PAGE
            mine = ((physical, size),)
            mapping = Mapping(device, iova, size, direction, first, extent.size, physical, mine)
            device.domain.mappings[iova] = mapping
            self._ranges[device.domain, first] = together
            text = f"{direction.value} for {device.function.name}, in a batch"
            self._note(EventKind.MAP, cpu, text, iova, size)
            made.append(mapping)
        return made

    def unmap_batch(
        self,
        device: DmaDevice,
        buffers: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int = 0,
    ) -> None:
        """Take several buffers back, with one invalidation for those that were mapped together.

        Arguments and errors as in `DmaApi.unmap_batch`.
        """
        self._check_call(direction, cpu)
        together: dict[_Range | None, list[Mapping]] = {}
        for mapping in self._mappings(device, buffers, direction):
            own = self._ranges.get((mapping.domain, mapping.first))
            together.setdefault(own, []).append(mapping)
        for own, mappings in together.items():
            if own is None:
                for mapping in mappings:
                    self._unmap(mapping, cpu, deferred=False)
            else:
                self._unmap_together(mappings, cpu)
        self._unmapped(cpu)

    def _unmap_together(self, mappings: Sequence[Mapping], cpu: int) -> None:
        device, domain = mappings[0].device, mappings[0].domain
        assert domain.table is not None
        tables: list[int] = []
        for mapping in mappings:
            del domain.mappings[mapping.iova]
            table = domain.table.table
            tables += table.unmap(mapping.first, mapping.mapped, keep_tables=True)
            self.linux.meter.spend(cpu, Work.TABLE_UNMAP, mapping.mapped // PAGE)
            text = f"{mapping.direction.value} of {device.function.name}, in a batch"
            self._note(EventKind.UNMAP, cpu, text, mapping.iova, mapping.size)
        first = min(mapping.first for mapping in mappings)
        end = max(mapping.first + mapping.mapped for mapping in mappings)
        entry = QueueEntry(first, end - first, lambda entry, cpu: None, tables)
        self.linux.flusher.now(device.driver, domain, entry, cpu)
        device.driver.frames.release(tables)
        for mapping in mappings:
            self._free_iova(domain, mapping.first, cpu)

    def _free_iova(self, domain: DmaDomain, iova: int, cpu: int) -> None:
        """Give an input address back; those of a batch go with the last of it."""
        own = self._ranges.pop((domain, iova), None)
        if own is None:
            super()._free_iova(domain, iova, cpu)
            return
        own.left -= 1
        if not own.left:
            super()._free_iova(domain, own.first, cpu)


def _groups(buffers: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Cut buffers into groups that fit a range; one that is larger is alone."""
    group: list[tuple[int, int]] = []
    total = 0
    for physical, size in buffers:
        length = align_up(physical % PAGE + size, PAGE)
        if group and total + length > RANGE:
            yield group
            group, total = [], 0
        group.append((physical, size))
        total += length
    if group:
        yield group
