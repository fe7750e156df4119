"""Invalidations as the DMA API asks for them: at once, or by a flush queue; charged and noted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.driver import Driver
from iommu_emu.linux.dma_device import DmaDomain
from iommu_emu.linux.flush_queue import FlushQueue, QueueEntry
from iommu_emu.meter import Work
from iommu_emu.timeline import EventKind
from iommu_emu.unit import Unit
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux

__all__ = ["Flusher", "caches_not_present"]


class Flusher:
    """Invalidates for a kernel.

    Args:
        linux: the kernel.
    """

    def __init__(self, linux: Linux) -> None:
        self._linux = linux
        self._shared: FlushQueue | None = None  # the list of all domains, if there is one

    def make_queue(self, driver: Driver[Any], domain: DmaDomain) -> FlushQueue:
        """Return a flush queue for a domain of a driver, of the kernel's kind."""
        linux = self._linux
        if not linux.queue.locked:
            begin = partial(self._begin, driver, domain)
            return FlushQueue(linux.clock, begin, linux.queue, cpus=linux.cpus)
        if self._shared is None:
            self._shared = FlushQueue(
                linux.clock, self._begin_for_all, linux.queue, cpus=linux.cpus
            )
        return self._shared

    def close(self, domain: DmaDomain) -> None:
        """Flush a domain that no device is attached to, and release what waits for that."""
        if domain.queue is not None and domain.queue is self._shared:
            domain.queue.flush()  # others have entries in it
        elif domain.table is not None:
            domain.table.flush()
            if domain.queue is not None:
                domain.queue.close()

    def later(self, domain: DmaDomain, entry: QueueEntry, cpu: int) -> None:
        """Put an unmapped range on its domain's flush queue."""
        queue, meter = domain.queue, self._linux.meter
        assert queue is not None
        ring = cpu if queue.kind.per_cpu else 0
        own = f"flush queue:{domain.number}:{ring}"
        with meter.lock(cpu, "flush list" if queue is self._shared else own):
            meter.spend(cpu, Work.QUEUE_ADD)
            queue.queue(entry, cpu)

    def now(self, driver: Driver[Any], domain: DmaDomain, entry: QueueEntry, cpu: int) -> None:
        """Invalidate what is cached of an unmapped range, and wait."""
        table = domain.table
        assert table is not None
        begun = self._linux.clock.now
        self.charge(driver, cpu, Work.INVALIDATE_PAGE, driver.device_tlbs_of(table))
        submit = partial(
            driver.start_range_invalidation,
            table,
            entry.iova,
            entry.size,
            keep_tables=not entry.tables,
        )
        self._linux.device_tlbs.flush(driver, submit, cpu=cpu)
        self._note(begun, f"range of domain {table.id}", entry.iova, entry.size)

    def mapped(self, driver: Driver[Any], pages: int, cpu: int) -> None:
        """Charge a CPU for entries that it wrote, and for what a unit in caching mode asks for."""
        self._linux.meter.spend(cpu, Work.TABLE_MAP, pages)
        if caches_not_present(driver.unit):
            self.charge(driver, cpu, Work.INVALIDATE_PAGE)

    def charge(
        self, driver: Driver[Any], cpu: int, work: Work, device_tlbs: Collection[int] = ()
    ) -> None:
        """Charge a CPU that submits an invalidation and waits for it.

        Args:
            driver: of the unit.
            cpu: who waits.
            work: the unit's own part of it.
            device_tlbs: requester IDs of the devices whose device-TLBs are invalidated with it.
        """
        meter = self._linux.meter
        with meter.lock(cpu, f"queue:unit {driver.unit.number}"):
            meter.spend(cpu, Work.SUBMIT)
            meter.spend(cpu, work)
            if device_tlbs:
                meter.spend(cpu, Work.INVALIDATE_DEVICE_TLB, len(device_tlbs))
            meter.spend(cpu, Work.WAIT)

    # ---- for queues --------------------------------------------------------------------------

    def _begin(self, driver: Driver[Any], domain: DmaDomain, complete: Callable[[], None]) -> None:
        table, queue = domain.table, domain.queue
        assert table is not None
        assert queue is not None
        begun = self._linux.clock.now
        device_tlbs = driver.device_tlbs_of(table)
        self.charge(driver, queue.flushing_cpu, Work.INVALIDATE_DOMAIN, device_tlbs)

        def done() -> None:
            self._note(begun, f"all of domain {table.id}")
            complete()

        submit = partial(driver.start_domain_invalidation, table)
        self._linux.device_tlbs.begin_flush(driver, submit, done, cpu=queue.flushing_cpu)

    def _begin_for_all(self, complete: Callable[[], None]) -> None:
        """Flush every unit."""
        assert self._shared is not None
        begun = self._linux.clock.now
        drivers = list(self._linux.drivers.values())
        left = len(drivers)

        def done() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._note(begun, "all of every domain")
                complete()

        cpu = self._shared.flushing_cpu
        for driver in drivers:
            self.charge(driver, cpu, Work.INVALIDATE_DOMAIN, driver.device_tlbs)
            submit = partial(_start_everything, driver)
            self._linux.device_tlbs.begin_flush(driver, submit, done, cpu=cpu)

    def _note(self, begun: int, text: str, address: int | None = None, size: int = 0) -> None:
        self._linux.timeline.add(
            EventKind.FLUSH,
            "IOMMU",
            text,
            address=address,
            size=size,
            duration=self._linux.clock.now - begun,
            time=begun,
        )


def _start_everything(driver: Driver[Any]) -> None:
    """Submit the invalidation of every translation of a unit."""
    if isinstance(driver, VtdDriver):
        driver.invalidate_iotlb("global")
        for requester in driver.device_tlbs:
            driver.invalidate_device_tlb(requester)
    else:
        for table in driver.domains.values():
            driver.start_domain_invalidation(table)


def caches_not_present(unit: Unit) -> bool:
    """Return whether a unit may cache that something is not present (VT-d CM, AMD-Vi NpCache)."""
    if isinstance(unit, VtdUnit):
        return bool(unit.capabilities.caching_mode)
    return isinstance(unit, AmdviUnit) and unit.config.np_cache
