"""Real kernels on an emulated IOMMU: QEMU runs the guest, our devices and our unit serve it.

    options = Options(choose_kernel("trixie"), policy="lazy")
    report = Session(options).run()
    assert report.ok

The guest's kernel is unmodified. It finds our unit in an ACPI table of ours, drives two NVMe
disks and an attacker behind it, and says what it thinks; the report puts that beside what the
emulator saw.
"""

from iommu_emu.guest.break_mapping import Broken, break_mapping
from iommu_emu.guest.errors import GuestError, GuestTimeoutError
from iommu_emu.guest.kernel import GuestKernel, choose_kernel
from iommu_emu.guest.report import Report
from iommu_emu.guest.session import Options, Session

__all__ = [
    "Broken",
    "GuestError",
    "GuestKernel",
    "GuestTimeoutError",
    "Options",
    "Report",
    "Session",
    "break_mapping",
    "choose_kernel",
]
