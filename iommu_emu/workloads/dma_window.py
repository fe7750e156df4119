"""Reads at random in a window of memory: what a device sees of the IOTLB's size (pcie-bench)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from iommu_emu.memory import PAGE
from iommu_emu.pci.function import Function
from iommu_emu.timing_model import TimingModel
from iommu_emu.unit import Unit
from iommu_emu.workloads.measure import WorkloadError

__all__ = ["WindowReads", "dma_window"]


@dataclass(frozen=True)
class WindowReads:
    """What reads in a window met.

    Attributes:
        reads: how many.
        misses: how many of them missed the IOTLB.
        memory_reads: what the unit read to walk for them.
        ns: modelled latency of a read, mean.
    """

    reads: int
    misses: int
    memory_reads: int
    ns: float


def dma_window(
    unit: Unit,
    device: Function,
    model: TimingModel,
    iova: int,
    window: int,
    *,
    reads: int = 1000,
    size: int = 64,
    seed: int = 0,
) -> WindowReads:
    """Let a device read at random, after it has touched every page of the window once.

    A read takes the model's ways to the IOMMU and to memory, and a walk if it misses.

    Args:
        unit: the IOMMU before the device.
        device: who reads; its port has no latencies.
        model: what a miss takes.
        iova: first input address of the window, a multiple of 4096; all of it is mapped.
        window: bytes, a multiple of 4096.
        reads: how many, 1 or more.
        size: bytes of each, a power of two up to 4096.
        seed: of the addresses.

    Raises:
        ValueError: if a number is outside its range.
        WorkloadError: if a read fails.
    """
    if iova % PAGE or window % PAGE or window < PAGE:
        raise ValueError(f"iova and window must be whole pages, not {iova:#x} and {window}")
    if not 1 <= size <= PAGE or size & (size - 1):
        raise ValueError(f"size must be a power of two up to {PAGE}, not {size}")
    if reads < 1:
        raise ValueError(f"reads must be 1 or more, not {reads}")
    choose = random.Random(seed).randrange
    for address in range(iova, iova + window, PAGE):
        _read(device, address, size)
    before = unit.counters
    for _ in range(reads):
        _read(device, iova + choose(0, window, size), size)
    after = {name: count - before[name] for name, count in unit.counters.items()}
    misses = after["iotlb_lookup"] - after["iotlb_hit"]
    hit = model.ns("fabric") + model.ns("memory")
    latency = hit + model.ns("iotlb_miss") * misses / reads
    return WindowReads(reads, misses, after["iommu_mrds"], latency)


def _read(device: Function, address: int, size: int) -> None:
    completion = device.dma.read(address, size)
    if not completion.ok:
        raise WorkloadError(f"{device.name}: read at {address:#x}: {completion.status.name}")
