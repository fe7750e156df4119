"""Bounce buffers as the DMA API uses them: taken, copied, charged, and refused with a log line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from iommu_emu.core import NotRamError
from iommu_emu.direction import Direction
from iommu_emu.linux.bounce import BouncedBuffer, BouncePlan
from iommu_emu.linux.dma_device import DmaDevice, Mapping
from iommu_emu.linux.swiotlb import MappingTooLargeError, PoolFullError, Swiotlb
from iommu_emu.meter import Work

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

__all__ = ["Bouncer", "DmaMappingError", "DmaStatistics"]

T = TypeVar("T")


class DmaMappingError(RuntimeError):
    """The DMA API could not map (DMA_MAPPING_ERROR); nothing is mapped, and nothing leaked.

    Args:
        reason: why, for people.
        log: the line in the kernel's log; "" where it says nothing.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


@dataclass
class DmaStatistics:
    """What a DMA API did so far.

    Attributes:
        maps: calls that mapped something; a scatter list is one.
        unmaps: calls that unmapped something.
        deferred: how many of them left the invalidation to a later flush.
        failed: calls that mapped nothing for want of something.
        copied: bytes copied to and from bounce or shadow buffers.
        zeroed: bytes of padding cleared.
    """

    maps: int = 0
    unmaps: int = 0
    deferred: int = 0
    failed: int = 0
    copied: int = 0
    zeroed: int = 0


class Bouncer:
    """Takes bounce buffers from a kernel's pool.

    Args:
        linux: the kernel.
        statistics: where copied bytes are counted.
    """

    def __init__(self, linux: Linux, statistics: DmaStatistics) -> None:
        self._linux = linux
        self._statistics = statistics

    def bounce(
        self, device: DmaDevice, plan: BouncePlan, direction: Direction, cpu: int
    ) -> BouncedBuffer:
        """Carry out a plan.

        Raises:
            DmaMappingError: if there is no pool, or no room in it.
        """
        pool = self._pool_for(device)
        boundary = device.segment_boundary
        return self._taking(
            device,
            plan.size,
            cpu,
            lambda: BouncedBuffer(pool, plan, direction, boundary_mask=boundary, cpu=cpu),
        )

    def take(
        self, device: DmaDevice, physical: int, size: int, direction: Direction, cpu: int
    ) -> int:
        """Return the address of slots for a buffer of a device that is not translated.

        Raises:
            DmaMappingError: if there is no pool, or no room in it.
        """
        pool = self._pool_for(device)
        mask = device.min_align_mask
        return self._taking(
            device,
            size,
            cpu,
            lambda: pool.map(physical, size, direction, min_align_mask=mask, cpu=cpu),
        )

    def release(self, bounced: BouncedBuffer, cpu: int, *, skip_sync: bool = False) -> None:
        """Copy out what the device wrote, and free the slots."""
        self._linux.meter.spend(cpu, Work.SLOT_RELEASE)
        with self._copying(cpu):
            bounced.release(skip_sync=skip_sync)

    def give_back(
        self, slot: int, size: int, direction: Direction, cpu: int, *, skip_sync: bool = False
    ) -> None:
        """Copy out what the device wrote, and free the slots that `take` returned."""
        self._linux.meter.spend(cpu, Work.SLOT_RELEASE)
        with self._copying(cpu) as pool:
            pool.unmap(slot, size, direction, skip_sync=skip_sync)

    def sync(self, mapping: Mapping, offset: int, size: int, cpu: int, *, for_cpu: bool) -> None:
        """Copy out, or in, what of a part of a buffer is bounced."""
        if mapping.bounced is None and mapping.slot is None:
            return
        with self._copying(cpu) as pool:
            if mapping.bounced is not None:
                bounced = mapping.bounced
                copy = bounced.sync_for_cpu if for_cpu else bounced.sync_for_device
                copy(offset, size)
            elif mapping.slot is not None:
                slots = pool.sync_for_cpu if for_cpu else pool.sync_for_device
                slots(mapping.slot + offset, size)

    def charge(self, cpu: int, copied: int, zeroed: int = 0) -> None:
        """Count and charge bytes that a CPU copied and cleared."""
        self._statistics.copied += copied
        self._statistics.zeroed += zeroed
        if copied:
            self._linux.meter.spend(cpu, Work.COPY, copied)
        if zeroed:
            self._linux.meter.spend(cpu, Work.ZERO, zeroed)

    def _pool_for(self, device: DmaDevice) -> Swiotlb:
        pool = self._linux.pool
        if pool is None:
            line = "DMA bounce buffers are inactive, unable to map unaligned transaction."
            raise DmaMappingError(
                f"{device.name} needs bounce buffers, and there is no pool",
                self._linux.once(f"{device.function.name} {device.name}: {line}"),
            )
        return pool

    def _taking(self, device: DmaDevice, size: int, cpu: int, take: Callable[[], T]) -> T:
        """Take slots by `take`, and say what the kernel says if there are none."""
        meter = self._linux.meter
        with self._copying(cpu) as pool, meter.lock(cpu, f"swiotlb:{cpu % pool.areas}"):
            meter.spend(cpu, Work.SLOT_TAKE)
            try:
                return take()
            except (PoolFullError, MappingTooLargeError) as error:
                total = pool.used_slots + pool.free_slots
                raise DmaMappingError(
                    str(error),
                    f"{device.function.name} {device.name}: swiotlb buffer is full (sz: {size} "
                    f"bytes), total {total} (slots), used {pool.used_slots} (slots)",
                ) from error
            except NotRamError as error:
                raise DmaMappingError(f"only RAM can be bounced: {error}") from error

    @contextmanager
    def _copying(self, cpu: int) -> Iterator[Swiotlb]:
        """Charge a CPU for what the pool copies and clears."""
        pool = self._linux.pool
        assert pool is not None  # slots are taken from it
        statistics = pool.statistics
        copied = statistics.copied_to_device + statistics.copied_from_device
        zeroed = statistics.zeroed
        yield pool
        copied = statistics.copied_to_device + statistics.copied_from_device - copied
        self.charge(cpu, copied, statistics.zeroed - zeroed)
