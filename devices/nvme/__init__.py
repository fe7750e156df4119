"""An NVMe controller (NVM Express 1.4) whose every DMA goes through the emulated IOMMU.

Where what is:

    controller.py    registers, doorbells, enabling and resets: the device
    engine.py        fetches commands, runs them as tasks, posts their completions
    queues.py        submission and completion queues
    prp.py           where a command's data lies in memory
    admin.py nvm.py  the two command sets
    features.py identify.py logs.py    what the admin commands work on
    medium.py        what the blocks are stored in
    driver.py        a small software driver
    specification.py structures.py     numbers and layouts
"""

from iommu_emu.devices.nvme.controller import IO_QUEUES, Nvme, Statistics
from iommu_emu.devices.nvme.driver import NvmeDriver
from iommu_emu.devices.nvme.medium import FileMedium, Medium, RamMedium
from iommu_emu.devices.nvme.specification import StatusCode

__all__ = [
    "IO_QUEUES",
    "FileMedium",
    "Medium",
    "Nvme",
    "NvmeDriver",
    "RamMedium",
    "Statistics",
    "StatusCode",
]
