"""The monitor's commands: what libqtest, libqos and a curious person ask a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from iommu_emu.pci.function import Function
from iommu_emu.qtest.catalogue import DRIVERS, ROOT_BUS, Catalogue, Made
from iommu_emu.qtest.command_line import ALIASES, MACHINES
from iommu_emu.qtest.q35 import Q35
from iommu_emu.qtest.qmp import Command, QmpError

PERIPHERAL = "/machine/peripheral"
ANONYMOUS = "/machine/peripheral-anon"
_PARENTS = {
    "accel": [("qtest-accel", "accel")],
    "machine": [(f"{name}-machine", "machine") for name in MACHINES],
    "x86-iommu": [("intel-iommu", "x86-iommu"), ("amd-iommu", "x86-iommu")],
    "pci-device": [
        (name, "pci-device")
        for name in ("edu", "iommu-testdev", "pcie-root-port", "pcie-pci-bridge")
    ],
}
_PARENTS["device"] = _PARENTS["x86-iommu"] + _PARENTS["pci-device"]
_CLASS_NAMES = {
    0x0106: "SATA controller",
    0x0600: "Host bridge",
    0x0601: "ISA bridge",
    0x0C05: "SMBus",
}

__all__ = ["Monitor"]


class Monitor:
    """State of the run, and the commands that read or change it.

    Args:
        kind: the machine's name.
        board: the machine; None with `-machine none`.
        catalogue: its devices.
        version: what query-version answers.
        stopped: whether the machine starts paused.
        emit: sends an event to every client.

    Attributes:
        running: whether time passes.
        quitting: whether a client has asked for the end.
        commands: the commands by name.
    """

    def __init__(
        self,
        kind: str,
        board: Q35 | None,
        catalogue: Catalogue,
        version: Mapping[str, object],
        stopped: bool,
        emit: Callable[[str, Mapping[str, object] | None], None],
    ) -> None:
        self._kind = kind
        self._board = board
        self._catalogue = catalogue
        self._version = version
        self._emit = emit
        self.running = not stopped
        self._status = "prelaunch" if stopped else "running"
        self.quitting = False
        self.commands: dict[str, Command] = {
            "query-version": lambda: dict(version),
            "query-status": self._query_status,
            "query-name": _query_name,
            "human-monitor-command": _human_monitor_command,
            "query-machines": _query_machines,
            "query-commands": lambda: [{"name": name} for name in self.commands],
            "query-pci": self._query_pci,
            "qom-list-types": _qom_list_types,
            "qom-list": self._qom_list,
            "qom-get": self._qom_get,
            "device_add": self._device_add,
            "device_del": self._device_del,
            "system_reset": self._system_reset,
            "stop": self._stop,
            "cont": self._cont,
            "quit": self._quit,
        }
        if board is not None:
            board.ports.on_reset = self._guest_reset

    # The run.

    def _query_status(self) -> object:
        return {"status": self._status, "running": self.running}

    def _system_reset(self) -> object:
        if self._board is not None:
            self._board.reset()
        self._emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
        return {}

    def _guest_reset(self) -> None:
        assert self._board is not None
        self._board.reset()
        self._emit("RESET", {"guest": True, "reason": "guest-reset"})

    def _stop(self) -> object:
        if self.running:
            self.running, self._status = False, "paused"
            self._emit("STOP", None)
        return {}

    def _cont(self) -> object:
        if not self.running:
            self.running, self._status = True, "running"
            self._emit("RESUME", None)
        return {}

    def _quit(self) -> object:
        self.shut_down("host-qmp-quit")
        return {}

    def shut_down(self, reason: str) -> None:
        """End the run, and tell every client why."""
        if not self.quitting:
            self.quitting = True
            self._emit("SHUTDOWN", {"guest": False, "reason": reason})

    # Devices. The root bus of a q35 takes no hot-plug, and our ports here have no slots.

    def _device_add(self, driver: str, id: str = "", bus: str = "", addr: str = "") -> object:
        if driver not in DRIVERS:
            raise QmpError(f"'{driver}' is not a valid device model name")
        raise QmpError(f"Bus '{bus or ROOT_BUS}' does not support hotplugging")

    def _device_del(self, id: str) -> object:
        if not any(made.name == id for made in self._catalogue.made):
            raise QmpError(f"Device '{id}' not found", "DeviceNotFound")
        raise QmpError(f"Bus '{ROOT_BUS}' does not support hotplugging")

    def _query_pci(self) -> object:
        if self._board is None:
            return []
        devices = [self._pci_info(function) for function in self._board.functions()]
        return [{"bus": 0, "devices": devices}]

    def _pci_info(self, function: Function) -> object:
        config = function.config
        kind = config.get(0x0A, 2)
        names = [made.name for made in self._catalogue.made if made.what is function]
        return {
            "bus": 0,
            "slot": function.devfn >> 3,
            "function": function.devfn & 7,
            "class_info": {"class": kind}
            | ({"desc": _CLASS_NAMES[kind]} if kind in _CLASS_NAMES else {}),
            "id": {
                "vendor": config.get(0x00, 2),
                "device": config.get(0x02, 2),
                "subsystem-vendor": config.get(0x2C, 2),
                "subsystem": config.get(0x2E, 2),
            },
            "irq_pin": config.get(0x3D, 1),
            "qdev_id": names[0] or "" if names else "",
            "regions": [
                {
                    "bar": bar.index,
                    "type": "memory",
                    "address": function.decoded_bars().get(index, -1),
                    "size": bar.size,
                    "prefetch": bar.prefetchable,
                    "mem_type_64": bar.wide,
                }
                for index, bar in function.bars.items()
            ],
        }

    # Objects.

    def _objects(self) -> Iterator[tuple[str, Made]]:
        """Yield every device with its path."""
        anonymous = 0
        for made in self._catalogue.made:
            if made.name is not None:
                yield f"{PERIPHERAL}/{made.name}", made
            else:
                yield f"{ANONYMOUS}/device[{anonymous}]", made
                anonymous += 1

    def _properties(self, path: str) -> dict[str, tuple[str, object]]:
        """Return type and value of each property of an object, by name.

        Raises:
            QmpError: if there is no such object.
        """
        objects = dict(self._objects())
        children = {at: (f"child<{made.driver}>", at) for at, made in objects.items()}
        containers = {
            "/": ("container", ["/machine"]),
            "/machine": (f"{self._kind}-machine", [PERIPHERAL, ANONYMOUS]),
            PERIPHERAL: ("container", [at for at in objects if at.startswith(f"{PERIPHERAL}/")]),
            ANONYMOUS: ("container", [at for at in objects if at.startswith(f"{ANONYMOUS}/")]),
        }
        if path in containers:
            kind, below = containers[path]
            rows: dict[str, tuple[str, object]] = {"type": ("string", kind)}
            for at in below:
                inner = containers[at][0] if at in containers else ""
                rows[at.rsplit("/", 1)[1]] = children.get(at, (f"child<{inner}>", at))
            return rows
        for at, made in objects.items():
            if path in (at, made.name):
                return _device_properties(made)
        raise QmpError(f"Device '{path}' not found", "DeviceNotFound")

    def _qom_list(self, path: str) -> object:
        rows = self._properties(path)
        return [{"name": name, "type": kind} for name, (kind, _) in rows.items()]

    def _qom_get(self, path: str, property: str) -> object:
        rows = self._properties(path)
        if property not in rows:
            raise QmpError(f"Property '{rows['type'][1]}.{property}' not found")
        return rows[property][1]


def _device_properties(made: Made) -> dict[str, tuple[str, object]]:
    rows: dict[str, tuple[str, object]] = {
        "type": ("string", made.driver),
        "realized": ("bool", True),
        "hotplugged": ("bool", False),
    }
    for name, value in made.properties.items():
        if name not in ("driver", "id"):
            rows[name] = ("str", value)
    if isinstance(made.what, Function):
        rows["addr"] = ("str", made.what.devfn)  # a number, whatever the type says: as in QEMU
    return rows


def _query_name() -> object:
    return {}  # it has none


def _human_monitor_command(command_line: str) -> object:
    return f"unknown command: '{command_line}'\r\n"  # there is no human monitor


def _query_machines() -> object:
    aliases = {name: alias for alias, name in ALIASES.items()}
    return [
        {
            "name": name,
            "cpu-max": 1,
            "hotpluggable-cpus": False,
            "numa-mem-supported": False,
            "deprecated": False,
            "acpi": False,
        }
        | ({"alias": aliases[name]} if name in aliases else {})
        for name in MACHINES
    ]


def _qom_list_types(implements: str = "object", abstract: bool = False) -> object:
    if implements == "object":
        found = {row for rows in _PARENTS.values() for row in rows}
        return [{"name": name, "parent": parent} for name, parent in sorted(found)]
    return [{"name": name, "parent": parent} for name, parent in _PARENTS.get(implements, [])]
