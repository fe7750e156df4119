"""Named AMD-Vi units: what real machines report, and our own default.

Extended features are as Linux prints them at boot ("AMD-Vi: Extended features (0x…)"), without
those that this version does not implement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iommu_emu.amdvi.features import Features
from iommu_emu.amdvi.unit import AmdviConfig

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """An AMD-Vi unit by name.

    Attributes:
        name: what to ask for.
        description: one line for people.
        provenance: where the values come from.
        features: makes what EFR reports.
        np_cache: capability bit NpCache.
        device_tlbs: capability bit IotlbSup.
    """

    name: str
    description: str
    provenance: str
    features: Callable[[], Features]
    np_cache: bool = False
    device_tlbs: bool = False


def _logged(efr: int) -> Callable[[], Features]:
    return lambda: Features.masked(efr)


PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        Preset(
            "default",
            "everything that this version implements: up to 6 levels, INVALIDATE_IOMMU_ALL",
            "this project's choice",
            Features,
        ),
        Preset(
            "default-ats",
            "the same, with device-TLBs",
            "this project's choice",
            Features,
            device_tlbs=True,
        ),
        Preset(
            "np-cache",
            "the default, and not-present entries are cached, as by an IOMMU that shadows tables",
            "this project's choice; Linux then invalidates on every map",
            Features,
            np_cache=True,
        ),
        Preset(
            "qemu-q35",
            "QEMU's amd-iommu on q35: six levels, not-present entries cached",
            "QEMU 11.1: EFR 29d3h, capability block 1f03000fh; without PPR, guest translation,"
            " guest virtual APIC and hardware errors, which this version does not implement",
            _logged(0x29D3),
            np_cache=True,
        ),
        Preset(
            "zen",
            "Ryzen since 2017: six levels",
            "boot logs of Zen and Zen 2 machines: Extended features (0xf77ef22294ada),"
            " (0x58f77ef22294a5a)",
            _logged(0xF77_EF22_294A_DA),
        ),
        Preset(
            "zen4",
            "Ryzen of 2023: six levels",
            "boot log: Extended features (0x246577efa2254afa, 0x10)",
            _logged(0x2465_77EF_A225_4AFA),
        ),
    )
}


def preset(name: str, base: int, **changes: Any) -> AmdviConfig:
    """Return the configuration of a preset.

    Args:
        name: key of `PRESETS`.
        base: physical address of the register window.
        **changes: further arguments of `AmdviConfig`, instead of the preset's.

    Raises:
        ValueError: if there is no such preset, or a change is not allowed.
    """
    try:
        chosen = PRESETS[name]
    except KeyError:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}") from None
    arguments: dict[str, Any] = {"np_cache": chosen.np_cache, "device_tlbs": chosen.device_tlbs}
    if "features" not in changes:
        arguments["features"] = chosen.features()
    return AmdviConfig(base=base, **(arguments | changes))
