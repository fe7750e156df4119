"""What QEMU is told so that a guest finds what is served: arguments and monitor commands."""

from __future__ import annotations

from iommu_emu.pci.function import BUS_MASTER, COMMAND, MEMORY_ENABLE
from iommu_emu.pci.topology import Bridge

_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_ENABLE = 1 << 31
_BAR_0 = 0x10

__all__ = ["memory_arguments", "port_id", "register_page_commands", "root_port"]


def memory_arguments(size: str) -> list[str]:
    """Return the arguments for a q35 whose memory a server can map: a sealed memory file.

    Args:
        size: as QEMU takes it, "1G".
    """
    return [
        *("-machine", "q35,memory-backend=ram", "-m", size),
        *("-object", f"memory-backend-memfd,id=ram,size={size},share=on"),
    ]


def port_id(bridge: Bridge) -> str:
    """Return the name of a root port in QEMU, which its devices have as their `bus`."""
    return f"port{bridge.secondary_number}"


def root_port(bridge: Bridge) -> str:
    """Return the value of `-device` for QEMU's counterpart of a root port on bus 0."""
    number = bridge.secondary_number
    place = f"addr={bridge.devfn >> 3:#x}.{bridge.devfn & 7:#x}"
    return f"pcie-root-port,id={port_id(bridge)},bus=pcie.0,{place},chassis={number},slot={number}"


def register_page_commands(devfn: int, base: int) -> list[str]:
    """Return monitor commands that put a register page at its address, before the guest runs.

    The guest does not see the function, so nothing but this writes its configuration: BAR 0,
    then memory decoding and bus mastering, which the unit's own interrupts need.

    Args:
        devfn: device and function number on bus 0.
        base: physical address of the unit's registers.
    """
    function = _ENABLE | devfn << 8
    return [
        f"o/4 {_CONFIG_ADDRESS:#x} {function | _BAR_0:#x}",
        f"o/4 {_CONFIG_DATA:#x} {base:#x}",
        f"o/4 {_CONFIG_ADDRESS:#x} {function | COMMAND:#x}",
        f"o/2 {_CONFIG_DATA:#x} {MEMORY_ENABLE | BUS_MASTER:#x}",
    ]
