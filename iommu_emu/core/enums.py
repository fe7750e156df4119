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
    PAST_DEVICE_TLB = lib.IEMU_PAST_DEVICE_TLB


class Verdict(IntEnum):
    """What a `PortRule` does with a request."""

    PEER = lib.IEMU_RULE_PEER
    REFUSE = lib.IEMU_RULE_REFUSE


class Outcome(IntEnum):
    """Where a translated request goes."""

    MEMORY = lib.IEMU_MEMORY
    INTERRUPT = lib.IEMU_INTERRUPT
    DISCARDED = lib.IEMU_DISCARDED
    UNSUPPORTED = lib.IEMU_UNSUPPORTED
    ABORTED = lib.IEMU_ABORTED
    TRANSLATION = lib.IEMU_TRANSLATION
    NO_TRANSLATION = lib.IEMU_NO_TRANSLATION


class Attribute(IntFlag):
    """Attributes of a translation."""

    NONE = 0
    SNOOP = lib.IEMU_SNOOP
    UNTRANSLATED_PASS = lib.IEMU_UNTRANSLATED_PASS
    UNTRANSLATED_ONLY = lib.IEMU_UNTRANSLATED_ONLY
    NON_SNOOPED = lib.IEMU_NON_SNOOPED
    PAST_IOMMU = lib.IEMU_PAST_IOMMU


class Status(IntEnum):
    """State of a transfer as its device sees it."""

    DONE = lib.IEMU_DONE
    UNSUPPORTED_REQUEST = lib.IEMU_UR
    COMPLETER_ABORT = lib.IEMU_CA
    PENDING = lib.IEMU_PENDING
    BUSY = lib.IEMU_BUSY
    REMOVED = lib.IEMU_REMOVED
    NOT_TRANSLATED = lib.IEMU_NOT_TRANSLATED


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
    INVALIDATE = lib.IEMU_MESSAGE_INVALIDATE


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
    """Caches of a unit, and the one of a port."""

    IOTLB = lib.IEMU_CACHE_IOTLB
    CONTEXT = lib.IEMU_CACHE_CONTEXT
    PAGING = lib.IEMU_CACHE_PAGING
    INTERRUPT = lib.IEMU_CACHE_INTERRUPT
    DEVICE_TLB = lib.IEMU_CACHE_DEVICE_TLB


class IotlbLookup(IntEnum):
    """How the IOTLB is looked up (VT-d 9.2)."""

    BY_REQUESTER = lib.IEMU_BY_REQUESTER
    BY_DOMAIN = lib.IEMU_BY_DOMAIN


class Answer(IntEnum):
    """What a function does when its device-TLB is to be invalidated.

    Attributes:
        AFTER: drops the entries and answers, after a delay.
        NEVER: keeps them and says nothing.
        WRONG_TAG: drops them and answers for another ITag, after a delay.
        ASK: leaves it to Python, after a delay: `MessageKind.INVALIDATE`.
    """

    AFTER = lib.IEMU_ANSWER_AFTER
    NEVER = lib.IEMU_ANSWER_NEVER
    WRONG_TAG = lib.IEMU_ANSWER_WRONG_TAG
    ASK = lib.IEMU_ANSWER_ASK


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
    DEVICE_TLB_PAGE = lib.IEMU_OWED_DEVICE_TLB_PAGE
    DEVICE_TLB_ALL = lib.IEMU_OWED_DEVICE_TLB_ALL


class TraceKind(IntEnum):
    """Kinds of trace events."""

    TRANSLATE = lib.IEMU_TRACE_TRANSLATE
    FAULT = lib.IEMU_TRACE_FAULT
    MMIO_READ = lib.IEMU_TRACE_MMIO_READ
    MMIO_WRITE = lib.IEMU_TRACE_MMIO_WRITE
    COMMAND = lib.IEMU_TRACE_COMMAND
    DMA = lib.IEMU_TRACE_DMA
    MESSAGE = lib.IEMU_TRACE_MESSAGE


