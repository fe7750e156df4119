"""A client of QEMU's qtest protocol: memory, registers, ports, interrupts and the clock.

A qtest connection carries one command a line and one reply a line. `QtestClient` does one command
and waits for its reply; `Batch` gathers many, sends them all, and then reads the replies, which is
what makes thousands of accesses a millisecond's work. Nothing here knows of a process: the other
end may be QEMU or any server of the protocol.
"""

from __future__ import annotations

import base64
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

DEFAULT_TIMEOUT = 30.0  # seconds without a byte from the other end
MAX_LINE = 64 << 20  # bytes of one reply
_RECEIVE = 1 << 16
_LETTERS = {1: "b", 2: "w", 4: "l", 8: "q"}
_PORT_LETTERS = {1: "b", 2: "w", 4: "l"}

__all__ = ["Batch", "DisconnectedError", "Later", "QtestClient", "QtestError"]


class QtestError(Exception):
    """The other end refused a command, or did not answer in time."""


class DisconnectedError(QtestError):
    """The other end closed the connection.

    Attributes:
        replies: those of the commands in hand that came before.
    """

    replies: Sequence[str] = ()


class Later(Generic[T]):
    """What a command of a `Batch` returns once the batch has run."""

    _value: T

    @property
    def value(self) -> T:
        """The result.

        Raises:
            QtestError: if the batch has not run.
        """
        try:
            return self._value
        except AttributeError:
            raise QtestError("the batch of this command has not run") from None

    @property
    def ready(self) -> bool:
        """Whether the reply is there."""
        return hasattr(self, "_value")

    def settle(self, value: T) -> None:
        """Set the result."""
        self._value = value


