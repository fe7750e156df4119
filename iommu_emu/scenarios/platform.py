"""The small platform that every laboratory is, on either vendor."""

from __future__ import annotations

from typing import Any

from iommu_emu.acpi.dmar import Dmar, DmarFlags, Drhd, DrhdFlags
from iommu_emu.acpi.ivrs import ALL, DeviceEntry, Ivhd11, IvhdFlags, Ivrs
from iommu_emu.machine import Machine

IOMMUS = ("vtd", "amdvi")
MEMORY = 1 << 30
FRAMES = range(0x10_0000, 0x110_0000)  # page tables and queues
FIRMWARE = range(0x780_0000, 0x800_0000)  # what firmware keeps: reserved regions
RAM = range(0x800_0000, MEMORY)  # what the kernel gives away
GUEST_RAM = range(RAM.start + (16 << 20), RAM.start + (17 << 20))  # what a guest of Xen's gets
_VTD_BASE, _AMDVI_BASE = 0xFED9_0000, 0xFED8_0000

__all__ = ["FIRMWARE", "FRAMES", "GUEST_RAM", "IOMMUS", "RAM", "build_machine"]


def build_machine(iommu: str, unit_config: dict[str, Any] | None = None) -> Machine:
    """Return a machine with one IOMMU, which knows device-TLBs, for all of segment 0.

    Args:
        iommu: "vtd" or "amdvi".
        unit_config: values of its configuration that differ from the preset "default-ats".

    Raises:
        ValueError: if an argument is outside its range.
    """
    if iommu not in IOMMUS:
        raise ValueError(f"iommu must be one of {', '.join(IOMMUS)}, not {iommu!r}")
    return Machine.from_acpi(
        _dmar() if iommu == "vtd" else _ivrs(),
        memory=MEMORY,
        preset="default-ats",
        unit_config=unit_config,
    )


def _dmar() -> Dmar:
    """One VT-d unit for everything; firmware opts in to DMA protection."""
    return Dmar(
        host_address_width=39,
        flags=DmarFlags.INTR_REMAP | DmarFlags.DMA_CTRL_PLATFORM_OPT_IN,
        structures=[Drhd(flags=DrhdFlags.INCLUDE_PCI_ALL, base_address=_VTD_BASE)],
    )


def _ivrs() -> Ivrs:
    """One AMD IOMMU for everything; firmware opts in to DMA protection."""
    return Ivrs(
        revision=2,
        iv_info=0x20_3003,  # EFRSup, DmaRemapOptIn, PASize 48, VASize 64
        structures=[
            Ivhd11(
                flags=IvhdFlags.IOTLB_SUP | IvhdFlags.COHERENT,
                device_id=0x0002,
                capability_offset=0x40,
                base_address=_AMDVI_BASE,
                entries=[DeviceEntry(type=ALL)],
            )
        ],
    )
