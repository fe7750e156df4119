"""A descriptor: 16 bytes in a ring that tell the controller of a buffer.

    0  address of the buffer, 64 bits        8  length of the buffer, or of what it holds, 16 bits
    A  flags, bit 0: last of the frame       C  status, see `DescriptorStatus`         E  0

The controller owns the descriptors from head up to, but not including, tail. When it is done with
one, it writes its second half back, in one piece, and moves the head.
"""

from __future__ import annotations

import struct
from enum import IntFlag

DESCRIPTOR = struct.Struct("<QHHHxx")  # address, length, flags, status
WRITE_BACK = struct.Struct("<HHHxx")  # its second half
END_OF_FRAME = 1

__all__ = [
    "DESCRIPTOR",
    "DONE",
    "END_OF_FRAME",
    "FAULT",
    "LENGTH",
    "WRITE_BACK",
    "DescriptorStatus",
]


class DescriptorStatus(IntFlag):
    """Status that the controller writes back.

    Of a frame that is not sent, the descriptor that spoilt it and all that follow have the reason.
    """

    DONE = 1 << 0
    FAULT = 1 << 1  # a buffer could not be read or written; what a receive buffer holds is void
    LENGTH = 1 << 2  # the frame to send is empty, or longer than LIMIT


# Plain integers where every frame passes: operators of flags are slow.
DONE, FAULT, LENGTH = (int(status) for status in DescriptorStatus)
