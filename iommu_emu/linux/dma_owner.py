"""Who may use the DMA of an IOMMU group: the kernel's drivers or user space, never both (os 4.8).

Each side counts itself in, and the other one is refused from then on. What was before that is
`iommu_emu.linux.vfio_notifier`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from iommu_emu.core import StateError
from iommu_emu.domain import Domain
from iommu_emu.linux.bound_group import BoundGroup, KernelDriver
from iommu_emu.linux.iommu_group import IommuGroup, device_name
from iommu_emu.linux.reserved_regions import KernelAge, check_blocking_domain, check_user_domain
from iommu_emu.pci.function import Function
from iommu_emu.refused import RefusedError

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["DmaOwnership", "GroupDomain"]


class GroupDomain(Enum):
    """Domains that every group has."""

    DEFAULT = "default"  # the kernel's
    BLOCKING = "blocking"  # nothing gets through


class DmaOwnership(BoundGroup):
    """DMA ownership of a group (since Linux 5.19).

    Args:
        machine: the machine.
        group: one of its groups.
        age: what the kernel does about reserved regions.
        attach: called for each member to move it to a domain; None: nothing is moved. If it
            raises, the members moved before are moved back, and nothing has happened.

    Attributes:
        owner: who has claimed the group, told apart by identity; None: the kernel's drivers
            may use it.
        owner_count: how many count on the present owner, drivers of the kernel or claims.
        domain: where the members are.
        pasids: PASIDs in use of any member.
        default_domain_ready: False until Linux has made the default domain at boot.
    """

    def __init__(
        self,
        machine: Machine,
        group: IommuGroup,
        age: KernelAge = KernelAge.LINUX_7_2,
        *,
        attach: Callable[[Function, Domain | GroupDomain], None] | None = None,
    ) -> None:
        super().__init__(machine, group, age)
        self.owner: object | None = None
        self.owner_count = 0
        self.domain: Domain | GroupDomain = GroupDomain.DEFAULT
        self.pasids: set[int] = set()
        self.default_domain_ready = True
        self._attach = attach

    # The kernel's drivers.

    def bind(self, function: Function, driver: KernelDriver) -> None:
        """Bind a driver, which counts it in unless it manages its DMA itself.

        Raises:
            ValueError: if the function is not a member, or the driver is for bridges only.
            RefusedError: EBUSY, if the function has a driver or user space has the group;
                EPROBE_DEFER, before the default domain exists; EINVAL, if VFIO is to have a
                bridge.
        """
        self._check_bind(function, driver)
        if not driver.driver_managed_dma:
            self.use_default_domain(function)
        self.drivers[function] = driver

    def unbind(self, function: Function) -> None:
        """Unbind a member's driver.

        Raises:
            ValueError: if the function is not a member.
            StateError: if it has no driver.
        """
        driver = self._bound(function)
        if not driver.driver_managed_dma:
            self.unuse_default_domain()
        del self.drivers[function]

    def use_default_domain(self, function: Function) -> None:
        """Count in one user of the default domain.

        Raises:
            RefusedError: EPROBE_DEFER, before the default domain exists; EBUSY, if the group is
                owned, not on its default domain, or has PASIDs.
        """
        self._check_member(function)
        if not self.default_domain_ready:
            raise RefusedError("EPROBE_DEFER", self._says("has no default domain yet"))
        if self.owner is not None:
            raise RefusedError(
                "EBUSY",
                self._says(f"is owned by {self.owner}; {device_name(function)} stays unbound"),
            )
        self._require_default()
        self.owner_count += 1

    def unuse_default_domain(self) -> None:
        """Count out one user of the default domain.

        Raises:
            StateError: if there is none, or PASIDs are in use (Linux warns with a stack trace).
        """
        if self.owner is not None or not self.owner_count or self.pasids:
            raise StateError(self._says("has no user of its default domain to count out"))
        self.owner_count -= 1

    # User space.

    def claim(self, owner: object) -> None:
        """Claim the whole group, as VFIO does for a container; its members are blocked then.

        Raises:
            ValueError: if the owner is None.
            RefusedError: EPERM, if anybody counts on the group; EBUSY, if it is not on its
                default domain or has PASIDs; EINVAL, if a member needs a 1:1 mapping.
        """
        if owner is None:
            raise ValueError("owner must not be None")
        if self.owner_count:
            raise RefusedError("EPERM", "; ".join(self.blockers()))
        self._require_default()
        self._move(GroupDomain.BLOCKING)
        self.owner, self.owner_count = owner, 1

    def claim_device(self, function: Function, owner: object) -> None:
        """Claim the group by one of its devices; the same owner may do so for each of them.

        Raises:
            ValueError: if the function is not a member, or the owner is None.
            RefusedError: as for `claim`; EPERM, if another one owns the group.
        """
        self._check_member(function)
        if owner is not None and self.owner is owner:
            self.owner_count += 1
        else:
            self.claim(owner)

    def release(self) -> None:
        """Give the group back to the kernel's drivers, whatever the count.

        Raises:
            StateError: if it is not owned, or PASIDs are in use.
        """
        if self.owner is None or self.pasids:
            raise StateError(self._says("is not owned" if self.owner is None else "has PASIDs"))
        self._move(GroupDomain.DEFAULT)
        self.owner, self.owner_count = None, 0

    def release_device(self, function: Function) -> None:
        """Give back one claim; the last one gives back the group.

        Raises:
            ValueError: if the function is not a member.
            StateError: if the group is not owned, or PASIDs are in use.
        """
        self._check_member(function)
        if self.owner is not None and self.owner_count > 1:
            self.owner_count -= 1
        else:
            self.release()

    def attach_domain(self, domain: Domain) -> None:
        """Move the group to a domain of its owner's.

        Raises:
            StateError: if it is not owned.
            RefusedError: EBUSY, if it is on such a domain; EPERM, if a member has an RMRR and
                the kernel (Linux 6.1) looks at that here.
        """
        if self.owner is None:
            raise StateError(self._says("is not owned: claim it first"))
        if self.domain is not GroupDomain.BLOCKING:
            raise RefusedError("EBUSY", self._says("is attached to a domain already"))
        self._move(domain)

    def detach_domain(self) -> None:
        """Move the group from its owner's domain back to the blocking one.

        Raises:
            StateError: if it is not on a domain of an owner's.
        """
        if isinstance(self.domain, GroupDomain):
            raise StateError(self._says("is on no domain of an owner's"))
        self._move(GroupDomain.BLOCKING)

    # What both meet.

    def check_type_change(self) -> None:
        """Check that the type of the default domain may change; DMA to DMA-FQ always may (os 4.1).

        Raises:
            RefusedError: if a driver is bound that counts, or the group is owned: EPERM; before
                Linux 6.4 EBUSY, with a line in the log.
        """
        if not self.owner_count:
            return
        reason = "; ".join(self.blockers())
        if self.age is KernelAge.LINUX_7_2:
            raise RefusedError("EPERM", reason)
        raise RefusedError("EBUSY", reason, "iommu: Device is still bound to driver")

    def device_added(self, function: Function) -> None:
        """Move a member that has just come to where the others are.

        Raises:
            ValueError: if the function is not a member.
            RefusedError: if it needs a 1:1 mapping that the domain does not have.
        """
        self._check_member(function)
        self._check_domain(function, self.domain)
        if self._attach is not None:
            self._attach(function, self.domain)

    def blockers(self) -> list[str]:
        """Return what a claim is refused for now, each in words; empty: the group is viable."""
        if self.owner is not None:
            return [self._says(f"is owned by {self.owner}")]
        found = [
            f"{device_name(function)} is bound to {driver.name}, which uses the default domain: "
            "unbind it, or bind pci-stub"
            for function, driver in self.drivers.items()
            if not driver.driver_managed_dma
        ]
        others = self.owner_count - len(found)
        return [*found, *([f"{others} more count on the default domain"] if others > 0 else [])]

    def _says(self, what: str) -> str:
        return f"group {self.group.number} {what}"

    def _require_default(self) -> None:
        if self.domain is not GroupDomain.DEFAULT:
            raise RefusedError("EBUSY", self._says("is not on its default domain"))
        if self.pasids:
            raise RefusedError("EBUSY", self._says("has PASIDs in use"))

    def _check_domain(self, function: Function, domain: Domain | GroupDomain) -> None:
        if domain is GroupDomain.BLOCKING:
            check_blocking_domain(self.machine, function, self.age, self._driver_name(function))
        elif domain is not GroupDomain.DEFAULT:
            check_user_domain(self.machine, function, self.age, self._driver_name(function))

    def _driver_name(self, function: Function) -> str:
        """Return what log lines about a function begin with: its driver, or its bus."""
        return self.drivers[function].name if function in self.drivers else "pci"

    def _move(self, domain: Domain | GroupDomain) -> None:
        """Move every member to a domain, or none."""
        for function in self.group.members:
            self._check_domain(function, domain)
        if self._attach is not None:
            moved: list[Function] = []
            try:
                for function in self.group.members:
                    self._attach(function, domain)
                    moved.append(function)
            except Exception:
                for function in moved:
                    self._attach(function, self.domain)
                raise
        self.domain = domain
