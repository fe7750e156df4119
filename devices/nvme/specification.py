"""Numbers of the NVM Express base specification 1.4: registers, opcodes, status codes.

Every section number in this package is one of revision 1.4; figures are not cited, because their
numbers differ between the prints of that revision.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "BROADCAST",
    "DNR",
    "MORE",
    "AdminOpcode",
    "CommandError",
    "Feature",
    "Identify",
    "LogPage",
    "NvmOpcode",
    "Register",
    "StatusCode",
]

BROADCAST = 0xFFFF_FFFF  # namespace ID that stands for all of them (6.1.2)
MORE = 1 << 13  # the error log tells more (4.6.1)
DNR = 1 << 14  # do not retry


class Register(IntEnum):
    """Offsets in BAR 0 (3.1); the doorbells follow from 1000h on, 4 bytes apart."""

    CAP = 0x00
    VS = 0x08
    INTMS = 0x0C
    INTMC = 0x10
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20
    AQA = 0x24
    ASQ = 0x28
    ACQ = 0x30
    DOORBELLS = 0x1000


class AdminOpcode(IntEnum):
    """Admin commands of this controller (5)."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT = 0x0C
    KEEP_ALIVE = 0x18


class NvmOpcode(IntEnum):
    """I/O commands of this controller (6)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Identify(IntEnum):
    """CNS values (5.15); 05h and 06h are of revision 2.0, and Linux asks for them."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    COMMAND_SET_NAMESPACE = 0x05
    COMMAND_SET_CONTROLLER = 0x06


class LogPage(IntEnum):
    """Log pages of this controller (5.14.1)."""

    ERRORS = 0x01
    HEALTH = 0x02
    FIRMWARE_SLOTS = 0x03
    COMMAND_EFFECTS = 0x05


class Feature(IntEnum):
    """Features of this controller (5.21.1)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENTS = 0x0B
    KEEP_ALIVE_TIMER = 0x0F


class StatusCode(IntEnum):
    """Status code type 10:8 and status code 7:0 (4.6.1)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    ABORT_REQUESTED = 0x007
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    PRP_OFFSET_INVALID = 0x013
    WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    COMPLETION_QUEUE_INVALID = 0x100
    INVALID_QUEUE_IDENTIFIER = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ASYNC_EVENT_LIMIT_EXCEEDED = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_OF_NAMESPACE = 0x10F
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


# A command that ends so may succeed when it is sent again; the others get DNR.
_WORTH_A_RETRY = {
    StatusCode.DATA_TRANSFER_ERROR,
    StatusCode.ABORT_REQUESTED,
    StatusCode.ASYNC_EVENT_LIMIT_EXCEEDED,
    StatusCode.WRITE_FAULT,
    StatusCode.UNRECOVERED_READ_ERROR,
}


class CommandError(Exception):
    """A command ends with an error.

    Attributes:
        code: which.
    """

    def __init__(self, code: StatusCode) -> None:
        super().__init__(code.name)
        self.code = code

    @property
    def status(self) -> int:
        """The status field of the completion queue entry, without its phase tag."""
        return self.code | (0 if self.code in _WORTH_A_RETRY else DNR)
