"""QEMU's educational device, register-compatible: factorials, interrupts, and a DMA engine.

Written from its documented behaviour (QEMU's docs/specs/edu). Of its registers in BAR 0, those of
the DMA engine take accesses of 4 or 8 bytes, the others of 4. The buffer of 4 KiB is at
40000h for the DMA engine; the CPU does not see it. A reset of the function leaves registers,
buffer, and what is under way alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from math import factorial

from iommu_emu.clock import MILLISECOND
from iommu_emu.core import Completion
from iommu_emu.devices.base import Bar, Device

IDENTIFICATION = 0x0100_00ED
BUFFER = 0x40000
BUFFER_SIZE = 4096
PAGE = 4096
COMPUTING = 0x01
INTERRUPT_WHEN_COMPUTED = 0x80
START = 0x01
TO_RAM = 0x02
INTERRUPT_WHEN_DONE = 0x04
FACTORIAL_INTERRUPT = 0x001
DMA_INTERRUPT = 0x100
_FIRST_ZERO = 34  # from 34! on the low 32 bits are 0

__all__ = ["Edu", "Register"]


class Register(IntEnum):
    """Offsets in BAR 0."""

    IDENTIFICATION = 0x00
    LIVENESS = 0x04  # reads the complement of what was written
    FACTORIAL = 0x08
    STATUS = 0x20  # bit 0 computing, bit 7 interrupt when done
    INTERRUPT_STATUS = 0x24
    RAISE = 0x60
    ACKNOWLEDGE = 0x64
    DMA_SOURCE = 0x80
    DMA_DESTINATION = 0x88
    DMA_COUNT = 0x90
    DMA_COMMAND = 0x98  # bit 0 start, bit 1 from device to RAM, bit 2 interrupt when done


_DMA = (Register.DMA_SOURCE, Register.DMA_DESTINATION, Register.DMA_COUNT, Register.DMA_COMMAND)


class Edu(Device):
    """QEMU's `edu`.

    What QEMU's model leaves undefined: a transfer that leaves the buffer is not done at all, and
    like one that faults it ends with bit 0 of the command clear; `last_dma` tells the difference.
    As in QEMU, pages that cannot be read arrive as zeros, and the others all the same.

    Args:
        name: for people.
        dma_mask: address bits that the DMA engine drives; 28 bits as in QEMU.
        dma_latency: ns from the command to the transfer; 100 ms as in QEMU.
        factorial_latency: ns that a factorial takes; QEMU uses a thread of its own.

    Attributes:
        buffer: 4 KiB of the device's memory.
        last_dma: completion of the last transfer; of its first page that failed, if one did.

    Raises:
        ValueError: if an argument is negative or does not fit in 64 bits.
    """

    vendor_id = 0x1234
    device_id = 0x11E8
    class_code = 0x00FF00  # as QEMU 11.1 shows
    revision = 0x10
    subsystem = (0x1AF4, 0x1100)
    port_type = None  # a conventional PCI function, as in QEMU
    bar_layout = (Bar(0, 1 << 20),)
    msi_vectors = 1
    msi_maskable = False
    interrupt_pin = 1

    def __init__(
        self,
        name: str = "edu",
        *,
        dma_mask: int = (1 << 28) - 1,
        dma_latency: int = 100 * MILLISECOND,
        factorial_latency: int = 0,
    ) -> None:
        super().__init__(name)
        for argument, value in (
            ("dma_mask", dma_mask),
            ("dma_latency", dma_latency),
            ("factorial_latency", factorial_latency),
        ):
            if not 0 <= value < 1 << 64:
                raise ValueError(f"{argument} must be in 0..2**64-1, not {value}")
        self.dma_mask = dma_mask
        self.dma_latency = dma_latency
        self.factorial_latency = factorial_latency
        self.buffer = bytearray(BUFFER_SIZE)
        self.last_dma: Completion | None = None
        self._liveness = 0
        self._factorial = 0
        self._status = 0
        self._interrupt_status = 0
        self._outstanding = 0  # parts of the transfer under way
        self._failed: Completion | None = None
        self._dma: dict[int, int] = dict.fromkeys(_DMA, 0)

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read a register; all ones where there is none, 0 for less than 4 or unaligned bytes."""
        if size < 4 or offset % size:
            return 0
        if not _acceptable(offset, size):
            return (1 << 8 * size) - 1
        registers: dict[int, int] = {
            Register.IDENTIFICATION: IDENTIFICATION,
            Register.LIVENESS: self._liveness,
            Register.FACTORIAL: self._factorial,
            Register.STATUS: self._status,
            Register.INTERRUPT_STATUS: self._interrupt_status,
            **self._dma,
        }
        return registers.get(offset, (1 << 8 * size) - 1)

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register; dropped for an offset or size that is not one's."""
        if not _acceptable(offset, size):
            return
        if offset == Register.LIVENESS:
            self._liveness = ~value & 0xFFFFFFFF
        elif offset == Register.FACTORIAL:
            self._compute(value)
        elif offset == Register.STATUS:
            kept = self._status & ~INTERRUPT_WHEN_COMPUTED
            self._status = kept | value & INTERRUPT_WHEN_COMPUTED
        elif offset == Register.RAISE:
            self._raise(value & 0xFFFFFFFF)
        elif offset == Register.ACKNOWLEDGE:
            self._interrupt_status &= ~value
            if not self._interrupt_status:
                self.set_intx(False)
        elif offset in self._dma and not self._dma[Register.DMA_COMMAND] & START:
            # While a transfer is under way, its registers are locked.
            if offset == Register.DMA_COMMAND:
                self._start(value)
            else:
                self._dma[offset] = value

    def _compute(self, value: int) -> None:
        if self._status & COMPUTING:
            return
        self._factorial = value
        self._status |= COMPUTING
        self._later(self.factorial_latency, self._computed)

    def _computed(self) -> None:
        value = self._factorial
        self._factorial = factorial(value) & 0xFFFFFFFF if value < _FIRST_ZERO else 0
        self._status &= ~COMPUTING
        if self._status & INTERRUPT_WHEN_COMPUTED:
            self._raise(FACTORIAL_INTERRUPT)

    def _raise(self, value: int) -> None:
        self._interrupt_status |= value
        if self._interrupt_status and not self.interrupt(0):
            self.set_intx(True)

    def _start(self, command: int) -> None:
        if not command & START:
            return
        self._dma[Register.DMA_COMMAND] = command
        self._later(self.dma_latency, self._transfer)

    def _transfer(self) -> None:
        to_ram = bool(self._dma[Register.DMA_COMMAND] & TO_RAM)
        source, destination, count = (self._dma[register] for register in _DMA[:3])
        offset = (source if to_ram else destination) - BUFFER
        if not (offset >= 0 and 0 < count <= BUFFER_SIZE - offset):
            self._finish()
            return
        self._failed = None
        if to_ram:
            self._outstanding = 1
            data = bytes(self.buffer[offset : offset + count])
            self.dma.write(destination & self.dma_mask, data, partial(self._transferred, 0, 0))
            return
        address = source & self.dma_mask
        first = min(count, PAGE - address % PAGE)
        pieces = [(0, first), (first, count - first)] if first < count else [(0, count)]
        self._outstanding = len(pieces)
        for at, length in pieces:
            done = partial(self._transferred, offset + at, length)
            self.dma.read(address + at, length, done)

    def _transferred(self, offset: int, length: int, completion: Completion) -> None:
        """Take one part of a transfer; `length` bytes of the buffer are for what was read."""
        if not completion.ok:
            self._failed = self._failed or completion
        data = completion.data if completion.ok else b""
        self.buffer[offset : offset + length] = data[:length].ljust(length, b"\0")
        self._outstanding -= 1
        if not self._outstanding:
            self.last_dma = self._failed or completion
            self._finish()

    def _finish(self) -> None:
        command = self._dma[Register.DMA_COMMAND]
        self._dma[Register.DMA_COMMAND] = command & ~START
        if command & INTERRUPT_WHEN_DONE:
            self._raise(DMA_INTERRUPT)

    def _later(self, delay: int, action: Callable[[], None]) -> None:
        """Do something in `delay` ns, at once if that is 0."""
        if delay:
            self.call_later(delay, action)
        else:
            action()


def _acceptable(offset: int, size: int) -> bool:
    return offset % size == 0 and (size == 4 or (size == 8 and offset >= Register.DMA_SOURCE))
