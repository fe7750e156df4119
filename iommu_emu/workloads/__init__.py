"""Honest work over an operating system's IOMMU code on virtual CPUs, and what it costs.

`map_benchmark` maps and unmaps over Linux's DMA API, `packets` lets network controllers receive
or send, `block_reads` lets an NVMe controller read. The devices are real models: every byte passes
the IOMMU. `pairs` does and undoes whatever it is told to, under Linux or Xen. `dma_window` needs no
kernel: it shows a device's view of the IOTLB.
"""

from iommu_emu.workloads.block_reads import block_reads
from iommu_emu.workloads.dma_window import WindowReads, dma_window
from iommu_emu.workloads.map_benchmark import map_benchmark
from iommu_emu.workloads.measure import Calls, Measured, WorkloadError, pairs
from iommu_emu.workloads.packets import packets

__all__ = [
    "Calls",
    "Measured",
    "WindowReads",
    "WorkloadError",
    "block_reads",
    "dma_window",
    "map_benchmark",
    "packets",
    "pairs",
]
