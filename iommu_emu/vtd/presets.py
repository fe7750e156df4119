"""Named VT-d units: what real machines and other models report, and our own default.

The words of real machines are as Linux prints them at boot ("DMAR: dmar0: … ver 1:0 cap … ecap
…"), without the features that this version does not implement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.unit import VtdConfig

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """A VT-d unit by name.

    Attributes:
        name: what to ask for.
        description: one line for people.
        provenance: where the values come from.
        host_address_width: bits, as the machine's DMAR table says.
        capabilities: makes what CAP and ECAP report.
        compress_faults: a requester with a pending record gets no second one (VT-d 8.1 step 3).
    """

    name: str
    description: str
    provenance: str
    host_address_width: int
    capabilities: Callable[[], Capabilities]
    compress_faults: bool = False


def _logged(cap: int, ecap: int) -> Callable[[], Capabilities]:
    return lambda: Capabilities.masked(cap, ecap)


PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        Preset(
            "default",
            "everything that this version implements: 3 to 5 levels, 2 MiB and 1 GiB pages",
            "this project's choice; registers placed as QEMU does",
            46,
            lambda: Capabilities(
                interrupt_remapping=True, extended_interrupts=True, max_handle_mask=15
            ),
        ),
        Preset(
            "default-ats",
            "the same, with device-TLBs",
            "this project's choice",
            46,
            lambda: Capabilities(
                interrupt_remapping=True,
                extended_interrupts=True,
                max_handle_mask=15,
                device_tlbs=True,
            ),
        ),
        Preset(
            "qemu-q35",
            "QEMU's intel-iommu on q35: 3 and 4 levels, one fault record, no protected memory",
            "boot log of a Linux guest (cap d2008c222f0686 ecap f00f5a) with caching-mode=off,"
            " and ESRTPS, which QEMU reports since 2025",
            48,
            _logged(0x8000_0000_0000_0000 | 0x00D2_008C_222F_0606, 0xF0_0F5A),
            compress_faults=True,
        ),
        Preset(
            "qemu-q35-caching-mode",
            "the same with caching-mode=on, as for assigned devices",
            "boot log of a Linux guest: cap d2008c222f0686 ecap f00f5a; ESRTPS as in qemu-q35",
            48,
            _logged(0x8000_0000_0000_0000 | 0x00D2_008C_222F_0686, 0xF0_0F5A),
            compress_faults=True,
        ),
        Preset(
            "skylake-client",
            "Intel Core since 2015, the unit of everything but graphics: 39 bits, 256 domains",
            "boot logs of Skylake to Comet Lake machines: cap d2008c40660462 ecap f050da",
            39,
            _logged(0x00D2_008C_4066_0462, 0xF0_50DA),
        ),
        Preset(
            "skylake-graphics",
            "Intel Core since 2015, the graphics unit: no page-selective invalidation",
            "boot logs of Coffee and Comet Lake machines: cap 1c0000c40660462 ecap 19e2ff0505e,"
            " without PASID",
            39,
            _logged(0x01C0_000C_4066_0462, 0x19E_2FF0_505E),
        ),
        Preset(
            "skylake-server",
            "Xeon Scalable of 2017: 48 bits, 65536 domains, eight fault records",
            "boot log of a Xeon Gold 6146: cap 8d2078c106f0466 ecap f020df,"
            " without posted interrupts",
            46,
            _logged(0x08D2_078C_106F_0466, 0xF0_20DF),
        ),
    )
}


def preset(name: str, base: int, **changes: Any) -> VtdConfig:
    """Return the configuration of a preset.

    Args:
        name: key of `PRESETS`.
        base: physical address of the register window.
        **changes: further arguments of `VtdConfig`, instead of the preset's.

    Raises:
        ValueError: if there is no such preset, or a change is not allowed.
    """
    try:
        chosen = PRESETS[name]
    except KeyError:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}") from None
    arguments: dict[str, Any] = {
        "host_address_width": chosen.host_address_width,
        "compress_faults": chosen.compress_faults,
    }
    if "capabilities" not in changes:
        arguments["capabilities"] = chosen.capabilities()
    return VtdConfig(base=base, **(arguments | changes))
