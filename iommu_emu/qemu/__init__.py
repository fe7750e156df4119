"""A real QEMU and real kernels: fetched once into a per-user cache, found, named in reports."""

from iommu_emu.qemu.cache import cache_folder, fetch
from iommu_emu.qemu.components import COMPONENTS, KERNELS
from iommu_emu.qemu.environment import clean_environment
from iommu_emu.qemu.errors import NotAvailable, PackageError, QemuError, Unreachable
from iommu_emu.qemu.find import Qemu, find_busybox, find_kernel, find_qemu, versions
from iommu_emu.qemu.kernel import Kernel

__all__ = [
    "COMPONENTS",
    "KERNELS",
    "Kernel",
    "NotAvailable",
    "PackageError",
    "Qemu",
    "QemuError",
    "Unreachable",
    "cache_folder",
    "clean_environment",
    "fetch",
    "find_busybox",
    "find_kernel",
    "find_qemu",
    "versions",
]
