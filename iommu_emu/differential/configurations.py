"""The configurations that are compared: QEMU's options, and our unit of the same capabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from iommu_emu.differential.adapter import Adapter
from iommu_emu.differential.topology import BRIDGED, SMALL, Topology
from iommu_emu.differential.vtd import ADAPTER
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.presets import preset
from iommu_emu.vtd.unit import VtdConfig

__all__ = ["CONFIGURATIONS", "Configuration", "configuration"]


@dataclass(frozen=True)
class Configuration:
    """One unit on both sides.

    Attributes:
        name: what to ask for.
        description: one line for people.
        options: of QEMU's `-device intel-iommu`.
        preset: the preset of our unit.
        changes: capabilities that differ from the preset's, by name.
        host_address_width: bits of a physical address.
        topology: the devices.
        adapter: of this kind of unit.
    """

    name: str
    description: str
    options: str
    preset: str = "qemu-q35"
    changes: tuple[tuple[str, Any], ...] = ()
    host_address_width: int = 48
    topology: Topology = SMALL
    adapter: Adapter = ADAPTER

    @property
    def device(self) -> str:
        """Value of QEMU's option -device for the unit."""
        return f"intel-iommu,{self.options}"

    def unit(self) -> VtdConfig:
        """Return the configuration of our unit."""
        capabilities = replace(
            preset(self.preset, ADAPTER.window).capabilities, **dict(self.changes)
        )
        return preset(
            self.preset,
            ADAPTER.window,
            capabilities=capabilities,
            host_address_width=self.host_address_width,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the unit reports."""
        return self.unit().capabilities


CONFIGURATIONS = {
    each.name: each
    for each in (
        Configuration("q35", "48 bits, pass-through, interrupt remapping", "intremap=on,eim=on"),
        Configuration(
            "caching-mode",
            "the same with caching mode",
            "intremap=on,eim=on,caching-mode=on",
            preset="qemu-q35-caching-mode",
        ),
        Configuration(
            "39-bit",
            "39 bits: page tables of 3 levels only",
            "intremap=on,eim=on,aw-bits=39",
            changes=(("levels", frozenset({3})), ("guest_address_width", 39)),
            host_address_width=39,
        ),
        Configuration(
            "no-interrupts",
            "without interrupt remapping",
            "intremap=off",
            changes=(
                ("interrupt_remapping", False),
                ("extended_interrupts", False),
                ("max_handle_mask", 0),
            ),
        ),
        Configuration(
            "xapic",
            "interrupt remapping without extended mode; leaves may force snooping",
            "intremap=on,eim=off,snoop-control=on",
            changes=(
                ("extended_interrupts", False),
                ("snoop_control", True),
            ),
        ),
        Configuration(
            "bridges",
            "as q35, with functions behind bridges, one of which takes over their requests",
            "intremap=on,eim=on",
            topology=BRIDGED,
        ),
    )
}
"""Every configuration by name."""


def configuration(name: str) -> Configuration:
    """Return a configuration.

    Raises:
        ValueError: if there is none of this name.
    """
    try:
        return CONFIGURATIONS[name]
    except KeyError:
        known = ", ".join(CONFIGURATIONS)
        raise ValueError(f"configuration must be one of {known}, not {name!r}") from None
