"""Messages of the vfio-user protocol, version 0.0: numbers, layouts, version negotiation.

Section names are those of the specification in QEMU's manual (docs/interop/vfio-user). All
numbers are in the byte order of the host, which on x86 is little endian.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from errno import EINVAL
from struct import Struct
from typing import Any

MAJOR, MINOR = 0, 0
PAGE = 4096
MAX_TRANSFER = 1 << 20  # bytes of one region or DMA access: the protocol's default
MAX_MESSAGE = MAX_TRANSFER + 4096  # the largest message that can mean anything
MAX_MESSAGE_FDS = 16
MAX_DMA_MAPS = 256  # of one client; the machine has room for no more regions
CONFIG_REGION = 7
REGIONS = 9  # BARs 0..5, ROM, configuration space, VGA

HEADER = Struct("<HHIII")  # message ID, command, size, flags, error
DMA_MAP = Struct("<IIQQQ")  # argsz, flags, offset, address, size
DMA_UNMAP = Struct("<IIQQ")  # argsz, flags, address, size
DEVICE_INFO = Struct("<IIII")  # argsz, flags, regions, interrupt types
REGION_INFO = Struct("<IIIIQQ")  # argsz, flags, index, cap_offset, size, offset
IRQ_INFO = Struct("<IIII")  # argsz, flags, index, count
IRQ_SET = Struct("<IIIII")  # argsz, flags, index, start, count
REGION_ACCESS = Struct("<QII")  # offset, region, count
REGION_WRITE_MULTI = Struct("<QIIQ")  # offset, region, count, data
DMA_ACCESS = Struct("<QQ")  # address, count
VERSION = Struct("<HH")  # major, minor


class Command(IntEnum):
    """Commands ("Commands"); 14 is DIRTY_PAGES of older revisions."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class Flag(IntFlag):
    """Flags of a header ("Header"); the low four bits are the type."""

    REPLY = 1
    NO_REPLY = 0x10
    ERROR = 0x20


TYPE = 0xF  # the type bits of the flags: 0 command, 1 reply


class Irq(IntEnum):
    """Interrupt types of a PCI function (linux/vfio.h)."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERROR = 3
    REQUEST = 4


class IrqFlag(IntFlag):
    """Flags of DEVICE_GET_IRQ_INFO."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4


class IrqData(IntEnum):
    """What SET_IRQS carries; one of the low three flag bits."""

    NONE = 1
    BOOL = 2
    EVENTFD = 4


class IrqAction(IntEnum):
    """What SET_IRQS does; one of the flag bits 3..5."""

    MASK = 8
    UNMASK = 16
    TRIGGER = 32


DEVICE_RESETS = 1  # flags of DEVICE_GET_INFO
DEVICE_PCI = 2
REGION_READABLE = 1  # flags of DEVICE_GET_REGION_INFO
REGION_WRITABLE = 2
MAP_READABLE = 1  # flags of DMA_MAP
MAP_WRITABLE = 2
UNMAP_ALL = 2  # flag of DMA_UNMAP: VFIO_DMA_UNMAP_FLAG_ALL


class ProtocolError(Exception):
    """A message that gets an error reply.

    Args:
        code: errno of the reply.
        reason: for people.
        fatal: whether the connection ends with it.
    """

    def __init__(self, code: int, reason: str, *, fatal: bool = False) -> None:
        super().__init__(reason)
        self.code = code
        self.fatal = fatal


@dataclass(frozen=True)
class Peer:
    """What the client said about itself ("VFIO_USER_VERSION").

    Attributes:
        max_transfer: bytes of one DMA_READ or DMA_WRITE that it takes.
    """

    max_transfer: int = MAX_TRANSFER


def unpack(layout: Struct, body: bytes) -> tuple[int, ...]:
    """Take the fixed fields at the start of a message's body.

    Raises:
        ProtocolError: if the body is shorter.
    """
    if len(body) < layout.size:
        raise ProtocolError(EINVAL, f"body of {len(body)} bytes, {layout.size} are needed")
    return layout.unpack_from(body)


def negotiate(body: bytes) -> tuple[bytes, Peer]:
    """Answer VFIO_USER_VERSION: the reply's body, and what the client said.

    The version is ours, 0.0. Capabilities are a subset of those proposed: the twin socket and
    migration are left out, which says that they are not there.

    Raises:
        ProtocolError: if the major version is not 0, or the version data is no valid JSON of
            the documented form.
    """
    major, _ = unpack(VERSION, body)
    if major != MAJOR:
        raise ProtocolError(EINVAL, f"version {major} is not spoken here", fatal=True)
    reply = VERSION.pack(MAJOR, MINOR)
    data = body[VERSION.size :]
    if not data:
        return reply, Peer()
    proposed = _capabilities(data)
    peer = Peer(min(_number(proposed, "max_data_xfer_size", MAX_TRANSFER), MAX_TRANSFER))
    _number(proposed, "max_msg_fds", 1)
    ours = {
        "max_msg_fds": MAX_MESSAGE_FDS,
        "max_data_xfer_size": MAX_TRANSFER,
        "max_dma_maps": MAX_DMA_MAPS,
        "pgsizes": PAGE,
        "write_multiple": True,
    }
    agreed = {name: value for name, value in ours.items() if name in proposed}
    if proposed.get("write_multiple") is not True:
        agreed.pop("write_multiple", None)
    text = json.dumps({"capabilities": agreed}, separators=(",", ":"))
    return reply + text.encode() + b"\0", peer


def _capabilities(data: bytes) -> dict[str, Any]:
    """Parse version data: JSON that ends with a NUL."""
    if data[-1]:
        raise ProtocolError(EINVAL, "version data does not end with NUL", fatal=True)
    try:
        parsed = json.loads(data.rstrip(b"\0") or b"{}")
        capabilities = parsed.get("capabilities", {})
    except (ValueError, AttributeError, RecursionError):
        raise ProtocolError(EINVAL, "version data is no JSON object", fatal=True) from None
    if not isinstance(capabilities, dict):
        raise ProtocolError(EINVAL, "capabilities are no JSON object", fatal=True)
    return capabilities


def _number(capabilities: dict[str, Any], name: str, default: int) -> int:
    value = capabilities.get(name, default)
    if type(value) is not int or value < 0:
        raise ProtocolError(EINVAL, f"{name} is no number", fatal=True)
    return value
