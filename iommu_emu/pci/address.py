"""Requester IDs and their notation: bus 15:8, device 7:3, function 2:0 (pci 2)."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"(?:([0-9a-f]{1,4}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])", re.I)


def requester_id(bus: int, device: int, function: int = 0) -> int:
    """Return the requester ID of a function.

    Raises:
        ValueError: if bus is not in 0..255, device not in 0..31 or function not in 0..7.
    """
    for name, value, last in (("bus", bus, 255), ("device", device, 31), ("function", function, 7)):
        if not 0 <= value <= last:
            raise ValueError(f"{name} must be in 0..{last}, not {value}")
    return bus << 8 | device << 3 | function


def parse_address(address: str | int) -> tuple[int, int]:
    """Return segment and requester ID of "03:00.0", "0001:03:00.0", or a number (segment 0).

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(address, int):
        if not 0 <= address <= 0xFFFF:
            raise ValueError(f"requester ID must be in 0..0xffff, not {address:#x}")
        return 0, address
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"PCI address must look like 03:00.0 or 0000:03:00.0, not {address!r}")
    segment, bus, device, function = match.groups()
    return int(segment or "0", 16), requester_id(int(bus, 16), int(device, 16), int(function))


def format_requester(requester: int, segment: int = 0) -> str:
    """Return a requester ID as "03:00.0"; with the segment before it if that is not 0."""
    text = f"{requester >> 8:02x}:{requester >> 3 & 31:02x}.{requester & 7}"
    return f"{segment:04x}:{text}" if segment else text
