"""What a scenario's policy costs under a workload, in its laboratory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from typing import Any

from iommu_emu.devices import Device, Nic
from iommu_emu.devices.nvme import Nvme
from iommu_emu.direction import Direction
from iommu_emu.linux.dma_device import DmaDevice
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.policies.policy import LinuxPolicy, XenPolicy
from iommu_emu.scenarios.laboratory import GUEST_RAM, PAGE, RAM, Laboratory
from iommu_emu.scenarios.result import Costs
from iommu_emu.virtual_cpus import VirtualCpus
from iommu_emu.workloads import Measured, block_reads, map_benchmark, packets, pairs
from iommu_emu.xen.domain import MemoryRange

Workload = Callable[[Laboratory], Costs]
LINES = (10.0, 25.0)  # Gb/s: the networks that the discussion of 2019 is about

GUEST = 0x10_0000  # where a guest's devices find its memory
BALLOON = RAM.start + (32 << 20)  # a page that a guest gets and gives back
PAIRS = 100
MOVES = 20  # of a device

__all__ = [
    "LINES",
    "WORKLOADS",
    "Workload",
    "block_costs",
    "guest_costs",
    "known_device",
    "map_costs",
    "packet_costs",
    "user_costs",
]


def map_costs(laboratory: Laboratory, **parameters: Any) -> Costs:
    """Map and unmap on all CPUs for one device.

    Args:
        laboratory: a fresh one, of a `LinuxPolicy`, with a timing model.
        parameters: of `map_benchmark`.

    Raises:
        TypeError: if the policy is not Linux's, or the laboratory has no timing model.
    """
    device = known_device(laboratory, laboratory.attach(Device("benchmark")))
    parameters = {"threads": laboratory.cpus, **parameters}
    return _measured(
        laboratory, lambda cpus: map_benchmark(laboratory.linux, cpus, device, **parameters)
    )


def packet_costs(
    laboratory: Laboratory, direction: Direction = Direction.FROM_DEVICE, **parameters: Any
) -> Costs:
    """Receive or send packets on all CPUs, each of which has a controller of its own.

    The controllers share an IOMMU group, and so a domain and its locks, as the queues of one
    controller do.

    Args:
        laboratory: as for `map_costs`.
        direction: FROM_DEVICE receives, TO_DEVICE sends.
        parameters: of `packets`.

    Raises:
        TypeError: as for `map_costs`.
    """
    policy = laboratory.policy
    external = isinstance(policy, LinuxPolicy) and policy.external
    # Without access control services they could reach each other: that makes them one group.
    port = laboratory.machine.attach(Bridge("port of all queues", external_facing=external))
    if laboratory.booted:
        laboratory.system.add(port)
    nics = [
        laboratory.attach(Nic(f"nic {number}"), under=port) for number in range(laboratory.cpus)
    ]
    for nic in nics:
        known_device(laboratory, nic)
    return _measured(
        laboratory,
        lambda cpus: packets(laboratory.linux, cpus, nics, direction=direction, **parameters),
    )


def block_costs(laboratory: Laboratory, kind: type[Nvme] = Nvme, **parameters: Any) -> Costs:
    """Read from an NVMe controller on all CPUs, each through a queue of its own.

    Args:
        laboratory: as for `map_costs`.
        kind: of controller.
        parameters: of `block_reads`.

    Raises:
        TypeError: as for `map_costs`.
    """
    nvme = laboratory.attach(kind())
    known_device(laboratory, nvme)
    parameters = {"threads": laboratory.cpus, **parameters}
    return _measured(
        laboratory, lambda cpus: block_reads(laboratory.linux, cpus, nvme, **parameters)
    )


def user_costs(laboratory: Laboratory, operations: int = PAIRS) -> Costs:
    """Map and unmap as `map_costs` does, and beside that a page of user space's by VFIO.

    Args:
        laboratory: as for `map_costs`.
        operations: how many pages user space maps and unmaps.

    Raises:
        TypeError: as for `map_costs`.
    """
    costs = map_costs(laboratory)
    linux = laboratory.linux
    card = laboratory.attach(Device("card"), external=False)
    laboratory.vfio.bind(card, "vfio-pci")
    domain = laboratory.vfio.open(card)
    page = linux.memory.alloc_pages(1, "guest")
    domain.map(GUEST, page, PAGE)  # so that tables are there
    map_, unmap = (
        partial(domain.map, GUEST + PAGE, page, PAGE),
        partial(domain.unmap, GUEST + PAGE, PAGE),
    )
    costs.others["user space's"] = _measured(
        laboratory, lambda cpus: pairs(linux, cpus, map_, unmap, operations)
    )
    return costs


def guest_costs(
    laboratory: Laboratory,
    kind: type[Device] = Device,
    *,
    operations: int = PAIRS,
    moves: int = MOVES,
) -> Costs:
    """Let a guest of Xen's get a page and give it back while it has a device.

    Beside that: the first time that the guest gets another device and loses it again, when Xen
    makes ready what quarantine needs, and what that takes from then on.

    Args:
        laboratory: a fresh one, of a `XenPolicy`, with a timing model.
        kind: of both devices.
        operations: how many pages come and go.
        moves: how often the device does, after the first time.

    Raises:
        TypeError: if the policy is not Xen's, or the laboratory has no timing model.
    """
    policy, xen = laboratory.policy, laboratory.xen
    assert isinstance(policy, XenPolicy)
    first, second = laboratory.attach(kind("first")), laboratory.attach(kind("nic"))
    if second.name in policy.quarantined:
        xen.assign(second, xen.dom_io)
    guest = xen.create_domain("guest", GUEST_RAM)
    xen.assign(first, guest)  # so that the guest's tables are there
    page = MemoryRange(BALLOON, BALLOON, PAGE)
    guest.add_memory(page)
    beside = MemoryRange(BALLOON + PAGE, BALLOON + PAGE, PAGE)
    get, give = (
        partial(guest.add_memory, beside),
        partial(guest.remove_memory, range(beside.machine, beside.machine + PAGE)),
    )
    assign, deassign = partial(xen.assign, second, guest), partial(xen.deassign, second)

    def costs(do: Callable[[], object], undo: Callable[[], object], count: int) -> Costs:
        return _measured(laboratory, lambda cpus: pairs(xen, cpus, do, undo, count))

    found = costs(get, give, operations)
    found.others["first assign, deassign"] = costs(assign, deassign, 1)
    found.others["assign, deassign"] = costs(assign, deassign, moves)
    return found


WORKLOADS: Mapping[str, Workload] = {
    "blocks": block_costs,
    "map": map_costs,
    "packets": packet_costs,
}
"""What can be measured of every policy of Linux's, by name."""


