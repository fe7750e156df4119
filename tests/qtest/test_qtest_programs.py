"""QEMU's own qtest programs through the shim; docs/qtest.md tells how they are built."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from installed_command import IOMMU_EMU

FOLDER = "IOMMU_EMU_QTEST_PROGRAMS"
ROOT = Path(__file__).parents[2]
TESTS = {
    "iommu-intel-test": ["iommu-testdev/intel/legacy-pt", "iommu-testdev/intel/legacy-trans"],
    "amd-iommu-test": ["q35/amd-iommu/cmdbuf-head-wrap"],
    "machine-none-test": ["machine/none/cpu_option"],
    "qmp-test": ["qmp/protocol"],
}


@pytest.fixture
def shim(tmp_path):
    """The shim in a prefix whose iommu-emu is the one under test."""
    shim = tmp_path / "libexec/iommu-emu/qemu-system-x86_64"
    shim.parent.mkdir(parents=True)
    shutil.copy(ROOT / "iommu_emu/qtest/shim/qemu-system-x86_64", shim)
    program = tmp_path / "bin/iommu-emu"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {IOMMU_EMU} "$@"\n')
    program.chmod(0o755)
    return shim


@pytest.mark.parametrize(
    ("program", "name"), [(program, name) for program, names in TESTS.items() for name in names]
)
def test_qtest_program_of_qemu_passes(shim, program, name):
    folder = os.environ.get(FOLDER)
    if not folder:
        pytest.skip(f"not run: {FOLDER} names no folder with QEMU's qtest programs")
    executable = Path(folder) / program
    if not executable.exists():
        pytest.skip(f"not run: there is no {program} in {folder}")
    done = subprocess.run(
        [executable, "--tap", "-p", f"/x86_64/{name}"],
        env=os.environ | {"QTEST_QEMU_BINARY": str(shim)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"ok 1 /x86_64/{name}\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
