"""The core's enums: every number comes from the header."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from iommu_emu._core import lib

CACHES: int = lib.IEMU_CACHES  # caches of a unit


class Access(IntFlag):
    """Access kinds of a request; an AtomicOp is both."""

    NONE = 0
    READ = lib.IEMU_READ
    WRITE = lib.IEMU_WRITE
    ATOMIC = lib.IEMU_ATOMIC


class AddressType(IntEnum):
    """AT field of a memory request."""

    UNTRANSLATED = lib.IEMU_UNTRANSLATED
    TRANSLATION_REQUEST = lib.IEMU_TRANSLATION_REQUEST
    TRANSLATED = lib.IEMU_TRANSLATED
    RESERVED = lib.IEMU_AT_RESERVED


class RequestFlag(IntFlag):
    """Attributes of a request beside its address and access."""

    NONE = 0
    HAS_PASID = lib.IEMU_HAS_PASID
    PRIVILEGED = lib.IEMU_PRIVILEGED
    EXECUTE = lib.IEMU_EXECUTE
    ZERO_LENGTH = lib.IEMU_ZERO_LENGTH
    NO_SNOOP = lib.IEMU_NO_SNOOP
    NO_WRITE = lib.IEMU_NO_WRITE


class Outcome(IntEnum):
    """Where a translated request goes."""

    MEMORY = lib.IEMU_MEMORY
    INTERRUPT = lib.IEMU_INTERRUPT
    DISCARDED = lib.IEMU_DISCARDED
    UNSUPPORTED = lib.IEMU_UNSUPPORTED
    ABORTED = lib.IEMU_ABORTED


class Attribute(IntFlag):
    """Attributes of a translation."""

    NONE = 0
    SNOOP = lib.IEMU_SNOOP
    UNTRANSLATED_PASS = lib.IEMU_UNTRANSLATED_PASS


class Status(IntEnum):
    """State of a transfer as its device sees it."""

    DONE = lib.IEMU_DONE
    UNSUPPORTED_REQUEST = lib.IEMU_UR
    COMPLETER_ABORT = lib.IEMU_CA
    PENDING = lib.IEMU_PENDING
    BUSY = lib.IEMU_BUSY
    REMOVED = lib.IEMU_REMOVED


class AtomicKind(IntEnum):
    """AtomicOps of PCI Express."""

    FETCH_ADD = lib.IEMU_FETCH_ADD
    SWAP = lib.IEMU_SWAP
    COMPARE_SWAP = lib.IEMU_COMPARE_SWAP


class MessageKind(IntEnum):
    """What the core leaves to Python."""

    INTERRUPT = lib.IEMU_MESSAGE_INTERRUPT
    UNIT = lib.IEMU_MESSAGE_UNIT
    BAR_WRITE = lib.IEMU_MESSAGE_BAR_WRITE
    BAR_READ = lib.IEMU_MESSAGE_BAR_READ


class Vendor(IntEnum):
    """Whose IOMMU a unit is."""

    VTD = lib.IEMU_VTD
    AMDVI = lib.IEMU_AMDVI


class Replacement(IntEnum):
    """Which line of a full cache set makes room."""

    LRU = lib.IEMU_LRU
    FIFO = lib.IEMU_FIFO
    RANDOM = lib.IEMU_RANDOM


class CacheId(IntEnum):
    """Caches of a unit."""

    IOTLB = lib.IEMU_CACHE_IOTLB
    CONTEXT = lib.IEMU_CACHE_CONTEXT
    PAGING = lib.IEMU_CACHE_PAGING
    INTERRUPT = lib.IEMU_CACHE_INTERRUPT


class IotlbLookup(IntEnum):
    """How the IOTLB is looked up (VT-d 9.2)."""

    BY_REQUESTER = lib.IEMU_BY_REQUESTER
    BY_DOMAIN = lib.IEMU_BY_DOMAIN


class Reset(IntEnum):
    """Depth of a unit's reset."""

    WARM = lib.IEMU_RESET_WARM
    POWER_ON = lib.IEMU_RESET_POWER_ON


class InvalidationState(IntEnum):
    """State of the oldest invalidation that is not complete."""

    IDLE = lib.IEMU_INVALIDATION_IDLE
    SUBMITTED = lib.IEMU_INVALIDATION_SUBMITTED
    IN_PROGRESS = lib.IEMU_INVALIDATION_IN_PROGRESS


class TableLevel(IntEnum):
    """Tables above the paging levels 1..6 (1 is the level of 4 KiB leaves)."""

    UNKNOWN = lib.IEMU_LEVEL_UNKNOWN
    CONTEXT = lib.IEMU_LEVEL_CONTEXT
    ROOT = lib.IEMU_LEVEL_ROOT
    REGISTER = lib.IEMU_LEVEL_REGISTER
    INTERRUPT = lib.IEMU_LEVEL_INTERRUPT


class Owed(IntFlag):
    """Invalidations that software owed and did not do."""

    NONE = 0
    CONTEXT_GLOBAL = lib.IEMU_OWED_CONTEXT_GLOBAL
    CONTEXT_DEVICE = lib.IEMU_OWED_CONTEXT_DEVICE
    IOTLB_GLOBAL = lib.IEMU_OWED_IOTLB_GLOBAL
    IOTLB_DOMAIN = lib.IEMU_OWED_IOTLB_DOMAIN
    IOTLB_PAGE = lib.IEMU_OWED_IOTLB_PAGE
    INTERRUPT = lib.IEMU_OWED_INTERRUPT


class TraceKind(IntEnum):
    """Kinds of trace events."""

    TRANSLATE = lib.IEMU_TRACE_TRANSLATE
    FAULT = lib.IEMU_TRACE_FAULT
    MMIO_READ = lib.IEMU_TRACE_MMIO_READ
    MMIO_WRITE = lib.IEMU_TRACE_MMIO_WRITE
    COMMAND = lib.IEMU_TRACE_COMMAND
    DMA = lib.IEMU_TRACE_DMA
    MESSAGE = lib.IEMU_TRACE_MESSAGE


class FieldAccess(IntEnum):
    """Access kinds of a register field."""

    RO = lib.IEMU_RO
    RW = lib.IEMU_RW
    WO = lib.IEMU_WO
    RW1C = lib.IEMU_RW1C
    RW1CS = lib.IEMU_RW1CS
    ROS = lib.IEMU_ROS
    RWL = lib.IEMU_RWL
    RW1S = lib.IEMU_RW1S
