"""Debian packages without root: apt-get on state folders of our own.

The indexes are Debian's signed ones and apt checks them as it always does; nothing here loosens
that. Dependencies are resolved against an empty dpkg status, so the host's own release does not
matter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from iommu_emu.qemu.environment import clean_environment
from iommu_emu.qemu.errors import PackageError, Unreachable

MIRROR_VARIABLE = "IOMMU_EMU_DEBIAN_MIRROR"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)
KEY_PARTS = "/etc/apt/trusted.gpg.d"

PAUSES_S = (2.0, 5.0, 10.0)  # between attempts while the archive does not answer
NO_ANSWER_S = 20  # how long apt waits for one connection
LONGEST_RUN_S = 900.0  # a run of apt that takes longer is ended, and not tried again

# apt's words (in the C locale) for an archive that did not answer, or a filter that did instead.
_NO_ANSWER = re.compile(
    r"could not resolve|temporary failure resolving|something wicked happened resolving"
    r"|could not connect|unable to connect|cannot initiate the connection|connection failed"
    r"|connection timed out|connection refused|connection reset|network is unreachable"
    r"|no route to host|error reading from server|remote end closed connection"
    r"|data socket timed out|timeout was reached|invalid response from proxy|proxy"
    r"|\b(403|407|429|451|500|502|503|504)\s",
    re.IGNORECASE,
)
# An answer that is wrong stays wrong, whatever else did not answer.
_WRONG_ANSWER = re.compile(
    r"NO_PUBKEY|BADSIG|EXPKEYSIG|REVKEYSIG|invalid signature|signatures? (were|was|could|couldn't)"
    r"|hash sum mismatch|unexpected size|not valid yet|is expired"
    r"|\b404\s",
    re.IGNORECASE,
)
_HOST_SETTINGS = re.compile(r"Acquire::(https?::|Check-Valid-Until |Check-Date )")

OnProgress = Callable[[str, float | None], None]  # what is being done; the fraction done, if known


@dataclass(frozen=True)
class Package:
    """One package as the signed index names it."""

    name: str
    version: str
    size: int


class PrivateApt:
    """apt-get on a folder of its own, for amd64 packages of Debian.

    Args:
        folder: Where indexes and settings go; created on demand.
        mirror: Archive URI; ``IOMMU_EMU_DEBIAN_MIRROR`` or deb.debian.org if not given.
        keyrings: Files that hold the archive's keys; Debian's by default.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mirror: str | None = None,
        keyrings: Sequence[str] | None = None,
    ) -> None:
        self._folder = folder
        self.mirror = mirror or chosen_mirror()
        self._keyrings = keyrings
        self._suites: tuple[str, ...] = ()
        self._loaded: set[str] = set()

    def use(self, suites: Sequence[str], progress: OnProgress) -> None:
        """Choose the suites that packages come from, and load their signed indexes.

        Args:
            suites: Such as ``("trixie", "trixie-backports")``; the last one is preferred.
            progress: Told what is being done.

        Raises:
            Unreachable: The archive did not answer in several attempts.
            PackageError: It answered with something apt refuses.
        """
        self._suites = tuple(suites)
        self._prepare()
        if self._loaded.issuperset(suites):
            return
        progress(f"reading Debian's indexes ({', '.join(suites)})", None)
        self._persist(lambda: self._run("update", "-o", "APT::Update::Error-Mode=any"))
        self._loaded.update(suites)

    def resolve(self, package: str, kept: str) -> list[Package]:
        """Return ``package`` and what it depends on, as far as the names match ``kept``.

        Raises:
            PackageError: The suites do not have it, or not all that it needs.
        """
        wanted = re.compile(kept)
        listing = self._run("install", "-qq", "-y", "--print-uris", package)
        found = [each for each in parse_uris(listing) if wanted.fullmatch(each.name)]
        if not found:
            raise PackageError(f"{self.mirror}: no package {package} in {', '.join(self._suites)}")
        return sorted(found, key=lambda each: each.name)

    def download(
        self, packages: Sequence[Package], folder: Path, progress: OnProgress
    ) -> list[Path]:
        """Put the package files into ``folder``, checked by apt against the signed index.

        Raises:
            Unreachable: The archive did not answer in several attempts.
            PackageError: It answered with something apt refuses.
        """
        total = sum(package.size for package in packages)
        what = f"downloading {len(packages)} packages, {total / 2**20:.0f} MiB"

        def watch() -> None:
            have = sum(_size(entry) for entry in folder.iterdir())
            progress(what, min(have / total, 1.0) if total else None)

        watch()
        exact = [f"{package.name}={package.version}" for package in packages]
        self._persist(lambda: self._run("download", "-q", *exact, cwd=folder, watch=watch))
        files = sorted(folder.glob("*.deb"))
        if len(files) != len(packages):
            raise PackageError(
                f"{self.mirror}: asked for {len(packages)} packages, got {len(files)}"
            )
        return files

    def _persist(self, attempt: Callable[[], object]) -> None:
        """Try several times: archives are out of reach, or half updated, for moments."""
        deadline = time.monotonic() + LONGEST_RUN_S
        for pause in PAUSES_S:
            try:
                attempt()
                return
            except (Unreachable, PackageError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(pause)
        attempt()

    def _prepare(self) -> None:
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise PackageError(
                    f"{tool} is not here: packages are fetched with Debian's tools. Install apt and"
                    " dpkg, or set IOMMU_EMU_QEMU to a QEMU of your own"
                )
        for part in ("preferences.d", "state/lists/partial", "cache/archives/partial"):
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        keys = ",".join(self._keyrings or debian_keyrings())
        (self._folder / "sources.list").write_text(
            "".join(
                f"deb [arch=amd64 signed-by={keys}] {self.mirror} {suite} main\n"
                for suite in self._suites
            )
        )
        (self._folder / "apt.conf").write_text(self._settings())

    def _settings(self) -> str:
        folder = self._folder
        own = {
            "Dir": folder,
            "Dir::Etc": folder,
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": "/dev/null",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Log": folder,
            "APT::Architecture": "amd64",
            "APT::Default-Release": self._suites[-1],
            "APT::Install-Recommends": "false",
            # The cache belongs to this user; apt's own user could not write into it.
            "APT::Sandbox::User": "root",
            # The indexes of suites that were used before stay.
            "APT::Get::List-Cleanup": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "0",
            "Acquire::http::Timeout": NO_ANSWER_S,
            "Acquire::https::Timeout": NO_ANSWER_S,
        }
        lines = [*_host_settings(), *(f'{name} "{value}";' for name, value in own.items())]
        return "\n".join([*lines, 'APT::Architectures { "amd64"; };', ""])

    def _run(
        self,
        command: str,
        *arguments: str,
        cwd: Path | None = None,
        watch: Callable[[], None] | None = None,
    ) -> str:
        """Run apt-get to its end and return what it said."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                ["apt-get", command, *arguments],
                cwd=cwd or self._folder,
                env=clean_environment(APT_CONFIG=str(self._folder / "apt.conf"), LC_ALL="C"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                self._wait(process, watch)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            output.seek(0)
            said = output.read()
        if process.returncode != 0:
            raise self._failure(command, said)
        return said

    def _wait(self, process: subprocess.Popen[bytes], watch: Callable[[], None] | None) -> None:
        deadline = time.monotonic() + LONGEST_RUN_S
        while time.monotonic() < deadline:
            try:
                process.wait(timeout=0.2)
                return
            except subprocess.TimeoutExpired:
                if watch is not None:
                    watch()
        raise Unreachable(f"{self.mirror} is too slow: gave up after {LONGEST_RUN_S:.0f} s")

    def _failure(self, command: str, said: str) -> Unreachable | PackageError:
        # apt indents the reason below the "Err:" line that it belongs to.
        errors = [line for line in said.splitlines() if line.startswith(("E:", "Err:", "W:", "  "))]
        text = "\n".join(errors) or said
        if is_unreachable(text):
            reason = next((line for line in text.splitlines() if is_unreachable(line)), text)
            return Unreachable(
                f"{self.mirror} does not answer: {' '.join(reason.removeprefix('E:').split())}"
            )
        return PackageError(f"apt-get {command} on {self.mirror} failed:\n{text}")


def chosen_mirror() -> str:
    """Return the archive that packages come from: the user's choice, or Debian's own."""
    return os.environ.get(MIRROR_VARIABLE) or DEFAULT_MIRROR


def debian_keyrings() -> tuple[str, ...]:
    """Return the files with the Debian archive's keys.

    Raises:
        PackageError: This machine has none.
    """
    for keyring in KEYRINGS:
        if os.access(keyring, os.R_OK):
            return (keyring,)
    parts = tuple(str(part) for part in sorted(Path(KEY_PARTS).glob("debian-archive-*")))
    if not parts:
        raise PackageError(
            "the Debian archive's keys are not here, and unsigned packages are not taken:"
            " install the package debian-archive-keyring"
        )
    return parts


def is_unreachable(said: str) -> bool:
    """Tell from apt's messages whether the archive did not answer, or answered wrongly."""
    said = re.sub(r"\S+://\S+", "", said)  # a mirror may be called anything
    return bool(_NO_ANSWER.search(said)) and not _WRONG_ANSWER.search(said)


def parse_uris(listing: str) -> list[Package]:
    """Read what ``apt-get --print-uris`` prints: quoted URI, file name, size, maybe a hash."""
    packages = []
    for line in listing.splitlines():
        if line.startswith("'"):
            file_name, size = line.split()[1:3]
            name, version, _architecture = unquote(file_name).split("_")
            packages.append(Package(name, version, int(size)))
    return packages


def unpack(files: Iterable[Path], folder: Path, progress: OnProgress) -> None:
    """Unpack package files into ``folder``.

    Raises:
        PackageError: dpkg-deb refuses one.
    """
    pending = list(files)
    for number, file in enumerate(pending):
        progress("unpacking", number / len(pending))
        done = subprocess.run(
            ["dpkg-deb", "-x", str(file), str(folder)],
            env=clean_environment(LC_ALL="C"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise PackageError(f"{file.name} does not unpack: {done.stderr.strip()}")


def _host_settings() -> list[str]:
    """Return what this machine's administrator told apt about reaching an archive: proxies."""
    dump = subprocess.run(
        ["apt-config", "dump", "--no-empty"],
        env=clean_environment(LC_ALL="C"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in dump.stdout.splitlines() if _HOST_SETTINGS.match(line)]


def _size(entry: Path) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # apt renames its files while we look
        return 0
