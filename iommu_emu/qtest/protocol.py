"""QEMU's qtest protocol, the machine's side: a line asks, a line answers.

Numbers are decimal, hexadecimal with 0x or octal with 0. A line that makes no sense, where QEMU
aborts, is answered with FAIL; so is a command that moves more than 16 MiB. "IRQ raise N" and
"IRQ lower N" precede the answer of the command that caused them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence

from iommu_emu.qtest.q35 import GSIS, Q35

LIMIT = 16 << 20  # bytes of memory that one command reads or writes
LONGEST_LINE = 2 * LIMIT + 256
_NUMBER = re.compile(r"[-+]?(?:0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)", re.I)
_U64 = (1 << 64) - 1
_LAST_TIME = (1 << 63) - 1  # ns, as the protocol's replies are signed
_TICKS = (32768, 1_193_182)  # half a period of a PC's interval timer after reset: ticks, Hz
_SIZES = {"b": 1, "w": 2, "l": 4, "q": 8}
_IOAPIC = "ioapic"

__all__ = ["LIMIT", "LONGEST_LINE", "Protocol"]


class _RefusedError(Exception):
    """The command was not carried out; the message is the reply."""


class Protocol:
    """Answers the commands of one client.

    Args:
        board: the machine; None: `-machine none`, where there is no memory and no device.
        running: whether the machine is not paused; paused, it has no deadline that a
            `clock_step` without a number could go to.
    """

    def __init__(self, board: Q35 | None, running: Callable[[], bool]) -> None:
        self._board = board
        self._running = running
        self._intercepting = False
        self._levels = [False] * GSIS
        self._commands: dict[str, tuple[int, Callable[[Sequence[str]], str]]] = {
            "irq_intercept_in": (1, self._intercept),
            "irq_intercept_out": (1, self._intercept_out),
            "set_irq_in": (4, self._set_irq_in),
            "read": (2, self._read),
            "write": (3, self._write),
            "memset": (3, self._memset),
            "b64read": (2, self._b64read),
            "b64write": (3, self._b64write),
            "endianness": (0, lambda words: "OK little"),
            "clock_step": (0, self._clock_step),
            "clock_set": (1, self._clock_set),
            "module_load": (2, lambda words: "FAIL"),
        }
        for letter, size in _SIZES.items():
            self._commands[f"read{letter}"] = (1, self._reader(size))
            self._commands[f"write{letter}"] = (2, self._writer(size))
            if size <= 4:
                self._commands[f"in{letter}"] = (1, self._port_reader(size))
                self._commands[f"out{letter}"] = (2, self._port_writer(size))

    def answer(self, line: str) -> list[str]:
        """Carry a command out.

        Args:
            line: the command, without its end of line.

        Returns:
            The lines to send: changes of interrupt lines, then the reply; none for a blank line.
        """
        words = line.split()
        if not words:
            return []
        try:
            reply = self._carry_out(words)
        except _RefusedError as refusal:
            reply = str(refusal)
        return [*self._irq_changes(), reply]

    def _carry_out(self, words: Sequence[str]) -> str:
        command = self._commands.get(words[0])
        if command is None:
            raise _RefusedError(f"FAIL Unknown command '{words[0][:80]}'")
        wanted, action = command
        if len(words) <= wanted:
            raise _RefusedError(f"FAIL {words[0]} takes {wanted} arguments, not {len(words) - 1}")
        return action(words[1:])

    @property
    def _machine(self) -> Q35:
        if self._board is None:
            raise _RefusedError("FAIL there is no memory and no device: machine none")
        return self._board

    # Memory.

    def _reader(self, size: int) -> Callable[[Sequence[str]], str]:
        def read(words: Sequence[str]) -> str:
            data = self._machine.read(_number(words[0]), size)
            return f"OK {int.from_bytes(data, 'little'):#018x}"

        return read

    def _writer(self, size: int) -> Callable[[Sequence[str]], str]:
        def write(words: Sequence[str]) -> str:
            value = _number(words[1]) & (1 << 8 * size) - 1
            self._machine.write(_number(words[0]), value.to_bytes(size, "little"))
            return "OK"

        return write

    def _read(self, words: Sequence[str]) -> str:
        length = _length(words[1])
        if not length:
            raise _RefusedError("FAIL size must be at least 1")
        return f"OK 0x{self._machine.read(_number(words[0]), length).hex()}"

    def _b64read(self, words: Sequence[str]) -> str:
        data = self._machine.read(_number(words[0]), _length(words[1]))
        return f"OK {base64.b64encode(data).decode()}"

    def _write(self, words: Sequence[str]) -> str:
        """Write hexadecimal digits after 0x; what is missing is 0, what is too much is ignored."""
        length, text = _length(words[1]), words[2]
        if len(text) < 3:
            raise _RefusedError("ERR invalid argument size")
        try:
            data = bytes.fromhex(text[2 : 2 + 2 * length][: (len(text) - 2) // 2 * 2])
        except ValueError:
            raise _RefusedError("FAIL data must be hexadecimal digits after 0x") from None
        self._machine.write(_number(words[0]), data.ljust(length, b"\0"))
        return "OK"

    def _b64write(self, words: Sequence[str]) -> str:
        """Write base64; the shorter of the size told and the data found counts."""
        length = _length(words[1])
        if len(words[2]) < 3:
            raise _RefusedError("ERR invalid argument size")
        try:
            data = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            raise _RefusedError("FAIL data must be base64") from None
        self._machine.write(_number(words[0]), data[:length])
        return "OK"

    def _memset(self, words: Sequence[str]) -> str:
        address, length, pattern = map(_number, words[:3])
        try:
            self._machine.fill(address, length, pattern & 0xFF, LIMIT)
        except ValueError as error:
            raise _RefusedError(f"FAIL {error}") from None
        return "OK"

    # I/O ports.

    def _port_reader(self, size: int) -> Callable[[Sequence[str]], str]:
        def read(words: Sequence[str]) -> str:
            return f"OK {self._machine.ports.read(_port(words[0]), size):#06x}"

        return read

    def _port_writer(self, size: int) -> Callable[[Sequence[str]], str]:
        def write(words: Sequence[str]) -> str:
            value = _number(words[1]) & (1 << 8 * size) - 1
            self._machine.ports.write(_port(words[0]), size, value)
            return "OK"

        return write

    # Interrupt lines.

    def _find_ioapic(self, path: str) -> None:
        if self._board is None or path.rpartition("/")[2] != _IOAPIC:
            raise _RefusedError("FAIL Unknown device")

    def _intercept(self, words: Sequence[str]) -> str:
        self._find_ioapic(words[0])
        if len(words) > 1:
            raise _RefusedError("FAIL Interception of named in-GPIOs not yet supported")
        self._intercepting = True
        return "OK"

    def _intercept_out(self, words: Sequence[str]) -> str:
        self._find_ioapic(words[0])
        return "OK" if self._intercepting else "FAIL No intercepts installed"

    def _set_irq_in(self, words: Sequence[str]) -> str:
        self._find_ioapic(words[0])
        number, level = _number(words[2], signed=True), _number(words[3], signed=True)
        if words[1] != "unnamed-gpio-in" or not 0 <= number < GSIS:
            raise _RefusedError(f"FAIL ioapic has unnamed-gpio-in 0..{GSIS - 1}")
        self._machine.lines[number] = bool(level)
        return "OK"

    def _irq_changes(self) -> list[str]:
        if not self._intercepting or self._board is None:
            return []
        before, self._levels = self._levels, self._board.levels()
        return [
            f"IRQ {'raise' if now else 'lower'} {number}"
            for number, (was, now) in enumerate(zip(before, self._levels, strict=True))
            if was != now
        ]

    # Time.

    def _clock_step(self, words: Sequence[str]) -> str:
        clock = self._machine.machine.clock
        if words:
            target = clock.now + _number(words[0], signed=True)
        else:
            if not self._running():
                return (
                    "FAIL cannot advance clock to the next deadline "
                    "because there is no pending deadline"
                )
            target = _next_tick(clock.now)
            if clock.next_event is not None:
                target = min(target, clock.next_event)
        if not clock.now < target <= _LAST_TIME:
            return "FAIL could not advance time"
        clock.advance_to(target)
        return f"OK {clock.now}"

    def _clock_set(self, words: Sequence[str]) -> str:
        clock = self._machine.machine.clock
        target = _number(words[0], signed=True)
        if clock.now < target <= _LAST_TIME:
            clock.advance_to(target)
        return f"{'OK' if clock.now == target else 'FAIL'} {clock.now}"


def _next_tick(now: int) -> int:
    """Return when q35's interval timer ticks next: the deadline that there always is."""
    ticks, frequency = _TICKS
    step = ticks * 1_000_000_000
    return ((now + 1) * frequency // step + 1) * step // frequency


def _number(text: str, *, signed: bool = False) -> int:
    """Parse a number of 64 bits; a negative one wraps unless it is signed."""
    if not _NUMBER.fullmatch(text[:40]) or len(text) > 40:
        raise _RefusedError(f"FAIL not a number: '{text[:40]}'")
    digits = text.lstrip("+-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    value = int(text, base)
    if not -_U64 <= value <= _U64 or (signed and not -_LAST_TIME <= value <= _LAST_TIME):
        raise _RefusedError(f"FAIL number out of range: '{text}'")
    return value if signed else value & _U64


def _length(text: str) -> int:
    length = _number(text)
    if length > LIMIT:
        raise _RefusedError(f"FAIL size must be at most {LIMIT:#x}, not {length:#x}")
    return length


def _port(text: str) -> int:
    port = _number(text)
    if port > 0xFFFF:
        raise _RefusedError(f"FAIL port must be at most 0xffff, not {port:#x}")
    return port
