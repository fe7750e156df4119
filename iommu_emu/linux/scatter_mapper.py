"""How scatter lists are mapped for a device: in one range, or each entry alone (os 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from iommu_emu.direction import Direction
from iommu_emu.linux.dma_device import DmaDevice, Mapping, stays_below
from iommu_emu.linux.dma_mapper import DmaMapper
from iommu_emu.linux.scatter_list import Piece, finalise, lay_out
from iommu_emu.meter import Work
from iommu_emu.timeline import EventKind

__all__ = ["ScatterMapper"]


class ScatterMapper(DmaMapper):
    """The part of the DMA API that is about scatter lists; see `DmaApi`."""

    def map_sg(
        self,
        device: DmaDevice,
        segments: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int = 0,
    ) -> list[tuple[int, int]]:
        """Let a device reach a scatter list: all of it, or nothing.

        It becomes one range of input addresses, in which entries that follow each other are
        merged where the device's limits allow (os 4.3). Registers of a peer below the same switch
        are left as they are, if its ports do not redirect to the IOMMU. For a device that is not
        trusted, each entry is mapped alone.

        Args:
            device: the device.
            segments: physical address and bytes of each entry.
            direction: as for `map_single`.
            cpu: number of the virtual CPU.

        Returns:
            Address for the device, and bytes, of each entry that it sees.

        Raises:
            ValueError, StateError, DmaMappingError: as for `map_single`.
        """
        if not segments:
            raise ValueError("segments must not be empty")
        for physical, size in segments:
            self._check(device, physical, size, direction, cpu)
        if self.maps_alone(device):
            return self._counted(lambda: self._map_each(device, segments, direction, cpu))
        return self._counted(lambda: self._map_together(device, segments, direction, cpu))

    def unmap_sg(
        self,
        device: DmaDevice,
        mapped: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int = 0,
    ) -> None:
        """Take a scatter list back.

        Args:
            device: as mapped.
            mapped: what `map_sg` returned.
            direction: as mapped.
            cpu: number of the virtual CPU.

        Raises:
            ValueError: if it is not what is mapped; nothing is unmapped then.
        """
        self._check_call(direction, cpu)
        if not mapped:
            raise ValueError("mapped must not be empty")
        mappings = device.domain.mappings
        listed = next((m for iova, _ in mapped if (m := mappings.get(iova)) and m.entries), None)
        if listed is None:
            translated = [each for each in mapped if not stays_below(device.function, *each)]
            found = self._mappings(device, translated, direction)
        elif (listed.entries, listed.direction, listed.device) != (
            tuple(mapped),
            direction,
            device,
        ):
            raise ValueError(
                f"mapped and direction must be those of the scatter list at {listed.iova:#x}, "
                f"{list(listed.entries)} and {listed.direction.value}"
            )
        else:
            found = [listed]
        for mapping in found:
            self._unmap(mapping, cpu, deferred=self.defers(mapping))
        self._unmapped(cpu)

    def _map_each(
        self,
        device: DmaDevice,
        segments: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int,
    ) -> list[tuple[int, int]]:
        done: list[Mapping] = []
        try:
            for physical, size in segments:
                done.append(self._map(device, physical, size, direction, cpu))
        except Exception:
            for mapping in reversed(done):
                if self._remembered(mapping):
                    self._unmap(mapping, cpu, deferred=self.defers(mapping), skip_sync=True)
            raise
        return [(mapping.iova, mapping.size) for mapping in done]

    def _map_together(
        self,
        device: DmaDevice,
        segments: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int,
    ) -> list[tuple[int, int]]:
        """Map a scatter list in one range of input addresses."""
        self.linux.meter.spend(cpu, Work.MAP_CALL)
        domain = device.domain
        assert domain.iovas is not None
        below = partial(stays_below, device.function)
        boundary = device.segment_boundary
        layout = lay_out(segments, domain.iovas.granule, boundary, below)
        pieces = [piece for piece in layout if isinstance(piece, Piece)]
        if not pieces:
            return list(segments)
        first = self._map_extents(device, [piece.extent for piece in pieces], direction, cpu)
        entries = finalise(first, layout, device.max_segment, boundary)
        mapped = sum(piece.extent.size for piece in pieces)
        mine = tuple((each.extent.physical + each.offset, each.size) for each in pieces)
        size = sum(piece.size for piece in pieces)
        iova = first + pieces[0].offset
        mapping = Mapping(device, iova, size, direction, first, mapped, mine[0][0], mine)
        mapping.entries = tuple(entries)
        domain.mappings[mapping.iova] = mapping
        text = f"{direction.value} for {device.function.name}, {len(segments)} pieces"
        self._note(EventKind.MAP, cpu, text, mapping.iova, mapped)
        return entries
