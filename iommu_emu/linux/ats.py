"""What Linux does about device-TLBs: whom it lets use ATS, and what it makes of time-outs.

Both drivers drop the error: whoever unmaps never learns that a device did not answer (os 4.7, 4.9).

- VT-d: the time-out stops the invalidation queue. The driver clears it and submits everything
  again, for as long as the device is there; only of one that is gone it thinks no more. A CPU that
  does so spins with interrupts off, which its watchdog takes for a lockup.
- AMD-Vi: the unit logs an event and goes on. The driver does not even wait for that: its own limit
  is ten times shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.clock import MILLISECOND, SECOND, Timer
from iommu_emu.driver import DeviceTlbTimeoutError, Driver
from iommu_emu.hung import HungError
from iommu_emu.pci.address import format_requester
from iommu_emu.pci.capabilities import PortType
from iommu_emu.vtd.driver import QueueError, VtdDriver
from iommu_emu.vtd.structures import DESCRIPTORS
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.domain import Domain
    from iommu_emu.linux.dma_device import DmaDevice
    from iommu_emu.linux.kernel import Linux

__all__ = ["AMD_TIMEOUT", "WATCHDOG", "DeviceTlbs", "ats_refusal"]

AMD_TIMEOUT = 100 * MILLISECOND  # 100,000 looks at the semaphore, 1 us apart (os 4.9)
WATCHDOG = 10 * SECOND  # a CPU without timer interrupts for so long counts as locked up
_MOST_SUBMISSIONS = 1000  # of one flush until it counts as never ending

# How the driver names descriptors in the log, by structure.
_NAMES = {
    "ContextInvalidation": "Context-cache Invalidation",
    "IotlbInvalidation": "IOTLB Invalidation",
    "DeviceTlbInvalidation": "Device-TLB Invalidation",
    "InterruptEntryInvalidation": "Interrupt Entry Cache Invalidation",
    "WaitDescriptor": "Invalidation Wait",
}


def ats_refusal(linux: Linux, device: DmaDevice) -> str:
    """Return why the kernel does not let a device use ATS; "" if it does (os 4.5).

    The firmware's list of root ports that support ATS (ATSR) is not looked at: every port does.

    Args:
        linux: the kernel.
        device: one of its devices, behind an IOMMU.
    """
    if device.function.ats_capability is None:
        return "no ATS capability"
    if not linux.parameters.ats:
        return "pci=noats"
    if device.untrusted:
        return "the device is not trusted"
    driver = device.driver
    if not driver.has_device_tlbs:
        return "the unit supports no device-TLBs (ECAP.DT, IotlbSup)"
    if isinstance(driver.unit, VtdUnit):
        # VT-d's driver looks at the path up to the root port.
        for bridge in linux.machine.fabric.bridges_above(device.function):
            if bridge.kind in (None, PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE):
                return f"{bridge.name} on its path is no PCI Express port"
    return ""


def _nothing() -> None:
    """Submit nothing more."""


class DeviceTlbs:
    """ATS of one kernel's devices.

    Args:
        linux: the kernel.
    """

    def __init__(self, linux: Linux) -> None:
        self._linux = linux
        self._clock = linux.clock
        for driver in linux.drivers.values():
            if isinstance(driver, VtdDriver):
                driver.on_queue_error = self._log_queue_error

    def _log_queue_error(self, error: QueueError) -> None:
        for line in _queue_error_lines(error):
            self._linux.log.write(line)

    # ---- who may -----------------------------------------------------------------------------

    def attach(self, device: DmaDevice, requester: int, table: Domain) -> None:
        """Attach a device to a domain under one of its requester IDs, with ATS if it may.

        The table entry comes first, then the capability's enable bit.
        """
        driver, capability = device.driver, device.function.ats_capability
        attach = partial(driver.attach, table, requester, wait=False)
        own = requester == device.function.dma.requester
        if capability is None or not own or ats_refusal(self._linux, device):
            self._move(driver, requester, attach)
            self._disable(device, requester)
            return
        self._move(driver, requester, partial(attach, ats=True, queue_depth=capability.queue_depth))
        capability.enable()
        device.ats = True

    def pass_through(self, device: DmaDevice, requester: int) -> None:
        """Let a device through untranslated, without ATS."""
        driver = device.driver
        self._move(driver, requester, partial(driver.pass_through, requester, wait=False))
        self._disable(device, requester)

    def detach(self, device: DmaDevice, requester: int) -> None:
        """Block a device, then switch its ATS off."""
        driver = device.driver
        self._move(driver, requester, partial(driver.detach, requester, wait=False))
        self._disable(device, requester)

    def _disable(self, device: DmaDevice, requester: int) -> None:
        capability = device.function.ats_capability
        if device.ats and capability is not None and requester == device.function.dma.requester:
            if device.function.attached:
                capability.enable(False)
            device.ats = False

    def _move(self, driver: Driver[Any], requester: int, move: Callable[[], None]) -> None:
        """Change where a device is, and wait for what that invalidates, if anything."""
        before = sum(driver.submitted.values())
        move()
        if sum(driver.submitted.values()) != before:
            again = partial(driver.invalidate_device_tlb, requester)
            self.flush(driver, _nothing, again=again)

    # ---- flushes -----------------------------------------------------------------------------

    def flush(
        self,
        driver: Driver[Any],
        submit: Callable[[], None],
        *,
        again: Callable[[], None] | None = None,
        cpu: int = 0,
    ) -> None:
        """Submit invalidations and wait for them, as the unit's driver does.

        Args:
            driver: of the unit.
            submit: submits them.
            again: what is submitted after a time-out; None: the same.
            cpu: who waits.

        Raises:
            HungError: if the CPU would wait for ever.
            RuntimeError: if the queue stops; or from inside a timer, unless all is complete at
                once.
        """
        complete = False

        def done() -> None:
            nonlocal complete
            complete = True

        self.begin_flush(driver, submit, done, again=again, cpu=cpu)
        while not complete:
            if not self._clock.run_to_next_event():
                raise HungError(f"CPU {cpu} waits for an invalidation, and no event is due")

    def begin_flush(
        self,
        driver: Driver[Any],
        submit: Callable[[], None],
        complete: Callable[[], None],
        *,
        again: Callable[[], None] | None = None,
        cpu: int = 0,
    ) -> None:
        """Do what `flush` does without waiting, for timers.

        What `flush` would raise is raised where virtual time passes.

        Args:
            driver: of the unit.
            submit: submits the invalidations.
            complete: called when the driver goes on, whether or not every device has answered.
            again: what is submitted after a time-out; None: the same.
            cpu: who waits.
        """
        submit()
        if isinstance(driver.unit, AmdviUnit):
            self._go_on_soon(driver, complete)
        else:
            _Spin(self._linux, driver, again or submit, complete, cpu).start()

    def _go_on_soon(self, driver: Driver[Any], complete: Callable[[], None]) -> None:
        """Wait as AMD-Vi's driver does: for a while."""
        gone_on = False
        limit: Timer | None = None

        def go_on() -> None:
            nonlocal gone_on
            if not gone_on:
                gone_on = True
                if limit is not None:
                    limit.cancel()
                complete()

        def give_up() -> None:
            unit = driver.unit
            name = f"{unit.segment:04x}:{format_requester(unit.config.device_id)}"
            self._linux.log.write(f"AMD-Vi: IOMMU {name}: Completion-Wait loop timed out")
            go_on()

        driver.when_complete(go_on)
        if not gone_on:
            limit = self._clock.call_later(AMD_TIMEOUT, give_up)


