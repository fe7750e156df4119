"""The kernels that guests run: configured for what we test, and able to boot in our QEMU."""

import subprocess

import pytest

from iommu_emu.qemu import KERNELS, clean_environment

# What is "y" must be there before a module can be loaded.
NEEDED = {
    "INTEL_IOMMU": "y",
    "BLK_DEV_NVME": "y",
    "HOTPLUG_PCI_PCIE": "y",
    "SERIAL_8250_CONSOLE": "y",
    "VFIO_PCI": "m",
    "VFIO_IOMMU_TYPE1": "m",
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_package_has_what_guests_need(kernel, name):
    chosen = kernel(name)
    assert {option: chosen.has(option) for option in NEEDED} == NEEDED


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_package_boots_as_far_as_it_can_without_a_disk(qemu, kernel, name):
    chosen = kernel(name)
    command = [*qemu.argv, "-run-with", "exit-with-parent=on", "-machine", "q35", "-accel", "tcg"]
    command += ["-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(chosen.image), "-append", "console=ttyS0 panic=-1"]
    done = subprocess.run(
        command,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    assert f"Linux version {chosen.release} " in done.stdout
    assert "Unable to mount root fs" in done.stdout
