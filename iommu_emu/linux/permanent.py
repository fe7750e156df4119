"""Permanent mappings (DAMN, ASPLOS'18): drivers get their buffers from memory that stays mapped.

The allocator knows which device a buffer is for, and takes it from chunks that this device
reaches for good. A map is a lookup, an unmap nothing. Nobody else's data is ever in a chunk, but
the device goes on reading and writing what the driver believes to have taken from it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommu_emu.direction import Direction
from iommu_emu.linux.bounce import Extent
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.dma_device import DmaDevice, DmaDomain, Mapping
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.kernel_memory import MAX_PAGES
from iommu_emu.memory import PAGE
from iommu_emu.meter import Work
from iommu_emu.timeline import EventKind

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

CHUNK = 64 << 10  # bytes that are mapped at once, unless a buffer is larger
SMALLEST = 64  # bytes of a buffer

__all__ = ["PermanentMappings"]


@dataclass(eq=False, slots=True)
class _Chunk:
    """Memory of one device, mapped for good.

    Attributes:
        given: bytes of each buffer that is given away, by its address.
        mapped: False once the device has gone: what is given away is still the driver's.
    """

    device: DmaDevice
    domain: DmaDomain
    physical: int
    iova: int
    size: int
    given: dict[int, int] = field(default_factory=dict)
    mapped: bool = True


class PermanentMappings(DmaApi):
    """Takes `alloc_buffer`'s memory from chunks that the device reaches for good.

    What a driver maps of other memory, and coherent memory, is mapped and unmapped strictly.
    """

    def __init__(self, linux: Linux) -> None:
        super().__init__(linux)
        self._chunks: list[_Chunk] = []  # by physical address
        self._free: dict[tuple[DmaDevice, int], list[int]] = {}  # the next one is last

    def defers(self, mapping: Mapping) -> bool:
        """Return False: what is not permanent is unmapped strictly."""
        return False

    def alloc_buffer(self, device: DmaDevice, size: int, cpu: int = 0) -> int:
        """Return the physical address of memory that the device reaches already.

        Raises:
            ValueError: if the size is outside 1..4 MiB.
            MemoryError: if there is no memory left.
            DmaMappingError: if a new chunk cannot be mapped.
        """
        if not 1 <= size <= MAX_PAGES * PAGE:
            raise ValueError(f"size must be in 1..{MAX_PAGES * PAGE} bytes, not {size}")
        if device.domain.type is DomainType.IDENTITY:
            return super().alloc_buffer(device, size, cpu)
        rounded = max(SMALLEST, 1 << (size - 1).bit_length())
        free = self._free.setdefault((device, rounded), [])
        if not free:
            new = self._grow(device, max(CHUNK, rounded), cpu)
            free += reversed(range(new.physical, new.physical + new.size, rounded))
        physical = free.pop()
        home = self._chunk_at(physical)
        assert home is not None
        home.given[physical] = rounded
        return physical

    def free_buffer(self, device: DmaDevice, physical: int, cpu: int = 0) -> None:
        """Take a buffer back, for the same device's next one.

        Raises:
            ValueError: if it is not in use, or another device's.
        """
        chunk = self._chunk_at(physical)
        if chunk is None:
            super().free_buffer(device, physical, cpu)
            return
        if physical not in chunk.given or (chunk.mapped and chunk.device is not device):
            raise ValueError(
                f"{physical:#x} is not the address of a buffer in use by {device.name}"
            )
        size = chunk.given.pop(physical)
        if chunk.mapped:
            self._free[device, size].append(physical)
        else:
            self._drop_unless_given(chunk)

    def _map(
        self,
        device: DmaDevice,
        physical: int,
        size: int,
        direction: Direction,
        cpu: int,
        *,
        coherent: bool = False,
    ) -> Mapping:
        chunk = self._chunk_of(device, physical, size)
        iova = 0 if chunk is None else chunk.iova + physical - chunk.physical
        if chunk is None or iova in device.domain.mappings:  # what is mapped twice needs two names
            return super()._map(device, physical, size, direction, cpu, coherent=coherent)
        self.linux.meter.spend(cpu, Work.MAP_CALL)
        mine = ((physical, size),)
        mapping = Mapping(device, iova, size, direction, iova, 0, physical, mine)
        device.domain.mappings[iova] = mapping
        text = f"{direction.value} for {device.function.name}, permanently"
        self._note(EventKind.MAP, cpu, text, iova, size)
        return mapping

    def _unmap(
        self,
        mapping: Mapping,
        cpu: int,
        *,
        deferred: bool,
        skip_sync: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        if mapping.mapped:
            super()._unmap(mapping, cpu, deferred=deferred, skip_sync=skip_sync, then=then)
            return
        del mapping.domain.mappings[mapping.iova]
        text = f"{mapping.direction.value} of {mapping.device.function.name}, in name only"
        self._note(EventKind.UNMAP, cpu, text, mapping.iova, mapping.size)
        then()

    def maps_alone(self, device: DmaDevice) -> bool:
        """Return True: each entry of a scatter list may be permanent, or not."""
        return True

    # ---- chunks ------------------------------------------------------------------------------

    def _grow(self, device: DmaDevice, size: int, cpu: int) -> _Chunk:
        memory = self.linux.memory
        physical = memory.alloc_pages(size // PAGE, device.function.name)
        try:
            self.linux.machine.memory.write(physical, bytes(size))
            self._bouncer.charge(cpu, 0, size)
            iova = self._map_extents(
                device, [Extent(0, physical, size)], Direction.BIDIRECTIONAL, cpu
            )
        except Exception:
            memory.free_pages(physical)
            raise
        chunk = _Chunk(device, device.domain, physical, iova, size)
        at = bisect_right(self._chunks, physical, key=lambda each: each.physical)
        self._chunks.insert(at, chunk)
        return chunk

    def _chunk_at(self, physical: int) -> _Chunk | None:
        """Return the chunk that an address is in; None: it is in none."""
        at = bisect_right(self._chunks, physical, key=lambda each: each.physical) - 1
        inside = at >= 0 and physical < self._chunks[at].physical + self._chunks[at].size
        return self._chunks[at] if inside else None

    def _chunk_of(self, device: DmaDevice, physical: int, size: int) -> _Chunk | None:
        """Return the chunk that a range lies in, and that a device reaches; None: there is none."""
        chunk = self._chunk_at(physical)
        if chunk is None or not chunk.mapped or chunk.domain is not device.domain:
            return None
        return chunk if physical + size <= chunk.physical + chunk.size else None

    def _drop_unless_given(self, chunk: _Chunk) -> None:
        """Free a chunk that is no longer mapped, if nobody has a buffer of it."""
        if not chunk.given:
            self._chunks.remove(chunk)
            self.linux.memory.free_pages(chunk.physical)

    def release_all(self, device: DmaDevice, cpu: int = 0) -> None:
        """Unmap what a device that goes away still has mapped, and its chunks.

        A chunk's memory is freed with the last of its buffers.
        """
        super().release_all(device, cpu)
        for chunk in [each for each in self._chunks if each.device is device and each.mapped]:
            mapping = Mapping(
                device,
                chunk.iova,
                chunk.size,
                Direction.BIDIRECTIONAL,
                chunk.iova,
                chunk.size,
                chunk.physical,
            )
            mapping.domain = chunk.domain
            chunk.domain.mappings[chunk.iova] = mapping
            super()._unmap(mapping, cpu, deferred=False)
            chunk.mapped = False
            self._drop_unless_given(chunk)
        for key in [key for key in self._free if key[0] is device]:
            del self._free[key]
