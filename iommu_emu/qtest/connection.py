"""Connections of the server: bytes in, bytes out, never more in memory than a limit."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from iommu_emu.qtest.command_line import Channel

CHUNK = 1 << 16
FULL = 1 << 20  # bytes not sent yet from which on nothing more is read

__all__ = ["Connection", "connect", "listen"]


class Connection:
    """A non-blocking stream of bytes.

    Args:
        channel: what it belongs to.
        incoming: file descriptor to read.
        outgoing: file descriptor to write.
        close: closes both.

    Attributes:
        channel: what it belongs to.
        incoming: file descriptor to read.
        outgoing: file descriptor to write.
        open: whether the other end is there.
    """

    def __init__(
        self, channel: Channel, incoming: int, outgoing: int, close: Callable[[], None]
    ) -> None:
        self.channel = channel
        self.incoming = incoming
        self.outgoing = outgoing
        self.open = True
        self._close = close
        self._unsent = bytearray()
        for descriptor in {incoming, outgoing}:
            os.set_blocking(descriptor, False)

    @property
    def unsent(self) -> bool:
        """Whether something waits for room."""
        return bool(self._unsent)

    @property
    def full(self) -> bool:
        """Whether so much waits that no more should be produced."""
        return len(self._unsent) >= FULL

    def read(self) -> bytes:
        """Read what is there; nothing if there is nothing, or the other end is gone."""
        try:
            data = os.read(self.incoming, CHUNK)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            data = b""
        if not data:
            self.open = False
        return data

    def send(self, text: str) -> None:
        """Send text, now or when there is room."""
        if self.open:
            self._unsent += text.encode()
            self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        try:
            while self._unsent:
                sent = os.write(self.outgoing, self._unsent[:CHUNK])
                del self._unsent[:sent]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.open = False
            self._unsent.clear()

    def finish(self) -> None:
        """Send the rest, as far as the other end takes it at once, and close."""
        self.flush()
        for descriptor in {self.incoming, self.outgoing}:
            with suppress(OSError):
                os.set_blocking(descriptor, True)
        self.open = False
        self._close()


def _of_socket(channel: Channel, stream: socket.socket) -> Connection:
    return Connection(channel, stream.fileno(), stream.fileno(), stream.close)


def connect(channel: Channel) -> Connection:
    """Connect to a UNIX socket, or take standard input and output.

    Raises:
        OSError: if nobody listens there.
    """
    if channel.path is None:
        return Connection(channel, sys.stdin.fileno(), sys.stdout.fileno(), lambda: None)
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.connect(channel.path)
    except OSError:
        stream.close()
        raise
    return _of_socket(channel, stream)


def listen(channel: Channel) -> socket.socket:
    """Listen on a UNIX socket, whose file is replaced.

    Raises:
        OSError: if that is not possible.
    """
    assert channel.path is not None
    listener = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            os.unlink(channel.path)
        listener.bind(channel.path)
        listener.listen(1)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def accept(channel: Channel, listener: socket.socket) -> Connection | None:
    """Take the next client of a listener; None if it has gone again."""
    try:
        stream, _ = listener.accept()
    except OSError:
        return None
    return _of_socket(channel, stream)
