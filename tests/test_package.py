"""The package as others see it: imported from elsewhere, typed, and usable without Python."""

import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import iommu_emu

ROOT = Path(__file__).parents[1]

PROGRAM = """
#include <stdio.h>
#include "iommu_emu.h"
int main(void)
{
    struct iemu_machine_config config = {.transactions = 1, .messages = 64};
    int error;
    struct iemu_machine *machine = iemu_machine_create(&config, &error);
    struct iemu_region *ram = iemu_region_create(4096, -1, 0, &error);
    struct iemu_port *port = iemu_port_create(machine, 0, 8, &error);
    char data[6] = "";
    iemu_memory_map(machine, 0x1000, ram);
    iemu_memory_write(machine, 0x1000, "hello", 5);
    iemu_dma_read(port, 0x1000, data, 5);
    puts(data);
    iemu_machine_destroy(machine);
    iemu_region_release(ram);
    return 0;
}
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_package_is_found_from_outside_the_checkout(tmp_path):
    code = "import iommu_emu.devices, iommu_emu.acpi; print(iommu_emu.devices.__name__)"
    assert run(sys.executable, "-c", code, cwd=tmp_path) == "iommu_emu.devices\n"


def test_package_is_typed():
    assert files("iommu_emu").joinpath("py.typed").is_file()


def test_command_tells_its_version(tmp_path):
    shown = run(sys.executable, "-m", "iommu_emu.cli.main", "--version", cwd=tmp_path)
    assert shown == f"iommu-emu {iommu_emu.__version__}\n"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_core_builds_and_runs_without_python(tmp_path, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # a sanitizer's, not this program's
    (tmp_path / "main.c").write_text(PROGRAM)
    sources = [path for path in ROOT.glob("csrc/**/*.c") if path.parent.name != "bench"]
    run("gcc", "-std=gnu11", "-I", ROOT / "csrc", "main.c", *sources, "-o", "main", cwd=tmp_path)
    assert run("./main", cwd=tmp_path) == "hello\n"