class RecordKind(IntEnum):
    """Kinds of records of a journal; what their columns mean is in the header."""

    MACHINE = lib.IEMU_RECORD_MACHINE
    RAM = lib.IEMU_RECORD_RAM
    BAR = lib.IEMU_RECORD_BAR
    UNMAP = lib.IEMU_RECORD_UNMAP
    CONFIG = lib.IEMU_RECORD_CONFIG
    UNIT = lib.IEMU_RECORD_UNIT
    ROUTE = lib.IEMU_RECORD_ROUTE
    PORT = lib.IEMU_RECORD_PORT
    PORT_REMOVE = lib.IEMU_RECORD_PORT_REMOVE
    PORT_DESTROY = lib.IEMU_RECORD_PORT_DESTROY
    LATENCY = lib.IEMU_RECORD_LATENCY
    REQUESTER = lib.IEMU_RECORD_REQUESTER
    ADVANCE = lib.IEMU_RECORD_ADVANCE
    TAKE = lib.IEMU_RECORD_TAKE
    ANSWER = lib.IEMU_RECORD_ANSWER
    MMIO_READ = lib.IEMU_RECORD_MMIO_READ
    MMIO_WRITE = lib.IEMU_RECORD_MMIO_WRITE
    TRANSLATE = lib.IEMU_RECORD_TRANSLATE
    DMA = lib.IEMU_RECORD_DMA
    DMA_TAKE = lib.IEMU_RECORD_DMA_TAKE
    RESET = lib.IEMU_RECORD_RESET
    STEP = lib.IEMU_RECORD_STEP
    TIMING = lib.IEMU_RECORD_TIMING
    ATS = lib.IEMU_RECORD_ATS
    ATS_ENABLE = lib.IEMU_RECORD_ATS_ENABLE
    ATS_ANSWER = lib.IEMU_RECORD_ATS_ANSWER
    ATS_DROP = lib.IEMU_RECORD_ATS_DROP
    ATS_COMPLETE = lib.IEMU_RECORD_ATS_COMPLETE
    RULE = lib.IEMU_RECORD_RULE
    NO_RULES = lib.IEMU_RECORD_NO_RULES
    TIME = lib.IEMU_RECORD_TIME
    FETCH = lib.IEMU_RECORD_FETCH
    STORE = lib.IEMU_RECORD_STORE
    MESSAGE = lib.IEMU_RECORD_MESSAGE
    PAYLOAD = lib.IEMU_RECORD_PAYLOAD
    TRANSLATED = lib.IEMU_RECORD_TRANSLATED
    COMPLETION = lib.IEMU_RECORD_COMPLETION
    RETURN = lib.IEMU_RECORD_RETURN

    @property
    def is_input(self) -> bool:
        """Whether it is a call from outside, not an effect of one."""
        return self < RecordKind.TIME


class ConfigValue(IntEnum):
    """Values of a unit's configuration in a journal."""

    BASE = lib.IEMU_CONFIG_BASE
    WINDOW = lib.IEMU_CONFIG_WINDOW
    HOST_ADDRESS_WIDTH = lib.IEMU_CONFIG_HOST_ADDRESS_WIDTH
    IOTLB_LOOKUP = lib.IEMU_CONFIG_IOTLB_LOOKUP
    FETCH_GRANULE = lib.IEMU_CONFIG_FETCH_GRANULE
    SETS = lib.IEMU_CONFIG_SETS
    WAYS = lib.IEMU_CONFIG_WAYS
    REPLACEMENT = lib.IEMU_CONFIG_REPLACEMENT
    SEED = lib.IEMU_CONFIG_SEED
    TIMING_COMMAND = lib.IEMU_CONFIG_TIMING_COMMAND
    TIMING_INVALIDATION = lib.IEMU_CONFIG_TIMING_INVALIDATION
    TIMING_WAIT = lib.IEMU_CONFIG_TIMING_WAIT
    TIMING_MANUAL = lib.IEMU_CONFIG_TIMING_MANUAL
    CAP = lib.IEMU_CONFIG_CAP
    ECAP = lib.IEMU_CONFIG_ECAP
    MAJOR = lib.IEMU_CONFIG_MAJOR
    MINOR = lib.IEMU_CONFIG_MINOR
    COMPRESS_FAULTS = lib.IEMU_CONFIG_COMPRESS_FAULTS
    PROTECTED_SHIFT = lib.IEMU_CONFIG_PROTECTED_SHIFT
    EFR = lib.IEMU_CONFIG_EFR
    DEVICE_ID = lib.IEMU_CONFIG_DEVICE_ID
    NP_CACHE = lib.IEMU_CONFIG_NP_CACHE
    INVALIDATION_TIMEOUT = lib.IEMU_CONFIG_INVALIDATION_TIMEOUT
    IOTLB_SUP = lib.IEMU_CONFIG_IOTLB_SUP


class JournalEnd(IntEnum):
    """Why a journal ended by itself."""

    OPEN = lib.IEMU_JOURNAL_OPEN
    LIMIT = lib.IEMU_JOURNAL_LIMIT
    TIME = lib.IEMU_JOURNAL_TIME
    FULL = lib.IEMU_JOURNAL_FULL


class ReplayOutcome(IntEnum):
    """What came of a replay."""

    SAME = lib.IEMU_REPLAY_SAME
    DIVERGED = lib.IEMU_REPLAY_DIVERGED
    MALFORMED = lib.IEMU_REPLAY_MALFORMED
    NO_MEMORY = lib.IEMU_REPLAY_NO_MEMORY


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
