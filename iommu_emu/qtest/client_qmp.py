"""A client of QEMU's machine protocol (QMP): commands, their results, and events."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from iommu_emu.qtest.client import DEFAULT_TIMEOUT, DisconnectedError, QtestError

MAX_MESSAGE = 16 << 20  # bytes of one message
_RECEIVE = 1 << 16

__all__ = ["QmpClient"]


class QmpClient:
    """A connection to a QMP server, past its greeting and capability negotiation.

    Attributes:
        version: the server's "qemu" version, (major, minor, micro).
        events: every event that has arrived and that nobody waited for, oldest first.

    Args:
        connection: a connected stream socket; closed by `close`.
        timeout: s to wait for a message before `QtestError`.
        wait: waits until a socket is readable, for some s at most, and tells whether it is; for
            who has to serve QEMU's devices meanwhile.

    Raises:
        QtestError: if what is at the other end does not greet like a QMP server.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        wait: Callable[[socket.socket, float], bool] | None = None,
    ) -> None:
        self._socket = connection
        self._timeout = timeout
        self._wait = wait or _wait_readable
        self._received = bytearray()
        self.events: list[dict[str, Any]] = []
        greeting = self._message(time.monotonic() + timeout)
        try:
            version = greeting["QMP"]["version"]["qemu"]
            self.version = (version["major"], version["minor"], version["micro"])
        except (KeyError, TypeError):
            raise QtestError(f"not the greeting of a QMP server: {greeting}") from None
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Do a command and return its result.

        Args:
            command: name, such as "query-status".
            arguments: its arguments; "_" in a name stands for "-".

        Raises:
            QtestError: if the server refuses it, or does not answer.
            DisconnectedError: if the server is gone.
        """
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): arguments[key] for key in arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise DisconnectedError(f"the QMP server is gone: {error}") from error
        deadline = time.monotonic() + self._timeout
        while True:
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QtestError(f"{command}: {message['error'].get('desc', message['error'])}")
            self.events.append(message)

    def wait_event(self, name: str) -> dict[str, Any]:
        """Return the oldest event of a name, waiting for it if it is not there yet.

        Raises:
            QtestError: if it does not come in time.
            DisconnectedError: if the server is gone.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            for event in self.events:
                if event.get("event") == name:
                    self.events.remove(event)
                    return event
            self.events.append(self._message(deadline))

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            if not self._wait(self._socket, deadline - time.monotonic()):
                raise QtestError(f"no QMP message in {self._timeout:g} s")
            try:
                data = self._socket.recv(_RECEIVE)
            except OSError as error:
                raise DisconnectedError(f"the QMP server is gone: {error}") from error
            if not data:
                raise DisconnectedError("the QMP server closed the connection")
            self._received += data
            if len(self._received) > MAX_MESSAGE:
                raise QtestError(f"a QMP message of more than {MAX_MESSAGE >> 20} MiB")
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        try:
            message = json.loads(line)
        except ValueError:
            raise QtestError(f"not JSON from the QMP server: {bytes(line[:80])!r}") from None
        if not isinstance(message, dict):
            raise QtestError(f"not a QMP message: {bytes(line[:80])!r}")
        return message


def _wait_readable(connection: socket.socket, seconds: float) -> bool:
    """Wait until a socket is readable; False if it is not in time."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(max(1, seconds * 1000)))
