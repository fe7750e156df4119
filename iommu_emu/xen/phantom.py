"""Phantom functions: function numbers that a device sends with and does not show (os 4.10).

Xen gives them whatever domain the device has. It learns of them from the device's PCI Express
capability, or from `pci-phantom=` where a device keeps quiet about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from iommu_emu.pci.address import format_requester
from iommu_emu.pci.capabilities import DEVICE_CAPABILITIES, PHANTOM_SHIFT, PortType
from iommu_emu.pci.function import Function
from iommu_emu.xen.parameter import Phantom

FUNCTIONS = 8  # of a device

__all__ = ["phantom_requesters", "phantom_stride"]


def phantom_stride(
    function: Function, options: Iterable[Phantom], complain: Callable[[str], None]
) -> int:
    """Return every how many function numbers a function sends with; 0: only with its own.

    Args:
        function: a PCI Express endpoint; others have none.
        options: what the command line says.
        complain: takes a line of Xen's log where a phantom function turns out to be a real one.
    """
    if function.kind is not PortType.ENDPOINT or function.pcie is None or function.bus is None:
        return 0
    own = function.devfn & 7
    bits = function.config.get(function.pcie + DEVICE_CAPABILITIES, 4) >> PHANTOM_SHIFT & 3
    if bits:
        stride = FUNCTIONS >> bits
        return stride if own < stride else 0
    where = function.segment, function.bus.number, function.devfn >> 3
    for option in options:
        if (option.segment, option.bus, option.device) == where and own < option.stride:
            stride = _free_stride(function, option, complain)
            return stride if stride < FUNCTIONS else 0
    return 0


def _free_stride(function: Function, option: Phantom, complain: Callable[[str], None]) -> int:
    """Double the stride until no phantom function is where a real one is."""
    assert function.bus is not None
    stride, number = option.stride, (function.devfn & 7) + option.stride
    while number < FUNCTIONS:
        devfn = function.devfn & ~7 | number
        if devfn in function.bus.functions:
            stride *= 2
            number = function.devfn & 7
            device = f"{option.segment:04x}:{option.bus:02x}:{option.device:02x}"
            real = format_requester(option.bus << 8 | devfn)
            complain(
                f"{option.segment:04x}:{real} looks to be a real device; "
                f"bumping {device} stride to {stride}"
            )
        number += stride
    return stride


def phantom_requesters(function: Function, stride: int) -> list[int]:
    """Return the requester IDs of a function's phantom functions."""
    if not stride:
        return []
    own = function.devfn & 7
    base = function.address - own
    return [base + number for number in range(own + stride, FUNCTIONS, stride)]
