"""What Linux does with an IOMMU: policy over a unit's driver and the machine's virtual clock.

Nothing here touches hardware by itself. Allocation, deferral and copying are Linux's, down to
which address is handed out next and which entry is freed by which flush; CPUs are plain integers,
0 to n-1, passed to the calls that Linux makes per CPU.
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
from iommu_emu.linux.refused import RefusedError

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
