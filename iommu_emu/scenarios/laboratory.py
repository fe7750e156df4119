"""A fresh machine for one policy and one attack, and what is noted while the attack runs.

Every laboratory is the same small platform, on either vendor: one IOMMU, which knows device-TLBs,
for all of segment 0; root ports with access control services, made as devices come; and RAM in
three parts: what page tables and queues take, what firmware may reserve, and what the kernel gives
away.

An attack builds what it needs (`attach`, `reserve`), lets the kernel work (`linux`, `xen`), says
when memory stops being the device's (`revoke`), strikes (`attempt`), tells what happened (`say`),
and returns an `outcome`. An operating system boots when it is first asked for.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from iommu_emu.core import StaleUse
from iommu_emu.driver import Driver, count_invalidations
from iommu_emu.kernel_log import KernelLog
from iommu_emu.machine import ReservedRegion
from iommu_emu.memory import PAGE
from iommu_emu.meter import FREE, Meter
from iommu_emu.pci.capabilities import Acs
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.policies.policy import LinuxPolicy, Policy, XenPolicy
from iommu_emu.scenarios.attempts import Attempt, Attempts
from iommu_emu.scenarios.platform import (
    FIRMWARE,
    FRAMES,
    GUEST_RAM,
    IOMMUS,
    RAM,
    build_machine,
)
from iommu_emu.scenarios.result import Outcome, Row
from iommu_emu.unit import Unit

if TYPE_CHECKING:
    from iommu_emu.linux.kernel import Linux
    from iommu_emu.linux.vfio import Vfio
    from iommu_emu.timing_model import TimingModel
    from iommu_emu.xen import Xen

F = TypeVar("F", bound=Function)

POOL = 4 << 20  # bytes of bounce buffers; Linux's 64 MiB would only take time to clear
_PORT_ACS = (
    Acs.SOURCE_VALIDATION
    | Acs.TRANSLATION_BLOCKING
    | Acs.REQUEST_REDIRECT
    | Acs.COMPLETION_REDIRECT
    | Acs.UPSTREAM_FORWARDING
)

__all__ = ["FIRMWARE", "GUEST_RAM", "IOMMUS", "PAGE", "POOL", "RAM", "Attempt", "Laboratory"]


class Laboratory(Attempts):
    """A machine with one policy in force.

    Args:
        iommu: "vtd" or "amdvi".
        policy: what the operating system does.
        seed: of everything random.
        timing: what work costs; None: nothing takes time by itself.
        cpus: number of virtual CPUs.
        pool_size: bytes of bounce buffers, a power of two.
        unit_config: values of the unit's configuration that differ from the preset "default-ats".

    Attributes:
        unit: the machine's one unit; its stale-use detector is on.
        meter: what makes virtual time of work.
        story: what `say` said.
        refused: what the system would not do; "" if nothing.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        iommu: str,
        policy: Policy,
        *,
        seed: int | str = 0,
        timing: TimingModel | None = None,
        cpus: int = 4,
        pool_size: int = POOL,
        unit_config: dict[str, Any] | None = None,
    ) -> None:
        if cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {cpus}")
        super().__init__(build_machine(iommu, unit_config), seed)
        self.iommu = iommu
        self.policy = policy
        self.seed = seed
        self.timing = timing
        self.cpus = cpus
        self.unit: Unit = self.machine.units[0]
        self.unit.watch()
        self.meter = self._meter()
        self.story: list[str] = []
        self.refused = ""
        self._pool_size = pool_size
        self._firmware = FIRMWARE.start  # first byte that is not reserved yet
        self._stale_uses: list[StaleUse] = []
        self._faults: list[str] = []

    def _meter(self) -> Meter:
        if self.timing is None:
            return FREE
        from iommu_emu.virtual_cpus import VirtualCpus

        return VirtualCpus(self.clock, self.cpus, self.timing)

    # ---- the operating system ----------------------------------------------------------------

    @cached_property
    def linux(self) -> Linux:
        """The kernel of a `LinuxPolicy`; the first use boots it.

        Raises:
            TypeError: if the policy is another system's.
        """
        from iommu_emu.linux.kernel import Linux

        policy = self.policy
        if not isinstance(policy, LinuxPolicy):
            raise TypeError(f"policy {policy.name} has no Linux kernel")
        return Linux(
            self.machine,
            parameters=policy.parameters,
            cpus=self.cpus,
            ram=RAM,
            frames=FRAMES,
            queue=policy.queue,
            bounce=policy.bounce,
            age=policy.age,
            dma_api=policy.dma_api,
            pool_size=self._pool_size,
            timeline=self.timeline,
            meter=self.meter,
        )

    @cached_property
    def vfio(self) -> Vfio:
        """VFIO of that kernel, by the policy's rule.

        Raises:
            TypeError: if the policy is another system's.
        """
        from iommu_emu.linux.vfio import Vfio

        policy = self.policy
        if not isinstance(policy, LinuxPolicy):
            raise TypeError(f"policy {policy.name} has no VFIO")
        return Vfio(self.linux, notifier=policy.notifier, map_reserved=policy.map_reserved)

    @cached_property
    def xen(self) -> Xen:
        """The hypervisor of a `XenPolicy`; the first use boots it.

        Raises:
            TypeError: if the policy is another system's.
        """
        from iommu_emu.xen import Xen

        policy = self.policy
        if not isinstance(policy, XenPolicy):
            raise TypeError(f"policy {policy.name} has no Xen hypervisor")
        return Xen(
            self.machine,
            parameters=policy.parameters,
            frames=FRAMES,
            ram=RAM,
            timeline=self.timeline,
            meter=self.meter,
            release=policy.release,
            unfixed=policy.unfixed,
        )

    @property
    def system(self) -> Linux | Xen:
        """The operating system, whichever it is."""
        return self.linux if isinstance(self.policy, LinuxPolicy) else self.xen

    @property
    def booted(self) -> bool:
        """Whether an operating system runs."""
        return "linux" in self.__dict__ or "xen" in self.__dict__

    @property
    def driver(self) -> Driver[Any]:
        """The software driver of the unit."""
        return self.system.drivers[self.unit]

    @property
    def log(self) -> KernelLog:
        """The operating system's log."""
        return self.system.log

    # ---- building ----------------------------------------------------------------------------

    def port(self, name: str) -> Bridge:
        """Return a root port, made when it is first asked for.

        Args:
            name: a name that begins with "external" makes an external-facing one with a
                hot-plug slot; any other an internal one. Both have access control services.
        """
        bus = self.machine.fabric.add_root(0, 0)
        for bridge in bus.bridges():
            if bridge.name == name:
                return bridge
        external = name.startswith("external")
        slot = 1 + sum(bridge.slot is not None for bridge in bus.bridges()) if external else None
        bridge = Bridge(name, slot=slot, acs=_PORT_ACS, external_facing=external)
        self.machine.attach(bridge)
        if self.booted:
            self.system.add(bridge)
        return bridge

    def attach(self, device: F, *, external: bool | None = None, under: Bridge | None = None) -> F:
        """Plug a device in, into a root port of its own; a kernel that runs takes notice.

        Args:
            device: any function.
            external: whether the port is an external-facing one; None: as the policy says.
            under: the port or switch to plug it into instead.

        Returns:
            The device.
        """
        if external is None:
            external = isinstance(self.policy, LinuxPolicy) and self.policy.external
        port = under or self._free_port("external" if external else "internal")
        self.machine.attach(device, under=port)
        self.note(f"plugged in below the {port.name} port", lane=device.name)
        if self.booted:
            self.system.add(device)
        return device

    def _free_port(self, kind: str) -> Bridge:
        number = 1
        while True:
            port = self.port(kind if number == 1 else f"{kind} {number}")
            if not port.secondary.functions:
                return port
            number += 1

    def remove(self, device: Function) -> None:
        """Unplug a device, by surprise; a kernel that runs takes notice."""
        self.note("unplugged", lane=device.name)
        if self.booted:
            self.system.remove(device)
        self.machine.remove(device)

    def reserve(
        self,
        device: Function | int,
        size: int = PAGE,
        *,
        base: int | None = None,
        readable: bool = True,
        writable: bool = True,
        exclusion: bool = False,
    ) -> ReservedRegion:
        """Reserve memory for a device, as firmware does with an RMRR or IVMD.

        Args:
            device: attached already; or the requester ID that one will have.
            size: bytes, whole pages.
            base: physical address; None: the next free page of firmware's RAM.
            readable: whether the device may read it (AMD-Vi).
            writable: whether it may write it (AMD-Vi).
            exclusion: an exclusion range instead of a mapping (AMD-Vi).

        Raises:
            ValueError: if base or size are no whole pages, or firmware has no RAM left.
            RuntimeError: if a kernel runs: it has read firmware's table.
        """
        if self.booted:
            raise RuntimeError("firmware reserves memory before the kernel boots")
        if size < 1 or size % PAGE or (base or 0) % PAGE:
            raise ValueError(f"base and size must be whole pages, not {base} and {size}")
        if base is None:
            base = self._firmware
            if base + size > FIRMWARE.stop:
                left = FIRMWARE.stop - base
                raise ValueError(f"size must be at most the {left} bytes left, not {size}")
            self._firmware += size
        requester = device if isinstance(device, int) else device.dma.requester
        region = ReservedRegion(
            base, base + size - 1, 0, ((requester, requester),), readable, writable, exclusion
        )
        self.machine.reserved_regions.append(region)
        return region

    # ---- telling -----------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add a sentence to the story."""
        self.story.append(text)
        self.note(text, lane="story")

    def refuse(self, reason: object) -> None:
        """Remember what the system would not do, and why."""
        self.refused = str(reason)
        self.note(f"refused: {self.refused}")

    def faults(self) -> list[str]:
        """Return every fault that an administrator saw, oldest first."""
        if self.booted:
            self._faults += self.system.faults()
        return list(self._faults)

    def stale_uses(self) -> list[StaleUse]:
        """Return every use of a cached entry that the tables no longer said, oldest first."""
        self._stale_uses += self.unit.stale_uses()
        return list(self._stale_uses)

    def row(self, attack: str, outcome: Outcome) -> Row:
        """Return what is to be known of an attack that is over."""
        row = Row(
            policy=self.policy.name,
            attack=attack,
            outcome=outcome,
            timeline=tuple(self.timeline),  # without the clock, which would keep the machine
            timeline_dropped=self.timeline.dropped,
            refused=self.refused,
            stale_uses=len(self.stale_uses()) + self.unit.lost_stale_uses,
            faults=self.faults(),
            story=list(self.story),
        )
        if self.booted:
            submitted = self.driver.submitted
            row.descriptors = sum(submitted.values())
            row.invalidations = count_invalidations(submitted)
            row.log = [line.text for line in self.log]
        if "linux" in self.__dict__:
            row.copied = self.linux.dma.statistics.copied
        return row
