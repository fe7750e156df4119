"""The IOMMU side of a Linux kernel on a machine: what it sets up at boot, and for whom later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iommu_emu.domain import Domain
from iommu_emu.kernel_log import KernelLog
from iommu_emu.linux.ats import DeviceTlbs
from iommu_emu.linux.boot import make_drivers, plan_boot, split_ram
from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.default_domain import (
    choose_type,
    create_default,
    create_table,
    ids,
    map_firmware,
)
from iommu_emu.linux.dma_api import DmaApi
from iommu_emu.linux.dma_device import DmaDevice, DmaDomain, is_untrusted
from iommu_emu.linux.dma_owner import DmaOwnership, GroupDomain
from iommu_emu.linux.domain_type import DomainType, parse_type
from iommu_emu.linux.fault_log import fault_lines
from iommu_emu.linux.flush_queue import PER_CPU, QueueKind
from iommu_emu.linux.flusher import Flusher
from iommu_emu.linux.iommu_group import IommuGroup, IommuGroups, device_name, enable_acs
from iommu_emu.linux.iova import DmaLimit
from iommu_emu.linux.kernel_memory import KernelMemory
from iommu_emu.linux.parameters import UPSTREAM, KernelBuild, Parameters
from iommu_emu.linux.reserved_regions import KernelAge, device_regions
from iommu_emu.linux.swiotlb import DEFAULT_POOL, Swiotlb
from iommu_emu.meter import FREE, Meter
from iommu_emu.page_table import PAGE_SIZE
from iommu_emu.pci.function import Function
from iommu_emu.refused import RefusedError
from iommu_emu.timeline import Timeline

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["Linux"]

DMA_MASK = (1 << 64) - 1


class Linux:
    """A Linux kernel, as far as DMA goes.

    It takes every unit of the machine as it is after reset, switches it on, and gives every
    function its group, default domain and reserved regions. Functions that come later are
    added by `add`.

    Args:
        machine: the machine.
        parameters: command line, for example "iommu.strict=1 pci=noats".
        build: what holds where the command line says nothing.
        cpus: number of virtual CPUs, at least 1.
        ram: physical addresses that the kernel gives away, bounce buffers included.
        frames: physical addresses for page tables and queues; each unit gets an equal share.
        queue: kind of flush queue of lazy domains.
        bounce: bounce rule of devices that are not trusted.
        age: what the kernel does about reserved regions.
        dma_api: class of the DMA API; None: Linux's own.
        pool_size: bytes of bounce buffers, a power of two of at least 256 KiB; 0: none.
            `swiotlb=` overrides it.
        timeline: where to note what happens; None: one of its own.
        meter: what makes virtual time of work.

    Attributes:
        machine: as given.
        clock: the machine's.
        parameters: the command line.
        timeline: what happened.
        log: the kernel's log.
        meter: as given.
        memory: the kernel's memory.
        groups: the IOMMU groups.
        drivers: software drivers of the units.
        device_tlbs: ATS of its devices, and how flushes wait for them.
        dma: the DMA API.
        cpus: as given.
        devices: what it knows of each function.
        attributes: what root said of devices, by vendor and device ID: whether they may be lazy.
        default_type: of groups of which nobody wants anything else.
        flusher: invalidates.

    Raises:
        ValueError: if an argument is outside its range; nothing is switched on then.
        NotRamError: if `ram` or `frames` is not RAM; the same.
        MemoryError: if `frames` do not do for what the units need at boot.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        parameters: str = "",
        build: KernelBuild = UPSTREAM,
        cpus: int = 4,
        ram: range,
        frames: range,
        queue: QueueKind = PER_CPU,
        bounce: BounceRule = BounceRule.WHOLE,
        age: KernelAge = KernelAge.LINUX_7_2,
        dma_api: type[DmaApi] | None = None,
        pool_size: int = DEFAULT_POOL,
        timeline: Timeline | None = None,
        meter: Meter = FREE,
    ) -> None:
        if cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {cpus}")
        if ram.start < frames.stop and frames.start < ram.stop:
            raise ValueError(f"ram and frames must not overlap, as {ram} and {frames} do")
        for each in (ram, frames):
            machine.memory.view(each.start, len(each))
        self.machine = machine
        self.clock = machine.clock
        self.parameters = Parameters.parse(parameters)
        self.timeline = Timeline(machine.clock) if timeline is None else timeline
        self.log = KernelLog(self.timeline, "Linux")
        self.meter = meter
        self.cpus = cpus
        self.queue = queue
        self.bounce = bounce
        self.age = age
        self._said: set[str] = set()
        self._pool: Swiotlb | None = None
        ram, self._pool_range = split_ram(self.parameters, ram, pool_size)
        self.memory = KernelMemory(ram, self.timeline)
        plan = plan_boot(machine, self.parameters, build)
        for line in plan.log:
            self.log.write(line)
        self.default_type = plan.default_type
        self.drivers = make_drivers(machine, plan.units, frames)
        self.device_tlbs = DeviceTlbs(self)
        self.flusher = Flusher(self)
        self.dma = (dma_api or DmaApi)(self)
        self.devices: dict[Function, DmaDevice] = {}
        self._defaults: dict[IommuGroup, DmaDomain] = {}
        self._ownerships: dict[IommuGroup, DmaOwnership] = {}
        self.attributes: dict[tuple[int, int], bool] = {}
        self._boot()

    def __repr__(self) -> str:
        return f"<Linux {self.parameters.text!r}: {len(self.groups)} groups>"

    # ---- boot --------------------------------------------------------------------------------

    def _boot(self) -> None:
        if self.drivers:
            enable_acs(self.machine, ats=self.parameters.ats)
        for driver in self.drivers.values():
            driver.start()
        self.groups = IommuGroups(self.machine)
        for group in self.groups:
            self._log_members(group)
        grouped = [function for group in self.groups for function in group.members]
        others = [f for f in self.machine.fabric.functions() if f not in set(grouped)]
        for function in (*grouped, *others):
            try:
                self._probe(function)
            except RefusedError:
                self._leave_group(function)  # it stays blocked; the log says why

    @property
    def pool(self) -> Swiotlb | None:
        """The bounce buffers; None: there are none."""
        if self._pool is None and self._pool_range:
            start, size = self._pool_range.start, len(self._pool_range)
            self._pool = Swiotlb(self.machine.memory, start, size, self.cpus)
        return self._pool

    @property
    def bounces_all(self) -> bool:
        """Whether every buffer that is not translated is bounced (`swiotlb=force`)."""
        return self.parameters.swiotlb == "force"

    # ---- devices -----------------------------------------------------------------------------

    def add(self, function: Function) -> DmaDevice:
        """Take in a function that has appeared: group, default domain, reserved regions.

        Args:
            function: attached to the machine.

        Raises:
            ValueError: if it is known already, or not attached to this machine.
            RefusedError: if it cannot have what it needs; it stays blocked, in no group.
        """
        if function in self.devices:
            raise ValueError(f"{device_name(function)} is known already")
        if not function.attached or function.machine is not self.machine:
            raise ValueError(f"{function.name} is not attached to this machine")
        unit = self.machine.unit_of(function)
        if self.drivers:
            enable_acs(self.machine, function, ats=self.parameters.ats)
        if unit in self.drivers:
            group = self.groups.add(function)
            assert group is not None
            self._log_members(group, function)
        try:
            return self._probe(function)
        except Exception:
            self._leave_group(function)
            raise

    def remove(self, function: Function) -> None:
        """Forget a function that is going away, or gone; its driver unmaps what it had mapped.

        Raises:
            ValueError: if it is not known.
        """
        device = self.device(function)
        self.dma.release_all(device)
        del self.devices[function]
        device.domain = DmaDomain(DomainType.BLOCKED)
        group = self.groups.of(function)
        if group is None or not device.translated:
            return
        ownership = self._ownerships.get(group)
        if ownership is not None and function in ownership.drivers:
            ownership.unbind(function)
        self.log.write(f"pci {device.name}: Removing from iommu group {group.number}")
        used = {r for f in group.members if f in self.devices for r in self.devices[f].requesters}
        for requester in device.requesters:
            if requester not in used and requester in device.driver.attached:
                self.device_tlbs.detach(device, requester)
        self._leave_group(function)

    def _leave_group(self, function: Function) -> None:
        """Take a function out of its group; the last one takes the group's domain with it."""
        group = self.groups.of(function)
        if group is None:
            return
        self.groups.remove(function)
        default = self._defaults.pop(group, None) if not group.members else None
        if default is not None:
            self._ownerships.pop(group, None)
            self._close(default)

    def device(self, function: Function) -> DmaDevice:
        """Return what the kernel knows of a function.

        Raises:
            ValueError: if it does not know it, or refused it.
        """
        if function not in self.devices:
            raise ValueError(f"{function.name} is no device of this kernel: add it first")
        return self.devices[function]

    def _log_members(self, group: IommuGroup, *functions: Function) -> None:
        for function in functions or group.members:
            name = device_name(function)
            self.log.write(f"pci {name}: Adding to iommu group {group.number}")

    def _probe(self, function: Function) -> DmaDevice:
        """Make a device of a function that has its group, and attach it to its domain."""
        unit = self.machine.unit_of(function)
        driver = self.drivers.get(unit) if unit is not None else None
        group = self.groups.of(function) if driver is not None else None
        limit = DmaLimit(
            DMA_MASK,
            pci_32bit_workaround=not self.parameters.forcedac,
            log=lambda text: self.log.write(f"{function.name} {device_name(function)}: {text}"),
        )
        untrusted = self.is_untrusted(function)
        outside = DmaDomain(DomainType.IDENTITY)
        device = DmaDevice(function, self.machine, group, driver, outside, limit, untrusted)
        if driver is None or group is None:
            self.devices[function] = device
            return device
        self.devices[function] = device
        try:
            if group not in self._defaults:
                kind = choose_type(self, group, None)
                self._defaults[group] = create_default(self, driver, group, kind)
            else:
                default = self._defaults[group]
                if default.table is not None:
                    regions = device_regions(self.machine, function, self.age)
                    map_firmware(default.table, regions, function)
            self.ownership(group).device_added(function)
        except Exception as error:
            del self.devices[function]
            if isinstance(error, RefusedError) and error.log:
                self.log.write(error.log)
            raise
        return device

    def is_untrusted(self, function: Function) -> bool:
        """Whether a function is below an external-facing port, and root says nothing else."""
        return is_untrusted(self.machine, function) and not self.attributes.get(ids(function))

    # ---- domains -----------------------------------------------------------------------------

    def _attach(self, function: Function, where: Domain | GroupDomain) -> None:
        """Move a device to a domain, under every requester ID that stands for it."""
        device = self.devices[function]
        if where is GroupDomain.DEFAULT:
            domain = self._defaults[device.group]
        elif isinstance(where, Domain):
            domain = DmaDomain(DomainType.UNMANAGED, where)
        else:
            domain = DmaDomain(DomainType.BLOCKED)
        mapped = sum(mapping.device is device for mapping in device.domain.mappings.values())
        if mapped and domain is not device.domain:
            raise RefusedError(
                "EPERM", f"{device.name} has {mapped} buffers mapped: a driver works"
            )
        for requester in device.requesters:
            if domain.table is not None:
                self.device_tlbs.attach(device, requester, domain.table)
            elif domain.type is DomainType.IDENTITY:
                self.device_tlbs.pass_through(device, requester)
            elif requester in device.driver.attached:
                self.device_tlbs.detach(device, requester)
        device.domain = domain

    def _close(self, domain: DmaDomain) -> None:
        """End a domain that no device is attached to."""
        table = domain.table
        if table is None:
            return
        self.flusher.close(domain)
        if domain.iovas is not None:
            domain.iovas.close()
        driver = next(d for d in self.drivers.values() if d.domains.get(table.id) is table)
        driver.destroy_domain(table)

    def ownership(self, group: IommuGroup) -> DmaOwnership:
        """Return who may use the DMA of a group; a claim moves its devices for real."""
        if group not in self._ownerships:
            self._ownerships[group] = DmaOwnership(
                self.machine, group, self.age, attach=self._attach
            )
        return self._ownerships[group]

    def user_domain(self, group: IommuGroup) -> Domain:
        """Return a new, empty domain for user space: strict whatever the command line says.

        Raises:
            ValueError: if the group has no members, or the unit is out of domain IDs.
        """
        if not group.members:
            raise ValueError(f"group {group.number} has no members")
        return create_table(self.device(next(iter(group.members))).driver)

    # ---- types -------------------------------------------------------------------------------

    def set_type(self, group: IommuGroup, text: str) -> None:
        """Write to the `type` file of a group in sysfs (os 4.1).

        From DMA to DMA-FQ it changes at once; since Linux 6.4 nobody asks whether the devices
        are trusted. Everything else makes a new default domain: no driver may be bound, and
        nothing mapped.

        Args:
            group: one of the kernel's.
            text: "identity", "DMA", "DMA-FQ" or "auto".

        Raises:
            RefusedError: EINVAL, if it is another word, or a member must have another type;
                EPERM (before Linux 6.4 EBUSY), if a driver is bound. Its line is in the log.
        """
        try:
            self._set_type(group, parse_type(text))
        except RefusedError as error:
            if error.log:
                self.log.write(error.log)
            raise

    def _set_type(self, group: IommuGroup, wanted: DomainType | None) -> None:
        members = [self.device(function) for function in group.members]
        driver, old = members[0].driver, self._defaults[group]
        if wanted is DomainType.LAZY and old.type is DomainType.STRICT:
            untrusted = next((m.name for m in members if m.untrusted), None)
            if untrusted is not None and self.age is not KernelAge.LINUX_7_2:
                reason = f"{untrusted} is not trusted, and must be translated strictly"
                line = f"pci {untrusted}: Device cannot be in {wanted.words} domain"
                raise RefusedError("EINVAL", reason, line)
            if untrusted is not None and self.bounce is BounceRule.HEAD_TAIL:
                reason = "buffers that are bounced in part must be unmapped strictly"
                raise RefusedError("EINVAL", f"group {group.number}: {reason}")
            old.queue = self.flusher.make_queue(driver, old)
            old.type = DomainType.LAZY
            return
        ownership = self.ownership(group)
        ownership.check_type_change()
        if old.mappings:
            reason = f"group {group.number} has {len(old.mappings)} buffers mapped: a driver works"
            raise RefusedError("EPERM", reason)
        for member in members:
            self.dma.release_all(member)
        new = create_default(self, driver, group, choose_type(self, group, wanted))
        self._defaults[group] = new
        for function in group.members:
            self._attach(function, GroupDomain.DEFAULT)
        self._close(old)

    def attribute(self, function: Function, *, lazy: bool) -> None:
        """Say for a device whether it may be lazy: the proposal of 2019, for root to decide.

        The kernel knows a device by its IDs alone, so what is said of one holds for every other
        one with the same IDs that comes later, as a rule of udev would. A lazy one counts as
        trusted. Strictness is a property of domains: its whole group changes with it.

        Args:
            function: one of the kernel's devices.
            lazy: what root thinks of it.

        Raises:
            RefusedError: as for `set_type`; what is said holds for later devices nevertheless.
        """
        device = self.device(function)
        self.attributes[ids(function)] = lazy
        device.untrusted = self.is_untrusted(function)
        if device.domain.type in (DomainType.STRICT, DomainType.LAZY):
            wanted = DomainType.LAZY if lazy else DomainType.STRICT
            if device.domain.type is not wanted:
                self.set_type(device.group, wanted.value)

    # ---- what an administrator sees ----------------------------------------------------------

    def once(self, line: str) -> str:
        """Return a line the first time, and "" from then on (`dev_warn_once`)."""
        if line in self._said:
            return ""
        self._said.add(line)
        return line

    def faults(self) -> list[str]:
        """Take what the units recorded; return it as the log has it, and log it."""
        lines = [line for driver in self.drivers.values() for line in fault_lines(self, driver)]
        for line in lines:
            self.log.write(line)
        return lines

    def leaks(self) -> dict[str, int]:
        """Return what is in use: live IOVAs, slots, mapped pages, allocated pages."""
        domains = list(self._defaults.values())
        return {
            "iovas": sum(domain.iovas.live for domain in domains if domain.iovas is not None),
            "slots": 0 if self._pool is None else self._pool.used_slots,
            "mapped pages": sum(
                domain.table.table.mapped // PAGE_SIZE
                for domain in domains
                if domain.table is not None
            ),
            "allocated pages": self.memory.used,
        }
