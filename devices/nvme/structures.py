"""What lies in memory: queue entries, Identify data and log pages, one definition each.

Fields carry the specification's mnemonics in lower case. A field that is not given is 0, and the
space between the fields is reserved.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from construct import (
    Array,
    Bytes,
    BytesInteger,
    Default,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    PaddedString,
    Padding,
    Struct,
)

__all__ = [
    "COMPLETION",
    "DATASET_RANGE",
    "SUBMISSION",
    "CommandEffects",
    "Completion",
    "ErrorEntry",
    "FirmwareSlots",
    "Health",
    "IdentifyController",
    "IdentifyNamespace",
    "NamespaceDescriptor",
    "SubmissionEntry",
]


class SubmissionEntry(NamedTuple):
    """Submission queue entry (4.2): a command as it was when it was fetched."""

    opcode: int
    flags: int = 0
    cid: int = 0
    nsid: int = 0
    metadata: int = 0
    prp1: int = 0
    prp2: int = 0
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0


class Completion(NamedTuple):
    """Completion queue entry (4.6).

    Attributes:
        result: dword 0, specific to the command.
        head: submission queue head when it was posted.
        queue: submission queue ID.
        cid: of the command.
        status: status field 15:1 and phase tag 0.
    """

    result: int
    head: int
    queue: int
    cid: int
    status: int


SUBMISSION = struct.Struct("<BBHI8xQQQ6I")
COMPLETION = struct.Struct("<I4xHHHH")
DATASET_RANGE = struct.Struct("<IIQ")  # context attributes, blocks, first block (6.7)

_U8, _U16, _U32, _U64 = (Default(kind, 0) for kind in (Int8ul, Int16ul, Int32ul, Int64ul))
_U128 = Default(BytesInteger(16, swapped=True), 0)


def _layout(size: int, *fields: tuple[int, str, Any]) -> Any:
    """Return a structure of `size` bytes from the offsets, names and kinds of its fields."""
    members = []
    end = 0
    for offset, name, kind in fields:
        members += [Padding(offset - end), name / kind]
        end = offset + kind.sizeof()
    return Struct(*members, Padding(size - end))


# CNS 01h (5.15.2.2). Strings are padded with spaces there, but for the NQN.
IdentifyController = _layout(
    4096,
    (0, "vid", _U16),
    (2, "ssvid", _U16),
    (4, "sn", Bytes(20)),
    (24, "mn", Bytes(40)),
    (64, "fr", Bytes(8)),
    (72, "rab", _U8),
    (73, "ieee", Default(Bytes(3), bytes(3))),
    (76, "cmic", _U8),
    (77, "mdts", _U8),
    (78, "cntlid", _U16),
    (80, "ver", _U32),
    (84, "rtd3r", _U32),
    (88, "rtd3e", _U32),
    (92, "oaes", _U32),
    (96, "ctratt", _U32),
    (111, "cntrltype", _U8),
    (256, "oacs", _U16),
    (258, "acl", _U8),
    (259, "aerl", _U8),
    (260, "frmw", _U8),
    (261, "lpa", _U8),
    (262, "elpe", _U8),
    (263, "npss", _U8),
    (264, "avscc", _U8),
    (265, "apsta", _U8),
    (266, "wctemp", _U16),
    (268, "cctemp", _U16),
    (320, "kas", _U16),
    (512, "sqes", _U8),
    (513, "cqes", _U8),
    (514, "maxcmd", _U16),
    (516, "nn", _U32),
    (520, "oncs", _U16),
    (522, "fuses", _U16),
    (524, "fna", _U8),
    (525, "vwc", _U8),
    (526, "awun", _U16),
    (528, "awupf", _U16),
    (536, "sgls", _U32),
    (768, "subnqn", PaddedString(256, "utf8")),
    (2048, "psd0_mp", _U16),
)

# CNS 00h (5.15.2.1); LBA format 0 is the only one.
IdentifyNamespace = _layout(
    4096,
    (0, "nsze", _U64),
    (8, "ncap", _U64),
    (16, "nuse", _U64),
    (24, "nsfeat", _U8),
    (25, "nlbaf", _U8),
    (26, "flbas", _U8),
    (33, "dlfeat", _U8),
    (64, "npwg", _U16),
    (66, "npwa", _U16),
    (68, "npdg", _U16),
    (70, "npda", _U16),
    (99, "nsattr", _U8),
    (128, "lbaf0_ms", _U16),
    (130, "lbaf0_lbads", _U8),
    (131, "lbaf0_rp", _U8),
)

# One descriptor of CNS 03h (5.15.2.4): NIDT 3 is a UUID.
NamespaceDescriptor = Struct("nidt" / Int8ul, "nidl" / Int8ul, Padding(2), "nid" / Bytes(16))

# Log page 01h (5.14.1.1).
ErrorEntry = _layout(
    64,
    (0, "count", _U64),
    (8, "sqid", _U16),
    (10, "cid", _U16),
    (12, "status", _U16),
    (14, "location", _U16),
    (16, "lba", _U64),
    (24, "nsid", _U32),
)

# Log page 02h (5.14.1.2).
Health = _layout(
    512,
    (0, "critical_warning", _U8),
    (1, "temperature", _U16),
    (3, "available_spare", _U8),
    (4, "available_spare_threshold", _U8),
    (5, "percentage_used", _U8),
    (32, "data_units_read", _U128),
    (48, "data_units_written", _U128),
    (64, "host_reads", _U128),
    (80, "host_writes", _U128),
    (96, "busy_minutes", _U128),
    (112, "power_cycles", _U128),
    (128, "power_on_hours", _U128),
    (144, "unsafe_shutdowns", _U128),
    (160, "media_errors", _U128),
    (176, "error_entries", _U128),
)

# Log page 03h (5.14.1.3).
FirmwareSlots = _layout(512, (0, "afi", _U8), (8, "frs1", Bytes(8)))

# Log page 05h (5.14.1.5): a dword for each opcode.
CommandEffects = Struct("admin" / Array(256, Int32ul), "io" / Array(256, Int32ul), Padding(2048))
