"""The kernel of a guest: one that was fetched, or any other by path."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from iommu_emu.guest.errors import GuestError, MissingDriverError
from iommu_emu.guest.modules import Module, ModuleFolder
from iommu_emu.qemu import KERNELS, find_kernel

__all__ = ["GuestKernel", "choose_kernel", "release_of"]


@dataclass(frozen=True)
class GuestKernel:
    """A kernel that a guest is started with.

    Attributes:
        name: how the user named it.
        image: the bzImage.
        release: what `uname -r` will say.
        modules: folder of its modules; None: everything has to be built in.
    """

    name: str
    image: Path
    release: str
    modules: ModuleFolder | None

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of the release; very new if it has none."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (1 << 16, 0)

    def drivers(self, needed: Iterable[str], optional: Iterable[str] = ()) -> list[Module]:
        """Return the modules of some drivers, in the order in which they load.

        Args:
            needed: drivers without which nothing can be done.
            optional: drivers that are left out if the kernel does not have them.

        Raises:
            MissingDriverError: if a driver that is needed is neither built in nor a module.
            GuestError: if a module cannot be read, or belongs to another kernel.
        """
        if self.modules is None:
            return []
        names = list(needed)
        modules = self.modules.load_order(names)
        for name in optional:
            with contextlib.suppress(MissingDriverError):
                modules = self.modules.load_order([*names, name])
                names.append(name)
        for module in modules:
            if module.release not in ("", self.release):
                raise GuestError(
                    f"the modules in {self.modules.path} are of Linux {module.release},"
                    f" the kernel is {self.release}: give --modules of the same release"
                )
        return modules


def choose_kernel(name: str, modules: Path | None = None) -> GuestKernel:
    """Return the kernel of a name or path.

    Args:
        name: a kernel of the cache, such as "trixie", or the path of a bzImage. A word without a
            slash that names a kernel of the cache means that one.
        modules: folder of its modules; None: the cache's, or the folder of its release beside
            the image, or in /lib/modules. What is not found has to be built in.

    Raises:
        GuestError: if there is no such kernel or folder.
        NotAvailable: if a kernel is not in the cache; the message says what to run.
    """
    if name in KERNELS:
        kernel = find_kernel(name)
        folder = ModuleFolder(modules or kernel.modules)
        return GuestKernel(name, kernel.image, kernel.release, folder)
    image = Path(name)
    if not image.is_file():
        raise GuestError(
            f"kernel {name!r} is neither a file nor one of {', '.join(KERNELS)}"
            " (see `iommu-emu guest list`)"
        )
    release = release_of(image)
    if modules is not None:
        return GuestKernel(name, image, release, ModuleFolder(modules))
    # Beside a kernel of an unpacked package: boot/vmlinuz-R with lib/modules/R, or .../R/vmlinuz.
    parent = image.resolve().parent
    candidates = [
        parent,
        *(parent.parent / lib / release for lib in ("lib/modules", "usr/lib/modules")),
        Path("/lib/modules") / release,
    ]
    found = next((p for p in candidates if p.name == release and (p / "kernel").is_dir()), None)
    return GuestKernel(name, image, release, None if found is None else ModuleFolder(found))


def release_of(image: Path) -> str:
    """Return the release that a bzImage says it is.

    Raises:
        GuestError: if the file cannot be read, or is no bzImage.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
    except OSError as error:
        raise GuestError(f"kernel {image}: {error.strerror}") from error
    if len(head) < 0x210 or head[0x202:0x206] != b"HdrS":
        raise GuestError(
            f"kernel {image} is no bzImage: give the compressed image, such as vmlinuz-6.12…"
        )
    (at,) = struct.unpack_from("<H", head, 0x20E)
    text = head[at + 0x200 : at + 0x280].split(b"\0")[0].decode("ascii", "replace")
    return text.split(" ")[0] or "unknown"
