"""Primitive accesses: what an operation comes down to, the same on both sides.

Our side carries an operation out and notes the accesses that it took; QEMU's side replays them.
So what software decides on the way (where the queue's tail is) is decided once.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Access",
    "BarRead",
    "BarWrite",
    "ClockStep",
    "ConfigWrite",
    "MemoryWrite",
    "MessageSetup",
    "UnitRead",
    "UnitWrite",
]


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """The CPU writes RAM."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class UnitWrite:
    """The CPU writes a register of the unit."""

    offset: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class UnitRead:
    """The CPU reads a register of the unit; its value is a result."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class BarWrite:
    """The CPU writes a device's BAR 0."""

    device: str
    offset: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class BarRead:
    """The CPU reads a device's BAR 0; its value is a result."""

    device: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ConfigWrite:
    """The CPU writes configuration space."""

    function: str
    offset: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class MessageSetup:
    """The CPU programs and enables a device's MSI."""

    device: str
    address: int
    data: int


@dataclass(frozen=True, slots=True)
class ClockStep:
    """Virtual time goes on, in ns."""

    duration: int


Access = (
    MemoryWrite | UnitWrite | UnitRead | BarWrite | BarRead | ConfigWrite | MessageSetup | ClockStep
)
