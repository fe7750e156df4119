"""Starting the unpacked QEMU: through its own loader, with its own libraries and firmware."""

from __future__ import annotations

import subprocess
from pathlib import Path

from iommu_emu.qemu.environment import clean_environment
from iommu_emu.qemu.errors import PackageError

LAUNCHER = "qemu-system-x86_64"

# exec keeps the process id: killing what was started kills QEMU.
_SCRIPT = """\
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$root/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libraries/qemu exec "$root/usr/lib64/ld-linux-x86-64.so.2" \\
    --library-path "$libraries" "$root/usr/bin/qemu-system-x86_64" \\
    -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


def write_launcher(folder: Path) -> Path:
    """Write the script that starts ``folder``/root's QEMU, and try it.

    Raises:
        PackageError: QEMU does not start.
    """
    launcher = folder / LAUNCHER
    launcher.write_text(_SCRIPT)
    launcher.chmod(0o755)
    done = subprocess.run(
        [launcher, "--version"],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise PackageError(f"the fetched QEMU does not start: {done.stderr.strip()}")
    return launcher
