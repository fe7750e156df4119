"""An AMD-Vi unit: its configuration, and the handle on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from iommu_emu.amdvi.features import Features
from iommu_emu.core import require_range
from iommu_emu.unit import Unit, UnitConfig

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["AmdviConfig", "AmdviUnit"]

WINDOW = 0x4000  # 16 KiB: there are no performance counters (AMD-Vi 3)


@dataclass(frozen=True, kw_only=True)
class AmdviConfig(UnitConfig):
    """Configuration of an AMD-Vi unit.

    Attributes:
        window: bytes of the register window, 16 KiB.
        host_address_width: bits of a physical address.
        features: what EFR reports; behaviour follows from it.
        device_id: requester ID of the IOMMU's own PCI function, 16 bits.
        np_cache: not-present entries are cached too, so maps need invalidation (NpCache).
        device_tlbs: the unit answers translation requests and invalidates device-TLBs (IotlbSup).

    Raises:
        ValueError: if a value is outside its range.
    """

    window: int = WINDOW
    host_address_width: int = 48
    features: Features = field(default_factory=Features)
    device_id: int = 0x0002
    np_cache: bool = False
    device_tlbs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("device_id", self.device_id, 0xFFFF)
        if self.window != WINDOW:
            raise ValueError(f"window must be {WINDOW:#x}, not {self.window:#x}")

    def parameters(self) -> dict[str, Any]:
        """Return the values of `struct iemu_amdvi_config`."""
        return {
            "unit": self.unit_parameters(),
            "efr": self.features.efr,
            "device_id": self.device_id,
            "np_cache": self.np_cache,
            "iotlb_sup": self.device_tlbs,
        }


class AmdviUnit(Unit):
    """One AMD-Vi unit of a machine.

    Args:
        machine: the machine that it belongs to.
        config: features, register window, caches.
        segment: PCI segment that it serves.

    Raises:
        OverlapError: if something else is at the register window.
    """

    config: AmdviConfig

    def __init__(self, machine: Machine, config: AmdviConfig, segment: int = 0) -> None:
        super().__init__(machine, machine.core.create_amdvi(config.parameters()), config, segment)

    @property
    def features(self) -> Features:
        """What EFR reports."""
        return self.config.features
