"""VFIO: a group in the hands of user space, by the old rule or by DMA ownership (os 4.8).

User space gets all of a group or nothing of it, and one domain for it that it fills itself. Its
unmaps are always strict: an unmap returns when nothing of it is left in any cache.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from iommu_emu.core import StateError
from iommu_emu.linux.bound_group import DRIVERS, BoundGroup, KernelDriver
from iommu_emu.linux.dma_owner import DmaOwnership
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.linux.reserved_regions import (
    KernelAge,
    RegionType,
    ResvRegion,
    check_iova,
    group_regions,
    map_direct,
)
from iommu_emu.linux.vfio_notifier import KernelBugError, VfioNotifier
from iommu_emu.memory import PAGE
from iommu_emu.meter import Work
from iommu_emu.refused import RefusedError
from iommu_emu.timeline import EventKind

if TYPE_CHECKING:
    from iommu_emu.domain import Domain
    from iommu_emu.driver import Driver
    from iommu_emu.linux.kernel import Linux
    from iommu_emu.pci.function import Function

__all__ = ["UserDomain", "Vfio"]


class Vfio:
    """VFIO of one kernel, and what the kernel's drivers are bound to.

    Args:
        linux: the kernel.
        notifier: whether it is older than DMA ownership (Linux 5.19): drivers are looked at when
            a group is opened, and one that is bound later stops the machine.
        map_reserved: whether a domain of user space gets the reserved memory of its devices
            1:1, as was proposed in 2014; user space must leave a hole for it.
    """

    def __init__(self, linux: Linux, *, notifier: bool = False, map_reserved: bool = False) -> None:
        self.linux = linux
        self.map_reserved = map_reserved
        self._notifier = notifier
        self._notifiers: dict[IommuGroup, VfioNotifier] = {}

    def rule(self, function: Function) -> BoundGroup:
        """Return the rule over a function's group: its drivers, and who is in the way.

        Raises:
            ValueError: if the function has no group.
        """
        group = self._group(function)
        if not self._notifier:
            return self.linux.ownership(group)
        if group not in self._notifiers:
            self._notifiers[group] = VfioNotifier(self.linux.machine, group, self.linux.age)
        return self._notifiers[group]

    def bind(self, function: Function, driver: str | KernelDriver) -> None:
        """Bind a driver of the kernel.

        Args:
            function: whose.
            driver: the driver, or the name of one of `bound_group.DRIVERS`.

        Raises:
            ValueError: if there is no driver of that name, or it cannot drive the function.
            RefusedError: if the group is not the kernel's, or the function has a driver.
            KernelBugError: by the old rule, if user space has the group; it is bound by then.
        """
        if isinstance(driver, str):
            if driver not in DRIVERS:
                raise ValueError(f"driver must be one of {', '.join(DRIVERS)}, not {driver!r}")
            driver = DRIVERS[driver]
        try:
            self.rule(function).bind(function, driver)
        except KernelBugError as error:
            self.linux.log.write(str(error))
            raise

    def unbind(self, function: Function) -> None:
        """Unbind a function's driver.

        Raises:
            ValueError: if the function has no group.
            StateError: if it has no driver.
        """
        self.rule(function).unbind(function)

    def device_added(self, function: Function) -> None:
        """Hear of a function that came to a group after `Linux.add`; only the old rule listens.

        Raises:
            ValueError: if the function has no group.
        """
        rule = self.rule(function)
        if isinstance(rule, VfioNotifier):
            known = len(rule.warnings)
            rule.device_added(function)
            for line in rule.warnings[known:]:
                self.linux.log.write(line)

    def open(self, function: Function, owner: str = "QEMU") -> UserDomain:
        """Give a device to user space, and its group with it.

        Args:
            function: bound to vfio-pci.
            owner: who has it then.

        Returns:
            The domain of its own, empty but for reserved memory if that is mapped.

        Raises:
            ValueError: if the function has no group.
            StateError: if the function is not bound to vfio-pci.
            RefusedError: if the kernel does not give it away; nothing has changed then.
        """
        rule, group = self.rule(function), self._group(function)
        bound = rule.drivers.get(function)
        if bound is None or not bound.user_space:
            raise StateError(f"{device_name(function)} is not bound to vfio-pci: bind it first")
        driver = self.linux.device(function).driver
        ownership = self.linux.ownership(group)
        with ExitStack() as undo:
            domain = self.linux.user_domain(group)
            undo.callback(driver.destroy_domain, domain)
            if self.map_reserved:
                regions = group_regions(self.linux.machine, group, self.linux.age)
                map_direct(domain, [r for r in regions if r.type is RegionType.DIRECT])
            try:
                if isinstance(rule, VfioNotifier):
                    rule.open()
                    undo.callback(rule.close)
                ownership.claim(owner)
                undo.callback(ownership.release)
                ownership.attach_domain(domain)
            except RefusedError as error:
                if error.log:
                    self.linux.log.write(error.log)
                raise
            undo.pop_all()
        return UserDomain(self, group, domain, owner)

    def _group(self, function: Function) -> IommuGroup:
        group = self.linux.groups.of(function)
        if group is None:
            raise ValueError(f"{function.name} has no group: no IOMMU serves it")
        return group


class UserDomain:
    """The domain of a group that user space has; made by `Vfio.open`.

    Virtual CPU 0 is charged for tables and invalidations, but not for system calls, nor for pages
    that are pinned.

    Attributes:
        group: the group.
        domain: the unit's domain.
        owner: who has it.
    """

    def __init__(self, vfio: Vfio, group: IommuGroup, domain: Domain, owner: str) -> None:
        self.group = group
        self.domain = domain
        self.owner = owner
        self._vfio = vfio
        self._linux = vfio.linux

    @property
    def regions(self) -> list[ResvRegion]:
        """Reserved regions of the group, as it is now."""
        return group_regions(self._linux.machine, self.group, self._linux.age)

    @property
    def ownership(self) -> DmaOwnership:
        """The ownership of the group."""
        return self._linux.ownership(self.group)

    def map(self, iova: int, physical: int, size: int, permissions: str = "rw") -> None:
        """Map memory of user space's for its devices.

        Args:
            iova: first input address; for a guest, its physical address.
            physical: where the memory is.
            size: bytes, whole pages.
            permissions: "r", "w" or "rw".

        Raises:
            RefusedError: EINVAL, if the range overlaps a reserved region that is not relaxable
                (since Linux 5.4).
            ValueError: if a number is not aligned, or part of it is mapped.
            MemoryError: if there are no frames left for tables.
        """
        if self._linux.age is not KernelAge.UNCHECKED or self._vfio.map_reserved:
            check_iova(self.regions, iova, size)
        self.domain.map(iova, physical, size, permissions)
        self._linux.flusher.mapped(self._driver, size // PAGE, 0)
        self._note(EventKind.MAP, "maps guest memory", iova, size)

    def unmap(self, iova: int, size: int) -> None:
        """Unmap memory; it returns when no cache holds any of it.

        Raises:
            ValueError: if part of it is not mapped.
        """
        driver, linux = self._driver, self._linux
        self.domain.unmap(iova, size)
        linux.meter.spend(0, Work.TABLE_UNMAP, size // PAGE)
        device_tlbs = driver.device_tlbs_of(self.domain)
        linux.flusher.charge(driver, 0, Work.INVALIDATE_PAGE, device_tlbs)
        self._note(EventKind.UNMAP, "unmaps guest memory", iova, size)

    def close(self) -> None:
        """Give the group back to the kernel, and free the domain.

        Raises:
            StateError: if it has been given back.
        """
        self.ownership.release()
        rule = self._vfio.rule(next(iter(self.group.members)))
        if isinstance(rule, VfioNotifier):
            rule.close()
        self._driver.destroy_domain(self.domain)

    @property
    def _driver(self) -> Driver[Any]:
        return self._linux.device(next(iter(self.group.members))).driver

    def _note(self, kind: EventKind, text: str, iova: int, size: int) -> None:
        self._linux.timeline.add(kind, self.owner, text, address=iova, size=size)
