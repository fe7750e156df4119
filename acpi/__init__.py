"""ACPI tables that describe IOMMUs: DMAR (Intel VT-d) and IVRS (AMD-Vi).

`parse` turns the bytes of a table into dataclasses, `build` turns them back, `to_toml` and
`from_toml` read and write a description that people can edit, `check` finds what firmware got
wrong, and `platforms` holds tables that come with the package:

    >>> from iommu_emu import acpi
    >>> table = acpi.platforms.load("q35-vtd").table
    >>> hex(table.units()[0].base_address)
    '0xfed90000'
    >>> acpi.parse(acpi.build(table)) == table
    True
"""

from __future__ import annotations

from iommu_emu.acpi import dmar, ivrs, platforms
from iommu_emu.acpi.description import from_toml, to_dict, to_toml
from iommu_emu.acpi.dmar import Dmar
from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.ivrs import Ivrs
from iommu_emu.acpi.lint import Finding, check
from iommu_emu.acpi.table import build, parse

__all__ = [
    "AcpiError",
    "Dmar",
    "Finding",
    "Ivrs",
    "build",
    "check",
    "dmar",
    "from_toml",
    "ivrs",
    "parse",
    "platforms",
    "to_dict",
    "to_toml",
]
