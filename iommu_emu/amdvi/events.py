"""AMD-Vi events: the table of causes, and decoded event log entries.

The table is the core's; nothing is listed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from iommu_emu import core
from iommu_emu.amdvi.structures import IoPageFault, event_structure
from iommu_emu.bitfields import Entry
from iommu_emu.core import Access, FaultInfo, Vendor

__all__ = ["EventRecord", "causes"]

FLAGS = ("gn", "nx", "us", "i", "pr", "rw", "pe", "rz", "tr")


@lru_cache
def causes(code: int) -> tuple[FaultInfo, ...]:
    """Return every distinct cause behind an event code."""
    return tuple(row for row in core.faults(Vendor.AMDVI) if row.diagnostic and row.code == code)


@dataclass(frozen=True)
class EventRecord:
    """An event log entry, decoded (AMD-Vi 10.1).

    Attributes:
        requester: device ID; 0 for events that have none.
        address: address that the event reports: of the request, the entry or the command.
        access: WRITE or READ, from the RW flag.
        code: event code.
        name: event name, as the specification writes it.
        flags: those that are set, by name.
        fields: every field of the entry.
    """

    requester: int
    address: int
    access: Access
    code: int
    name: str
    flags: tuple[str, ...]
    fields: Entry

    @classmethod
    def decode(cls, data: bytes) -> EventRecord:
        """Decode 16 bytes of the log.

        Raises:
            ValueError: if the event code is not known.
        """
        structure = event_structure(data)
        if structure is None:
            raise ValueError(f"event code must be a known one, not {data[7] >> 4:#x}")
        fields = structure.parse(data)
        assert structure.__doc__ is not None
        return cls(
            requester=fields.get("device_id", 0),
            address=fields.address,
            access=Access.WRITE if fields.get("rw") else Access.READ,
            code=fields.code,
            name=structure.__doc__.split()[0],
            flags=tuple(flag for flag in FLAGS if fields.get(flag)),
            fields=fields,
        )

    @property
    def condition(self) -> str:
        """What the event means, for people: as much as its flags tell."""
        if self.code == IoPageFault["code"].value:
            return _page_fault(self.flags)
        listed = [row.condition for row in causes(self.code)]
        return "; ".join(dict.fromkeys(listed)) or "no cause is listed"

    def __str__(self) -> str:
        bus, devfn = self.requester >> 8, self.requester & 0xFF
        flags = " ".join(self.flags) or "none"
        return (
            f"{bus:02x}:{devfn >> 3:02x}.{devfn & 7} {self.name} address {self.address:#x}"
            f" flags {flags}"
        )


def _page_fault(flags: tuple[str, ...]) -> str:
    """Say what the flags of an IO_PAGE_FAULT leave of its causes (AMD-Vi 10.1)."""
    if "i" in flags:
        return "reserved field in an interrupt's entry" if "rz" in flags else "interrupt refused"
    if "pe" in flags:
        return f"no permission to {'write' if 'rw' in flags else 'read'}"
    if "rz" in flags:
        return "reserved bit set in a page-table entry"
    if "pr" in flags:
        return "page-table entry of an illegal level or size"
    return "not mapped"
