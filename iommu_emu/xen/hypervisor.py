"""The IOMMU side of a Xen hypervisor: who has which device, and how it gets from one to another."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

from iommu_emu.driver import Driver
from iommu_emu.kernel_log import KernelLog
from iommu_emu.meter import FREE, Meter
from iommu_emu.page_table import PAGE_SIZE
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.refused import RefusedError
from iommu_emu.timeline import EventKind, Timeline
from iommu_emu.unit import Unit
from iommu_emu.vtd.unit import VtdUnit
from iommu_emu.xen import quarantine
from iommu_emu.xen.advisory import Advisory
from iommu_emu.xen.device import XenDevice
from iommu_emu.xen.domain import DOM0, DOM_IO, MemoryRange, XenDomain
from iommu_emu.xen.fault_log import fault_lines
from iommu_emu.xen.parameter import Quarantine, Release, parse_command_line
from iommu_emu.xen.patience import OLD_LIMIT
from iommu_emu.xen.phantom import phantom_requesters, phantom_stride
from iommu_emu.xen.reassign import Reassigner
from iommu_emu.xen.rmrr import identity_regions
from iommu_emu.xen.unit_driver import input_limit, start_unit

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

FIRST_GUEST, FIRST_RESERVED = 1, 0x7FF0  # domain IDs of guests
_ERRORS = {"EPERM": 1, "ENXIO": 6, "EBADF": 9, "ENOMEM": 12, "EBUSY": 16, "ENODEV": 19}
_ERRORS |= {"EINVAL": 22, "ENOSPC": 28, "EOPNOTSUPP": 95, "EADDRINUSE": 98}

__all__ = ["Xen"]


class Xen:
    """A hypervisor on a machine, as far as DMA goes.

    The first use of the machine's units: they are brought up with every function that is there
    in the hardware domain. Functions that come later are told with `add`.

    Args:
        machine: the machine, with its units as they are after reset.
        parameters: command line; see `parse_command_line`.
        frames: RAM for page tables and queues, shared evenly by the units; Xen's own.
        ram: RAM that domains may have; the hardware domain has what is no guest's.
        timeline: where it is noted what happens; None: a new one.
        meter: what charges virtual CPU 0 for work.
        release: which Xen it is.
        unfixed: advisories that it has no fixes for.

    Attributes:
        parameters: what the command line says.
        timeline: what happened.
        log: Xen's log.
        drivers: the software driver of each unit.
        hardware_domain: domain 0.
        dom_io: the domain that owns quarantined devices.
        guests: the other domains, by ID.
        devices: every function that Xen knows of.

    Raises:
        ValueError: if frames or ram are not page aligned or overlap, or frames are too few.
        NotRamError: if frames are not inside one piece of RAM.
        RuntimeError: if the command line requires an IOMMU and the machine has none.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        parameters: str = "",
        frames: range,
        ram: range,
        timeline: Timeline | None = None,
        meter: Meter = FREE,
        release: Release = Release.CURRENT,
        unfixed: Collection[Advisory] = (),
    ) -> None:
        if ram.start % PAGE_SIZE or ram.stop % PAGE_SIZE or ram.stop <= ram.start:
            raise ValueError(f"ram must be a page-aligned range, not {ram.start:#x}..{ram.stop:#x}")
        if ram.start < frames.stop and frames.start < ram.stop:
            raise ValueError(f"ram and frames must not overlap, as {ram} and {frames} do")
        machine.memory.view(frames.start, len(frames))
        self.machine = machine
        self.parameters = parse_command_line(parameters, release)
        self.timeline = timeline or Timeline(machine.clock)
        self.log = KernelLog(self.timeline, "Xen")
        self.drivers: dict[Unit, Driver[Any]] = {}
        self.devices: dict[Function, XenDevice] = {}
        self.guests: dict[int, XenDomain] = {}
        self._ram = ram
        self._unfixed = frozenset(unfixed)
        self._meter = meter
        self._reassigner = Reassigner(
            pass_through=self.parameters.dom0_passthrough,
            ats=self.parameters.ats,
            unfixed=self._unfixed,
            timeline=self.timeline,
            meter=meter,
        )
        self._pseudo = quarantine.PseudoIds()
        # Our drivers tag what passes untranslated with 1.
        self._first_guest = FIRST_GUEST + self.parameters.dom0_passthrough
        self._next_guest = self._first_guest
        own = MemoryRange(ram.start, ram.start, ram.stop - ram.start)
        strict = self.parameters.dom0_strict
        large = self.parameters.superpages and not strict  # strictly, it shrinks page by page
        self.hardware_domain = XenDomain(
            DOM0, "hardware domain", [own], superpages=large, meter=meter
        )
        self.dom_io = XenDomain(DOM_IO, "dom_io")
        self._boot(frames)

    def __repr__(self) -> str:
        return (
            f"<Xen: {len(self.guests)} guests, {len(self.devices)} functions, "
            f"quarantine {self.parameters.quarantine.value}>"
        )

    @property
    def enabled(self) -> bool:
        """Whether there are IOMMUs, and they are used."""
        return bool(self.drivers)

    def _boot(self, frames: range) -> None:
        parameters = self.parameters
        for complaint in parameters.complaints:
            self._print(complaint)
        units = self.machine.units if parameters.enabled else []
        if parameters.required and not units:
            raise RuntimeError("Couldn't enable IOMMU and iommu=required/force")
        share = (frames.stop - frames.start) // max(len(units), 1) // PAGE_SIZE * PAGE_SIZE
        for number, unit in enumerate(units):
            first = frames.start + number * share
            self.drivers[unit] = driver = start_unit(
                self.machine,
                unit,
                range(first, first + share),
                queued_invalidation=parameters.queued_invalidation,
            )
            driver.tell = self._print
            driver.device_tlb_limit = parameters.device_tlb_timeout
            if Advisory.XSA_373 in self._unfixed:
                driver.usual_limit = OLD_LIMIT
                if isinstance(unit, VtdUnit):
                    driver.give_up = partial(self._device_tlb_timed_out, driver)
                else:
                    driver.device_tlb_limit = OLD_LIMIT
                    driver.give_up = lambda requester: None
        self._print(f"I/O virtualisation {'en' if units else 'dis'}abled")
        if units:
            strict = parameters.dom0_strict and not parameters.dom0_passthrough
            relaxed = "Strict" if strict else "Relaxed"
            mode = "Passthrough" if parameters.dom0_passthrough else relaxed
            self._print(f" - Dom0 mode: {mode}")
        for function in list(self.machine.fabric.functions()):
            self.add(function)

    def _print(self, line: str) -> None:
        self.log.write(f"(XEN) {line}")

    # ---- functions ---------------------------------------------------------------------------

    def add(self, function: Function) -> None:
        """Take in a function that appeared: it goes to the hardware domain.

        Raises:
            ValueError: if Xen has it already, or the unit is out of domain IDs.
            MemoryError: if there are no frames left.
        """
        if function in self.devices:
            raise ValueError(f"{function.name} is known already")
        device = XenDevice(function, self.hardware_domain, self.machine.fabric.aliases(function))
        unit = self.machine.unit_of(function)
        driver = None if unit is None else self.drivers.get(unit)
        if driver is None or isinstance(function, Bridge):  # a bridge has no DMA that Xen lets pass
            self.devices[function] = device
            return
        device.driver = driver
        device.regions = identity_regions(self.machine, function)
        stride = phantom_stride(function, self.parameters.phantoms, self._print)
        device.phantoms = phantom_requesters(function, stride)
        self._enter_hardware_domain(driver, device)
        if self.parameters.quarantine is not Quarantine.NONE:
            device.pseudo = self._pseudo.take()
        self.devices[function] = device

    def _enter_hardware_domain(self, driver: Driver[Any], device: XenDevice) -> None:
        dom0 = self.hardware_domain
        if not self.parameters.dom0_passthrough:
            dom0.table(driver)  # what is reserved is mapped, or refused, at once
        entered = []
        try:
            for region in device.regions:
                try:
                    dom0.identity.add(region, dom0.tables.values())
                    entered.append(region)
                except RefusedError:  # that is no reason to do without the device
                    vtd = isinstance(driver.unit, VtdUnit)
                    amdvi = f"AMD-Vi: Warning: {dom0}: unity mapping failed for {device}"
                    self._print(f"[VT-D]{dom0}: RMRR mapping failed" if vtd else amdvi)
            for requester in (*device.requesters, *device.phantoms):
                self._reassigner.point(driver, requester, device, dom0)
        except Exception:
            self._block(driver, device)
            for region in entered:
                dom0.identity.remove(region)
            raise

    def _block(self, driver: Driver[Any], device: XenDevice) -> None:
        """Block the requester IDs of a device, but for those that others send with as well."""
        others = [each for each in self.devices.values() if each.driver is driver]
        used = {r for other in others for r in other.requesters}
        for requester in (*device.phantoms, *device.requesters):
            if requester not in used:
                self._reassigner.block(driver, requester)

    def remove(self, function: Function) -> None:
        """Forget a function that is going away, or gone, and block its requester IDs."""
        device = self.devices.pop(function, None)
        if device is None or device.driver is None:
            return
        self._block(device.driver, device)
        if device.owner not in (self.hardware_domain, self.dom_io):
            for region in device.regions:
                device.owner.identity.remove(region)
        quarantine.tear_down(device)
        self._pseudo.release(device.pseudo)

    def device(self, function: Function) -> XenDevice:
        """Return what Xen knows of a function.

        Raises:
            RefusedError: ENODEV, if it knows nothing.
        """
        found = self.devices.get(function)
        if found is None:
            raise RefusedError("ENODEV", f"Xen knows nothing of {function.name}")
        return found

    # ---- domains -----------------------------------------------------------------------------

    def create_domain(self, name: str, ram: range, gfn: int | None = None) -> XenDomain:
        """Create a guest.

        Args:
            name: for people.
            ram: its memory, taken from the hardware domain's.
            gfn: guest frame number of its first page; None: as in the machine, 1:1.

        Raises:
            ValueError: if ram is not page aligned or not the hardware domain's, gfn is negative
                or beyond what a unit can translate, or there are no domain IDs left.
        """
        self._check_ram(ram)
        size = ram.stop - ram.start
        address = ram.start if gfn is None else gfn * PAGE_SIZE
        limit = min((input_limit(driver) for driver in self.drivers.values()), default=1 << 64)
        if not 0 <= address <= limit - size:
            raise ValueError(
                f"gfn must be in 0..{(limit - size) // PAGE_SIZE:#x}, not {address // PAGE_SIZE:#x}"
            )
        number = self._free_number()
        if self.parameters.dom0_strict:
            self.hardware_domain.remove_memory(ram)
        mapping = MemoryRange(address, ram.start, size)
        large = self.parameters.superpages
        domain = XenDomain(number, name, [mapping], superpages=large, meter=self._meter)
        self.guests[number] = domain
        self._next_guest = number + 1
        self._note(EventKind.NOTE, f"{name} is {domain}", ram.start, size)
        return domain

    def _free_number(self) -> int:
        """Return the next domain ID; after the last one they begin anew."""
        following = range(self._next_guest, FIRST_RESERVED)
        for number in chain(following, range(self._first_guest, FIRST_RESERVED)):
            if number not in self.guests:
                return number
        raise ValueError(f"all {FIRST_RESERVED - self._first_guest} domain IDs are taken")

    def _check_ram(self, ram: range) -> None:
        if ram.start % PAGE_SIZE or ram.stop % PAGE_SIZE or ram.stop <= ram.start:
            raise ValueError(f"ram must be whole pages, not {ram.start:#x}..{ram.stop:#x}")
        if ram.start < self._ram.start or ram.stop > self._ram.stop:
            raise ValueError(
                f"ram must be in {self._ram.start:#x}..{self._ram.stop:#x}, "
                f"not {ram.start:#x}..{ram.stop:#x}"
            )
        for guest in self.guests.values():
            for each in guest.memory:
                if each.machine < ram.stop and ram.start < each.machine + each.size:
                    raise ValueError(f"ram {ram.start:#x}..{ram.stop:#x} overlaps {guest.name}'s")

    def destroy_domain(self, domain: XenDomain) -> None:
        """Destroy a guest: take its devices, then free its tables; its memory is anybody's.

        Raises:
            ValueError: if it is no guest.
            RefusedError: if a device cannot be taken; the guest stays dying then.
        """
        self._check_guest(domain)
        domain.dying = True
        for device in [d for d in self.devices.values() if d.owner is domain]:
            self._deassign(device)
        domain.identity.clear()
        for driver, table in domain.tables.items():
            # Who still translates there is forgotten: devices that were not taken (XSA-386).
            for requester in [r for r, used in driver.attached.items() if used == table.id]:
                del driver.attached[requester]
            driver.destroy_domain(table)
        domain.tables.clear()
        del self.guests[domain.number]
        for each in domain.memory:
            self._note(EventKind.REUSE, f"memory of {domain} is free", each.machine, each.size)

    def crash_domain(self, domain: XenDomain) -> None:
        """Stop a guest for what it, or a device of its, has done; nothing of it is freed."""
        if not domain.crashed and not domain.dying:
            self._print(f"Domain {domain.number} reported crashed by domain 0 on cpu#0:")
        domain.crashed = True

    def owner_of(self, address: int) -> XenDomain | None:
        """Return whose memory a physical address is; None: Xen's, or no RAM of any domain."""
        for guest in self.guests.values():
            if any(m.machine <= address < m.machine + m.size for m in guest.memory):
                return guest
        return self.hardware_domain if address in self._ram else None

    # ---- assignment --------------------------------------------------------------------------

    def assign(self, function: Function, domain: XenDomain, *, relaxed: bool = False) -> None:
        """Give a device to a guest, or to dom_io, which puts it on the toolstack's list.

        What firmware reserved is mapped first; then the device moves; phantom functions follow.

        Args:
            function: a function of the hardware domain's, or of dom_io's.
            domain: a guest, or `dom_io`.
            relaxed: go on where what firmware reserved is in the way or shared.

        Raises:
            RefusedError: EOPNOTSUPP, without IOMMUs; ENODEV, if Xen or its units do not know
                the function; EBUSY, if a guest has it; EINVAL, if the domain is dying or the
                hardware domain; EBADF, if the device is broken; EPERM, EBUSY or EADDRINUSE, for
                what firmware reserved; ENOMEM, if there are no frames left.
        """
        device, driver = self._assignable(function, domain)
        regions = [] if domain is self.dom_io else device.regions
        self._check_shared(driver, device, domain, relaxed)
        device.fault_count = 0
        mapped = []
        try:
            if device.owner is not self.dom_io:
                self._prepare(driver, device)
            for region in regions:
                domain.identity.add(region, domain.tables.values(), relaxed=relaxed)
                mapped.append(region)
            self._reassigner.reassign(driver, device, domain)
        except (RefusedError, MemoryError) as error:
            for region in mapped:
                domain.identity.remove(region)
            if isinstance(error, RefusedError):
                self._refuse(device, domain, error.error, error.reason)
            self._refuse(device, domain, "ENOMEM", str(error))
        if domain is self.dom_io:
            device.listed = True

    def _assignable(self, function: Function, domain: XenDomain) -> tuple[XenDevice, Driver[Any]]:
        if not self.enabled:
            raise RefusedError("EOPNOTSUPP", "there are no IOMMUs in use")
        if domain is not self.dom_io:
            self._check_guest(domain)
        device = self.device(function)
        if domain.dying:
            raise RefusedError("EINVAL", f"{domain} is dying")
        if device.owner not in (self.hardware_domain, self.dom_io):
            raise RefusedError("EBUSY", f"{device} is assigned to {device.owner}")
        driver = self._driver(device)
        if device.broken and domain is not self.dom_io:
            self._refuse(device, domain, "EBADF", f"{device} is broken")
        return device, driver

    def _check_shared(
        self, driver: Driver[Any], device: XenDevice, domain: XenDomain, relaxed: bool
    ) -> None:
        """Refuse a device that shares an RMRR with others, which might be another guest's."""
        shared = next((region for region in device.regions if region.devices > 1), None)
        if shared is None or not isinstance(driver.unit, VtdUnit):
            return
        word = "risky" if relaxed else "disallowed"
        self._print(
            f"[VT-D] It's {word} to assign {device} with shared RMRR at {shared.base:x} "
            f"for {domain}."
        )
        if not relaxed:
            self._refuse(device, domain, "EPERM", "other devices share its reserved memory")

    def deassign(self, function: Function) -> None:
        """Take a device from whoever has it.

        From a guest it goes to quarantine, if that is the global mode or the toolstack has it on
        its list; if not, and from quarantine, it goes back to the hardware domain (os 4.10).

        Raises:
            RefusedError: EOPNOTSUPP, without IOMMUs; ENODEV, if Xen does not know it; EINVAL, if
                the hardware domain has it.
            MemoryError: if there are no frames left.
        """
        if not self.enabled:
            raise RefusedError("EOPNOTSUPP", "there are no IOMMUs in use")
        device = self.device(function)
        if device.owner is self.hardware_domain:
            raise RefusedError("EINVAL", f"{device} is the hardware domain's")
        self._deassign(device)

    def _deassign(self, device: XenDevice) -> None:
        driver = self._driver(device)
        wanted = device.listed or self.parameters.quarantine is not Quarantine.NONE
        quarantined = wanted and device.owner is not self.dom_io
        if quarantined:
            self._prepare(driver, device)
        target = self.dom_io if quarantined else self.hardware_domain
        self._reassigner.reassign(driver, device, target, phantoms_first=True)
        if device.owner is self.hardware_domain:
            device.listed = False
        device.fault_count = 0

    def _prepare(self, driver: Driver[Any], device: XenDevice) -> None:
        reserved = Advisory.XSA_400 not in self._unfixed
        mode = self.parameters.quarantine
        quarantine.prepare(driver, device, mode, reserved=reserved, meter=self._meter)

    def _driver(self, device: XenDevice) -> Driver[Any]:
        if device.driver is None:
            raise RefusedError("ENODEV", f"no IOMMU translates for {device}")
        return device.driver

    def _check_guest(self, domain: XenDomain) -> None:
        if domain is self.hardware_domain:
            raise RefusedError("EINVAL", "the hardware domain gets devices by deassignment")
        if self.guests.get(domain.number) is not domain:
            raise ValueError(f"{domain!r} is no guest of this Xen")

    def _refuse(self, device: XenDevice, domain: XenDomain, error: str, reason: str) -> NoReturn:
        line = f"{domain}: assign ({device}) failed (-{_ERRORS[error]})"
        self._print(line)
        raise RefusedError(error, reason, line)

    def _note(self, kind: EventKind, text: str, address: int | None = None, size: int = 0) -> None:
        self.timeline.add(kind, "CPU 0", text, address=address, size=size)

    # ---- device-TLBs -------------------------------------------------------------------------

    def _device_tlb_timed_out(self, driver: Driver[Any], requester: int) -> None:
        """Give a device up that does not answer, and the guest that has it (os 4.10)."""
        for device in self.devices.values():
            if device.driver is not driver or requester not in device.requesters:
                continue
            self._reassigner.disable_ats(driver, device)
            if device.broken:
                return
            device.broken = True
            owner = device.owner
            if not owner.dying and not owner.crashed:
                self._print(f"dom{owner.number}: ATS device {device} flush failed")
            if owner is not self.hardware_domain:
                self.crash_domain(owner)
            return

    # ---- faults ------------------------------------------------------------------------------

    def faults(self) -> list[str]:
        """Take every unit's fault records, and write them to the log as Xen does.

        Returns:
            One text a record, with the lines of the log in it.
        """
        texts = []
        for driver in self.drivers.values():
            for fault in driver.faults():
                lines = fault_lines(driver, fault)
                for line in lines:
                    self._print(line)
                texts.append("; ".join(lines))
                for device in self.devices.values():
                    mine = (*device.requesters, *device.phantoms)
                    if device.driver is driver and fault.requester in mine:
                        device.note_fault(self.machine.clock.now)
        return texts
