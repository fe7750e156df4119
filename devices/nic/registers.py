"""The registers in BAR 0: DWORDs (a QWORD is two of them); what is not listed reads 0.

    000  CONTROL  bit 0 receive, bit 1 transmit, bit 31 reset: 1 until nothing is in flight
    004  STATUS   bits 1:0 ring at work or something of it in flight, bits 3:2 ring failed
    008  CAUSE    write 1 to clear; see `Cause`
    00C  ENABLE   the causes that interrupt; the others are masked
    010  LIMIT    bytes of the longest frame
    100  receive ring, 200 transmit ring:
         +0 BASE (64 bits, a multiple of 16)  +8 SIZE (descriptors, 2..4096)
         +C HEAD (the controller's next one)  +10 TAIL (doorbell: software's next one)

Base and size can be written while the ring is stopped; switching it on starts it at head 0. The
MSI-X table is at 1000h: vector 0 for receiving, vector 1 for transmitting.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

MIN_ENTRIES, MAX_ENTRIES = 2, 4096  # of a ring
MSIX_TABLE = 0x1000

__all__ = [
    "ALL_CAUSES",
    "MAX_ENTRIES",
    "MIN_ENTRIES",
    "MSIX_TABLE",
    "VECTORS",
    "Cause",
    "Control",
    "NicStatus",
    "Register",
]


class Register(IntEnum):
    """Offsets in BAR 0; those from BASE_LOW on are relative to RECEIVE or TRANSMIT."""

    CONTROL = 0x000
    STATUS = 0x004
    CAUSE = 0x008
    ENABLE = 0x00C
    LIMIT = 0x010
    RECEIVE = 0x100
    TRANSMIT = 0x200
    BASE_LOW = 0x00
    BASE_HIGH = 0x04
    SIZE = 0x08
    HEAD = 0x0C
    TAIL = 0x10


class Control(IntFlag):
    """Bits of CONTROL."""

    RECEIVE = 1 << 0
    TRANSMIT = 1 << 1
    RESET = 1 << 31


class NicStatus(IntFlag):
    """Bits of STATUS."""

    RECEIVE = 1 << 0
    TRANSMIT = 1 << 1
    RECEIVE_FAILED = 1 << 2
    TRANSMIT_FAILED = 1 << 3


class Cause(IntFlag):
    """What interrupts: bits of CAUSE and ENABLE.

    A vector is sent when one of its enabled causes comes up, and again when a write to CAUSE or
    ENABLE leaves one up; INTx is up while any is.

    A ring fails if it is switched on with a base or size that it cannot have, or if a descriptor
    cannot be fetched or written back. It goes on when it is switched off and on.
    """

    RECEIVED = 1 << 0
    TRANSMITTED = 1 << 1
    NO_DESCRIPTOR = 1 << 2
    RECEIVE_FAILED = 1 << 3
    TRANSMIT_FAILED = 1 << 4


# The causes of each vector. Plain integers, here and where every frame passes: operators of flags
# are slow.
VECTORS = (
    int(Cause.RECEIVED | Cause.NO_DESCRIPTOR | Cause.RECEIVE_FAILED),
    int(Cause.TRANSMITTED | Cause.TRANSMIT_FAILED),
)
ALL_CAUSES = VECTORS[0] | VECTORS[1]
