"""What a kernel's command line says about DMA, and what the kernel says about the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.swiotlb import SEGMENT_SLOTS, SLOT_SIZE

__all__ = ["UPSTREAM", "KernelBuild", "Parameters"]

_DIGITS = 20  # of a number of 64 bits at most
_INTEL_OTHERS = ("igfx_off", "sp_off", "sm_on", "sm_off", "tboot_noforce")
_AMD_OTHERS = (
    "force_enable",
    "force_isolation",
    "pgtbl_v1",
    "pgtbl_v2",
    "irtcachedis",
    "nohugepages",
    "v2_pgsizes_only",
)


@dataclass(frozen=True, kw_only=True)
class KernelBuild:
    """What a kernel was built with, where its command line says nothing.

    Attributes:
        default: type of default domains: LAZY (CONFIG_IOMMU_DEFAULT_DMA_LAZY, as upstream on
            x86), STRICT or IDENTITY (CONFIG_IOMMU_DEFAULT_PASSTHROUGH).
        intel_on: CONFIG_INTEL_IOMMU_DEFAULT_ON.
    """

    default: DomainType = DomainType.LAZY
    intel_on: bool = True


UPSTREAM = KernelBuild()


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A command line, as far as it is about DMA; made by `parse`.

    A later option overrides an earlier one, as in the kernel.

    Attributes:
        text: the command line.
        strict: `iommu.strict`, or an older name of it; None: not given.
        passthrough: `iommu.passthrough`, or `iommu=pt` and `iommu=nopt`; None: not given.
        forcedac: `iommu.forcedac`: no attempt below 4 GiB first.
        off: `iommu=off`.
        intel: `intel_iommu=on` or `off`; None: neither.
        amd: False: `amd_iommu=off`.
        ats: False: `pci=noats`.
        bounce: False: `intel_iommu=nobounce`, the switch of Linux 5.4: devices that are not
            trusted are mapped in place.
        swiotlb: "force": every device's buffers are bounced; "noforce": there is no pool.
        pool_size: bytes of `swiotlb=`; None: not given.
        log: what the kernel says while it reads the line.
    """

    text: str = ""
    strict: bool | None = None
    passthrough: bool | None = None
    forcedac: bool = False
    off: bool = False
    intel: bool | None = None
    amd: bool = True
    ats: bool = True
    bounce: bool = True
    swiotlb: str = ""
    pool_size: int | None = None
    log: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> Parameters:
        """Read a command line.

        Like the kernel's, the parser is lenient: what it does not understand changes nothing and
        is at most remarked upon in the log. Options of other subsystems are passed over.

        Args:
            text: options, separated by spaces, for example "iommu.strict=0 pci=noats".
        """
        found = cls(text=text)
        for option in text.split():
            name, _, value = option.partition("=")
            name = name.replace("-", "_")
            if name in _READERS:
                found = _READERS[name](found, name, value)
        return found

    def noted(self, *lines: str) -> Parameters:
        """Return the same with more lines in the log."""
        return replace(self, log=self.log + lines)


def _boolean(attribute: str) -> Callable[[Parameters, str, str], Parameters]:
    def read(found: Parameters, name: str, text: str) -> Parameters:
        # The kernel looks at the first letter, or at the second one after an "o".
        letter = text[:2].lower()
        letter = letter if letter[:1] == "o" else letter[:1]
        for value, letters in ((True, ("1", "y", "t", "on")), (False, ("0", "n", "f", "of"))):
            if letter in letters:
                change: dict[str, Any] = {attribute: value}
                return replace(found, **change)
        return found.noted(f"Malformed early option '{name}'")

    return read


def _iommu(found: Parameters, name: str, value: str) -> Parameters:
    if not value:
        return found.noted(f"Malformed early option '{name}'")
    for word in value.split(","):
        if word.startswith("off"):
            found = replace(found, off=True)
        elif word.startswith("pt"):
            found = replace(found, passthrough=True)
        elif word.startswith("nopt"):
            found = replace(found, passthrough=False)
    return found


def _intel_iommu(found: Parameters, name: str, value: str) -> Parameters:
    for word in filter(None, value.split(",")):
        if word.startswith("on"):
            found = replace(found, intel=True).noted("DMAR: IOMMU enabled")
        elif word.startswith("off"):
            found = replace(found, intel=False).noted("DMAR: IOMMU disabled")
        elif word.startswith("strict"):
            line = "DMAR: intel_iommu=strict deprecated; use iommu.strict=1 instead"
            found = replace(found, strict=True).noted(line)
        elif word.startswith("forcedac"):
            line = "DMAR: intel_iommu=forcedac deprecated; use iommu.forcedac instead"
            found = replace(found, forcedac=True).noted(line)
        elif word.startswith("nobounce"):
            found = replace(found, bounce=False).noted(
                "DMAR: No bounce buffer. This could expose security risks of DMA attacks"
            )
        elif not word.startswith(_INTEL_OTHERS):
            found = found.noted(f"DMAR: Unknown option - '{word}'")
    return found


def _amd_iommu(found: Parameters, name: str, value: str) -> Parameters:
    for word in filter(None, value.split(",")):
        if word.startswith("off"):
            found = replace(found, amd=False)
        elif word.startswith("fullflush"):
            line = "AMD-Vi: amd_iommu=fullflush deprecated; use iommu.strict=1 instead"
            found = replace(found, strict=True).noted(line)
        elif not word.startswith(_AMD_OTHERS):
            found = found.noted(f"AMD-Vi: Unknown option - '{word}'")
    return found


def _pci(found: Parameters, name: str, value: str) -> Parameters:
    if "noats" in value.split(","):
        found = replace(found, ats=False).noted("PCIe: ATS is disabled")
    return found


def _swiotlb(found: Parameters, name: str, value: str) -> Parameters:
    """Read slots, areas, and whether the pool is used for all devices or none."""
    words = value.split(",")
    if words[0].isdecimal():
        slots = -(-int(words[0][:_DIGITS]) // SEGMENT_SLOTS) * SEGMENT_SLOTS
        # A pool is a power of two of slots, as areas make it.
        size = SLOT_SIZE << (slots - 1).bit_length() if slots else 0
        found = replace(found, pool_size=size)
        words = words[1:]
        if words and words[0].isdecimal():
            words = words[1:]  # areas: one for each CPU here
    if words and words[0] in ("force", "noforce"):
        found = replace(found, swiotlb=words[0])
    return found


_READERS: dict[str, Callable[[Parameters, str, str], Parameters]] = {
    "iommu.strict": _boolean("strict"),
    "iommu.passthrough": _boolean("passthrough"),
    "iommu.forcedac": _boolean("forcedac"),
    "iommu": _iommu,
    "intel_iommu": _intel_iommu,
    "amd_iommu": _amd_iommu,
    "pci": _pci,
    "swiotlb": _swiotlb,
}
