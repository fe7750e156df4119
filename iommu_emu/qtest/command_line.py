"""The part of QEMU's command line that its test-suite uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iommu_emu.qtest import options
from iommu_emu.qtest.options import OptionError

MACHINES = ("pc-q35-11.1", "none")
ALIASES = {"q35": "pc-q35-11.1"}
DEFAULT_MEMORY = 128 << 20
MAX_MEMORY = 256 << 30
MIB = 1 << 20
SECOND = 1_000_000_000  # ns
MAX_RECORD_SECONDS = 1_000_000_000

# What does not matter without a CPU, firmware or the devices that it configures.
_IGNORED_MACHINE_OPTIONS = frozenset(
    {"acpi", "dump-guest-core", "graphics", "hpet", "i8042", "kernel-irqchip", "mem-merge", "pic"}
) | {"pit", "sata", "smbus", "smm", "usb", "vmport"}

__all__ = ["Channel", "CommandLine", "UsageError", "parse"]


class UsageError(Exception):
    """The command line cannot be taken; the message is for people."""


@dataclass(frozen=True)
class Channel:
    """A character device: where a conversation takes place.

    Attributes:
        path: of a UNIX socket; None: standard input and output.
        server: whether we listen there, instead of connecting.
    """

    path: str | None
    server: bool = False


@dataclass
class CommandLine:
    """What was asked for.

    Attributes:
        machine: "pc-q35-11.1" or "none".
        memory: bytes of RAM.
        memory_below_4g: how much of it may be below 4 GiB.
        devices: each device's option as it was written, and its properties with "driver".
        qtest: where qtest commands come from.
        qtest_log: file for a log of the protocol; None: standard error; "none": nowhere.
        qmp: where monitor commands come from.
        stopped: whether the machine starts paused.
        default_vga: whether QEMU would have a VGA there.
        default_network: whether QEMU would have a network card there.
        exit_with_parent: whether to end when the parent process does.
        record: file that a recording of the run is written to; None: no recording.
        record_time: virtual time in ns after which the recording ends; None: with the run.
        answer: text to print instead of running anything.
    """

    machine: str = "pc-q35-11.1"
    memory: int = DEFAULT_MEMORY
    memory_below_4g: int = 4 << 30
    devices: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    qtest: Channel | None = None
    qtest_log: str | None = None
    qmp: list[Channel] = field(default_factory=list)
    stopped: bool = False
    default_vga: bool = True
    default_network: bool = True
    exit_with_parent: bool = False
    record: Path | None = None
    record_time: int | None = None
    answer: str | None = None


def parse(words: Sequence[str], version: str, help_text: str) -> CommandLine:
    """Parse a command line.

    Args:
        words: the arguments, without the program's name.
        version: what `-version` prints.
        help_text: what `-help` prints.

    Raises:
        UsageError: if an option is unknown, has no argument, or asks for what is not there.
    """
    return _Parser(version, help_text).parse(words)


class _Parser:
    """Collects options; character devices are resolved at the end, as QEMU does."""

    def __init__(self, version: str, help_text: str) -> None:
        self._result = CommandLine()
        self._chardevs: dict[str, Channel] = {}
        self._monitors: list[tuple[str, str]] = []  # option as written, chardev
        self._flags: dict[str, Callable[[], None]] = {
            "nodefaults": self._nodefaults,
            "no-user-config": lambda: None,
            "no-reboot": lambda: None,
            "no-shutdown": lambda: None,
            "nographic": lambda: None,
            "S": lambda: setattr(self._result, "stopped", True),
            "version": lambda: setattr(self._result, "answer", version),
            "h": lambda: setattr(self._result, "answer", help_text),
            "help": lambda: setattr(self._result, "answer", help_text),
        }
        self._options: dict[str, Callable[[str], None]] = {
            "machine": self._machine,
            "M": self._machine,
            "accel": self._accel,
            "cpu": lambda value: None,  # there is none
            "m": self._memory,
            "smp": self._smp,
            "net": self._network,
            "nic": self._network,
            "vga": self._vga,
            "display": lambda value: _only(value, "none"),
            "audio": lambda value: _only(value, "none"),
            "serial": lambda value: _only(value, "none"),
            "parallel": lambda value: _only(value, "none"),
            "monitor": lambda value: _only(value, "none"),
            "name": lambda value: None,
            "run-with": self._run_with,
            "device": self._device,
            "chardev": self._chardev,
            "mon": self._mon,
            "object": self._object,
            "qmp": self._qmp,
            "qtest": self._qtest,
            "qtest-log": lambda value: setattr(self._result, "qtest_log", value),
            "record": lambda value: setattr(self._result, "record", Path(value)),
            "record-seconds": self._record_seconds,
        }

    def parse(self, words: Sequence[str]) -> CommandLine:
        rest = list(words)
        while rest and self._result.answer is None:
            word = rest.pop(0)
            name = word[2:] if word.startswith("--") else word[1:]
            if not word.startswith("-"):
                raise UsageError(f"{word}: disk images are not supported")
            if name in self._flags:
                self._flags[name]()
            elif name not in self._options:
                raise UsageError(f"{word}: invalid option")
            elif not rest:
                raise UsageError(f"{word}: requires an argument")
            else:
                self._take(word, name, rest.pop(0))
        for written, chardev in self._monitors:
            if chardev not in self._chardevs:
                raise UsageError(f'{written}: chardev "{chardev}" not found')
            self._result.qmp.append(self._chardevs[chardev])
        self._check_channels()
        if self._result.record is not None and self._result.machine == "none":
            raise UsageError("-record: machine none has nothing to record")
        return self._result

    def _take(self, word: str, name: str, value: str) -> None:
        try:
            self._options[name](value)
        except OptionError as error:
            raise UsageError(f"{word} {value}: {error}") from None

    def _check_channels(self) -> None:
        channels = [*self._result.qmp, *filter(None, [self._result.qtest])]
        if sum(channel.path is None for channel in channels) > 1:
            raise UsageError("cannot use stdio by multiple character devices")

    # The machine.

    def _machine(self, value: str) -> None:
        found = options.properties(value, "type")
        name = found.pop("type", "q35")
        kind = ALIASES.get(name, name)
        if kind not in MACHINES:
            known = ", ".join([*ALIASES, *MACHINES])
            raise OptionError(f'unsupported machine type: "{name}"; there are {known}')
        if "accel" in found:
            self._accel(found.pop("accel"))
        if "max-ram-below-4g" in found:
            self._result.memory_below_4g = _whole_mib(
                "max-ram-below-4g", found.pop("max-ram-below-4g"), "b"
            )
        if found.get("default-bus-bypass-iommu") == "off":
            del found["default-bus-bypass-iommu"]
        options.refuse_unknown(found, _IGNORED_MACHINE_OPTIONS)
        self._result.machine = kind

    def _accel(self, value: str) -> None:
        found = options.properties(value, "accel")
        if found.get("accel") != "qtest":
            raise OptionError("there is no CPU: the accelerator must be qtest")

    def _memory(self, value: str) -> None:
        found = options.properties(value, "size")
        options.refuse_unknown(found, frozenset({"size"}))
        self._result.memory = _whole_mib("size", found.get("size", "0"), "m") or DEFAULT_MEMORY

    def _smp(self, value: str) -> None:
        for name, number in options.properties(value, "cpus").items():
            if not options.integer(name, number):
                raise OptionError("CPU topology parameters must be greater than zero")

    def _nodefaults(self) -> None:
        self._result.default_vga = self._result.default_network = False

    def _network(self, value: str) -> None:
        _only(value, "none")
        self._result.default_network = False

    def _vga(self, value: str) -> None:
        _only(value, "none")
        self._result.default_vga = False

    def _device(self, value: str) -> None:
        found = options.properties(value, "driver")
        if "driver" not in found:
            raise OptionError("Parameter 'driver' is missing")
        self._result.devices.append((f"-device {value}", found))

    def _run_with(self, value: str) -> None:
        found = options.properties(value, "exit-with-parent")
        options.refuse_unknown(found, frozenset({"exit-with-parent"}))
        for name, text in found.items():
            self._result.exit_with_parent = options.switch(name, text)

    def _record_seconds(self, value: str) -> None:
        seconds = options.integer("record-seconds", value)
        if not 1 <= seconds <= MAX_RECORD_SECONDS:
            raise OptionError(f"must be 1..{MAX_RECORD_SECONDS}")
        self._result.record_time = seconds * SECOND

    # Conversations.

    def _qtest(self, value: str) -> None:
        self._result.qtest = _channel(value)

    def _qmp(self, value: str) -> None:
        self._result.qmp.append(_channel(value))

    def _chardev(self, value: str) -> None:
        found = options.properties(value, "backend")
        name = found.pop("id", None)
        if name is None:
            raise OptionError("chardev: no id specified")
        if name in self._chardevs:
            raise OptionError(f"Duplicate ID '{name}' for chardev")
        self._chardevs[name] = _backend(found)

    def _mon(self, value: str) -> None:
        found = options.properties(value, "chardev")
        options.refuse_unknown(found, frozenset({"chardev", "mode", "pretty", "id"}))
        if found.get("mode") != "control":
            raise OptionError("only mode=control is supported: there is no human monitor")
        self._monitors.append((f"-mon {value}", found.get("chardev", "")))

    def _object(self, value: str) -> None:
        found = options.properties(value, "qom-type")
        if found.pop("qom-type", None) != "monitor-qmp":
            raise OptionError("only objects of type monitor-qmp are supported")
        options.refuse_unknown(found, frozenset({"id", "chardev", "pretty"}))
        self._monitors.append((f"-object {value}", found.get("chardev", "")))


def _whole_mib(name: str, value: str, unit: str) -> int:
    size = options.size(name, value, unit)
    if size % MIB or size > MAX_MEMORY:
        raise OptionError(f"{name} must be a multiple of 1M up to {MAX_MEMORY >> 30}G")
    return size


def _only(value: str, allowed: str) -> None:
    if value != allowed:
        raise OptionError(f"only '{allowed}' is supported")


def _channel(value: str) -> Channel:
    """Parse the short form: "unix:PATH,…" or "stdio"."""
    kind, colon, rest = value.partition(":")
    if kind == "unix" and colon:
        return _backend({"backend": "socket", **options.properties(rest, "path")})
    return _backend(options.properties(value, "backend"))


def _backend(found: dict[str, str]) -> Channel:
    kind = found.pop("backend", "")
    if kind == "stdio":
        options.refuse_unknown(found, frozenset())
        return Channel(None)
    if kind != "socket" or not found.get("path"):
        raise OptionError("only UNIX sockets (unix:PATH) and stdio are supported")
    options.refuse_unknown(found, frozenset({"path", "server", "wait", "reconnect-ms"}))
    for name in ("server", "wait"):
        found[name] = "on" if found.get(name) == "" else found.get(name, "off")
        options.switch(name, found[name])
    return Channel(found["path"], options.switch("server", found["server"]))
