"""What Identify tells of the controller and of its one namespace (5.15)."""

from __future__ import annotations

import struct
import uuid

from iommu_emu.devices.nvme.features import CRITICAL_TEMPERATURE, WARNING_TEMPERATURE
from iommu_emu.devices.nvme.medium import PAGE, Medium
from iommu_emu.devices.nvme.specification import (
    BROADCAST,
    CommandError,
    StatusCode,
)
from iommu_emu.devices.nvme.specification import Identify as Cns
from iommu_emu.devices.nvme.structures import (
    IdentifyController,
    IdentifyNamespace,
    NamespaceDescriptor,
)

NAMESPACE = 1  # ID of the only one
VERSION = 0x0001_0400
MODEL = "iommu-emu NVMe controller"
FIRMWARE = "1.0"
MAX_TRANSFER_SHIFT = 7  # MDTS: 2**7 pages of 4 KiB
ERROR_ENTRIES = 64
EVENT_REQUESTS = 4
SIZE = 4096
_UUID_TYPE = 3
_OF_COMMAND_SET = (Cns.COMMAND_SET_NAMESPACE, Cns.COMMAND_SET_CONTROLLER)  # 0 is the NVM set

__all__ = [
    "ERROR_ENTRIES",
    "EVENT_REQUESTS",
    "FIRMWARE",
    "MAX_TRANSFER_SHIFT",
    "NAMESPACE",
    "SIZE",
    "VERSION",
    "Identity",
]


class Identity:
    """Answers Identify.

    Args:
        medium: of the namespace.
        serial: serial number, 1..20 printable ASCII characters. NQN and UUID follow from it, so
            two controllers that one system sees must differ in it.
        pci: vendor ID, subsystem vendor ID.

    Raises:
        ValueError: if the serial number is not of that form.
    """

    def __init__(self, medium: Medium, serial: str, pci: tuple[int, int]) -> None:
        if not (1 <= len(serial) <= 20 and serial.isascii() and serial.isprintable()):
            raise ValueError(f"serial must be 1..20 printable ASCII characters, not {serial!r}")
        self._medium = medium
        self._serial = serial
        self._pci = pci

    def answer(self, cns: int, nsid: int, command_set: int) -> bytes:
        """Return the data structure that CNS asks for.

        Raises:
            CommandError: Invalid Namespace or Format, or Invalid Field in Command.
        """
        if cns == Cns.CONTROLLER:
            return self.controller()
        if cns == Cns.ACTIVE_NAMESPACES:
            if nsid >= BROADCAST - 1:
                raise CommandError(StatusCode.INVALID_NAMESPACE)
            return struct.pack("<I", NAMESPACE if nsid < NAMESPACE else 0).ljust(SIZE, b"\0")
        if cns not in set(Cns) or (cns in _OF_COMMAND_SET and command_set):
            raise CommandError(StatusCode.INVALID_FIELD)
        if cns == Cns.COMMAND_SET_CONTROLLER:
            return bytes(SIZE)  # no limits beside MDTS
        # Without namespace management the broadcast value is no namespace either (5.15.2.1).
        if nsid != NAMESPACE:
            raise CommandError(StatusCode.INVALID_NAMESPACE)
        if cns == Cns.COMMAND_SET_NAMESPACE:
            return bytes(SIZE)  # neither protection information nor tags
        return self.namespace() if cns == Cns.NAMESPACE else self.descriptors()

    def _uuid(self, of: str) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"urn:iommu-emu:nvme:{of}:{self._serial}")

    def controller(self) -> bytes:
        """Return the Identify Controller data structure (5.15.2.2)."""
        data: bytes = IdentifyController.build(
            {
                "vid": self._pci[0],
                "ssvid": self._pci[1],
                "sn": self._serial.encode().ljust(20),
                "mn": MODEL.encode().ljust(40),
                "fr": FIRMWARE.encode().ljust(8),
                "rab": 4,
                "mdts": MAX_TRANSFER_SHIFT,
                "ver": VERSION,
                "cntrltype": 1,  # an I/O controller
                "acl": 3,
                "aerl": EVENT_REQUESTS - 1,
                "frmw": 1 << 1 | 1,  # one slot, which is read-only
                "lpa": 1 << 2 | 1 << 1,  # offsets; commands supported and effects
                "elpe": ERROR_ENTRIES - 1,
                "wctemp": WARNING_TEMPERATURE,
                "cctemp": CRITICAL_TEMPERATURE,
                "kas": 1,  # 100 ms
                "sqes": 0x66,
                "cqes": 0x44,
                "nn": NAMESPACE,
                # Select in Get Features, Write Zeroes, Dataset Management, Compare.
                "oncs": 1 << 4 | 1 << 3 | 1 << 2 | 1,
                "vwc": 3 << 1 | 1,  # there is a cache; Flush takes the broadcast value
                "subnqn": f"nqn.2014-08.org.nvmexpress:uuid:{self._uuid('subsystem')}",
            }
        )
        return data

    def namespace(self) -> bytes:
        """Return the Identify Namespace data structure (5.15.2.1)."""
        medium = self._medium
        page = PAGE // medium.block_size - 1  # what is written and given back best, 0's based
        data: bytes = IdentifyNamespace.build(
            {
                "nsze": medium.blocks,
                "ncap": medium.blocks,
                "nuse": medium.blocks,
                "nsfeat": 1 << 4,  # OPTPERF: the four that follow are there
                **dict.fromkeys(("npwg", "npwa", "npdg", "npda"), page),
                "dlfeat": 1,  # deallocated blocks read 0
                "nsattr": int(medium.read_only),
                "lbaf0_lbads": medium.block_size.bit_length() - 1,
            }
        )
        return data

    def descriptors(self) -> bytes:
        """Return the Namespace Identification Descriptor list (5.15.2.4)."""
        nid = self._uuid("namespace").bytes
        data: bytes = NamespaceDescriptor.build({"nidt": _UUID_TYPE, "nidl": 16, "nid": nid})
        return data.ljust(SIZE, b"\0")
