"""The per-user cache: one folder a component, complete or not there at all.

::

    $XDG_CACHE_HOME/iommu-emu/      (or ~/.cache/iommu-emu/)
        lock                        held while something is fetched
        qemu/  busybox/  trixie/    one component: manifest.json, root/ (the unpacked packages)
        .work.*/                    what is being fetched right now
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from iommu_emu.qemu.apt import OnProgress, Package, PrivateApt, unpack
from iommu_emu.qemu.components import COMPONENTS, Component
from iommu_emu.qemu.errors import NotAvailable, PackageError
from iommu_emu.qemu.launcher import write_launcher

MANIFEST = "manifest.json"
LONGEST_WAIT_S = 1800.0  # for another process that fetches
FORMAT = 1  # of a component's folder; another number is treated as absent, and fetched again
DROPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian")


@dataclass(frozen=True)
class Manifest:
    """What one component's folder holds, as its manifest.json says it.

    Attributes:
        format: Layout of the folder, :data:`FORMAT`.
        component: Name of the component.
        mirror: Archive that the packages came from.
        fetched: When, in UTC (ISO 8601).
        packages: Every package unpacked there.
        size: Bytes on disk.
    """

    format: int
    component: str
    mirror: str
    fetched: str
    packages: tuple[Package, ...]
    size: int

    def version(self, package: str) -> str:
        """Return the version of the first package whose name starts with ``package``.

        Raises:
            PackageError: There is none.
        """
        for each in self.packages:
            if each.name.startswith(package):
                return each.version
        raise PackageError(f"{self.component} was fetched without a package {package}")


def cache_folder() -> Path:
    """Return the folder that all checkouts of this user share; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return folder / "iommu-emu"


def read_manifest(name: str) -> Manifest:
    """Return what the cache holds of the component ``name``.

    Raises:
        NotAvailable: Nothing; the message says what to run.
    """
    component_named(name)
    try:
        raw = json.loads((cache_folder() / name / MANIFEST).read_text())
        packages = tuple(Package(**package) for package in raw.pop("packages"))
        manifest = Manifest(packages=packages, **raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        manifest = None
    if manifest is None or manifest.format != FORMAT:
        raise NotAvailable(f"{name} is not in the cache: run `iommu-emu fetch {name}`")
    return manifest


def component_named(name: str) -> Component:
    """Return the component called ``name``.

    Raises:
        ValueError: There is none.
    """
    try:
        return COMPONENTS[name]
    except KeyError:
        raise ValueError(f"no component {name!r}: there are {', '.join(COMPONENTS)}") from None


def fetch(
    names: Iterable[str], *, update: bool = False, progress: OnProgress = lambda what, done: None
) -> dict[str, Manifest]:
    """Put components into the cache; what is there already stays as it is.

    Args:
        names: Components, see :data:`COMPONENTS`.
        update: Look for newer packages of what is there.
        progress: Called with what is being done and the fraction done, if it is known.

    Returns:
        The manifest of each component.

    Raises:
        Unreachable: The archive did not answer in several attempts.
        PackageError: It answered, and something is wrong.
        ValueError: A name is not a component.
    """
    components = [component_named(name) for name in names]
    if not update:
        with contextlib.suppress(NotAvailable):
            return {each.name: read_manifest(each.name) for each in components}
    if platform.machine() != "x86_64":
        raise PackageError(
            f"QEMU is fetched for x86-64 hosts, this is {platform.machine()}:"
            " set IOMMU_EMU_QEMU to a QEMU of your own"
        )
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root, progress), _workshop(root) as work:
        apt = PrivateApt(work / "apt")
        return {each.name: _provide(root, work, apt, each, update, progress) for each in components}


def _provide(
    root: Path,
    work: Path,
    apt: PrivateApt,
    component: Component,
    update: bool,
    progress: OnProgress,
) -> Manifest:
    present: Manifest | None = None
    with contextlib.suppress(NotAvailable):
        present = read_manifest(component.name)
    if present is not None and not update:
        return present

    def named(what: str, done: float | None) -> None:
        progress(f"{component.name}: {what}", done)

    apt.use(component.suites, named)
    packages = tuple(apt.resolve(component.package, component.kept))
    if present is not None and present.packages == packages:
        return present
    ready = work / component.name
    downloads = work / "packages"
    ready.mkdir()
    downloads.mkdir()
    unpack(apt.download(packages, downloads, named), ready / "root", named)
    shutil.rmtree(downloads)
    _drop(ready / "root", (*DROPPED, *component.dropped))
    if component.name == "qemu":
        write_launcher(ready)
    manifest = Manifest(
        FORMAT,
        component.name,
        apt.mirror,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        packages,
        sum(entry.lstat().st_size for entry in ready.rglob("*") if not entry.is_dir()),
    )
    (ready / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    place = root / component.name
    if place.exists():
        place.rename(work / f"previous-{component.name}")
    ready.rename(place)
    return manifest


def _drop(root: Path, patterns: Iterable[str]) -> None:
    for entry in [entry for pattern in patterns for entry in root.glob(pattern)]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def _workshop(root: Path) -> Iterator[Path]:
    """Give a folder to work in, beside the components so that renaming one is atomic."""
    for left in root.glob(".work.*"):  # by a process that was killed; we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".work.", dir=root))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _lock(root: Path, progress: OnProgress) -> Iterator[None]:
    deadline = time.monotonic() + LONGEST_WAIT_S
    with (root / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PackageError(f"another process holds {file.name} for too long") from None
                progress("waiting for another process that fetches", None)
                time.sleep(0.2)
        yield
