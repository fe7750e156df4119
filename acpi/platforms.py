"""Built-in platforms: a table, and the PCI devices that make sense with it.

Each is a TOML file in the folder `built-in`: a table description as `description` reads it, and
a section

    [platform]
    title = "One line"
    description = "Several lines"
    devices = [
        { bdf = "00:07.0", kind = "root-port", secondary = 1, subordinate = 4, name = "TBT0" },
    ]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from iommu_emu.acpi.description import from_dict, load_toml
from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.table import AnyTable
from iommu_emu.acpi.text import parse_bdf

KINDS = ("endpoint", "root-port", "pci-bridge")


@dataclass(frozen=True)
class Device:
    """A PCI function of a platform.

    Attributes:
        bdf: 16-bit requester ID: bus 15:8, device 7:3, function 2:0.
        kind: `endpoint`, `root-port`, or `pci-bridge` (PCI Express to conventional PCI).
        name: For people.
        secondary: Bus right below a root port or bridge; None for an endpoint.
        subordinate: Highest bus below it; None for an endpoint.
        external_facing: Whether its port can be reached from outside the case.
    """

    bdf: int
    kind: str
    name: str = ""
    secondary: int | None = None
    subordinate: int | None = None
    external_facing: bool = False


@dataclass(frozen=True)
class Platform:
    """A built-in platform.

    Attributes:
        name: What `load` takes.
        title: One line for lists.
        description: A paragraph.
        table: DMAR or IVRS.
        devices: Bridges before what is behind them.
    """

    name: str
    title: str
    description: str
    table: AnyTable
    devices: list[Device] = field(default_factory=list)


def names() -> list[str]:
    """Return the names of the built-in platforms, sorted."""
    suffix = ".toml"
    entries = [entry.name for entry in _folder().iterdir()]
    return sorted(name[: -len(suffix)] for name in entries if name.endswith(suffix))


def load(name: str) -> Platform:
    """Load a built-in platform.

    Raises:
        AcpiError: There is none of that name.
    """
    if name not in names():
        raise AcpiError(f"no built-in platform {name!r}; there are {', '.join(names())}")
    return read(name, (_folder() / f"{name}.toml").read_text(encoding="utf-8"))


def read(name: str, text: str) -> Platform:
    """Read the description of a platform; without a `platform` section it has no devices.

    Raises:
        AcpiError: The description cannot be understood.
    """
    keys = load_toml(text)
    table = from_dict(keys)
    try:
        section = dict(keys.get("platform", {}))
        devices = [_device(item) for item in section.pop("devices", [])]
        title, description = section.pop("title", name), section.pop("description", "")
    except (TypeError, ValueError, KeyError) as error:
        raise AcpiError(f"platform: {error}") from error
    if section:
        raise AcpiError(f"platform: unknown key {next(iter(section))!r}")
    return Platform(name, str(title), str(description).strip(), table, devices)


def _folder() -> Any:
    return files("iommu_emu.acpi") / "built-in"


def _device(item: Any) -> Device:
    device = Device(**{**item, "bdf": parse_bdf(item["bdf"])})
    if device.kind not in KINDS:
        raise ValueError(f"device kind {device.kind!r} is none of {', '.join(KINDS)}")
    if (device.kind == "endpoint") != (device.secondary is None):
        raise ValueError(f"{item['bdf']}: bridges, and only they, have a secondary bus")
    return device
