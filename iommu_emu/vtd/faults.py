"""VT-d faults: the table of causes, and decoded fault records.

The table is the core's; nothing is listed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from iommu_emu import core
from iommu_emu.core import Access, AddressType, FaultInfo, Vendor
from iommu_emu.vtd.structures import FaultRecording

__all__ = ["FaultRecord", "causes", "code_name"]


@lru_cache
def causes(code: int) -> tuple[FaultInfo, ...]:
    """Return every distinct cause behind an architectural fault reason."""
    return tuple(row for row in core.faults(Vendor.VTD) if row.diagnostic and row.code == code)


def code_name(code: int) -> str:
    """Return the short names behind a fault reason: "LGN.2", or "LCT.4.1, LCT.4.2, LCT.4.3"."""
    names = dict.fromkeys(row.name for row in causes(code))
    return ", ".join(names) or f"reserved ({code:#04x})"


@dataclass(frozen=True)
class FaultRecord:
    """A fault recording register, decoded (VT-d 2.10).

    Attributes:
        requester: source ID.
        address: page address of the request (FI); for interrupt faults see VT-d 10.7.
        access: READ, WRITE or ATOMIC; NONE for a page request.
        code: fault reason.
        at: address type of the request.
        pasid: PASID of the request, or None.
        index: which register held it.
        raw: all 128 bits.
    """

    requester: int
    address: int
    access: Access
    code: int
    at: AddressType
    pasid: int | None
    index: int
    raw: int

    @classmethod
    def decode(cls, raw: int, index: int = 0) -> FaultRecord | None:
        """Decode 128 bits; None if the record is not valid (F=0)."""
        record = FaultRecording.parse_int(raw)
        if not record.f:
            return None
        kinds = {
            (0, 0): Access.WRITE,
            (0, 1): Access.NONE,
            (1, 0): Access.READ,
            (1, 1): Access.ATOMIC,
        }
        return cls(
            requester=record.sid,
            address=record.fi,
            access=kinds[record.t1, record.t2],
            code=record.fr,
            at=AddressType(record.at),
            pasid=record.pv if record.pp else None,
            index=index,
            raw=raw,
        )

    @property
    def name(self) -> str:
        """Short names behind the fault reason."""
        return code_name(self.code)

    @property
    def condition(self) -> str:
        """What the fault reason means, for people."""
        return "; ".join(row.condition for row in causes(self.code)) or "reserved fault reason"

    def __str__(self) -> str:
        bus, devfn = self.requester >> 8, self.requester & 0xFF
        action = {Access.NONE: "page request"}.get(self.access, (self.access.name or "").lower())
        return (
            f"{bus:02x}:{devfn >> 3:02x}.{devfn & 7} {action} of {self.address:#x}:"
            f" fault {self.code:#04x} {self.name} ({self.condition})"
        )
