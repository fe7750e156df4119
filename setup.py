"""Build the C core with cffi in API mode: a C compiler and cffi, nothing else."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI
from setuptools import setup

ROOT = Path(__file__).parent
HEADER = ROOT / "csrc" / "bench.h"  # includes iommu_emu.h, the public API
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("**/*.c"))
SANITIZE = os.environ.get("IOMMU_EMU_SANITIZE") == "1"

CFLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
SANITIZER_FLAGS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]


def declarations() -> str:
    """Expand the public header as the compiler sees it, since cdef reads no preprocessor."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    command = [compiler, "-E", "-P", "-DIEMU_CDEF", str(HEADER)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.sub(r"^\s*#.*$", "", text, flags=re.M)


def extension() -> object:
    """Return the `iommu_emu._core` extension module."""
    ffi = FFI()
    ffi.cdef(declarations())
    flags = CFLAGS + (SANITIZER_FLAGS if SANITIZE else [])
    # Only our own files are held to -Werror: the generated wrapper casts freely.
    ffi.set_source(
        "iommu_emu._core",
        '#include "bench.h"',
        sources=SOURCES,
        include_dirs=["csrc"],
        depends=[str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("**/*.[hd]*")],
        extra_compile_args=[*flags, "-Wno-unused-parameter", "-Wno-cast-function-type"],
        extra_link_args=SANITIZER_FLAGS if SANITIZE else [],
    )
    return ffi.distutils_extension(tmpdir=str(ROOT / "build"), verbose=False)


def packages(root: Path, tree: str) -> list[str]:
    """Return the packages of a folder, itself included, by their dotted names below `root`."""
    found = sorted((root / tree).glob("**/__init__.py"))
    return [".".join(path.parent.relative_to(root).parts) for path in found]


if __name__ == "__main__":
    if sys.platform != "linux":
        raise SystemExit("iommu-emu needs Linux (memfd, guard pages)")
    setup(
        packages=[
            *packages(ROOT, "iommu_emu"),
            *(f"iommu_emu.{name}" for tree in ("devices", "acpi") for name in packages(ROOT, tree)),
        ],
        package_dir={
            "iommu_emu": "iommu_emu",
            "iommu_emu.devices": "devices",
            "iommu_emu.acpi": "acpi",
        },
        package_data={
            "iommu_emu": ["py.typed", "_core.pyi"],
            "iommu_emu.acpi": ["built-in/*.toml"],
            "iommu_emu.differential": ["differences.toml"],
            "iommu_emu.guest": ["init.sh", "helper/*.c"],
            "iommu_emu.scenario_report": ["*.css", "*.html", "*.js"],
            "iommu_emu.scenarios": ["expectations.toml"],
            "iommu_emu.timing_model": ["presets/*.toml"],
        },
        # Beside bin/, in a folder of its own: it must not be found as QEMU on a PATH.
        data_files=[("libexec/iommu-emu", ["iommu_emu/qtest/shim/qemu-system-x86_64"])],
        ext_modules=[extension()],
    )
