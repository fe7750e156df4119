"""The malicious device with registers: software on the machine's CPU orders its DMA."""

from __future__ import annotations

from iommu_emu.core import Completion, Status
from iommu_emu.devices.base import Bar
from iommu_emu.devices.malicious import MaliciousDevice

ADDRESS, LENGTH, COMMAND, STATUS, FAULT, DATA = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x800
DATA_SIZE = 2048
READ_MEMORY, WRITE_MEMORY = 1, 2  # commands
_NEVER, _PENDING, _DONE = 0, 1, 2
_STATUS = {
    Status.DONE: _DONE,
    Status.UNSUPPORTED_REQUEST: 3,
    Status.COMPLETER_ABORT: 4,
    Status.PENDING: _PENDING,
    Status.REMOVED: 5,
    Status.BUSY: 6,
}
_LOG = 1024

__all__ = ["DATA_SIZE", "READ_MEMORY", "WRITE_MEMORY", "Attacker"]


class Attacker(MaliciousDevice):
    """A malicious device that a guest can order around.

    BAR 0, little endian, in accesses of 4 or 8 aligned bytes; other accesses read 0 and write
    nothing:

    | offset | register                                                                   |
    |-------:|----------------------------------------------------------------------------|
    |  `00h` | ADDRESS, 64 bits: the IOVA                                                 |
    |  `08h` | LENGTH, 32 bits: bytes, more than 2048 count as 2048                       |
    |  `0Ch` | COMMAND: 1 memory into DATA, 2 DATA into memory; anything else is ignored, |
    |        | and so is a command while LENGTH is 0                                      |
    |  `10h` | STATUS: 0 no command yet, 1 under way, 2 done, 3 Unsupported Request,      |
    |        | 4 Completer Abort, 5 removed, 6 not sent: too many transfers in flight     |
    |  `14h` | FAULT: reason of the fault that the IOMMU found in it; 0: none             |
    | `800h` | DATA, 2048 bytes                                                           |

    Args:
        name: for people.
        looks_like: vendor and device ID that it shows.

    Attributes:
        log: the completions of the last 1024 attacks: software may order any number of them.
    """

    bar_layout = (Bar(0, 4096),)

    def __init__(
        self, name: str = "attacker", looks_like: tuple[int, int] = (0x1234, 0x0666)
    ) -> None:
        super().__init__(name, looks_like)
        self._address = 0
        self._length = 0
        self._data = bytearray(DATA_SIZE)
        self._order: Completion | None = None
        self._reading = False

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """Read a register."""
        if size not in (4, 8) or offset % size:
            return 0
        return int.from_bytes(self._registers()[offset : offset + size], "little")

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write a register; COMMAND starts a DMA."""
        if size not in (4, 8) or offset % size:
            return
        if DATA <= offset < DATA + DATA_SIZE:
            at = offset - DATA
            self._data[at : at + size] = value.to_bytes(size, "little")
            return
        for word in range(offset, offset + size, 4):
            self._write_word(word, value & 0xFFFFFFFF)
            value >>= 32

    def on_reset(self) -> None:
        """Forget everything that was ordered."""
        self._address = self._length = 0
        self._data = bytearray(DATA_SIZE)
        self._order = None

    def _registers(self) -> bytes:
        self._collect()
        status = _NEVER if self._order is None else _STATUS[self._order.status]
        fault = 0 if self._order is None else self._order.fault
        words = (self._length, 0, status, fault)
        head = self._address.to_bytes(8, "little") + b"".join(
            word.to_bytes(4, "little") for word in words
        )
        return head.ljust(DATA, b"\0") + self._data

    def _write_word(self, offset: int, value: int) -> None:
        if offset == ADDRESS:
            self._address = self._address >> 32 << 32 | value
        elif offset == ADDRESS + 4:
            self._address = self._address & 0xFFFFFFFF | value << 32
        elif offset == LENGTH:
            self._length = min(value, DATA_SIZE)
        elif offset == COMMAND and value in (READ_MEMORY, WRITE_MEMORY) and self._length:
            self._collect()
            self._reading = value == READ_MEMORY
            if self._reading:
                self._order = self.read(self._address, self._length)
            else:
                self._order = self.write(self._address, self._data[: self._length])
            del self.log[:-_LOG]

    def _collect(self) -> None:
        """Take what a finished read brought into DATA, once."""
        if self._order is not None and self._reading and self._order.ok:
            self._data[: len(self._order.data)] = self._order.data
            self._reading = False
