"""Malicious devices by name: one small file each, and a user's own from a file.

A module of this package defines `DEVICE`, a class of devices that can be made without arguments;
most derive from `MaliciousDevice`. There is nothing else to register:

    from iommu_emu.devices import malicious

    device = machine.attach(malicious.load("sub-page-reader")())
"""

from __future__ import annotations

from typing import TypeGuard

from iommu_emu.devices.base import Device
from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.plugins import Plugins

__all__ = ["MaliciousDevice", "load", "names"]


def _is_device(found: object) -> TypeGuard[type[Device]]:
    return isinstance(found, type) and issubclass(found, Device)


_PLUGINS = Plugins(
    "malicious device", __name__, "DEVICE", "a class derived from Device", _is_device, {"device"}
)


def names() -> tuple[str, ...]:
    """Return the names of all built-in malicious devices, sorted."""
    return _PLUGINS.names


def load(name: str) -> type[Device]:
    """Return the class of a malicious device.

    Args:
        name: one of `names()`, or the path of a Python file that defines `DEVICE`; it is run.

    Raises:
        ValueError: if there is none of that name, or the file cannot be run or defines none.
        OSError: if the file cannot be read.
    """
    return _PLUGINS.load(name)
