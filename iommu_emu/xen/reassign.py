"""How a device gets from one domain to another: tables, caches, owner, reserved memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.meter import Meter, Work
from iommu_emu.timeline import EventKind, Timeline
from iommu_emu.vtd.unit import VtdUnit
from iommu_emu.xen.advisory import Advisory
from iommu_emu.xen.charge import charged
from iommu_emu.xen.device import XenDevice
from iommu_emu.xen.domain import DOM0, DOM_IO, XenDomain

__all__ = ["Reassigner"]


class Reassigner:
    """Programs units as devices change their owner.

    An entry changes in one step, from one page table to the next; then the context and the old
    domain's translations are invalidated (os 4.10).

    Args:
        pass_through: whether the hardware domain's devices go untranslated.
        ats: whether devices may use device-TLBs.
        unfixed: advisories without their fixes.
        timeline: where flushes are noted.
        meter: what charges virtual CPU 0 for them.
    """

    def __init__(
        self,
        *,
        pass_through: bool,
        ats: bool,
        unfixed: Collection[Advisory],
        timeline: Timeline,
        meter: Meter,
    ) -> None:
        self._pass_through = pass_through
        self._ats = ats
        self._unfixed = unfixed
        self._timeline = timeline
        self._meter = meter

    def reassign(
        self,
        driver: Driver[Any],
        device: XenDevice,
        target: XenDomain,
        *,
        phantoms_first: bool = False,
    ) -> None:
        """Move a device; what firmware reserved for it leaves the old owner last.

        The hardware domain keeps what is reserved: firmware may go on using it.

        Args:
            driver: of the device's unit.
            device: the device.
            target: its new owner, which has what firmware reserved for the device.
            phantoms_first: as a deassignment does; an assignment begins with the device itself.

        Raises:
            MemoryError: if there are no frames left for the target's table; nothing has changed.
            RefusedError: if the target's memory and its 1:1 maps collide; the same.
        """
        source = device.owner
        guest = source.number not in (DOM0, DOM_IO)
        vtd = isinstance(driver.unit, VtdUnit)
        held = any((region.base, region.end) in source.identity for region in device.regions)
        if Advisory.XSA_386 in self._unfixed and vtd and guest and held:
            for region in device.regions:  # once that was done, Xen thought that all was done
                source.identity.remove(region)
            return
        if target.number != DOM_IO and not self._passes(target):
            target.table(driver)  # all that may fail comes before anything changes
        own, phantoms = device.requesters, device.phantoms
        for requester in [*phantoms, *own] if phantoms_first else [*own, *phantoms]:
            if Advisory.XSA_400 in self._unfixed:
                self.block(driver, requester)  # two steps: for a moment nothing gets through
            self.point(driver, requester, device, target)
        device.owner = target
        self._timeline.add(EventKind.NOTE, "CPU 0", f"{device} goes from {source} to {target}")
        if guest and (vtd or Advisory.XSA_378 not in self._unfixed):
            for region in device.regions:
                source.identity.remove(region)

    def point(
        self, driver: Driver[Any], requester: int, device: XenDevice, target: XenDomain
    ) -> None:
        """Let a requester ID of a device translate as the devices of a domain do."""
        if target.number != DOM_IO:
            if self._passes(target):
                with self._flushing(driver, requester):
                    driver.pass_through(requester)
            else:
                self._attach(driver, requester, device, target.table(driver))
        elif device.quarantine is not None:
            self._attach(driver, requester, device, device.quarantine.domain)
        else:
            self.block(driver, requester)
            if requester == device.function.dma.requester:
                self.disable_ats(driver, device)

    def _attach(
        self, driver: Driver[Any], requester: int, device: XenDevice, table: Domain
    ) -> None:
        """Attach a requester ID; its ATS is switched on after that, if it may have it."""
        capability = device.function.ats_capability
        own = requester == device.function.dma.requester
        with self._flushing(driver, requester):
            if capability is not None and own and not device.broken and self._allows_ats(driver):
                driver.attach(table, requester, ats=True, queue_depth=capability.queue_depth)
                capability.enable()
            else:
                driver.attach(table, requester)

    def _allows_ats(self, driver: Driver[Any]) -> bool:
        return self._ats and driver.invalidation == "queue" and driver.has_device_tlbs

    def disable_ats(self, driver: Driver[Any], device: XenDevice) -> None:
        """Switch a device's ATS off; its device-TLB is not invalidated any more."""
        driver.device_tlbs.pop(device.function.dma.requester, None)
        capability = device.function.ats_capability
        if capability is not None and device.function.attached:
            capability.enable(False)

    def block(self, driver: Driver[Any], requester: int) -> None:
        """Let nothing of a requester ID through."""
        if requester in driver.attached:
            with self._flushing(driver, requester):
                driver.detach(requester)

    def _passes(self, target: XenDomain) -> bool:
        return self._pass_through and target.number == DOM0

    @contextmanager
    def _flushing(self, driver: Driver[Any], requester: int) -> Iterator[None]:
        """Note and charge what a change of a requester ID's entry invalidates."""
        with charged(self._meter, driver, Work.INVALIDATE_DOMAIN):
            yield
        self._timeline.add(EventKind.FLUSH, "IOMMU", f"context and IOTLB of {requester:#06x}")
