"""How long Xen waits for invalidations, and what it makes of a device that does not answer.

A CPU spins until the unit is done: a word in the log when that takes long is all. On VT-d nobody
looks at the time-out error that stops the queue, and on AMD-Vi Xen sets no time-out: a device that
keeps quiet hangs the host. That is why ATS is off unless the command line asks for it.

Before XSA-373 Xen gave up instead. VT-d's code switched the device's ATS off, and crashed the guest
that had it (os 4.10); AMD-Vi's went on as if the device had answered, and told nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.clock import MILLISECOND
from iommu_emu.driver import DeviceTlbTimeoutError, Driver
from iommu_emu.hung import HungError
from iommu_emu.pci.address import format_requester

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

USUAL_LIMIT = 100  # ms for everything but device-TLBs
OLD_LIMIT = 1  # ms of that before XSA-373; on AMD-Vi 1,000 reads of a register, for device-TLBs too
_DEVICE_TLB = ("DeviceTlbInvalidation", "InvalidateIotlbPages")

__all__ = ["OLD_LIMIT", "PatientDriver"]


class PatientDriver(Driver[Any]):
    """Waits as Xen does; mixed into a vendor's driver.

    Attributes:
        usual_limit: ms until a wait counts as long.
        device_tlb_limit: the same of a wait for a device-TLB.
        tell: takes lines for Xen's log.
        give_up: called with the requester ID of a device that did not answer, instead of waiting
            on, and then it counts as answered; None: Xen waits on.
    """

    def __init__(
        self, machine: Machine, unit: Any, frames: range, invalidation: str = "queue"
    ) -> None:
        super().__init__(machine, unit, frames, invalidation)
        self.usual_limit = USUAL_LIMIT
        self.device_tlb_limit = 1000
        self.tell: Callable[[str], None] = lambda line: None
        self.give_up: Callable[[int], None] | None = None
        self._threshold = 1
        self._asked_before = 0  # device-TLB invalidations before this wait
        self._asked_last = 0  # whose device-TLB was last

    def invalidate_device_tlb(self, requester: int, iova: int = 0, size: int | None = None) -> None:
        """Start an invalidation of a device's device-TLB; see `Driver.invalidate_device_tlb`."""
        self._asked_last = requester
        super().invalidate_device_tlb(requester, iova, size)

    def wait(self) -> None:
        """Return once every invalidation submitted so far is complete; virtual time passes.

        Raises:
            HungError: if Xen would wait for ever.
            RuntimeError: if the unit reports another error; or from inside a timer, unless they
                are complete at once.
        """
        asked = sum(self.submitted[name] for name in _DEVICE_TLB)
        device_tlb = asked != self._asked_before
        self._asked_before = asked
        done = self.submit_wait()
        clock = self.machine.clock
        start = clock.now
        limit = self.device_tlb_limit if device_tlb else self.usual_limit
        alarm = clock.call_later(limit * MILLISECOND * self._threshold, lambda: None)
        slow = False
        try:
            while not done():
                if not alarm.pending and not slow:
                    if self.give_up is not None:
                        self._give_up(device_tlb)
                        return
                    slow = True
                    self._threshold |= self._threshold << 1
                    self.tell(self._slow(device_tlb, "taking too long"))
                elif not clock.run_to_next_event():
                    raise HungError("Xen waits for an invalidation for ever: no event is due")
        except DeviceTlbTimeoutError as error:
            if self.give_up is None:
                raise HungError(f"Xen waits for ever: {error}, and Xen does not look") from error
            self._give_up(device_tlb)
        finally:
            alarm.cancel()
        if slow:  # the number is of 10 ms each, whatever it says
            took = (clock.now - start) // (10 * MILLISECOND)
            self.tell(self._slow(device_tlb, f"took {took}ms"))

    def _give_up(self, device_tlb: bool) -> None:
        if not isinstance(self.unit, AmdviUnit):
            self.tell("[VT-D] Queue invalidate wait descriptor timed out")
        if device_tlb and self.give_up is not None:
            self.give_up(self._asked_last)

    def _slow(self, device_tlb: bool, what: str) -> str:
        unit = self.unit
        if isinstance(unit, AmdviUnit):
            name = f"{unit.segment:04x}:{format_requester(unit.config.device_id)}"
            return f"AMD IOMMU {name}: {'iotlb ' * device_tlb}completion wait {what}"
        number = self.machine.units.index(unit)
        return f"[VT-D] IOMMU#{number}: QI{' dev' * device_tlb} wait descriptor {what}"
