"""Device models, and the base class to write one's own in about twenty lines.

    class Counter(Device):
        bar_layout = (Bar(0, 4096),)

        def bar_write(self, bar, offset, size, value):
            self.dma.write(value, b"counted")
"""

from iommu_emu.devices.base import Bar, Device
from iommu_emu.devices.edu import Edu
from iommu_emu.devices.iommu_testdev import IommuTestdev
from iommu_emu.devices.malicious import MaliciousDevice

__all__ = ["Bar", "Device", "Edu", "IommuTestdev", "MaliciousDevice"]
