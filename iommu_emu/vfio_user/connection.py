"""One client's stream: framing, file descriptors, replies, and commands of our own."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable
from errno import E2BIG, EINVAL, EIO, EMFILE
from time import monotonic
from typing import Protocol

from iommu_emu.clock import TURN
from iommu_emu.vfio_user.descriptors import discard, is_event, is_memory
from iommu_emu.vfio_user.protocol import (
    HEADER,
    MAX_MESSAGE,
    MAX_MESSAGE_FDS,
    TYPE,
    Flag,
    ProtocolError,
)

MAX_UNSENT = 4 << 20  # bytes; a client that reads nothing is not read either
MAX_OUTSTANDING = 256  # commands of ours that the client has not answered
MAX_QUEUED = 1024  # further ones that wait
_MAX_ERRNO = 4095  # Linux's
_KERNEL_FDS = 253  # the most that Linux passes in one message (SCM_MAX_FD)
_ANCILLARY = socket.CMSG_SPACE(_KERNEL_FDS * 4)

__all__ = ["Connection", "Deferred", "Handler"]


class Deferred(Protocol):
    """A reply that has to wait."""

    def poll(self) -> bytes | None:
        """Return the reply's body, or None while it is too early.

        Raises:
            ProtocolError: if it will never come.
        """


class Handler(Protocol):
    """Who answers a client's commands."""

    def handle(self, command: int, body: bytes, fds: list[int]) -> bytes | Deferred:
        """Carry out one command and return the reply's body.

        It takes the descriptors that it keeps out of `fds`; the rest is closed behind it.

        Raises:
            ProtocolError: for an error reply.
        """


