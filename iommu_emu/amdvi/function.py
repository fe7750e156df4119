"""The PCI function that an AMD-Vi unit shows itself as: its capability block and MSI (AMD-Vi 2)."""

from __future__ import annotations

from iommu_emu.amdvi.unit import AmdviConfig
from iommu_emu.pci.function import Function
from iommu_emu.pci.msi import Msi

CAPABILITY_ID = 0x0F
_TYPE = 3
_REVISION = 1
_IOTLB_SUP, _NP_CACHE, _EFR_SUP, _CAP_EXT = 1 << 24, 1 << 26, 1 << 27, 1 << 28
_ENABLE = 1
_MSI_NUMBER, _GVA_48, _VA_64 = 0, 2 << 5, 64 << 15
_SUBSYSTEM = (0x1AF4, 0x1100)

__all__ = ["AmdviFunction"]


class AmdviFunction(Function):
    """What software enumerates to find the registers; the registers themselves are the unit's.

    It has no BAR: the capability block says where the registers are. They are there whether or
    not software has set the block's Enable bit, which is set from the start.

    Args:
        config: configuration of the unit that it stands for.
        name: for people.
        device_id: PCI device ID; QEMU's by default.
    """

    def __init__(
        self, config: AmdviConfig, *, name: str = "amd-iommu", device_id: int = 0x1419
    ) -> None:
        super().__init__(
            name,
            vendor_id=0x1022,
            device_id=device_id,
            class_code=0x080600,
            subsystem=_SUBSYSTEM,
            kind=None,
        )
        header = _REVISION << 3 | _TYPE | (_EFR_SUP | _CAP_EXT) >> 16
        if config.np_cache:
            header |= _NP_CACHE >> 16
        if config.device_tlbs:
            header |= _IOTLB_SUP >> 16
        misc = _MSI_NUMBER | _GVA_48 | config.host_address_width << 8 | _VA_64
        words = (config.base & 0xFFFF_C000 | _ENABLE, config.base >> 32, 0, misc)
        self.config.add_capability(
            CAPABILITY_ID,
            header.to_bytes(2, "little") + b"".join(word.to_bytes(4, "little") for word in words),
        )
        self.msi = Msi(self.config, 1, self.send_message)
