"""The QEMU that everything is held against: it starts, and has what we compare with."""

import subprocess

from iommu_emu.qemu import clean_environment


def test_qemu_starts_and_has_the_devices_we_compare_with(qemu):
    done = subprocess.run(
        [*qemu.argv, "-accel", "qtest", "-device", "help"],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    wanted = ("intel-iommu", "amd-iommu", "edu", "iommu-testdev", "vfio-user-pci")
    assert [name for name in wanted if f'name "{name}"' not in done.stdout] == []
    assert done.returncode == 0
