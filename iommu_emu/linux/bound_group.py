"""Drivers of the kernel, and a group whose members they are bound to (os 4.8)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iommu_emu.core import StateError
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.refused import RefusedError

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["DRIVERS", "BoundGroup", "KernelDriver"]


@dataclass(frozen=True)
class KernelDriver:
    """A kernel driver, as far as ownership goes.

    Attributes:
        name: as in /sys/bus/pci/drivers.
        driver_managed_dma: whether it does without the kernel's DMA, or claims ownership for
            user space itself.
        uses_dma: whether its device does DMA for the kernel.
        uses_mmio: whether it relies on registers of its device that a peer could write.
        user_space: whether it hands its device to user space (VFIO).
        for_bridges: whether it drives bridges and nothing else.
    """

    name: str
    driver_managed_dma: bool = False
    uses_dma: bool = True
    uses_mmio: bool = True
    user_space: bool = False
    for_bridges: bool = False

    @property
    def hazards(self) -> list[str]:
        """What makes it unsafe next to a device of user space; empty: nothing."""
        found = []
        if self.uses_dma and not self.user_space:
            found.append("its device does DMA for the kernel")
        if self.uses_mmio and not self.user_space:
            found.append("user space's devices can write its registers peer to peer")
        return found


DRIVERS = {
    driver.name: driver
    for driver in (
        KernelDriver("vfio-pci", driver_managed_dma=True, user_space=True),
        KernelDriver("pci-stub", driver_managed_dma=True, uses_dma=False, uses_mmio=False),
        KernelDriver(
            "pcieport",
            driver_managed_dma=True,
            uses_dma=False,
            uses_mmio=False,
            for_bridges=True,
        ),
        KernelDriver("shpchp", uses_dma=False, for_bridges=True),
        KernelDriver("nvme"),
        KernelDriver("e1000e"),
        KernelDriver("xhci_hcd"),
    )
}


class BoundGroup(ABC):
    """A group and the drivers its members are bound to.

    Args:
        machine: the machine.
        group: one of its groups.
        age: what the kernel does about reserved regions.

    Attributes:
        drivers: the drivers of those members that have one.
    """

    def __init__(
        self, machine: Machine, group: IommuGroup, age: KernelAge = KernelAge.LINUX_7_2
    ) -> None:
        self.machine = machine
        self.group = group
        self.age = age
        self.drivers: dict[Function, KernelDriver] = {}

    @abstractmethod
    def bind(self, function: Function, driver: KernelDriver) -> None:
        """Bind a driver to a member.

        Raises:
            ValueError: if the function is not a member, or the driver is for bridges only.
            RefusedError: EBUSY, if the function has a driver; EINVAL, if VFIO is to have a
                bridge; and whatever else the rule says.
        """

    @abstractmethod
    def unbind(self, function: Function) -> None:
        """Unbind a member's driver.

        Raises:
            ValueError: if the function is not a member.
            StateError: if it has no driver.
        """

    @abstractmethod
    def blockers(self) -> list[str]:
        """Return what keeps the group from user space, each in words; empty: it is viable."""

    @property
    def viable(self) -> bool:
        """Whether user space may have the group, as far as drivers are concerned."""
        return not self.blockers()

    def hazards(self) -> list[str]:
        """Return which members' drivers user space's devices could harm, or be harmed by."""
        return [
            f"{device_name(function)} is bound to {driver.name}: {', '.join(driver.hazards)}"
            for function, driver in self.drivers.items()
            if driver.hazards
        ]

    def report(self) -> str:
        """Return whether the group is viable, and why not, for people."""
        blockers = self.blockers()
        if blockers:
            return "\n  ".join([f"group {self.group.number} is not viable:", *blockers])
        hazards = self.hazards()
        if hazards:
            return "\n  ".join([f"group {self.group.number} is viable, but unsafe:", *hazards])
        return f"group {self.group.number} is viable"

    def _check_member(self, function: Function) -> None:
        if function not in self.group.members:
            raise ValueError(f"{function.name} is not in group {self.group.number}")

    def _check_bind(self, function: Function, driver: KernelDriver) -> None:
        """Check what has nothing to do with ownership.

        Raises:
            ValueError: if the function is not a member, or the driver is for bridges only.
            RefusedError: EBUSY, if the function has a driver; EINVAL, if VFIO is to have a bridge.
        """
        self._check_member(function)
        if function in self.drivers:
            bound = self.drivers[function].name
            raise RefusedError("EBUSY", f"{device_name(function)} is bound to {bound} already")
        if driver.for_bridges and not isinstance(function, Bridge):
            raise ValueError(f"{driver.name} drives bridges; {function.name} is none")
        if driver.user_space and isinstance(function, Bridge):
            reason = f"{device_name(function)} is a bridge: {driver.name} takes endpoints only"
            raise RefusedError("EINVAL", reason)

    def _bound(self, function: Function) -> KernelDriver:
        self._check_member(function)
        if function not in self.drivers:
            raise StateError(f"{device_name(function)} is bound to no driver")
        return self.drivers[function]
