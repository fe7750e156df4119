"""Which QEMU, which kernel, which busybox a run uses, and how reports name them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from iommu_emu import __version__
from iommu_emu.qemu.cache import cache_folder, read_manifest
from iommu_emu.qemu.components import COMPONENTS, KERNELS
from iommu_emu.qemu.environment import clean_environment
from iommu_emu.qemu.errors import NotAvailable, PackageError, QemuError
from iommu_emu.qemu.kernel import Kernel
from iommu_emu.qemu.launcher import LAUNCHER

QEMU_VARIABLE = "IOMMU_EMU_QEMU"
OLDEST = (11, 1, 0)  # the vfio-user-pci, iommu-testdev and intel-iommu that we are held against
_VERSION = re.compile(r"^QEMU emulator version (\d+)\.(\d+)\.(\d+)(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Qemu:
    """A QEMU that is recent enough.

    Attributes:
        argv: What to put before QEMU's own arguments. Start it with :func:`clean_environment`.
        version: Such as (11, 1, 3).
        origin: ``"environment"`` (IOMMU_EMU_QEMU), ``"path"`` or ``"cache"``.
        build: The version line of ``--version``, for reports.
    """

    argv: list[str]
    version: tuple[int, int, int]
    origin: str
    build: str


def find_qemu() -> Qemu:
    """Return the QEMU to use: IOMMU_EMU_QEMU's, else a recent one on PATH, else the cache's.

    Raises:
        NotAvailable: There is none; the message says what to run.
        QemuError: IOMMU_EMU_QEMU names something that does not run or is too old.
    """
    named = os.environ.get(QEMU_VARIABLE)
    if named:
        return _from_environment(named)
    for folder in os.get_exec_path():
        candidate = os.path.join(folder, LAUNCHER)
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            build = _build(candidate)
            version = _version(build)
            if version is not None and version >= OLDEST:
                return Qemu([candidate], version, "path", build)
    return _from_cache()


def find_kernel(name: str) -> Kernel:
    """Return a kernel of the cache.

    Args:
        name: ``"bookworm"``, ``"trixie"`` or ``"trixie-backports"``.

    Raises:
        NotAvailable: It is not in the cache; the message says what to run.
        ValueError: There is no kernel of that name.
    """
    if name not in KERNELS:
        raise ValueError(f"no kernel {name!r}: there are {', '.join(KERNELS)}")
    read_manifest(name)
    root = cache_folder() / name / "root"
    modules = _only(root, "lib/modules/*", "usr/lib/modules/*")
    release = modules.name
    return Kernel(
        name,
        _only(root, f"boot/vmlinuz-{release}", f"usr/lib/modules/{release}/vmlinuz"),
        modules,
        release,
        _only(root, f"boot/config-{release}", f"usr/lib/modules/{release}/config"),
    )


def find_busybox() -> Path:
    """Return the static busybox of the cache.

    Raises:
        NotAvailable: It is not in the cache; the message says what to run.
    """
    read_manifest("busybox")
    return _only(cache_folder() / "busybox/root", "bin/busybox", "usr/bin/busybox")


def versions() -> dict[str, str]:
    """Return the versions of all that a run can depend on and that is here, for reports.

    Raises:
        QemuError: IOMMU_EMU_QEMU names something that does not run or is too old.
    """
    found = {"iommu-emu": __version__}
    with contextlib.suppress(NotAvailable):
        qemu = find_qemu()
        found["qemu"] = f"{qemu.build.removeprefix('QEMU emulator version ')} from {qemu.origin}"
    for name in COMPONENTS:
        if name != "qemu":
            with contextlib.suppress(NotAvailable):
                found[name] = component_version(name)
    return found


def component_version(name: str) -> str:
    """Return the version of a component of the cache, with that of its Debian package.

    Raises:
        NotAvailable: It is not in the cache; the message says what to run.
    """
    manifest = read_manifest(name)
    if name in KERNELS:
        return f"Linux {find_kernel(name).release} (Debian {manifest.version('linux-')})"
    return manifest.version(COMPONENTS[name].package)


def _from_environment(named: str) -> Qemu:
    advice = f"point {QEMU_VARIABLE} at QEMU {OLDEST[0]}.{OLDEST[1]} or later, or unset it"
    build = _build(named)
    version = _version(build)
    if version is None:
        raise QemuError(f"{QEMU_VARIABLE}={named} does not run as QEMU: {advice}")
    if version < OLDEST:
        old = ".".join(map(str, version))
        raise QemuError(f"{QEMU_VARIABLE}={named} is QEMU {old}, too old: {advice}")
    return Qemu([named], version, "environment", build)


def _from_cache() -> Qemu:
    manifest = read_manifest("qemu")
    package = manifest.version("qemu-system-x86")
    digits = re.match(r"(?:\d+:)?(\d+)\.(\d+)\.(\d+)", package)
    if digits is None:
        raise PackageError(f"the cache's QEMU has the odd version {package}")
    version = (int(digits[1]), int(digits[2]), int(digits[3]))
    if version < OLDEST:
        raise NotAvailable(
            f"the cache's QEMU {package} is too old: run `iommu-emu fetch qemu --update`"
        )
    build = f"QEMU emulator version {'.'.join(map(str, version))} (Debian {package})"
    return Qemu([str(cache_folder() / "qemu" / LAUNCHER)], version, "cache", build)


def _build(program: str) -> str:
    """Return the line of ``program --version`` with QEMU's version; empty if there is none."""
    try:
        done = subprocess.run(
            [program, "--version"],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout) if done.returncode == 0 else None
    return found.group(0) if found else ""


def _version(build: str) -> tuple[int, int, int] | None:
    """Return the version in a version line; None for our own stand-in, which is no QEMU."""
    found = _VERSION.search(build)
    if found is None or "iommu-emu" in build:
        return None
    return int(found[1]), int(found[2]), int(found[3])


def _only(root: Path, *patterns: str) -> Path:
    for pattern in patterns:
        for match in sorted(root.glob(pattern)):
            return match
    raise PackageError(
        f"{root.parent} is damaged, {patterns[0]} is missing: remove it, run `iommu-emu fetch`"
    )
