"""QEMU's monitor protocol (QMP): one conversation of JSON commands, replies and events."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from iommu_emu.qtest.json_stream import JsonError, JsonStream

_KEYS = frozenset({"execute", "arguments", "id"})
Command = Callable[..., object]

__all__ = ["Command", "QmpError", "QmpSession"]


class QmpError(Exception):
    """A command failed; the reply says so.

    Args:
        description: for people.
        kind: QMP's error class.
    """

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.kind = kind


class QmpSession:
    """The monitor's side of a conversation; it starts with a greeting and capabilities.

    Args:
        commands: what to call for each command; its parameters, annotated with a built-in type,
            are the arguments, with "_" for "-". It returns the reply's content, or raises
            `QmpError`.
        version: content of the greeting's "version".
        send: takes text for the client.
    """

    def __init__(
        self,
        commands: Mapping[str, Command],
        version: Mapping[str, object],
        send: Callable[[str], None],
    ) -> None:
        self._commands = commands
        self._send_text = send
        self._stream = JsonStream()
        self._ready = False
        self._send({"QMP": {"version": dict(version), "capabilities": []}})

    def receive(self, data: bytes) -> None:
        """Take bytes from the client and answer the commands that they complete."""
        for value in self._stream.feed(data):
            self._answer(value)

    def event(self, name: str, data: Mapping[str, object] | None = None) -> None:
        """Send an event, if the client has got through the greeting."""
        if not self._ready:
            return
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        event: dict[str, object] = {
            "timestamp": {"seconds": seconds, "microseconds": microseconds},
            "event": name,
        }
        if data is not None:
            event["data"] = dict(data)
        self._send(event)

    def _send(self, value: object) -> None:
        self._send_text(json.dumps(value) + "\r\n")

    def _answer(self, value: object) -> None:
        reply: dict[str, object]
        try:
            reply = {"return": self._execute(value)}
        except QmpError as error:
            reply = {"error": {"class": error.kind, "desc": str(error)}}
        if isinstance(value, dict) and "id" in value:
            reply["id"] = value["id"]
        self._send(reply)

    def _execute(self, value: object) -> object:
        if isinstance(value, JsonError):
            raise QmpError(str(value))
        if not isinstance(value, dict):
            raise QmpError("QMP input must be a JSON object")
        for key in value:
            if key not in _KEYS:
                raise QmpError(f"QMP input member '{key}' is unexpected")
        name, arguments = value.get("execute"), value.get("arguments", {})
        if "execute" not in value:
            raise QmpError("QMP input lacks member 'execute'")
        if not isinstance(name, str):
            raise QmpError("QMP input member 'execute' must be a string")
        if not isinstance(arguments, dict):
            raise QmpError("QMP input member 'arguments' must be an object")
        if name == "qmp_capabilities" and not self._ready:
            return self._negotiate(arguments)
        if not self._ready:
            raise QmpError(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        if name not in self._commands:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        return _call(self._commands[name], arguments)

    def _negotiate(self, arguments: dict[str, Any]) -> object:
        enable = arguments.pop("enable", [])
        for name in arguments:
            raise QmpError(f"Parameter '{name}' is unexpected")
        if not isinstance(enable, list):
            raise QmpError("Invalid parameter type for 'enable', expected: array")
        if enable:
            raise QmpError(f"Capability '{enable[0]}' not available")
        self._ready = True
        return {}


def _call(command: Command, arguments: dict[str, Any]) -> object:
    """Call a command after comparing the arguments with its parameters."""
    parameters = inspect.signature(command).parameters
    given = {name.replace("-", "_"): value for name, value in arguments.items()}
    for name in arguments:
        if name.replace("-", "_") not in parameters:
            raise QmpError(f"Parameter '{name}' is unexpected")
    for name, parameter in parameters.items():
        shown = name.replace("_", "-")
        if name not in given:
            if parameter.default is parameter.empty:
                raise QmpError(f"Parameter '{shown}' is missing")
        elif type(given[name]).__name__ != parameter.annotation:
            raise QmpError(
                f"Invalid parameter type for '{shown}', expected: {parameter.annotation}"
            )
    return command(**given)
