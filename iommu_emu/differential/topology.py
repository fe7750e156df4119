"""The devices of a run: the same at the same places in QEMU and here.

Requester IDs come from the places: a root port passes its devices' IDs on, the bridge from PCI
Express to PCI replaces them by (its secondary bus, 00.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

__all__ = ["BRIDGED", "SMALL", "Place", "Topology"]


@dataclass(frozen=True)
class Place:
    """One function.

    Attributes:
        name: what programs call it.
        model: QEMU's name of the device.
        devfn: device << 3 | function on its bus.
        under: the bridge above; None: the root bus.
        bar: address of BAR 0 in QEMU, 0 if it is not used.
        secondary: of a bridge: number of the bus right below.
        subordinate: of a bridge: highest bus number below.
        window: of a bridge: first and last address that it passes down in QEMU.
        requester: its requester ID before anything is renumbered; of a bridge 0.
    """

    name: str
    model: str
    devfn: int
    under: str | None = None
    bar: int = 0
    secondary: int = 0
    subordinate: int = 0
    window: tuple[int, int] = (0, 0)
    requester: int = 0


@dataclass(frozen=True)
class Topology:
    """Functions, bridges before what is below them."""

    places: tuple[Place, ...]

    @cached_property
    def bridges(self) -> dict[str, Place]:
        """The bridges by name."""
        return {place.name: place for place in self.places if place.secondary}

    @cached_property
    def devices(self) -> dict[str, Place]:
        """The devices by name."""
        return {place.name: place for place in self.places if not place.secondary}

    @cached_property
    def testdevs(self) -> tuple[str, ...]:
        """Names of the iommu-testdevs."""
        return tuple(n for n, place in self.devices.items() if place.model == "iommu-testdev")

    @cached_property
    def edus(self) -> tuple[str, ...]:
        """Names of the edus."""
        return tuple(name for name, place in self.devices.items() if place.model == "edu")

    def bus(self, place: Place) -> int:
        """Return the number of the bus that a function is on, before anything is renumbered."""
        return 0 if place.under is None else self.bridges[place.under].secondary

    def qemu_arguments(self) -> list[str]:
        """Return the options of QEMU's command line that make these devices."""
        arguments = []
        for place in self.places:
            device, function = place.devfn >> 3, place.devfn & 7
            options = [place.model, f"addr={device:#x}.{function}", f"bus={_bus(place.under)}"]
            if function == 0 and self._shares_device(place):
                options.append("multifunction=on")
            if place.model == "pcie-root-port":
                options.append(f"chassis={device},slot={device}")
            if place.secondary:
                options.append(f"id={_bus(place.name)}")
            if place.model == "edu":
                options.append(f"dma_mask={(1 << 64) - 1:#x}")
            arguments += ["-device", ",".join(options)]
        return arguments

    def _shares_device(self, place: Place) -> bool:
        return any(
            other is not place and other.under == place.under and (other.devfn ^ place.devfn) < 8
            for other in self.places
        )


def _bus(bridge: str | None) -> str:
    """Return what QEMU calls the bus below a bridge, which is the bridge's own name there."""
    return "pcie.0" if bridge is None else f"below-{bridge}"


def _place(name: str, model: str, device: int, function: int = 0, **more: Any) -> Place:
    return Place(name, model, device << 3 | function, **more)


_ROOT_BUS = (
    _place("a", "iommu-testdev", 3, bar=0xE000_0000, requester=0x0018),
    _place("edu", "edu", 5, bar=0xE010_0000, requester=0x0028),
    _place(
        "port",
        "pcie-root-port",
        6,
        secondary=1,
        subordinate=1,
        window=(0xE020_0000, 0xE03F_FFFF),
    ),
    _place("b", "iommu-testdev", 0, under="port", bar=0xE020_0000, requester=0x0100),
)

SMALL = Topology(_ROOT_BUS)
"""Two iommu-testdevs, one of them below a root port, and an edu."""

BRIDGED = Topology(
    (
        *_ROOT_BUS,
        _place("edu2", "edu", 0, 1, under="port", bar=0xE030_0000, requester=0x0101),
        _place(
            "port2",
            "pcie-root-port",
            7,
            secondary=2,
            subordinate=3,
            window=(0xE040_0000, 0xE04F_FFFF),
        ),
        _place(
            "bridge",
            "pcie-pci-bridge",
            0,
            under="port2",
            secondary=3,
            subordinate=3,
            window=(0xE040_0000, 0xE04F_FFFF),
        ),
        _place("c", "iommu-testdev", 4, under="bridge", bar=0xE040_0000, requester=0x0300),
    )
)
"""More functions below the root port, and one behind a bridge that takes over its requests.

Switching translation costs QEMU several times what it costs with `SMALL`.
"""
