"""Shadow buffers (ASPLOS'16): a device reaches copies only, in memory that is mapped for good.

A map takes a shadow buffer and copies the data in; an unmap copies out and puts it back. Nothing
is unmapped, so nothing is invalidated, and a device never reaches a byte of anybody's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iommu_emu.core import NotRamError
from iommu_emu.direction import Direction
from iommu_emu.linux.bounce import BounceRule, Extent
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.dma_device import DmaDevice, DmaDomain, Mapping
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.memory import PAGE
from iommu_emu.meter import Work
from iommu_emu.timeline import EventKind

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

__all__ = ["ShadowCopy"]

SIZES = (4 << 10, 64 << 10)  # bytes of a shadow buffer


@dataclass(slots=True)
class _Pool:
    """Shadow buffers of one device, CPU, direction and size: those that are free, last one next.

    Attributes:
        free: input and physical address of each.
    """

    free: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Shadow:
    """A shadow buffer in use: where it goes back to, and where the CPU sees it."""

    pool: _Pool
    iova: int
    physical: int


class ShadowCopy(DmaApi):
    """Copies every buffer of up to 64 KiB to a shadow buffer, and back.

    Shadow buffers belong to a device, a CPU and a direction. Of larger buffers the partial pages
    at both ends are bounced, and those between are mapped and unmapped strictly. Coherent memory
    is mapped as ever.
    """

    def __init__(self, linux: Linux) -> None:
        super().__init__(linux)
        self._pools: dict[tuple[DmaDevice, int, Direction, int], _Pool] = {}
        self._in_use: dict[Mapping, _Shadow] = {}
        self._made: list[tuple[DmaDevice, DmaDomain, int, int, int]] = []

    @property
    def shadows(self) -> int:
        """Number of shadow buffers there are."""
        return len(self._made)

    def defers(self, mapping: Mapping) -> bool:
        """Return False: what is not copied is unmapped strictly."""
        return False

    def bounce_rule(self, device: DmaDevice, size: int) -> BounceRule:
        """Return HEAD_TAIL, for buffers that are too large for a shadow buffer."""
        return BounceRule.HEAD_TAIL

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
        if coherent or size > SIZES[-1] or device.domain.type is DomainType.IDENTITY:
            return super()._map(device, physical, size, direction, cpu, coherent=coherent)
        self.linux.meter.spend(cpu, Work.MAP_CALL)
        shadow = self._take(device, size, direction, cpu)
        mapping = Mapping(device, shadow.iova, size, direction, shadow.iova, 0, physical)
        self._in_use[mapping] = shadow
        try:
            if direction is not Direction.FROM_DEVICE:
                self._sync_mapping(mapping, 0, size, cpu, for_cpu=False)
            else:
                self.linux.machine.memory.view(physical, size)  # it will be copied to
        except NotRamError as error:
            self._put_back(mapping)
            raise DmaMappingError(f"only RAM can be copied: {error}") from error
        device.domain.mappings[mapping.iova] = mapping
        text = f"{direction.value} for {device.function.name}, in a shadow buffer"
        self._note(EventKind.MAP, cpu, text, mapping.iova, size)
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
        if mapping not in self._in_use:
            super()._unmap(mapping, cpu, deferred=deferred, skip_sync=skip_sync, then=then)
            return
        del mapping.domain.mappings[mapping.iova]
        if not skip_sync and mapping.direction is not Direction.TO_DEVICE:
            self._sync_mapping(mapping, 0, mapping.size, cpu, for_cpu=True)
        self._put_back(mapping)
        text = f"{mapping.direction.value} of {mapping.device.function.name}, from a shadow buffer"
        self._note(EventKind.UNMAP, cpu, text, mapping.iova, mapping.size)
        then()

    def _sync_mapping(
        self, mapping: Mapping, offset: int, size: int, cpu: int, *, for_cpu: bool
    ) -> None:
        shadow = self._in_use.get(mapping)
        if shadow is None:
            super()._sync_mapping(mapping, offset, size, cpu, for_cpu=for_cpu)
            return
        source, target = mapping.physical + offset, shadow.physical + offset
        if for_cpu:
            source, target = target, source
        unneeded = Direction.TO_DEVICE if for_cpu else Direction.FROM_DEVICE
        if mapping.direction is not unneeded:
            memory = self.linux.machine.memory
            memory.write(target, memory.read(source, size))
            self._bouncer.charge(cpu, size)

    # ---- shadow buffers ----------------------------------------------------------------------

    def _take(self, device: DmaDevice, size: int, direction: Direction, cpu: int) -> _Shadow:
        """Take a free shadow buffer, or make and map a new one."""
        rounded = next(each for each in SIZES if each >= size)
        key = device, cpu, direction, rounded
        pool = self._pools.setdefault(key, _Pool())
        if pool.free:
            self.linux.meter.spend(cpu, Work.SLOT_TAKE)
            iova, physical = pool.free.pop()
            return _Shadow(pool, iova, physical)
        memory = self.linux.memory
        try:
            physical = memory.alloc_pages(rounded // PAGE, f"shadow of {device.function.name}")
        except MemoryError as error:
            raise DmaMappingError(str(error)) from error
        try:
            self.linux.machine.memory.write(physical, bytes(rounded))
            self._bouncer.charge(cpu, 0, rounded)
            iova = self._map_extents(device, [Extent(0, physical, rounded)], direction, cpu)
        except Exception:
            memory.free_pages(physical)
            raise
        self._made.append((device, device.domain, iova, physical, rounded))
        return _Shadow(pool, iova, physical)

    def _put_back(self, mapping: Mapping) -> None:
        shadow = self._in_use.pop(mapping)
        shadow.pool.free.append((shadow.iova, shadow.physical))

    def release_all(self, device: DmaDevice, cpu: int = 0) -> None:
        """Unmap what a device that goes away still has mapped, and its shadow buffers."""
        super().release_all(device, cpu)
        for made in [m for m in self._made if m[0] is device]:
            _, domain, iova, physical, size = made
            self._made.remove(made)
            mapping = Mapping(device, iova, size, Direction.BIDIRECTIONAL, iova, size, physical)
            mapping.domain = domain
            domain.mappings[iova] = mapping
            super()._unmap(mapping, cpu, deferred=False)
            self.linux.memory.free_pages(physical)
        for key in [key for key in self._pools if key[0] is device]:
            del self._pools[key]
