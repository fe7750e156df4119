"""What a scenario's policy costs under a workload, in its laboratory."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from iommu_emu.devices import Device, Nic
from iommu_emu.devices.nvme import Nvme
from iommu_emu.direction import Direction
from iommu_emu.linux.dma_device import DmaDevice
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import Laboratory
from iommu_emu.scenarios.result import Costs
from iommu_emu.virtual_cpus import VirtualCpus
from iommu_emu.workloads import Measured, block_reads, map_benchmark, packets

LINES = (10.0, 25.0)  # Gb/s: the networks that the discussion of 2019 is about

__all__ = ["LINES", "block_costs", "known_device", "map_costs", "packet_costs"]


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


def block_costs(laboratory: Laboratory, **parameters: Any) -> Costs:
    """Read from an NVMe controller on all CPUs, each through a queue of its own.

    Args:
        laboratory: as for `map_costs`.
        parameters: of `block_reads`.

    Raises:
        TypeError: as for `map_costs`.
    """
    nvme = laboratory.attach(Nvme())
    known_device(laboratory, nvme)
    parameters = {"threads": laboratory.cpus, **parameters}
    return _measured(
        laboratory, lambda cpus: block_reads(laboratory.linux, cpus, nvme, **parameters)
    )


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
    )
