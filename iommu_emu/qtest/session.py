"""A qtest client's conversation: lines out of bytes, the protocol, and its log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from iommu_emu.qtest.connection import Connection
from iommu_emu.qtest.protocol import LONGEST_LINE, Protocol

TURN = 0.01  # s that a client's lines are answered for before anybody else has a turn

__all__ = ["Log", "QtestSession"]


class Log:
    """The protocol as a text file, in the form of QEMU's `-qtest-log`.

    Args:
        path: where to; None: standard error; "none": nowhere.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self._file: TextIO | None = None
        self._start = time.monotonic()
        if path is None:
            self._file = sys.stderr
        elif path not in ("none", "/dev/null"):
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, mark: str, text: str) -> None:
        """Write a line: mark R for what was received, S for what was sent, I for anything else."""
        if self._file is not None:
            elapsed = time.monotonic() - self._start
            print(f"[{mark} +{elapsed:.6f}] {text}", file=self._file, flush=True)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None and self._file is not sys.stderr:
            self._file.close()


class QtestSession:
    """Answers one qtest client.

    Args:
        protocol: carries the commands out.
        connection: where the client is.
        log: what was said.
    """

    def __init__(self, protocol: Protocol, connection: Connection, log: Log) -> None:
        self._protocol = protocol
        self._connection = connection
        self._log = log
        self._input = bytearray()
        self._searched = 0
        self._overlong = False
        log.write("I", "OPENED")

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._input += data
        self.proceed()

    @property
    def behind(self) -> bool:
        """Whether there is a line that can be answered now."""
        ready = self._connection.open and not self._connection.full
        return ready and b"\n" in self._input

    def proceed(self) -> None:
        """Answer complete lines, until the client must read first or others have their turn."""
        turn_ends = time.monotonic() + TURN
        while self._connection.open and not self._connection.full:
            end = self._input.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._input)
                if len(self._input) > LONGEST_LINE:
                    self._overlong = True  # the rest of the line is dropped as it comes
                    self._input.clear()
                    self._searched = 0
                return
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            self._searched = 0
            self._answer(line)
            if time.monotonic() > turn_ends:
                return

    def _answer(self, line: bytes) -> None:
        if self._overlong:
            self._overlong = False
            self._send(f"FAIL a line must be at most {LONGEST_LINE} bytes long")
            return
        text = line.decode("ascii", "replace")
        self._log.write("R", text)
        for reply in self._protocol.answer(text):
            self._send(reply)

    def _send(self, reply: str) -> None:
        self._log.write("S", reply)
        self._connection.send(reply + "\n")

    def close(self) -> None:
        """Note the end in the log."""
        self._log.write("I", "CLOSED")
