"""How one buffer is mapped for a device, and unmapped: what all calls of the DMA API share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from iommu_emu.core import StateError
from iommu_emu.direction import Direction
from iommu_emu.driver import Driver
from iommu_emu.linux.bounce import BounceRule, Extent, plan_bounce
from iommu_emu.linux.bouncer import Bouncer, DmaMappingError, DmaStatistics
from iommu_emu.linux.dma_device import DmaDevice, DmaDomain, Mapping
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flush_queue import QueueEntry
from iommu_emu.memory import PAGE
from iommu_emu.meter import Work
from iommu_emu.timeline import EventKind

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

__all__ = ["DmaMapper"]

T = TypeVar("T")

PERMISSIONS = {
    Direction.TO_DEVICE: "r",
    Direction.FROM_DEVICE: "w",
    Direction.BIDIRECTIONAL: "rw",
}


class DmaMapper:
    """Maps and unmaps buffers, each by itself; arguments are checked before.

    Args:
        linux: the kernel.

    Attributes:
        linux: as given.
        statistics: what it did so far.
    """

    # Whether devices that are not trusted may be in a lazy domain.
    lazy_untrusted = False

    def __init__(self, linux: Linux) -> None:
        self.linux = linux
        self.statistics = DmaStatistics()
        self._bouncer = Bouncer(linux, self.statistics)

    # ---- what a variant may override ---------------------------------------------------------

    def defers(self, mapping: Mapping) -> bool:
        """Return whether an unmap leaves the invalidation to the flush queue, if there is one."""
        return True

    def bounce_rule(self, device: DmaDevice, size: int) -> BounceRule:
        """Return what is bounced of a device's buffers where it is translated (os 4.4)."""
        if not device.untrusted or not self.linux.parameters.bounce:
            return BounceRule.NONE
        return self.linux.bounce

    def maps_alone(self, device: DmaDevice) -> bool:
        """Return whether each entry of a scatter list is mapped by itself."""
        untranslated = device.domain.type is DomainType.IDENTITY
        return untranslated or self.bounce_rule(device, 1) is not BounceRule.NONE

    # ---- mapping -----------------------------------------------------------------------------

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
        """Map one buffer; the arguments are checked."""
        self.linux.meter.spend(cpu, Work.MAP_CALL)
        if device.domain.type is DomainType.IDENTITY:
            bounces = self.linux.bounces_all and not coherent
            mapping = self._map_directly(device, physical, size, direction, cpu, bounces)
        else:
            mapping = self._map_translated(device, physical, size, direction, cpu)
        mapping.coherent = coherent
        if self._remembered(mapping):
            device.domain.mappings[mapping.iova] = mapping
        text = f"{direction.value} for {device.function.name}"
        text += ", bounced" if mapping.slot is not None or mapping.bounced is not None else ""
        self._note(EventKind.MAP, cpu, text, mapping.iova, size)
        return mapping

    def _map_translated(
        self, device: DmaDevice, physical: int, size: int, direction: Direction, cpu: int
    ) -> Mapping:
        domain = device.domain
        assert domain.iovas is not None
        granule = domain.iovas.granule
        try:
            plan = plan_bounce(
                physical,
                size,
                granule,
                self.bounce_rule(device, size),
                min_align_mask=device.min_align_mask,
            )
        except ValueError as error:
            log = f"{device.function.name} {device.name}: Unsupported alignment constraint"
            raise DmaMappingError(str(error), log) from error
        bounced = None
        extents: Sequence[Extent] = [Extent(0, physical - plan.iova_offset, plan.iova_size)]
        if plan.bounced_bytes:
            bounced = self._bouncer.bounce(device, plan, direction, cpu)
            extents = bounced.extents
        try:
            first = self._map_extents(device, extents, direction, cpu)
        except Exception:
            if bounced is not None:
                self._bouncer.release(bounced, cpu, skip_sync=True)
            raise
        return Mapping(
            device,
            first + plan.iova_offset,
            size,
            direction,
            first,
            plan.iova_size,
            physical,
            tuple((physical + p.offset, p.size) for p in plan.segments if not p.bounced),
            bounced=bounced,
        )

    def _map_extents(
        self, device: DmaDevice, extents: Sequence[Extent], direction: Direction, cpu: int
    ) -> int:
        """Map whole granules at a new input address; return it."""
        domain = device.domain
        assert domain.table is not None
        assert domain.iovas is not None
        size = sum(extent.size for extent in extents)
        first = self._allocate_iova(device, size, cpu)
        done = 0
        try:
            for extent in extents:
                domain.table.map(
                    first + extent.iova_offset,
                    extent.physical,
                    extent.size,
                    PERMISSIONS[direction],
                )
                done += extent.size
                self.linux.flusher.mapped(device.driver, extent.size // PAGE, cpu)
        except (ValueError, MemoryError) as error:
            if done:
                domain.table.unmap(first, done)
            self._free_iova(domain, first, cpu)
            raise DmaMappingError(f"no page table for it: {error}") from error
        before = domain.used.get(first)
        if before not in (None, extents[0].physical):
            text = f"input address of {before:#x} goes to {device.function.name} again"
            self._note(EventKind.REUSE, cpu, text, first, size)
        domain.used[first] = extents[0].physical
        return first

    def _map_directly(
        self,
        device: DmaDevice,
        physical: int,
        size: int,
        direction: Direction,
        cpu: int,
        bounces: bool,
    ) -> Mapping:
        """Map where there is no translation: the device uses physical addresses."""
        limit = device.limit.last
        if not bounces and physical + size - 1 <= limit:
            mine = ((physical, size),)
            return Mapping(device, physical, size, direction, physical, size, physical, mine)
        slot = self._bouncer.take(device, physical, size, direction, cpu)
        if slot + size - 1 <= limit:
            return Mapping(device, slot, size, direction, slot, size, physical, slot=slot)
        self._bouncer.give_back(slot, size, direction, cpu, skip_sync=True)
        raise DmaMappingError(
            f"{device.name} reaches addresses up to {limit:#x}; the bounce buffers are above",
            f"{device.function.name} {device.name}: DMA addr {slot:#x}+{size} overflow "
            f"(mask {limit:x}, bus limit 0).",
        )

    # ---- unmapping ---------------------------------------------------------------------------

    def _unmap(
        self,
        mapping: Mapping,
        cpu: int,
        *,
        deferred: bool,
        skip_sync: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Unmap; call `then` once no cache can have it any more.

        The IOMMU comes first: a device must not change what is being copied out (os 4.1).
        """
        device, domain = mapping.device, mapping.domain
        del domain.mappings[mapping.iova]
        waits = domain.queue is not None and deferred
        if domain.table is not None:
            freed = domain.table.table.unmap(mapping.first, mapping.mapped, keep_tables=True)
            self.linux.meter.spend(cpu, Work.TABLE_UNMAP, mapping.mapped // PAGE)
            text = f"{mapping.direction.value} of {device.function.name}"
            text += ", to be flushed later" if waits else ""
            self._note(EventKind.UNMAP, cpu, text, mapping.iova, mapping.size)
            release = partial(self._unmapped_for_good, device.driver, domain, then)
            entry = QueueEntry(mapping.first, mapping.mapped, release, freed)
            if waits:
                self.statistics.deferred += 1
                self.linux.flusher.later(domain, entry, cpu)
            else:
                self.linux.flusher.now(device.driver, domain, entry, cpu)
                release(entry, cpu)
        else:
            self._note(EventKind.UNMAP, cpu, mapping.direction.value, mapping.iova, mapping.size)
            then()
        if mapping.bounced is not None:
            self._bouncer.release(mapping.bounced, cpu, skip_sync=skip_sync)
        if mapping.slot is not None:
            self._bouncer.give_back(
                mapping.slot, mapping.size, mapping.direction, cpu, skip_sync=skip_sync
            )

    def _unmapped(self, cpu: int) -> None:
        """Count a call that unmapped something."""
        self.statistics.unmaps += 1
        self.linux.meter.spend(cpu, Work.UNMAP_CALL)

    def _unmapped_for_good(
        self,
        driver: Driver[Any],
        domain: DmaDomain,
        then: Callable[[], None],
        entry: QueueEntry,
        cpu: int,
    ) -> None:
        """Give page tables and input addresses back, once they are flushed."""
        driver.frames.release(entry.tables)
        self._free_iova(domain, entry.iova, cpu)
        then()

    # ---- pieces ------------------------------------------------------------------------------

    def _check_cpu(self, cpu: int) -> None:
        if not 0 <= cpu < self.linux.cpus:
            raise ValueError(f"cpu must be in 0..{self.linux.cpus - 1}, not {cpu}")

    def _check_call(self, direction: Direction, cpu: int) -> None:
        self._check_cpu(cpu)
        if not isinstance(direction, Direction):
            known = ", ".join(str(each) for each in Direction)
            raise ValueError(f"direction must be one of {known}, not {direction!r}")

    def _check(
        self, device: DmaDevice, physical: int, size: int, direction: Direction, cpu: int
    ) -> None:
        self._check_call(direction, cpu)
        if size < 1:
            raise ValueError(f"size must be at least 1 byte, not {size}")
        if not 0 <= physical <= (1 << 64) - size:
            raise ValueError(f"physical must be an address of 64 bits, not {physical:#x}")
        kind = device.domain.type
        if kind in (DomainType.BLOCKED, DomainType.UNMANAGED):
            raise StateError(f"the DMA of {device.name} is not the kernel's: it is {kind.value}")

    def _counted(self, work: Callable[[], T]) -> T:
        """Map something; count it, and log why it failed."""
        try:
            result = work()
        except DmaMappingError as error:
            self.statistics.failed += 1
            if error.log:
                self.linux.log.write(error.log)
            raise
        self.statistics.maps += 1
        return result

    def _mappings(
        self, device: DmaDevice, buffers: Sequence[tuple[int, int]], direction: Direction
    ) -> list[Mapping]:
        """Return what is mapped at some addresses, as far as it needs to be remembered.

        Raises:
            ValueError: if it is not what is mapped there, or the same comes twice.
        """
        found: dict[int, Mapping] = {}
        for iova, size in buffers:
            mapping = self._mapping(device, iova, size, direction)
            if iova in found:
                raise ValueError(f"{iova:#x} is named twice, and mapped once")
            if mapping is not None:
                found[iova] = mapping
        return list(found.values())

    def _mapping(
        self, device: DmaDevice, iova: int, size: int, direction: Direction
    ) -> Mapping | None:
        """Return what is mapped at an address; None where nothing needs to be remembered."""
        mapping = device.domain.mappings.get(iova)
        if mapping is None:
            if device.domain.type is DomainType.IDENTITY:
                return None
            raise ValueError(f"{device.name} has nothing mapped at {iova:#x}")
        if mapping.device is not device or (mapping.size, mapping.direction) != (size, direction):
            raise ValueError(
                f"device, size and direction must be those mapped at {iova:#x}, "
                f"{mapping.device.name}, {mapping.size} and {mapping.direction.value}, "
                f"not {device.name}, {size} and {direction.value}"
            )
        if mapping.coherent or mapping.entries:
            what = "coherent memory: use free_coherent"
            what = "a scatter list: use unmap_sg" if mapping.entries else what
            raise ValueError(f"what {device.name} has at {iova:#x} is {what}")
        return mapping

    @staticmethod
    def _remembered(mapping: Mapping) -> bool:
        """Whether a mapping leaves anything to be undone."""
        untranslated = mapping.device.domain.type is DomainType.IDENTITY
        return not untranslated or mapping.slot is not None or mapping.coherent

    def _sync(
        self,
        device: DmaDevice,
        iova: int,
        size: int,
        direction: Direction,
        cpu: int,
        *,
        for_cpu: bool,
    ) -> None:
        self._check_call(direction, cpu)
        mapping = self._around(device, iova, size)
        if mapping is None:
            return
        if mapping.direction is not direction:
            raise ValueError(f"direction must be {mapping.direction.value}, not {direction.value}")
        self._sync_mapping(mapping, iova - mapping.iova, size, cpu, for_cpu=for_cpu)

    def _sync_mapping(
        self, mapping: Mapping, offset: int, size: int, cpu: int, *, for_cpu: bool
    ) -> None:
        """Copy a part of a buffer out for the CPU, or in; what is in place needs nothing."""
        self._bouncer.sync(mapping, offset, size, cpu, for_cpu=for_cpu)

    def _around(self, device: DmaDevice, iova: int, size: int) -> Mapping | None:
        """Return the mapping that a range is in; None where nothing needs to be remembered."""
        mappings = device.domain.mappings
        exact = [mappings[iova]] if iova in mappings else []
        for mapping in (*exact, *mappings.values()):
            inside = mapping.iova <= iova < iova + size <= mapping.iova + mapping.size
            if inside and mapping.device is device:
                return mapping
        if device.domain.type is DomainType.IDENTITY:
            return None
        raise ValueError(f"{iova:#x}+{size:#x} is not inside one mapping of {device.name}")

    def _allocate_iova(self, device: DmaDevice, size: int, cpu: int) -> int:
        domain = device.domain
        assert domain.iovas is not None
        meter = self.linux.meter
        searched = domain.iovas.statistics.searched
        try:
            iova = domain.iovas.allocate_for(device.limit, size, cpu)
        except MemoryError as error:
            raise DmaMappingError(str(error)) from error
        if domain.iovas.statistics.searched > searched:
            with meter.lock(cpu, f"iova:{domain.number}"):
                meter.spend(cpu, Work.IOVA_SEARCH)
        else:
            meter.spend(cpu, Work.IOVA_ALLOCATE)
        return iova

    def _free_iova(self, domain: DmaDomain, iova: int, cpu: int) -> None:
        assert domain.iovas is not None
        domain.iovas.free(iova, cpu)
        self.linux.meter.spend(cpu, Work.IOVA_FREE)

    def _note(self, kind: EventKind, cpu: int, text: str, address: int, size: int) -> None:
        self.linux.timeline.add(kind, f"CPU {cpu}", text, address=address, size=size)
