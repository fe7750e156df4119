"""The DMA API as the proposals of 2019 would have it: laziness for some, not for all.

They answer what lazy unmapping concedes: memory that is somebody else's by now, and that a device
still reaches through a cached translation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from iommu_emu.direction import Direction
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.dma_device import CoherentBuffer, DmaDevice, Mapping

__all__ = ["BounceLazy", "LazyCoherentOnly", "LazyDevicePrivate", "LazyOptIn"]


def _nothing() -> None:
    """Do nothing."""


class LazyCoherentOnly(DmaApi):
    """Proposal (1): only coherent memory is lazy, and is freed after the flush that covers it.

    That memory is the DMA API's own, so nobody gets it in between. Whatever a driver maps by
    itself is unmapped strictly.
    """

    def defers(self, mapping: Mapping) -> bool:
        """Return whether it is coherent memory."""
        return mapping.coherent

    def free_coherent(self, device: DmaDevice, buffer: CoherentBuffer, cpu: int = 0) -> None:
        """Take coherent memory back; it is freed when nothing can reach it any more."""
        self._check_cpu(cpu)
        mapping = self._coherent(device, buffer)
        free = partial(self.linux.memory.free_pages, buffer.physical)
        self._unmap(mapping, cpu, deferred=True, then=free)
        self._unmapped(cpu)


class LazyOptIn(DmaApi):
    """Proposal (2): an unmap is strict unless the driver asks for the other one.

    A driver asks by `unmap_single_deferred`, or for all of its unmaps by `DmaDevice.opt_in`.
    """

    def defers(self, mapping: Mapping) -> bool:
        """Return whether the driver has opted in."""
        return mapping.device.opt_in


class LazyDevicePrivate(DmaApi):
    """The mitigation named in 2019: what a device may still reach is reused by itself only.

    Memory that a driver frees before the flush stays aside, for the same driver's next
    allocation; others get it after the flush.
    """

    def _unmap(
        self,
        mapping: Mapping,
        cpu: int,
        *,
        deferred: bool,
        skip_sync: bool = False,
        then: Callable[[], None] = _nothing,
    ) -> None:
        if not deferred or mapping.domain.queue is None:
            super()._unmap(mapping, cpu, deferred=deferred, skip_sync=skip_sync, then=then)
            return
        memory = self.linux.memory

        def flushed() -> None:
            for address, size in mapping.in_place:
                memory.release(address, size)
            then()

        for address, size in mapping.in_place:
            memory.hold(address, size)
        super()._unmap(mapping, cpu, deferred=True, skip_sync=skip_sync, then=flushed)


class BounceLazy(DmaApi):
    """Bounce buffers as the fourth version of 2019 wanted them: slots wait for a lazy flush.

    A device that is not trusted may be lazy then: what it still reaches after an unmap is a slot
    that nobody else gets before the flush. Buffers that are mapped in place are unmapped
    strictly.
    """

    lazy_untrusted = True

    def defers(self, mapping: Mapping) -> bool:
        """Return whether all that the device reaches is in slots, or it is trusted."""
        return not mapping.device.untrusted or not mapping.in_place

    def _unmap(
        self,
        mapping: Mapping,
        cpu: int,
        *,
        deferred: bool,
        skip_sync: bool = False,
        then: Callable[[], None] = _nothing,
    ) -> None:
        bounced = mapping.bounced
        if bounced is None or not deferred or mapping.domain.queue is None:
            super()._unmap(mapping, cpu, deferred=deferred, skip_sync=skip_sync, then=then)
            return

        def flushed() -> None:
            self._bouncer.release(bounced, cpu, skip_sync=True)
            then()

        if not skip_sync and mapping.direction is not Direction.TO_DEVICE:
            self._bouncer.sync(mapping, 0, mapping.size, cpu, for_cpu=True)
        mapping.bounced = None  # its slots stay taken until the flush
        super()._unmap(mapping, cpu, deferred=True, then=flushed)
