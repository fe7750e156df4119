"""Capabilities without behaviour of their own: bytes and masks in a configuration space."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from iommu_emu.pci.config_space import ConfigSpace

PCIE_ID = 0x10
ACS_ID = 0x0D
SERIAL_NUMBER_ID = 0x03
DEVICE_CAPABILITIES, DEVICE_CONTROL = 0x04, 0x08  # in the PCI Express capability
PHANTOM_SHIFT = 3  # functions that exist have these bits of their number 0
FLR_CAPABLE = 1 << 28
INITIATE_FLR = 1 << 15
PHANTOM_ENABLE = 1 << 9

_EGRESS_VECTOR = 32  # bits: as many as a bus has device numbers

__all__ = [
    "Acs",
    "PortType",
    "acs_control",
    "add_acs",
    "add_pcie",
    "egress_control",
    "reset_acs",
    "serial_number",
    "set_serial_number",
]


class PortType(IntEnum):
    """Device/port type in the PCI Express capability (pci 2)."""

    ENDPOINT = 0
    LEGACY_ENDPOINT = 1
    ROOT_PORT = 4
    UPSTREAM = 5
    DOWNSTREAM = 6
    PCIE_TO_PCI = 7
    PCI_TO_PCIE = 8
    INTEGRATED_ENDPOINT = 9
    EVENT_COLLECTOR = 10


class Acs(IntFlag):
    """Access control services of a port (pci 4)."""

    NONE = 0
    SOURCE_VALIDATION = 1
    TRANSLATION_BLOCKING = 2
    REQUEST_REDIRECT = 4
    COMPLETION_REDIRECT = 8
    UPSTREAM_FORWARDING = 16
    EGRESS_CONTROL = 32
    DIRECT_TRANSLATED = 64


def add_pcie(config: ConfigSpace, port_type: PortType, slot: int | None = None) -> int:
    """Add a PCI Express capability of version 2.

    Args:
        config: where it is added.
        port_type: what kind of function this is.
        slot: physical slot number of a hot-plug capable port with surprise removal; None: no
            slot.

    Returns:
        Offset of the capability.

    Raises:
        ValueError: if the slot number is not in 0..8191.
    """
    flags = 2 | port_type << 4
    at = config.add_capability(PCIE_ID, flags.to_bytes(2, "little") + bytes(0x38))
    config.allow(at + 0x08, 4, 0x0000FFFF, clearable=0x000F0000)
    config.set(at + 0x0C, 4, 0x0000_0011)  # 2.5 GT/s, one lane
    config.allow(at + 0x10, 2, 0x0FFB)
    if slot is None:
        return at
    if not 0 <= slot < 1 << 13:
        raise ValueError(f"slot must be in 0..8191, not {slot}")
    config.set(at + 0x02, 2, flags | 1 << 8)
    config.set(at + 0x0C, 4, 0x0010_0011)  # data-link active is reported
    # Hot-plug surprise, hot-plug capable; no command-completed events.
    config.set(at + 0x14, 4, slot << 19 | 1 << 18 | 1 << 6 | 1 << 5)
    config.allow(at + 0x18, 4, 0x1FFF, clearable=0x011F_0000)
    config.set(at + 0x18, 2, 0x03C0)  # both LEDs off
    return at


def add_acs(config: ConfigSpace, capabilities: Acs) -> int:
    """Add access control services; every one starts switched off.

    Returns:
        Offset of the capability.
    """
    controlled = bool(capabilities & Acs.EGRESS_CONTROL)
    services = capabilities | controlled * _EGRESS_VECTOR << 8
    body = services.to_bytes(2, "little") + bytes(2)
    writable = bytes(2) + int(capabilities).to_bytes(2, "little")
    vector = controlled * _EGRESS_VECTOR // 8
    return config.add_extended_capability(ACS_ID, body + bytes(vector), writable + b"\xff" * vector)


def acs_control(config: ConfigSpace) -> Acs:
    """Return the access control services that software has switched on."""
    at = config.find_extended(ACS_ID)
    return Acs.NONE if at is None else Acs(config.get(at + 6, 2) & 0x7F)


def egress_control(config: ConfigSpace) -> int:
    """Return the egress control vector, one bit a port or function; 0 without one."""
    at = config.find_extended(ACS_ID)
    if at is None or not config.get(at + 4, 2) & Acs.EGRESS_CONTROL:
        return 0
    return config.get(at + 8, _EGRESS_VECTOR // 8)


def reset_acs(config: ConfigSpace) -> None:
    """Switch every access control service off."""
    at = config.find_extended(ACS_ID)
    if at is not None:
        config.write(at + 6, 2, 0)
        config.write(at + 8, 4, 0)


def serial_number(config: ConfigSpace) -> int | None:
    """Return the device serial number, 64 bits; None without one."""
    at = config.find_extended(SERIAL_NUMBER_ID)
    return None if at is None else config.get(at + 4, 8)


def set_serial_number(config: ConfigSpace, number: int) -> None:
    """Set the device serial number, with its capability if that is not there.

    Raises:
        ValueError: if it does not fit in 64 bits.
    """
    if not 0 <= number < 1 << 64:
        raise ValueError(f"serial number must fit in 64 bits, not {number:#x}")
    at = config.find_extended(SERIAL_NUMBER_ID)
    if at is None:
        at = config.add_extended_capability(SERIAL_NUMBER_ID, bytes(8))
    config.set(at + 4, 8, number)
