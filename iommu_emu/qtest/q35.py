"""A q35 as qtest sees it: memory, configuration space, interrupt lines, bus 0."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import pairwise
from typing import TypeVar

from iommu_emu.bar_windows import aligned_pieces
from iommu_emu.core import NotRamError, StateError
from iommu_emu.machine import Machine
from iommu_emu.pci.config_space import STANDARD_END
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge, Bus
from iommu_emu.qtest.chipset import HostBridge, LpcBridge, gsi, sata, smbus
from iommu_emu.qtest.port_io import PortIo

LEGACY_HOLE = range(0xC_0000, 0x10_0000)  # ROMs; video memory is RAM, as in QEMU without VGA
INTERRUPT_RANGE = range(0xFEE0_0000, 0xFEF0_0000)
FOUR_GIB = 1 << 32
LOW_MEMORY = 0xB000_0000  # up to here memory is not split
SPLIT_LOW_MEMORY = 0x8000_0000
GSIS = 24
_PIN = 0x3D
_CHUNK = 1 << 20

F = TypeVar("F", bound=Function)

__all__ = ["Q35"]


class _Kind(Enum):
    """What takes accesses to a part of physical memory."""

    RAM = "RAM"
    DEVICE = "registers, BARs or configuration space"
    INTERRUPTS = "a local APIC that is not there"
    NOTHING = "nothing"


class Q35:
    """Our machine with the memory map and the fixed functions of QEMU's q35.

    There is no CPU, no firmware and no local APIC: message interrupts end nowhere. Where nothing
    answers, reads return zeros and writes are dropped, as in QEMU; in the interrupt range, all
    ones. (Only the accesses of a qtest client: a device's request there is an Unsupported Request.)

    Args:
        memory: bytes of RAM, a multiple of 1 MiB; from 2.75 GiB on, what exceeds 2 GiB is placed
            from 4 GiB on.
        below_4g: how much of it may be below 4 GiB.

    Attributes:
        machine: the machine.
        ports: its I/O ports.
        lines: levels of the I/O APIC's inputs that the client has set.
    """

    def __init__(self, memory: int, below_4g: int = FOUR_GIB) -> None:
        self.machine = Machine(_ram(memory, below_4g))
        self.machine.on_interrupt = lambda interrupt: None
        self._host_bridge = self.attach(HostBridge(), 0x00)
        for number, function in ((0, LpcBridge()), (2, sata()), (3, smbus())):
            self.attach(function, 0x1F << 3 | number)
        self.ports = PortIo(self.machine, memory)
        self.lines = [False] * GSIS

    # Functions.

    def attach(self, function: F, devfn: int, under: Bridge | None = None) -> F:
        """Put a function on bus 0 or right below a bridge.

        BARs, command register and bus numbers are left to software.

        Raises:
            StateError: if something is there; the message names it.
        """
        there = self.bus(under).functions.get(devfn)
        if there is not None:
            raise StateError(
                f"PCI: slot {devfn >> 3} function {devfn & 7} not available for {function.name}, "
                f"in use by {there.name}"
            )
        return self.machine.attach(function, devfn, under=under, configure=False)

    def bus(self, under: Bridge | None = None) -> Bus:
        """Return bus 0, or the bus right below a bridge."""
        return self.machine.fabric.add_root(0, 0) if under is None else under.secondary

    def functions(self) -> list[Function]:
        """Return the functions of bus 0 by device and function number."""
        return [function for _, function in sorted(self.bus().functions.items())]

    def reset(self) -> None:
        """Reset units, functions and ports as system_reset does; memory keeps its contents."""
        self.machine.reset(power_on=True)
        for function in list(self.machine.fabric.functions()):
            if isinstance(function, Bridge):  # whose bus numbers the machine leaves to firmware
                function.reset()
        self.ports.reset()

    # Memory.

    def read(self, address: int, length: int) -> bytes:
        """Read physical memory: RAM, registers, BARs, memory-mapped configuration space.

        Where it is not RAM, the range is read in naturally aligned accesses of up to 8 bytes.
        """
        try:
            return self.machine.memory.read(address, length)
        except NotRamError:
            parts = self._parts(address, length)
            return b"".join(self._read_part(kind, start, size) for kind, start, size in parts)

    def write(self, address: int, data: bytes) -> None:
        """Write physical memory, in accesses as `read` makes them."""
        try:
            self.machine.memory.write(address, data)
        except NotRamError:
            for kind, start, length in self._parts(address, len(data)):
                self._write_part(kind, start, data[start - address : start - address + length])

    def fill(self, address: int, length: int, byte: int, limit: int) -> None:
        """Write one byte all over a range; where it is RAM, the range may be as long as it likes.

        Raises:
            ValueError: if more than `limit` bytes of the range are registers, BARs or
                configuration space.
        """
        parts = list(self._parts(address, length))
        slow = sum(size for kind, _, size in parts if kind is _Kind.DEVICE)
        if slow > limit:
            raise ValueError(f"at most {limit:#x} bytes of it may be registers, not {slow:#x}")
        for kind, start, size in parts:
            if kind in (_Kind.RAM, _Kind.DEVICE):
                for at in range(start, start + size, _CHUNK):
                    data = bytes([byte]) * min(_CHUNK, start + size - at)
                    self._write_part(kind, at, data)

    def _parts(self, address: int, length: int) -> Iterator[tuple[_Kind, int, int]]:
        """Cut a range where something else begins; yields what it is, address and length."""
        end = address + length
        units = [(unit.base, unit.window) for unit in self.machine.units]
        ecam = self._host_bridge.ecam
        ranges = [
            *((base, size, _Kind.RAM) for base, size in self.machine.memory.ranges),
            *((base, size, _Kind.DEVICE) for base, size in units),
            *((base, size, _Kind.DEVICE) for base, size in self.machine.windows.ranges),
            (ecam.start, len(ecam), _Kind.DEVICE),
            (INTERRUPT_RANGE.start, len(INTERRUPT_RANGE), _Kind.INTERRUPTS),
        ]
        edges = {edge for base, size, _ in ranges for edge in (base, base + size)}
        cuts = sorted({address, end, *(edge for edge in edges if address < edge < end)})
        for start, stop in pairwise(cuts):
            kinds = (kind for base, size, kind in ranges if base <= start < base + size)
            yield next(kinds, _Kind.NOTHING), start, stop - start

    def _read_part(self, kind: _Kind, address: int, length: int) -> bytes:
        if kind is _Kind.RAM:
            return self.machine.memory.read(address, length)
        if kind is not _Kind.DEVICE:
            return (b"\xff" if kind is _Kind.INTERRUPTS else b"\0") * length
        return b"".join(
            self._read_piece(start, size).to_bytes(size, "little")
            for start, size in aligned_pieces(address, length)
        )

    def _write_part(self, kind: _Kind, address: int, data: bytes) -> None:
        if kind is _Kind.RAM:
            self.machine.memory.write(address, data)
        elif kind is _Kind.DEVICE:
            for start, size in aligned_pieces(address, len(data)):
                value = int.from_bytes(data[start - address : start - address + size], "little")
                self._write_piece(start, size, value)

    def _read_piece(self, address: int, size: int) -> int:
        offset = self._ecam_offset(address)
        if offset is None:
            return self.machine.mmio_read(address, size)
        return sum(
            self._config_read(start >> 12, start & 0xFFF, width) << 8 * (start - offset)
            for start, width in aligned_pieces(offset, size, 4)
        )

    def _config_read(self, requester: int, offset: int, size: int) -> int:
        """Read configuration space; a conventional function has 256 bytes of it."""
        function = self.machine.fabric.find(0, requester)
        if function is not None and function.kind is None and offset >= STANDARD_END:
            return (1 << 8 * size) - 1
        return self.machine.config_read(requester, offset, size)

    def _write_piece(self, address: int, size: int, value: int) -> None:
        offset = self._ecam_offset(address)
        if offset is None:
            self.machine.mmio_write(address, size, value)
            return
        for start, width in aligned_pieces(offset, size, 4):
            part = value >> 8 * (start - offset) & (1 << 8 * width) - 1
            self.machine.config_write(start >> 12, start & 0xFFF, width, part)

    def _ecam_offset(self, address: int) -> int | None:
        """Return where in memory-mapped configuration space an address is; None: elsewhere."""
        ecam = self._host_bridge.ecam
        return address - ecam.start if address in ecam else None

    # Interrupt lines.

    def levels(self) -> list[bool]:
        """Return the levels of the I/O APIC's inputs: what the client set, or a function's INTx."""
        levels = self.lines.copy()
        for function in self.machine.fabric.functions():
            pin = function.config.get(_PIN, 1)
            if 1 <= pin <= 4 and function.intx:
                levels[self._gsi(function, pin)] = True
        return levels

    def _gsi(self, function: Function, pin: int) -> int:
        """Return where a pin comes out: each bridge rotates the pins by the device number."""
        device = function.devfn >> 3
        for bridge in self.machine.fabric.bridges_above(function):
            pin = (pin - 1 + device) % 4 + 1
            device = bridge.devfn >> 3
        return gsi(device, pin)


def _ram(memory: int, below_4g: int) -> list[tuple[int, int]]:
    """Return (base, size) of each piece of RAM."""
    low = min(memory, below_4g, LOW_MEMORY if memory < LOW_MEMORY else SPLIT_LOW_MEMORY)
    pieces = [
        (0, min(low, LEGACY_HOLE.start)),
        (LEGACY_HOLE.stop, low - LEGACY_HOLE.stop),
        (FOUR_GIB, memory - low),
    ]
    return [(base, size) for base, size in pieces if size > 0]
