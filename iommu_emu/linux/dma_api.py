"""Linux's DMA API: memory that a device may reach, for as long as a driver says so (os 4.1 to 4.4).

`DmaApi` is what Linux does. A variant, for example what a proposal or a paper wants, is a subclass
that overrides what it does otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from iommu_emu.direction import Direction
from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.bouncer import DmaMappingError, DmaStatistics
from iommu_emu.linux.dma_device import CoherentBuffer, DmaDevice, Mapping
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.iova import CACHED_ORDERS
from iommu_emu.linux.kernel_memory import MAX_PAGES
from iommu_emu.linux.scatter_mapper import ScatterMapper
from iommu_emu.linux.swiotlb import align_up, max_mapping_size
from iommu_emu.memory import PAGE
from iommu_emu.timeline import EventKind

__all__ = ["DmaApi", "DmaMappingError", "DmaStatistics"]


class DmaApi(ScatterMapper):
    """The DMA API of a kernel.

    Where a CPU is named, it is the number of the virtual CPU that makes the call, below
    `Linux.cpus`. Whoever unmaps something else than what is mapped gets a ValueError: a kernel
    with CONFIG_DMA_API_DEBUG says so as well, and others go astray.

    Args:
        linux: the kernel.

    Attributes:
        linux: as given.
        statistics: what it did so far.
    """

    # ---- memory for drivers ------------------------------------------------------------------

    def alloc_buffer(self, device: DmaDevice, size: int, cpu: int = 0) -> int:
        """Return the physical address of memory that a driver uses for DMA.

        From a page on it is pages of its own; less shares a page with other small objects.

        Args:
            device: whose driver it is; it counts as the owner.
            size: bytes, 1..4 MiB.
            cpu: number of the virtual CPU.

        Raises:
            ValueError: if the size is outside its range.
            MemoryError: if there is no memory left.
        """
        return self.linux.memory.kmalloc(size, device.function.name)

    def free_buffer(self, device: DmaDevice, physical: int, cpu: int = 0) -> None:
        """Take back what `alloc_buffer` returned; it is for everybody then.

        Raises:
            ValueError: if it is not in use.
        """
        self.linux.memory.kfree(physical)

    def max_mapping_size(self, device: DmaDevice) -> int | None:
        """Return how many bytes a driver may map at once; None: there is no limit (os 4.4)."""
        if self.linux.pool is None or self.bounce_rule(device, 1) is BounceRule.NONE:
            return None
        return max_mapping_size(device.min_align_mask)

    def optimal_mapping_size(self, device: DmaDevice) -> int | None:
        """Return up to how many bytes a mapping is cheap; None: any (os 4.2)."""
        iovas = device.domain.iovas
        return None if iovas is None else iovas.granule << CACHED_ORDERS - 1

    # ---- single buffers ----------------------------------------------------------------------

    def map_single(
        self, device: DmaDevice, physical: int, size: int, direction: Direction, cpu: int = 0
    ) -> int:
        """Let a device reach a buffer.

        Whole granules are mapped: what lies beside the buffer in them is reached as well, unless
        the device is not trusted and they are bounced.

        Args:
            device: the device.
            physical: address of the buffer.
            size: bytes, 1 or more.
            direction: TO_DEVICE lets it read, FROM_DEVICE write.
            cpu: number of the virtual CPU.

        Returns:
            The address that the device uses.

        Raises:
            ValueError: if an argument is outside its range.
            StateError: if the group's DMA is not the kernel's.
            DmaMappingError: if it cannot be mapped.
        """
        self._check(device, physical, size, direction, cpu)
        return self._counted(lambda: self._map(device, physical, size, direction, cpu)).iova

    def unmap_single(
        self, device: DmaDevice, iova: int, size: int, direction: Direction, cpu: int = 0
    ) -> None:
        """Take a buffer back; what the device wrote is in it then.

        In a strict domain the device cannot reach it any more when this returns; in a lazy one
        it may until the next flush, through cached translations.

        Args:
            device: as mapped.
            iova: what `map_single` returned.
            size: as mapped.
            direction: as mapped.
            cpu: number of the virtual CPU.

        Raises:
            ValueError: if there is no such mapping.
        """
        self._unmap_single(device, iova, size, direction, cpu, deferred=False)

    def unmap_single_deferred(
        self, device: DmaDevice, iova: int, size: int, direction: Direction, cpu: int = 0
    ) -> None:
        """Take a buffer back some time: the call of proposal (2) of 2019, for drivers that opt in.

        The same as `unmap_single` where there is no flush queue. Arguments as there.
        """
        self._unmap_single(device, iova, size, direction, cpu, deferred=True)

    def _unmap_single(
        self,
        device: DmaDevice,
        iova: int,
        size: int,
        direction: Direction,
        cpu: int,
        *,
        deferred: bool,
    ) -> None:
        self._check_call(direction, cpu)
        mapping = self._mapping(device, iova, size, direction)
        if mapping is None:  # what passes untranslated needs nothing
            self._note(EventKind.UNMAP, cpu, f"{direction.value}, untranslated", iova, size)
        else:
            self._unmap(mapping, cpu, deferred=deferred or self.defers(mapping))
        self._unmapped(cpu)

    def sync_for_cpu(
        self, device: DmaDevice, iova: int, size: int, direction: Direction, cpu: int = 0
    ) -> None:
        """Let the CPU see what the device wrote to a mapped buffer, or a part of it.

        Raises:
            ValueError: if the range is not inside one mapping, or the direction is not its.
        """
        self._sync(device, iova, size, direction, cpu, for_cpu=True)

    def sync_for_device(
        self, device: DmaDevice, iova: int, size: int, direction: Direction, cpu: int = 0
    ) -> None:
        """Let the device see what the CPU wrote to a mapped buffer, or a part of it.

        Raises:
            ValueError: if the range is not inside one mapping, or the direction is not its.
        """
        self._sync(device, iova, size, direction, cpu, for_cpu=False)

    # ---- many buffers ------------------------------------------------------------------------

    def map_batch(
        self,
        device: DmaDevice,
        buffers: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int = 0,
    ) -> list[int]:
        """Let a device reach several buffers of a driver: all of them, or none.

        Args:
            device: the device.
            buffers: physical address and bytes of each.
            direction: as for `map_single`.
            cpu: number of the virtual CPU.

        Raises:
            ValueError, StateError, DmaMappingError: as for `map_single`.
        """
        done: list[int] = []
        try:
            for physical, size in buffers:
                done.append(self.map_single(device, physical, size, direction, cpu))
        except Exception:
            for iova, (_, size) in zip(done, buffers, strict=False):
                self.unmap_single(device, iova, size, direction, cpu)
            raise
        return done

    def unmap_batch(
        self,
        device: DmaDevice,
        buffers: Sequence[tuple[int, int]],
        direction: Direction,
        cpu: int = 0,
    ) -> None:
        """Take several buffers back, each by itself; a variant may do better.

        Args:
            device: as mapped.
            buffers: address for the device, and bytes, of each.
            direction: as mapped.
            cpu: number of the virtual CPU.

        Raises:
            ValueError: if one is not mapped, or comes twice; nothing is unmapped then.
        """
        self._check_call(direction, cpu)
        self._mappings(device, buffers, direction)
        for iova, size in buffers:
            self.unmap_single(device, iova, size, direction, cpu)

    # ---- coherent memory ---------------------------------------------------------------------

    def alloc_coherent(self, device: DmaDevice, size: int, cpu: int = 0) -> CoherentBuffer:
        """Return zeroed memory that CPU and device use at the same time, for example a ring.

        Args:
            device: the device.
            size: bytes, 1..4 MiB; whole pages are taken.
            cpu: number of the virtual CPU.

        Raises:
            ValueError: if an argument is outside its range.
            StateError: if the group's DMA is not the kernel's.
            DmaMappingError: if there is no memory left, or it cannot be mapped.
        """
        self._check(device, 0, size, Direction.BIDIRECTIONAL, cpu)
        if size > MAX_PAGES * PAGE:
            raise ValueError(f"size must be at most {MAX_PAGES * PAGE} bytes, not {size}")
        memory = self.linux.memory
        pages = align_up(size, PAGE)

        def map_pages() -> Mapping:
            try:
                physical = memory.alloc_pages(pages // PAGE, device.function.name)
            except MemoryError as error:
                raise DmaMappingError(str(error)) from error
            try:
                if device.domain.type is DomainType.IDENTITY:
                    _check_reach(device, physical + pages - 1)
                self.linux.machine.memory.write(physical, bytes(pages))
                return self._map(
                    device, physical, pages, Direction.BIDIRECTIONAL, cpu, coherent=True
                )
            except Exception:
                memory.free_pages(physical)
                raise

        mapping = self._counted(map_pages)
        return CoherentBuffer(mapping.physical, mapping.iova, size)

    def free_coherent(self, device: DmaDevice, buffer: CoherentBuffer, cpu: int = 0) -> None:
        """Take coherent memory back: unmap it, then free it, whether or not it is flushed.

        Args:
            device: as allocated.
            buffer: what `alloc_coherent` returned.
            cpu: number of the virtual CPU.

        Raises:
            ValueError: if it is not in use.
        """
        self._check_cpu(cpu)
        mapping = self._coherent(device, buffer)
        self._unmap(mapping, cpu, deferred=self.defers(mapping))
        self._unmapped(cpu)
        self.linux.memory.free_pages(buffer.physical)

    def _coherent(self, device: DmaDevice, buffer: CoherentBuffer) -> Mapping:
        mapping = device.domain.mappings.get(buffer.iova)
        if (
            mapping is None
            or mapping.device is not device
            or not mapping.coherent
            or mapping.physical != buffer.physical
        ):
            raise ValueError(f"{buffer} is not in use by {device.name}")
        return mapping

    def release_all(self, device: DmaDevice, cpu: int = 0) -> None:
        """Unmap what a device that goes away still has mapped, as its driver would.

        Coherent memory goes back to the kernel as well.
        """
        for mapping in [m for m in device.domain.mappings.values() if m.device is device]:
            if mapping.coherent:
                buffer = CoherentBuffer(mapping.physical, mapping.iova, mapping.size)
                self.free_coherent(device, buffer, cpu)
            else:
                self._unmap(mapping, cpu, deferred=self.defers(mapping))


def _check_reach(device: DmaDevice, last: int) -> None:
    """Check that a device that is not translated reaches an address: nothing can be bounced here.

    Raises:
        DmaMappingError: if it does not.
    """
    if last > device.limit.last:
        raise DmaMappingError(
            f"{device.name} reaches addresses up to {device.limit.last:#x}, not to {last:#x}"
        )
