"""How Xen drives a unit: what differs from our small driver, and which domain IDs it uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.structures import DeviceTableEntry
from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.domain import Domain
from iommu_emu.driver import Driver
from iommu_emu.unit import Unit
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdUnit
from iommu_emu.xen.patience import PatientDriver

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

LEVELS = 4

__all__ = ["XenAmdviDriver", "create_table", "input_limit", "start_unit"]


class XenVtdDriver(PatientDriver, VtdDriver):
    """Waits as Xen does."""


class XenAmdviDriver(PatientDriver, AmdviDriver):
    """Waits as Xen does, and blocks a device by an entry without translation (V=1, TV=0)."""

    def start(self, *, fault_vector: int = 0x30) -> None:
        """Bring the unit up; Xen sets no limit to invalidations of device-TLBs (AMD-Vi 3.4)."""
        super().start(fault_vector=fault_vector)
        self.unit.write_field("Control", "InvTimeOut", 0)

    def _blocked(self, domain_id: int = 0) -> bytes:
        """Every request that needs a walk is refused (AMD-Vi 4.3)."""
        return DeviceTableEntry.build(v=1, domain_id=domain_id)

    def _set_entry(
        self,
        requester: int,
        entry: bytes,
        domain_id: int | None,
        queue_depth: int,
        invalidate: bool,
        wait: bool,
    ) -> None:
        """Write an entry; one that blocks keeps the domain ID, which faults then show."""
        if domain_id is None:
            address = self.context_entry_address(requester)
            old = DeviceTableEntry.parse(self.memory.read(address, DeviceTableEntry.size))
            entry = self._blocked(old.domain_id)
        super()._set_entry(requester, entry, domain_id, queue_depth, invalidate, wait)


def start_unit(
    machine: Machine, unit: Unit, frames: range, *, queued_invalidation: bool = True
) -> PatientDriver:
    """Bring a unit up with every device blocked.

    Args:
        machine: the machine.
        unit: the unit.
        frames: RAM for its tables and queues.
        queued_invalidation: VT-d: use the queue if it has one.

    Raises:
        TypeError: if it is neither vendor's.
    """
    driver: PatientDriver
    if isinstance(unit, AmdviUnit):
        driver = XenAmdviDriver(machine, unit, frames)
    elif isinstance(unit, VtdUnit):
        queue = queued_invalidation and unit.capabilities.queued_invalidation
        driver = XenVtdDriver(machine, unit, frames, "queue" if queue else "register")
    else:
        raise TypeError(f"unit must be of VT-d or AMD-Vi, not {type(unit).__name__}")
    driver.start()
    return driver


def _levels(driver: Driver[Any]) -> int:
    supported = driver.entry_format().levels
    return LEVELS if LEVELS in supported else max(supported)


def input_limit(driver: Driver[Any]) -> int:
    """Return the first input address that page tables of a unit do not reach."""
    return 1 << driver.entry_format().input_bits(_levels(driver))


def create_table(driver: Driver[Any], number: int) -> Domain:
    """Return a new page table, tagged in the unit's caches as Xen tags it.

    The unit's domain ID is Xen's; its complement where VT-d's caching mode keeps ID 0 for itself;
    and the lowest free one where the unit has IDs of less than 16 bits.

    Args:
        driver: of the unit.
        number: Xen's ID of the domain, or the pseudo ID of a quarantined device.

    Raises:
        ValueError: if the unit is out of domain IDs.
        MemoryError: if there are no frames left.
    """
    tag: int | None = number
    if isinstance(driver.unit, VtdUnit):
        capabilities = driver.unit.capabilities
        if capabilities.domain_bits < 16:
            tag = None
        elif capabilities.caching_mode:
            tag = number ^ 0xFFFF
    return driver.create_domain(_levels(driver), domain_id=tag)
