"""What Xen knows of a PCI function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommu_emu.clock import MILLISECOND
from iommu_emu.driver import Driver
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.function import BUS_MASTER, COMMAND, Function
from iommu_emu.xen.domain import XenDomain
from iommu_emu.xen.rmrr import IdentityRegion

if TYPE_CHECKING:
    from iommu_emu.xen.quarantine import QuarantineTable

FAULT_THRESHOLD = 10
FAULT_PERIOD = 10 * MILLISECOND

__all__ = ["XenDevice", "sbdf"]


def sbdf(function: Function, requester: int | None = None) -> str:
    """Return a function's address, or another one in its segment, as Xen's log writes it."""
    address = function.address if requester is None else requester
    return f"{function.segment:04x}:{format_requester(address)}"


@dataclass(eq=False)
class XenDevice:
    """A PCI function.

    Attributes:
        function: the function.
        owner: the domain that has it.
        requesters: its requester IDs, its own first.
        driver: of the unit before it; None: nothing translates for it.
        regions: what firmware reserved for it.
        phantoms: requester IDs of its phantom functions.
        listed: the toolstack put it into quarantine, so it goes back there whatever the global
            mode is; until it goes back to the hardware domain.
        broken: it no longer goes to guests.
        pseudo: ID that tags its quarantine in caches; None: it has none.
        quarantine: its page table in quarantine; None: it has none, and is blocked there.
        fault_count: recent faults.
        fault_time: time of the last one, ns.
    """

    function: Function
    owner: XenDomain
    requesters: list[int]
    driver: Driver[Any] | None = None
    regions: list[IdentityRegion] = field(default_factory=list)
    phantoms: list[int] = field(default_factory=list)
    listed: bool = False
    broken: bool = False
    pseudo: int | None = None
    quarantine: QuarantineTable | None = None
    fault_count: int = 0
    fault_time: int = 0

    def __str__(self) -> str:
        """Return its address as Xen's log writes it."""
        return sbdf(self.function)

    def note_fault(self, now: int) -> None:
        """Count a fault; at the tenth in short order its bus mastering is switched off."""
        if now - self.fault_time > FAULT_PERIOD:
            self.fault_count >>= 1
        self.fault_time = now
        self.fault_count += 1
        if self.fault_count >= FAULT_THRESHOLD:
            config = self.function.config
            config.write(COMMAND, 2, config.get(COMMAND, 2) & ~BUS_MASTER)
