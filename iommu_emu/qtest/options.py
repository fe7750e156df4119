"""QEMU's option strings: "first,name=value,…", sizes, switches, numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_ON = ("on", "yes", "true", "y")
_OFF = ("off", "no", "false", "n")
_SIZE = re.compile(r"(\d+)([kmgtb]?)i?b?", re.I)
_SHIFTS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}

__all__ = ["OptionError", "integer", "properties", "size", "switch"]


class OptionError(ValueError):
    """An option that cannot be taken; the message says why, without the option itself."""


def properties(text: str, first: str) -> dict[str, str]:
    """Parse an option's value; a comma in a value is written twice.

    A switch may come without a value: `server` is on, and `noserver` off.

    Args:
        text: the value, or an object in JSON.
        first: name of the first one, which may come without it.

    Raises:
        OptionError: if a name is missing or comes twice, or the JSON is wrong.
    """
    if text.startswith("{"):
        return _from_json(text)
    found: dict[str, str] = {}
    for index, part in enumerate(re.findall(r"((?:[^,]|,,)*)(?:,(?!,)|$)", text)):
        name, equals, value = part.replace(",,", ",").partition("=")
        if not equals:
            name, value = (first, name) if index == 0 else _bare_switch(name)
        if not part:
            continue
        if not name:
            raise OptionError(f"a name is missing before '={value}'")
        found[name] = value
    return found


def _bare_switch(name: str) -> tuple[str, str]:
    return (name[2:], "off") if name.startswith("no") else (name, "on")


def _from_json(text: str) -> dict[str, str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise OptionError("JSON parse error") from None
    if not all(isinstance(value, (str, int)) for value in values.values()):
        raise OptionError("values must be strings, numbers or booleans")
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: str | int) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def switch(name: str, value: str) -> bool:
    """Return whether a switch is on.

    Raises:
        OptionError: if it is neither on nor off.
    """
    if value in _ON:
        return True
    if value in _OFF:
        return False
    raise OptionError(f"Parameter '{name}' expects 'on' or 'off'")


def integer(name: str, value: str) -> int:
    """Parse a number: decimal, hexadecimal with 0x, or octal with 0.

    Raises:
        OptionError: if it is none, or does not fit in 64 bits.
    """
    try:
        number = int(value, 8 if re.fullmatch(r"0[0-7]+", value) else 0)
    except ValueError:
        raise OptionError(f"Parameter '{name}' expects integer") from None
    if not 0 <= number < 1 << 64:
        raise OptionError(f"Parameter '{name}' must be in 0..2**64-1, not {value}")
    return number


def size(name: str, value: str, unit: str) -> int:
    """Parse a size in bytes.

    Args:
        name: of the option, for the message.
        value: a number and a suffix, k, M, G or T.
        unit: the suffix where there is none.

    Raises:
        OptionError: if it is no size.
    """
    match = _SIZE.fullmatch(value)
    if match is None or len(value) > 20:
        raise OptionError(
            f"Parameter '{name}' expects a non-negative number below 2^64, with k, M, G or T"
        )
    return int(match[1]) << _SHIFTS[(match[2] or unit).lower()]


def refuse_unknown(found: Mapping[str, str], known: frozenset[str]) -> None:
    """Refuse what is not in `known`.

    Raises:
        OptionError: if there is any.
    """
    for name in found:
        if name not in known:
            raise OptionError(f"Invalid parameter '{name}'")
