"""What an AMD-Vi unit reports in its extended feature register (AMD-Vi 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from iommu_emu import core
from iommu_emu.core import FieldInfo, Vendor

__all__ = ["Features", "unimplemented"]

LEVELS = {4: 0, 5: 1, 6: 2}  # HATS
IMPLEMENTED = frozenset({"HATS", "IASup", "PreFSup", "MsiCapMmioSup"})


@lru_cache
def _layout() -> dict[str, FieldInfo]:
    """Return the fields of EFR as the core declares them."""
    index = next(row.index for row in core.registers(Vendor.AMDVI) if row.name == "EFR")
    return {row.name: row for row in core.fields(Vendor.AMDVI) if row.register == index}


def unimplemented(efr: int) -> list[str]:
    """Return the EFR fields that are set and that this version does not implement."""
    return [name for name, row in _layout().items() if name not in IMPLEMENTED and row.extract(efr)]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Contents of EFR.

    Attributes:
        levels: deepest host page table, 4, 5 or 6 (HATS).
        invalidate_all: the INVALIDATE_IOMMU_ALL command is supported (IASup).
        prefetch: the PREFETCH_IOMMU_PAGES command is supported (PreFSup).
        message_registers: the MSI capability is seen through registers (MsiCapMmioSup); without
            them, the unit has no way to send its own interrupts.

    Raises:
        ValueError: if a value is outside its range.
    """

    levels: int = 6
    invalidate_all: bool = True
    prefetch: bool = False
    message_registers: bool = True

    def __post_init__(self) -> None:
        if self.levels not in LEVELS:
            raise ValueError(f"levels must be 4, 5 or 6, not {self.levels}")

    @property
    def efr(self) -> int:
        """The extended feature register."""
        layout = _layout()
        return (
            LEVELS[self.levels] << layout["HATS"].low
            | int(self.invalidate_all) << layout["IASup"].low
            | int(self.prefetch) << layout["PreFSup"].low
            | int(self.message_registers) << layout["MsiCapMmioSup"].low
        )

    @classmethod
    def parse(cls, efr: int) -> Features:
        """Decode an extended feature register, as a boot log shows it.

        Raises:
            ValueError: if it has no host page tables (HATS=3), or names features that are not
                implemented.
        """
        refused = unimplemented(efr)
        if refused:
            raise ValueError(f"not implemented: {', '.join(refused)}")
        found = {name: _layout()[name].extract(efr) for name in IMPLEMENTED}
        hats = found["HATS"]
        if hats not in LEVELS.values():
            raise ValueError("EFR.HATS must be 0, 1 or 2, not 3: there are no host page tables")
        parsed = cls(
            levels=4 + hats,
            invalidate_all=bool(found["IASup"]),
            prefetch=bool(found["PreFSup"]),
            message_registers=bool(found["MsiCapMmioSup"]),
        )
        if parsed.efr != efr:
            raise ValueError(f"reserved bits are set: EFR {parsed.efr ^ efr:#x}")
        return parsed

    @classmethod
    def masked(cls, efr: int) -> Features:
        """Decode an extended feature register without what is not implemented.

        Raises:
            ValueError: if it has no host page tables.
        """
        known = sum(row.mask for name, row in _layout().items() if name in IMPLEMENTED)
        return cls.parse(efr & known)