class _Spin:
    """A CPU that waits as VT-d's driver does: until it is done, with interrupts off."""

    def __init__(
        self,
        linux: Linux,
        driver: Driver[Any],
        again: Callable[[], None],
        complete: Callable[[], None],
        cpu: int,
    ) -> None:
        self._linux = linux
        self._driver = driver
        self._again = again
        self._complete = complete
        self._cpu = cpu
        self._submissions = 1
        self._finished = False
        self._watchdog: Timer | None = None

    def start(self) -> None:
        """Wait for what has been submitted."""
        self._driver.when_complete(self._done, self._failed)
        if not self._finished:
            self._watchdog = self._linux.clock.call_later(WATCHDOG, self._lock_up)

    def _lock_up(self) -> None:
        cpu = self._cpu
        self._linux.log.write(f"watchdog: CPU{cpu}: Watchdog detected hard LOCKUP on cpu {cpu}")

    def _end(self) -> None:
        self._finished = True
        if self._watchdog is not None:
            self._watchdog.cancel()

    def _done(self) -> None:
        self._end()
        self._complete()

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, DeviceTlbTimeoutError):
            self._end()
            raise error
        if self._gone(error.requester):
            self._done()
            return
        locked_up = self._watchdog is not None and not self._watchdog.pending
        if locked_up or self._submissions == _MOST_SUBMISSIONS:
            self._end()
            raise HungError(
                f"CPU {self._cpu} submits an invalidation for ever: {error}, and it is still there"
            )
        self._submissions += 1
        self._again()
        self._driver.when_complete(self._done, self._failed)

    def _gone(self, requester: int) -> bool:
        """Return whether there is no need to try again; 0 is what units say that do not know."""
        segment = self._driver.unit.segment
        found = self._linux.machine.fabric.find(segment, requester)
        return requester != 0 and (found is None or found not in self._linux.devices)


def _queue_error_lines(error: QueueError) -> list[str]:
    """Return what VT-d's driver prints of an error of the invalidation queue."""
    word = {"ITE": "Time-out", "ICE": "Completion"}[error.name]
    lines = [f"DMAR: VT-d detected Invalidation {word} Error: SID {error.requester:x}"]
    for place, descriptor in (("HEAD", error.head), ("PRIOR", error.prior)):
        structure = DESCRIPTORS.get(descriptor[0] & 0xF)
        name = _NAMES[structure.name] if structure else "UNKNOWN"
        low, high = (int.from_bytes(half, "little") for half in (descriptor[:8], descriptor[8:16]))
        lines.append(f"DMAR: QI {place}: {name} qw0 = {low:#x}, qw1 = {high:#x}")
    lines.append(f"DMAR: Invalidation {word} Error ({error.name}) cleared")
    return lines
