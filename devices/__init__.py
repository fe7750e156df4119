"""Device models, and the base class to write one's own in about twenty lines.

A device that answers each write to its registers with a DMA to the address written:

    class Echo(Device):
        bar_layout = (Bar(0, 4096),)

        def bar_write(self, bar, offset, size, value):
            self.dma.write(value, b"echo")

`machine.attach(Echo())` puts it on the bus.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from iommu_emu.devices.base import Bar, Device

if TYPE_CHECKING:
    from iommu_emu.devices.attacker import Attacker
    from iommu_emu.devices.edu import Edu
    from iommu_emu.devices.iommu_testdev import IommuTestdev
    from iommu_emu.devices.malicious import MaliciousDevice
    from iommu_emu.devices.nic import Nic
    from iommu_emu.devices.nvme import Nvme

# A model is imported when it is asked for: programs start faster without those they do not use.
_MODELS = {
    "Attacker": "attacker",
    "Edu": "edu",
    "IommuTestdev": "iommu_testdev",
    "MaliciousDevice": "malicious",
    "Nic": "nic",
    "Nvme": "nvme",
}

__all__ = ["Attacker", "Bar", "Device", "Edu", "IommuTestdev", "MaliciousDevice", "Nic", "Nvme"]


def __getattr__(name: str) -> object:
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODELS[name]}"), name)
