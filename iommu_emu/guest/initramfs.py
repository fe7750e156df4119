"""The first file system of a guest: a shell, our program, the drivers, and what is to be done."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from iommu_emu.guest.cpio import Archive
from iommu_emu.guest.modules import Module

INIT = Path(__file__).parent / "init.sh"

__all__ = ["build_initramfs"]


def build_initramfs(
    busybox: bytes, helper: bytes, modules: Iterable[Module], settings: Mapping[str, str]
) -> bytes:
    """Return the archive that QEMU hands to the kernel with `-initrd`.

    Args:
        busybox: a static busybox.
        helper: our static program.
        modules: drivers, in the order in which they load.
        settings: shell variables of the check, see init.sh.
    """
    archive = Archive()
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("init", INIT.read_bytes(), 0o755)
    archive.add_file("bin/busybox", busybox, 0o755)
    archive.add_file("bin/iemu", helper, 0o755)
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    archive.add_file("etc/check.conf", "".join(lines).encode())
    names = []
    for module in modules:
        archive.add_file(f"modules/{module.name}.ko", module.data)
        names.append(f"{module.name}.ko\n")
    archive.add_file("modules/order", "".join(names).encode())
    return archive.build()
