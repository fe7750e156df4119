"""The static program that runs inside a guest, compiled when it is needed for the first time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from iommu_emu.guest.errors import GuestError
from iommu_emu.qemu import cache_folder, clean_environment

SOURCE = Path(__file__).parent / "helper" / "iemu.c"
_FLAGS = ("-std=gnu11", "-O2", "-static", "-s")

__all__ = ["compile_helper"]


def compile_helper() -> bytes:
    """Return the program; it is kept in the cache under a hash of its source.

    Raises:
        GuestError: if it cannot be compiled; the message says what is missing.
    """
    source = SOURCE.read_bytes()
    name = hashlib.sha256(source + " ".join(_FLAGS).encode()).hexdigest()[:16]
    kept = cache_folder() / "guest" / f"iemu-{name}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        _compile(kept)
    return kept.read_bytes()


def _compile(target: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise GuestError(
            "a program for the guest has to be compiled, and there is no C compiler: install gcc"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        program = Path(folder) / "iemu"
        done = subprocess.run(
            [compiler, *_FLAGS, str(SOURCE), "-o", str(program)],
            env=clean_environment(LC_ALL="C"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise GuestError(
                f"{compiler} cannot compile the guest's program (is libc6-dev there, with its"
                f" static libraries?): {done.stderr.strip()}"
            )
        os.replace(program, target)  # another process may have put the same there
