#!/usr/bin/env python3
"""Make tests/qemu/archive: a signed Debian archive of a few kilobytes, for the tests of `fetch`.

Run it after a change below and keep what it writes; it needs dpkg-deb and gpg, the tests do not.
Every run signs with a new key: archive/key.gpg is what apt has to trust.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "archive"
DATE = "Sat, 01 Jan 2022 00:00:00 UTC"

QEMU = """\
#!/bin/sh
# stands for the loader that starts QEMU: --library-path LIBRARIES PROGRAM -L ... ARGUMENTS
echo "QEMU emulator version 11.1.3 (Debian 1:11.1.3)"
shift 7
echo "arguments: $*"
"""
KERNEL = "6.1.0-1-cloud-amd64"
LATER = "7.2.0-cloud-amd64"
# suite -> package -> (version, dependencies, files)
SUITES: dict[str, dict[str, tuple[str, str, dict[str, str]]]] = {
    "bookworm": {
        "linux-image-cloud-amd64": ("6.1.7-1", f"linux-image-{KERNEL} (= 6.1.7-1)", {}),
        f"linux-image-{KERNEL}": (
            "6.1.7-1",
            "kmod",
            {
                f"boot/vmlinuz-{KERNEL}": "a kernel",
                f"boot/config-{KERNEL}": "CONFIG_INTEL_IOMMU=y\nCONFIG_VFIO=m\n",
                f"lib/modules/{KERNEL}/kernel/vfio.ko": "a module",
            },
        ),
        "kmod": ("30", "", {"usr/bin/kmod": "not wanted"}),
    },
    "trixie": {
        "qemu-system-x86": (
            "1:11.1.3+ds-1",
            "libexample1, adduser",
            {
                "usr/lib64/ld-linux-x86-64.so.2": QEMU,
                "usr/bin/qemu-system-x86_64": "a program",
                "usr/bin/qemu-system-i386": "not wanted",
                "usr/share/doc/qemu/README": "not wanted",
            },
        ),
        "libexample1": ("1.0-1", "", {"usr/lib/x86_64-linux-gnu/libexample.so.1": "a library"}),
        "adduser": ("3", "", {"usr/bin/adduser": "not wanted"}),
        "busybox-static": ("1:1.37.0-6", "", {"usr/bin/busybox": "a shell"}),
    },
    "trixie-backports": {
        "busybox-static": ("1:1.38.0-1~bpo13+1", "", {"usr/bin/busybox": "a newer shell"}),
        "linux-image-cloud-amd64": ("7.2.1-1", f"linux-image-{LATER}", {}),
        f"linux-image-{LATER}": (
            "7.2.1-1",
            f"linux-binary-{LATER}, linux-modules-{LATER}, linux-base-{LATER}, kmod",
            {},
        ),
        f"linux-binary-{LATER}": (
            "7.2.1-1", "", {f"usr/lib/modules/{LATER}/vmlinuz": "a later kernel"},
        ),
        f"linux-base-{LATER}": (
            "7.2.1-1", "", {f"usr/lib/modules/{LATER}/config": "CONFIG_INTEL_IOMMU=y\n"},
        ),
        f"linux-modules-{LATER}": (
            "7.2.1-1",
            "",
            {f"usr/lib/modules/{LATER}/kernel/vfio.ko.xz": "a later module"},
        ),
        "kmod": ("34", "", {"usr/bin/kmod": "not wanted"}),
    },
}  # fmt: skip


def build(name: str, version: str, depends: str, files: dict[str, str]) -> str:
    """Build one package below ARCHIVE/pool and return its paragraph of the index."""
    file = ARCHIVE / "pool" / f"{name}_{version.split(':')[-1]}_amd64.deb"
    control = (
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: nobody <nobody@example.org>\n"
        + (f"Depends: {depends}\n" if depends else "")
        + "Description: for tests\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        tree.chmod(0o755)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control)
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(content)
            (tree / path).chmod(0o755 if "/ld-linux" in path else 0o644)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", folder, str(file)],
            env={**os.environ, "SOURCE_DATE_EPOCH": "1640995200"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    data = file.read_bytes()
    return (
        control + f"Filename: pool/{file.name}\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    )


def release(suite: str, packages: bytes) -> str:
    index = "main/binary-amd64/Packages"
    lines = [f"Suite: {suite}", f"Codename: {suite}", f"Date: {DATE}", "Architectures: amd64"]
    if suite.endswith("-backports"):
        lines += ["NotAutomatic: yes", "ButAutomaticUpgrades: yes"]
    squeezed = io.BytesIO()
    with gzip.GzipFile(fileobj=squeezed, mode="wb", mtime=0) as file:
        file.write(packages)
    (ARCHIVE / "dists" / suite / f"{index}.gz").write_bytes(squeezed.getvalue())
    lines += ["Components: main", "SHA256:"]
    for name, data in ((index, packages), (f"{index}.gz", squeezed.getvalue())):
        lines.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
    return "\n".join(lines) + "\n"


def main() -> None:
    shutil.rmtree(ARCHIVE, ignore_errors=True)
    (ARCHIVE / "pool").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as keys:

        def gpg(*arguments: str, data: str = "") -> bytes:
            command = ["gpg", "--homedir", keys, "--batch", "--quiet", "--passphrase", ""]
            # A signature from the future is refused, and some machines' clocks are behind.
            command += ["--faked-system-time", "20220101T000000!"]
            done = subprocess.run(
                [*command, *arguments], input=data.encode(), capture_output=True, check=True
            )
            return done.stdout

        gpg("--quick-generate-key", "iommu-emu tests, worth nothing", "rsa3072", "sign", "never")
        (ARCHIVE / "key.gpg").write_bytes(gpg("--export"))
        for suite, packages in SUITES.items():
            (ARCHIVE / "dists" / suite / "main/binary-amd64").mkdir(parents=True)
            index = "\n".join(build(name, *rest) for name, rest in packages.items()).encode()
            signed = gpg("--clearsign", "--digest-algo", "SHA512", data=release(suite, index))
            (ARCHIVE / "dists" / suite / "InRelease").write_bytes(signed)
        subprocess.run(["gpgconf", "--homedir", keys, "--kill", "all"], check=True)


if __name__ == "__main__":
    main()
