"""Xen's command line, as far as it concerns the IOMMU (os 4.10).

Xen takes what it understands, complains about the rest in its log, and boots.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

__all__ = [
    "Parameters",
    "Phantom",
    "Quarantine",
    "Release",
    "parse_bool",
    "parse_boolean",
    "parse_command_line",
]

EINVAL, E2BIG = 22, 7
MAX_PHANTOMS = 8
_TRUE = {"1", "on", "yes", "true", "enable"}
_FALSE = {"0", "no", "off", "false", "disable"}
_PHANTOM = re.compile(
    r"(?:([0-9a-f]{1,4}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2}),(?:0x)?0*([124])", re.IGNORECASE
)
_NUMBER = re.compile(r"0x[0-9a-f]{1,8}|[0-9]{1,10}", re.IGNORECASE)


class Quarantine(Enum):
    """What happens to a device that is taken from a guest; `value` is the word for it."""

    NONE = "none"  # back to the hardware domain, unless the toolstack had it quarantined before
    BASIC = "basic"  # nothing gets through but what firmware reserved
    SCRATCH_PAGE = "scratch-page"  # reads and writes hit a page that nobody else has
    FULL = "full"  # the proposal's: reads hit such a page, writes fault


class Release(Enum):
    """Which Xen it is."""

    CURRENT = "Xen 4.23"
    PROPOSAL = "the patch of March 2020, version 3"  # knows "full" and not "scratch-page"


_MODES = {
    Release.CURRENT: Quarantine.SCRATCH_PAGE,
    Release.PROPOSAL: Quarantine.FULL,
}


@dataclass(frozen=True)
class Phantom:
    """A `pci-phantom=` option: functions that a device does not show but sends with.

    Attributes:
        segment: PCI segment.
        bus: bus.
        device: device number.
        stride: 1, 2 or 4: every so many function numbers there is one.
    """

    segment: int
    bus: int
    device: int
    stride: int


@dataclass(kw_only=True)
class Parameters:
    """What the command line says.

    Attributes:
        enabled: whether IOMMUs are used at all.
        required: whether Xen must not boot without them.
        quarantine: what happens to devices that are taken from guests.
        queued_invalidation: VT-d: use the queue where there is one.
        superpages: use large pages.
        dom0_passthrough: whether the hardware domain's devices go untranslated.
        dom0_strict: whether they reach the hardware domain's own memory only, instead of all
            but Xen's.
        ats: whether device-TLBs are used.
        device_tlb_timeout: ms that a device has for an invalidation of its device-TLB.
        phantoms: devices with phantom functions.
        complaints: what Xen says about what it did not understand.
    """

    enabled: bool = True
    required: bool = False
    quarantine: Quarantine = Quarantine.BASIC
    queued_invalidation: bool = True
    superpages: bool = True
    dom0_passthrough: bool = False
    dom0_strict: bool = False
    ats: bool = False
    device_tlb_timeout: int = 1000
    phantoms: list[Phantom] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


# Sub-options of iommu= and the attributes that they set; None: Xen knows it, we have no use for it.
_IOMMU = {
    "force": "required",
    "required": "required",
    "igfx": None,
    "qinval": "queued_invalidation",
    "superpages": "superpages",
    "verbose": None,
    "snoop": None,
    "intremap": None,
    "intpost": None,
    "crash-disable": None,
    "debug": None,
    "amd-iommu-perdev-intremap": None,
    "dom0-passthrough": "dom0_passthrough",
    "dom0-strict": "dom0_strict",
    "sharept": None,
}
_DOM0 = {
    "passthrough": "dom0_passthrough",
    "strict": "dom0_strict",
    "map-inclusive": None,
    "map-reserved": None,
}


def parse_bool(text: str) -> bool | None:
    """Return the boolean that a word stands for; None: it is none."""
    if text in _TRUE:
        return True
    return False if text in _FALSE else None


def parse_boolean(name: str, text: str) -> bool | None:
    """Return what a sub-option says: "name", "no-name" or "name=<bool>"; None: it is none."""
    if text.startswith("no-"):
        return False if text[3:] == name else None
    if text == name:
        return True
    return parse_bool(text[len(name) + 1 :]) if text.startswith(f"{name}=") else None


def parse_command_line(
    text: str, release: Release = Release.CURRENT, default: Quarantine = Quarantine.BASIC
) -> Parameters:
    """Return what a command line of Xen says; what is no option of the IOMMU is ignored.

    Args:
        text: options separated by blanks, for example "iommu=quarantine=scratch-page,verbose".
        release: which Xen reads it.
        default: how Xen was built (CONFIG_IOMMU_QUARANTINE_…).
    """
    parameters = Parameters(quarantine=default)
    readers: dict[str, Callable[[str], int]] = {
        "iommu": lambda value: _read_iommu(parameters, value, release),
        "dom0-iommu": lambda value: _read_list(parameters, value, _DOM0, _dom0_none),
        "ats": lambda value: _read_ats(parameters, value),
        "iommu_dev_iotlb_timeout": lambda value: _read_timeout(parameters, value),
        "pci-phantom": lambda value: _read_phantom(parameters, value),
    }
    for option in text.split():
        key, _, value = option.partition("=")
        negated = key.startswith("no-")
        name = key[3:] if negated else key
        if name not in readers:
            continue
        # "no-iommu" stands for "iommu=no"; a value beside it makes no sense.
        error = EINVAL if negated and value else readers[name]("no" if negated else value)
        if error:
            parameters.complaints.append(
                f'parameter "{name}" has invalid value "{value}", rc=-{error}!'
            )
    return parameters


def _read_list(
    parameters: Parameters,
    value: str,
    known: dict[str, str | None],
    special: Callable[[Parameters, str], bool],
) -> int:
    """Read sub-options; those that are understood count even if others are not."""
    error = 0
    for word in value.split(","):
        if special(parameters, word):
            continue
        for name, attribute in known.items():
            said = parse_boolean(name, word)
            if said is not None:
                if attribute is not None:
                    setattr(parameters, attribute, said)
                break
        else:
            error = EINVAL
    return error


def _read_iommu(parameters: Parameters, value: str, release: Release) -> int:
    def special(parameters: Parameters, word: str) -> bool:
        enabled = parse_bool(word)
        quarantine = parse_boolean("quarantine", word)
        if enabled is not None:
            parameters.enabled = enabled
        elif quarantine is not None:
            parameters.quarantine = Quarantine.BASIC if quarantine else Quarantine.NONE
        elif word == f"quarantine={_MODES[release].value}":
            parameters.quarantine = _MODES[release]
        else:
            return False
        return True

    return _read_list(parameters, value, _IOMMU, special)


def _dom0_none(parameters: Parameters, word: str) -> bool:
    return word == "none"


def _read_ats(parameters: Parameters, value: str) -> int:
    said = parse_bool(value) if value else True
    if said is None:
        return EINVAL
    parameters.ats = said
    return 0


def _read_timeout(parameters: Parameters, value: str) -> int:
    if _NUMBER.fullmatch(value) is None:
        return EINVAL
    parameters.device_tlb_timeout = int(value, 16 if value[:2].lower() == "0x" else 10)
    return 0


def _read_phantom(parameters: Parameters, value: str) -> int:
    if len(parameters.phantoms) >= MAX_PHANTOMS:
        return E2BIG
    match = _PHANTOM.fullmatch(value)
    if match is None:
        return EINVAL
    segment, bus, device = (int(part or "0", 16) for part in match.groups()[:3])
    if device > 31:
        return EINVAL
    parameters.phantoms.append(Phantom(segment, bus, device, int(match[4])))
    return 0