class Connection:
    """A connected client; the socket becomes its property.

    It never blocks: what cannot be sent now is kept, up to a limit beyond which the client is
    not read until it has read. Commands are answered in order. A command of ours that comes up
    while one of the client's is being answered goes out behind the reply.

    Args:
        sock: a stream socket of the UNIX family.
        handler: who answers.
        changed: called when `wants_read` or `wants_write` may have changed.

    Attributes:
        sock: the socket.
        closed: whether it is over.
        reason: why it is over; "" before.
        dropped: commands of ours that were dropped because the client does not answer.
    """

    def __init__(
        self, sock: socket.socket, handler: Handler, changed: Callable[[], None] = lambda: None
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.closed = False
        self.reason = ""
        self.dropped = 0
        self._handler = handler
        self._changed = changed
        self._header = b""
        self._body = bytearray()
        self._fds: list[int] = []
        self._fds_error: ProtocolError | None = None
        self._out = bytearray()
        self._answering = False
        self._stalled: tuple[Deferred, tuple[int, int, int]] | None = None
        self._next_id = 0
        self._outstanding: dict[int, Callable[[int, bytes], None]] = {}
        self._queue: deque[tuple[int, bytes, Callable[[int, bytes], None]]] = deque()

    def __repr__(self) -> str:
        state = f"closed: {self.reason}" if self.closed else "open"
        return f"<Connection {state}>"

    @property
    def wants_read(self) -> bool:
        """Whether what the client sends is to be read now."""
        return not self.closed and self._stalled is None and len(self._out) < MAX_UNSENT

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return not self.closed and bool(self._out)

    @property
    def stalled(self) -> bool:
        """Whether a reply waits for something other than the client."""
        return self._stalled is not None

    @property
    def owed(self) -> int:
        """Commands of ours that the client has not answered yet."""
        return len(self._outstanding) + len(self._queue)

    # Receiving.

    def receive(self) -> None:
        """Read and answer what has arrived, until its turn is over."""
        deadline = monotonic() + TURN
        while self.wants_read and self._receive_some() and monotonic() < deadline:
            pass

    def _receive_some(self) -> bool:
        """Read of one message what is there, and answer it if that is all; False: nothing is."""
        try:
            if len(self._header) < HEADER.size and not self._receive_header():
                return False
            message_id, command, size, flags, error = HEADER.unpack(self._header)
            missing = size - HEADER.size - len(self._body)
            if missing:
                data = self.sock.recv(missing)
                if not data:
                    self.close("the client went away inside a message")
                    return False
                self._body += data
                if len(data) < missing:
                    return True
        except BlockingIOError:
            return False
        except ProtocolError as refusal:
            self._refuse(HEADER.unpack(self._header), refusal)
            return False
        except OSError as failure:
            self.close(os.strerror(failure.errno or EIO))
            return False
        body, fds, fds_error = bytes(self._body), self._fds, self._fds_error
        self._header, self._body, self._fds, self._fds_error = b"", bytearray(), [], None
        try:
            if flags & TYPE == Flag.REPLY:
                self._take_reply(message_id, flags, error, body)
            else:
                self._answer((message_id, command, flags), body, fds, fds_error)
        finally:
            _close_all(fds)
        return not self.closed

    def _receive_header(self) -> bool:
        """Read up to the end of the header, and the descriptors that come with it.

        Exactly as much as belongs to this message is read, so that descriptors, which arrive
        with the first byte of what they were sent with, are this message's.
        """
        while len(self._header) < HEADER.size:
            data, ancillary, received, _ = self.sock.recvmsg(
                HEADER.size - len(self._header), _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
            if ancillary:
                self._take_fds(ancillary)
            if received & socket.MSG_CTRUNC:
                self._fds_error = ProtocolError(EMFILE, "no room for its file descriptors")
            if not data:
                inside = " inside a message" if self._header else ""
                self.close(f"the client went away{inside}")
                return False
            self._header += data
        _, _, size, flags, _ = HEADER.unpack(self._header)
        if size < HEADER.size:
            raise ProtocolError(EINVAL, f"message of {size} bytes", fatal=True)
        if size > MAX_MESSAGE:
            raise ProtocolError(E2BIG, f"message of {size} bytes", fatal=True)
        if flags & TYPE not in (0, Flag.REPLY):
            raise ProtocolError(EINVAL, f"message of type {flags & TYPE}", fatal=True)
        return True

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue
            received = array.array("i")
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
            for fd in received:
                if not is_memory(fd) and not is_event(fd):
                    # Not kept at all: it could be the client's end of this very connection.
                    discard(fd)
                    self._fds_error = ProtocolError(
                        EINVAL, "a descriptor of neither memory nor events"
                    )
                elif len(self._fds) < MAX_MESSAGE_FDS:
                    self._fds.append(fd)
                else:
                    os.close(fd)
                    what = f"more than {MAX_MESSAGE_FDS} file descriptors"
                    self._fds_error = ProtocolError(EINVAL, what)

    # Answering.

    def _answer(
        self,
        header: tuple[int, int, int],
        body: bytes,
        fds: list[int],
        fds_error: ProtocolError | None,
    ) -> None:
        self._answering = True
        try:
            if fds_error is not None:
                raise fds_error
            answer = self._handler.handle(header[1], body, fds)
        except ProtocolError as refusal:
            self._error(header, refusal)
        except Exception:
            self._error(header, ProtocolError(EIO, "internal error"))
            raise
        else:
            if isinstance(answer, bytes):
                self._reply(header, answer)
            else:
                self._stalled = answer, header
                self.resume()
                self._changed()
        finally:
            self._answering = self._stalled is not None
            self._send_queued()

    def resume(self) -> None:
        """Send the reply that waits, if it can be given now."""
        if self._stalled is None:
            return
        deferred, header = self._stalled
        try:
            answer = deferred.poll()
        except ProtocolError as refusal:
            self._stalled = None
            self._error(header, refusal)
        else:
            if answer is None:
                return
            self._stalled = None
            self._reply(header, answer)
        self._answering = False
        self._send_queued()
        self._changed()

    def _reply(self, header: tuple[int, int, int], body: bytes) -> None:
        message_id, command, flags = header
        if not flags & Flag.NO_REPLY:
            self._send(
                HEADER.pack(message_id, command, HEADER.size + len(body), Flag.REPLY, 0) + body
            )

    def _error(self, header: tuple[int, int, int], refusal: ProtocolError) -> None:
        message_id, command, flags = header
        if not flags & Flag.NO_REPLY:
            kind = Flag.REPLY | Flag.ERROR
            self._send(HEADER.pack(message_id, command, HEADER.size, kind, refusal.code))
        if refusal.fatal:
            self.close(str(refusal))

    def _refuse(self, header: tuple[int, ...], refusal: ProtocolError) -> None:
        """End the connection over a header behind which no next message can be found."""
        message_id, command, _, flags, _ = header
        if flags & TYPE != Flag.REPLY:
            self._error((message_id, command, flags), refusal)
        self.close(str(refusal))

    # Commands of ours.

    def command(self, command: int, body: bytes, on_reply: Callable[[int, bytes], None]) -> None:
        """Send a command; `on_reply` is called with the errno of the reply (0: none) and its body.

        It is not called if the connection ends first. Of a client that does not answer, a
        bounded number of commands is kept; further ones are dropped and counted.
        """
        if self.closed:
            return
        if len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
            return
        self._queue.append((command, body, on_reply))
        self._send_queued()

    def _send_queued(self) -> None:
        while self._queue and not self._answering and not self.closed:
            if len(self._outstanding) >= MAX_OUTSTANDING:
                return
            command, body, on_reply = self._queue.popleft()
            while self._next_id in self._outstanding:
                self._next_id = (self._next_id + 1) & 0xFFFF
            self._outstanding[self._next_id] = on_reply
            self._send(HEADER.pack(self._next_id, command, HEADER.size + len(body), 0, 0) + body)
            self._next_id = (self._next_id + 1) & 0xFFFF

    def _take_reply(self, message_id: int, flags: int, error: int, body: bytes) -> None:
        on_reply = self._outstanding.pop(message_id, None)
        if on_reply is None:
            self.close(f"a reply to message {message_id}, which was never sent")
            return
        if not flags & Flag.ERROR:
            error = 0
        elif not 0 < error <= _MAX_ERRNO:
            error = EIO
        on_reply(error, body)
        self._send_queued()

    # Sending.

    def _send(self, data: bytes) -> None:
        """Send now what can be sent now, and keep the rest."""
        sent = 0 if self._out else self._try_send(data)
        if sent < len(data) and not self.closed:
            self._out += data[sent:]
            self._changed()

    def flush(self) -> None:
        """Send what was kept, as much as can be sent now."""
        if self._out and not self.closed:
            del self._out[: self._try_send(self._out)]
            self._changed()

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as failure:
            self.close(os.strerror(failure.errno or EIO))
            return 0

    def close(self, reason: str = "closed") -> None:
        """End it: nothing more is sent or read, and no descriptor of the client stays open."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._stalled = None
        self._queue.clear()
        self._outstanding.clear()
        _close_all(self._fds)
        self._changed()
        self.sock.close()


def _close_all(fds: list[int]) -> None:
    """Close and forget descriptors."""
    while fds:
        os.close(fds.pop())
