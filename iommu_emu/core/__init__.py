"""Typed handles on the C core: beside `iommu_emu.bench` the only code that touches cffi.

Handles are thin: one method a C function, Python types in and out, errors as exceptions. A
`CoreMachine` owns everything on the C side but `Region`s; units and ports keep their machine
alive, and a region lives as long as a machine maps it or a numpy view of it exists.
"""

from iommu_emu.core.enums import (
    CACHES,
    Access,
    AddressType,
    AtomicKind,
    Attribute,
    CacheId,
    FieldAccess,
    InvalidationState,
    IotlbLookup,
    MessageKind,
    Outcome,
    Owed,
    Replacement,
    RequestFlag,
    Reset,
    Status,
    TableLevel,
    TraceKind,
    Vendor,
)
from iommu_emu.core.errors import (
    MAX_PASID,
    MAX_TRANSFER,
    FullError,
    NotRamError,
    OverlapError,
    StateError,
    UnsealedError,
    check,
    require_range,
)
from iommu_emu.core.machine import CoreMachine
from iommu_emu.core.port import BytesLike, Port
from iommu_emu.core.records import (
    CacheEntry,
    Completion,
    CompletionDetails,
    Message,
    Request,
    Result,
    StaleUse,
)
from iommu_emu.core.region import Region
from iommu_emu.core.tables import (
    RESULT_DTYPE,
    TRACE_DTYPE,
    FaultInfo,
    FieldInfo,
    RegisterInfo,
    faults,
    fields,
    registers,
)
from iommu_emu.core.unit import CoreUnit

__all__ = [
    "CACHES",
    "MAX_PASID",
    "MAX_TRANSFER",
    "RESULT_DTYPE",
    "TRACE_DTYPE",
    "Access",
    "AddressType",
    "AtomicKind",
    "Attribute",
    "BytesLike",
    "CacheEntry",
    "CacheId",
    "Completion",
    "CompletionDetails",
    "CoreMachine",
    "CoreUnit",
    "FaultInfo",
    "FieldAccess",
    "FieldInfo",
    "FullError",
    "InvalidationState",
    "IotlbLookup",
    "Message",
    "MessageKind",
    "NotRamError",
    "Outcome",
    "OverlapError",
    "Owed",
    "Port",
    "Region",
    "RegisterInfo",
    "Replacement",
    "Request",
    "RequestFlag",
    "Reset",
    "Result",
    "StaleUse",
    "StateError",
    "Status",
    "TableLevel",
    "TraceKind",
    "UnsealedError",
    "Vendor",
    "check",
    "faults",
    "fields",
    "registers",
    "require_range",
]
