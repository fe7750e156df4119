"""What Linux does with an IOMMU: policy over a unit's driver and the machine's virtual clock.

`Linux` boots on a machine; drivers then use its DMA API:

    linux = Linux(machine, parameters="iommu.strict=0", ram=ram, frames=frames)
    device = linux.device(nic)
    buffer = linux.dma.alloc_buffer(device, 2048)
    iova = linux.dma.map_single(device, buffer, 2048, Direction.FROM_DEVICE)

Nothing here touches hardware but by a unit's driver. Allocation, deferral and copying are Linux's,
down to which address is handed out next and which entry is freed by which flush; CPUs are plain
integers, 0 to n-1, passed to the calls that Linux makes per CPU.
"""

from iommu_emu.linux.dma_api import DmaApi, DmaMappingError
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flush_queue import (
    GLOBAL_LIST,
    PER_CPU,
    SINGLE,
    FlushQueue,
    QueueEntry,
    QueueKind,
)
from iommu_emu.linux.iova import DmaLimit, IovaDomain
from iommu_emu.linux.kernel import Linux
from iommu_emu.refused import RefusedError

__all__ = [
    "GLOBAL_LIST",
    "PER_CPU",
    "SINGLE",
    "DmaApi",
    "DmaLimit",
    "DmaMappingError",
    "DomainType",
    "FlushQueue",
    "IovaDomain",
    "Linux",
    "QueueEntry",
    "QueueKind",
    "RefusedError",
]