class Batch:
    """Commands that are sent together; `run` sends them and settles their results.

    Addresses are guest-physical, values little endian.

    Args:
        client: the connection.
    """

    def __init__(self, client: QtestClient) -> None:
        self.client = client
        self._lines: list[str] = []
        self._takers: list[Callable[[str], None] | None] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: str, take: Callable[[str], None] | None = None) -> None:
        """Add a command in the protocol's own words; `take` gets what follows "OK"."""
        self._lines.append(line)
        self._takers.append(take)

    def run(self) -> None:
        """Send the commands, wait for all replies, and be empty again.

        Raises:
            QtestError: if a command was refused; the replies before it are settled.
            DisconnectedError: if the other end is gone; the replies before that are settled.
        """
        lines, takers = self._lines, self._takers
        self._lines, self._takers = [], []
        try:
            replies: Sequence[str] = self.client.exchange(lines)
        except DisconnectedError as error:
            _settle(lines, takers, error.replies)
            raise
        _settle(lines, takers, replies)

    # Memory and registers.

    def read(self, address: int, size: int) -> Later[int]:
        """Read 1, 2, 4 or 8 bytes as one access.

        Raises:
            ValueError: if the size is another one.
        """
        later: Later[int] = Later()
        letter = _letter(_LETTERS, size)
        self.add(f"read{letter} {address:#x}", lambda rest: later.settle(int(rest, 0)))
        return later

    def write(self, address: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes as one access.

        Raises:
            ValueError: if the size is another one, or the value does not fit.
        """
        _check_value(size, value)
        self.add(f"write{_letter(_LETTERS, size)} {address:#x} {value:#x}")

    def read_block(self, address: int, length: int) -> Later[bytes]:
        """Read `length` bytes; of registers by the widest aligned accesses that they take."""
        later: Later[bytes] = Later()
        if length:
            self.add(
                f"b64read {address:#x} {length:#x}",
                lambda rest: later.settle(base64.b64decode(rest)),
            )
        else:
            later.settle(b"")
        return later

    def write_block(self, address: int, data: bytes) -> None:
        """Write bytes to memory."""
        if data:
            text = base64.b64encode(data).decode()
            self.add(f"b64write {address:#x} {len(data):#x} {text}")

    def fill(self, address: int, length: int, value: int = 0) -> None:
        """Set every byte of a piece of memory to one value."""
        if length:
            self.add(f"memset {address:#x} {length:#x} {value:#x}")

    # Ports.

    def port_read(self, port: int, size: int) -> Later[int]:
        """Read an I/O port of 1, 2 or 4 bytes."""
        later: Later[int] = Later()
        letter = _letter(_PORT_LETTERS, size)
        self.add(f"in{letter} {port:#x}", lambda rest: later.settle(int(rest, 0)))
        return later

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write an I/O port of 1, 2 or 4 bytes."""
        _check_value(size, value)
        self.add(f"out{_letter(_PORT_LETTERS, size)} {port:#x} {value:#x}")

    # Time.

    def clock_step(self, duration: int | None = None) -> Later[int]:
        """Move virtual time on by `duration` ns, or to the next timer; returns the new time."""
        later: Later[int] = Later()
        line = "clock_step" if duration is None else f"clock_step {duration}"
        self.add(line, lambda rest: later.settle(int(rest, 0)))
        return later

    def clock_set(self, now: int) -> Later[int]:
        """Move virtual time on to `now` ns; returns the new time."""
        later: Later[int] = Later()
        self.add(f"clock_set {now}", lambda rest: later.settle(int(rest, 0)))
        return later


class QtestClient:
    """A connection to a qtest server; each method waits for its reply.

    Attributes:
        interrupts: "raise" or "lower" and the line of every intercepted interrupt, oldest first.
        levels: present level of each intercepted line that ever changed.

    Args:
        connection: a connected stream socket; closed by `close`.
        timeout: s without a byte from the other end before `QtestError`.
    """

    def __init__(self, connection: socket.socket, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._timeout = timeout
        self._received = bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self.interrupts: list[tuple[str, int]] = []
        self.levels: dict[int, bool] = {}

    def close(self) -> None:
        """Close the connection."""
        self._selector.close()
        self._socket.close()

    def __enter__(self) -> QtestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(self) -> Batch:
        """Return an empty batch for this connection."""
        return Batch(self)

    # One command at a time.

    def read(self, address: int, size: int) -> int:
        """See `Batch.read`."""
        return self._one(lambda batch: batch.read(address, size))

    def write(self, address: int, size: int, value: int) -> None:
        """See `Batch.write`."""
        batch = self.batch()
        batch.write(address, size, value)
        batch.run()

    def read_block(self, address: int, length: int) -> bytes:
        """See `Batch.read_block`."""
        return self._one(lambda batch: batch.read_block(address, length))

    def write_block(self, address: int, data: bytes) -> None:
        """See `Batch.write_block`."""
        batch = self.batch()
        batch.write_block(address, data)
        batch.run()

    def port_read(self, port: int, size: int) -> int:
        """See `Batch.port_read`."""
        return self._one(lambda batch: batch.port_read(port, size))

    def port_write(self, port: int, size: int, value: int) -> None:
        """See `Batch.port_write`."""
        batch = self.batch()
        batch.port_write(port, size, value)
        batch.run()

    def clock_step(self, duration: int | None = None) -> int:
        """See `Batch.clock_step`."""
        return self._one(lambda batch: batch.clock_step(duration))

    def clock_set(self, now: int) -> int:
        """See `Batch.clock_set`."""
        return self._one(lambda batch: batch.clock_set(now))

    def intercept_interrupts(self, path: str, *, outputs: bool = False) -> None:
        """Report the interrupt lines into a device, or out of it, from now on.

        A server intercepts one device only.

        Args:
            path: QOM path of the device, such as "ioapic".
            outputs: the lines out of it, instead of those into it.
        """
        batch = self.batch()
        batch.add(f"irq_intercept_{'out' if outputs else 'in'} {path}")
        batch.run()

    def _one(self, add: Callable[[Batch], Later[T]]) -> T:
        batch = self.batch()
        later = add(batch)
        batch.run()
        return later.value

    # The connection.

    def exchange(self, lines: list[str]) -> list[str]:
        """Send command lines and return one reply line each.

        Sends and receives in turns, so that neither side waits for the other's full buffer.

        Raises:
            QtestError: if nothing comes for the time-out.
            DisconnectedError: if the other end is gone.
        """
        replies: list[str] = []
        try:
            self._exchange(lines, replies)
        except DisconnectedError as error:
            error.replies = replies
            raise
        return replies

    def _exchange(self, lines: list[str], replies: list[str]) -> None:
        unsent = memoryview("".join(f"{line}\n" for line in lines).encode())
        deadline = time.monotonic() + self._timeout
        while len(replies) < len(lines):
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
            self._selector.modify(self._socket, wanted)
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise QtestError(
                    f"no reply to {lines[len(replies)].split(' ', 2)[:2]} in {self._timeout:g} s"
                )
            deadline = time.monotonic() + self._timeout
            if ready[0][1] & selectors.EVENT_WRITE:
                unsent = unsent[self._send(unsent) :]
            if ready[0][1] & selectors.EVENT_READ:
                replies += self._receive()

    def _send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data[:_RECEIVE])
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # gone; what it had answered is still to be read

    def _receive(self) -> list[str]:
        """Receive what is there; returns the complete reply lines."""
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise DisconnectedError(f"the qtest server is gone: {error}") from error
        if not data:
            raise DisconnectedError("the qtest server closed the connection")
        self._received += data
        if len(self._received) > MAX_LINE:
            raise QtestError(f"a reply of more than {MAX_LINE >> 20} MiB")
        complete, newline, rest = self._received.rpartition(b"\n")
        if not newline:
            return []
        self._received = bytearray(rest)
        lines = complete.decode("utf-8", "replace").split("\n")
        return [line for line in lines if not self._is_interrupt(line)]

    def _is_interrupt(self, line: str) -> bool:
        if not line.startswith("IRQ "):
            return False
        _, change, number = line.split()
        self.interrupts.append((change, int(number)))
        self.levels[int(number)] = change == "raise"
        return True


def _settle(
    lines: Sequence[str], takers: Sequence[Callable[[str], None] | None], replies: Sequence[str]
) -> None:
    for line, take, reply in zip(lines, takers, replies, strict=False):
        word, _, rest = reply.partition(" ")
        if word != "OK":
            raise QtestError(f"{line.split(' ', 2)[:2]} was refused: {reply}")
        if take is not None:
            take(rest)


def _letter(letters: dict[int, str], size: int) -> str:
    try:
        return letters[size]
    except KeyError:
        raise ValueError(f"size must be one of {list(letters)}, not {size}") from None


def _check_value(size: int, value: int) -> None:
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"value must fit in {size} bytes, not {value:#x}")