def known_device(laboratory: Laboratory, function: Function) -> DmaDevice:
    """Return a device as Linux knows it, after its driver or root has done what the policy says.

    Args:
        laboratory: of a `LinuxPolicy`.
        function: a device that is attached.

    Raises:
        TypeError: if the policy is another system's.
    """
    device = laboratory.linux.device(function)
    if isinstance(laboratory.policy, LinuxPolicy):
        device.opt_in = laboratory.policy.opt_in
        if laboratory.policy.attribute:
            laboratory.linux.attribute(function, lazy=True)
    return device


def _measured(laboratory: Laboratory, workload: Callable[[VirtualCpus], Measured]) -> Costs:
    cpus = laboratory.meter
    if not isinstance(cpus, VirtualCpus):
        raise TypeError("a workload needs a laboratory with a timing model")
    laboratory.unit.watch(False)  # the detector would be most of the host's time
    measured = workload(cpus)
    operations = measured.maps.count
    return Costs(
        operations=operations,
        map_ns=measured.maps.mean_ns,
        unmap_ns=measured.unmaps.mean_ns,
        measured_map_ns=measured.maps.host_ns,
        measured_unmap_ns=measured.unmaps.host_ns,
        copied=measured.copied,
        descriptors=measured.commands.total(),
        invalidations=measured.invalidations,
        lock_wait_ns=measured.lock_wait_ns / operations,
        gbps=measured.gbps if isfinite(measured.gbps) else 0.0,
        frames=measured.frames,
    )
