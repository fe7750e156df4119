"""Cuts a stream of JSON into values, as QEMU's monitor does: no framing, errors are survived."""

from __future__ import annotations

import json
from collections.abc import Iterator

LIMIT = 1 << 20  # bytes of one value
MAX_DEPTH = 64
_OPEN, _CLOSE, _BLANK = b"{[", b"}]", b" \t\r\n"
_ESCAPED_QUOTE = {ord("'"): b"'", ord('"'): b'\\"'}

__all__ = ["JsonError", "JsonStream"]


class JsonError(ValueError):
    """What came is no JSON; what follows may be again."""


class JsonStream:
    """Takes bytes as they arrive and gives values as they are complete.

    Strings may be quoted with ' as well as ". After an error, everything is skipped until an
    opening brace or a control character.
    """

    def __init__(self) -> None:
        self._skipping = False
        self._clear()

    def _clear(self) -> None:
        self._text = bytearray()  # of the value under way, with strings quoted by "
        self._depth = 0
        self._quote: int | None = None
        self._escaped = False

    def feed(self, data: bytes) -> Iterator[object]:
        """Yield values, and a `JsonError` for each that is none."""
        for byte in data:
            if self._skipping:
                if byte != ord("{") and not (byte < 0x20 and byte != ord("\t")):
                    continue
                self._skipping = False
            try:
                complete = self._take(byte)
                if complete:
                    text = bytes(self._text)
                    self._clear()
                    yield _parse(text)
            except JsonError as error:
                self._clear()
                self._skipping = True
                yield error

    def _take(self, byte: int) -> bool:
        """Take one byte; whether a value is complete."""
        if byte in (0xFE, 0xFF) or (byte < 0x20 and (self._quote or byte not in _BLANK)):
            raise JsonError(f"JSON parse error, stray {byte:#04x}")
        if len(self._text) >= LIMIT:
            raise JsonError("JSON parse error, value too long")
        if self._quote is not None:
            self._in_string(byte)
            return False
        if byte in b"'\"":
            self._quote = byte
            self._text += b'"'
            return False
        if self._depth == 0 and (byte in _BLANK or byte in _OPEN):
            if self._text and byte in _OPEN:
                raise JsonError("JSON parse error, missing blank")
            if byte in _BLANK:
                return bool(self._text)
        return self._structure(byte)

    def _structure(self, byte: int) -> bool:
        self._text.append(byte)
        if byte in _OPEN:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise JsonError("JSON parse error, nested too deep")
        elif byte in _CLOSE:
            self._depth -= 1
            if self._depth < 0:
                raise JsonError("JSON parse error, stray closing brace")
            return self._depth == 0
        elif not (chr(byte).isalnum() or byte in b",:+-. \t\r\n"):
            raise JsonError(f"JSON parse error, stray {chr(byte)!r}")
        return False

    def _in_string(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
            self._text += _ESCAPED_QUOTE.get(byte, b"\\" + bytes([byte]))
        elif byte == ord("\\"):
            self._escaped = True
        elif byte == self._quote:
            self._quote = None
            self._text += b'"'
        else:
            self._text += _ESCAPED_QUOTE.get(byte, bytes([byte]))


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _parse(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise JsonError("JSON parse error") from None
