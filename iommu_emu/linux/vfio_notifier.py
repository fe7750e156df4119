"""VFIO's rule before DMA ownership: who may use a group is looked at once, then hoped for.

What came instead is `iommu_emu.linux.dma_owner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommu_emu.core import StateError
from iommu_emu.linux.bound_group import BoundGroup, KernelDriver
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.linux.reserved_regions import KernelAge, check_user_domain
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.refused import RefusedError

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["KernelBugError", "VfioNotifier"]


class KernelBugError(Exception):
    """The kernel has stopped itself (BUG_ON); the message is what its log says."""


class VfioNotifier(BoundGroup):
    """VFIO's rule before DMA ownership: drivers are looked at, new ones only reported.

    A group is viable if every member has no driver, VFIO's, or pci-stub; a bridge may have any
    driver. Nothing keeps a driver from being bound to a member later: the notifier finds out
    when the driver has started, and all that is left is to stop the machine.

    Attributes:
        live: whether user space has the group open.
        warnings: lines in the kernel's log.
    """

    def __init__(
        self, machine: Machine, group: IommuGroup, age: KernelAge = KernelAge.LINUX_6_1
    ) -> None:
        super().__init__(machine, group, age)
        self.live = False
        self.warnings: list[str] = []

    def bind(self, function: Function, driver: KernelDriver) -> None:
        """Bind a driver, whoever uses the group.

        Raises:
            ValueError: if the function is not a member, or the driver is for bridges only.
            RefusedError: EBUSY, if the function has a driver; EINVAL, if VFIO is to have a bridge.
            KernelBugError: if user space uses the group, which is not viable any more. The
                driver is bound by then.
        """
        self._check_bind(function, driver)
        self.drivers[function] = driver
        if self.live and not self._allowed(function):
            raise KernelBugError(
                f"kernel BUG in VFIO's group notifier: {device_name(function)} of live group "
                f"{self.group.number} was bound to {driver.name}"
            )

    def unbind(self, function: Function) -> None:
        """Unbind a member's driver.

        Raises:
            ValueError: if the function is not a member.
            StateError: if it has no driver.
        """
        self._bound(function)
        del self.drivers[function]

    def open(self) -> None:
        """Let user space use the group: container, domain, devices.

        Raises:
            RefusedError: EBUSY, if it does so already; EINVAL, if the group is not viable;
                EPERM, if a member has an RMRR and the kernel looks at that.
        """
        if self.live:
            number = self.group.number
            raise RefusedError("EBUSY", f"user space has group {number} open already")
        blockers = self.blockers()
        if blockers:
            raise RefusedError("EINVAL", "; ".join(blockers))
        for function in self.group.members:
            check_user_domain(self.machine, function, self.age)
        self.live = True

    def close(self) -> None:
        """End user space's use.

        Raises:
            StateError: if there is none.
        """
        if not self.live:
            raise StateError(f"user space does not have group {self.group.number} open")
        self.live = False

    def device_added(self, function: Function) -> None:
        """Be told of a member that has just come; a live group gets a warning and no more.

        Raises:
            ValueError: if the function is not a member.
        """
        self._check_member(function)
        if self.live:
            where = device_name(function)
            self.warnings.append(f"pci {where}: Device added to live group {self.group.number}!")

    def blockers(self) -> list[str]:
        """Return the members whose drivers are not allowed, in words; empty: it is viable."""
        return [
            f"{device_name(function)} is bound to {driver.name}, which is not VFIO's: unbind it, "
            "or bind vfio-pci or pci-stub"
            for function, driver in self.drivers.items()
            if not self._allowed(function)
        ]

    def _allowed(self, function: Function) -> bool:
        driver = self.drivers[function]
        return isinstance(function, Bridge) or driver.user_space or driver.name == "pci-stub"
