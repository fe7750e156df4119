"""A Linux kernel in the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    """A kernel that QEMU can start with ``-kernel``.

    Attributes:
        name: Debian suite that it comes from.
        image: The compressed kernel (bzImage).
        modules: Folder with the modules (``lib/modules/<release>``); Debian compresses them
            with xz from 6.12 on.
        release: What ``uname -r`` says in the guest.
        config: The kernel's configuration file.
    """

    name: str
    image: Path
    modules: Path
    release: str
    config: Path

    def has(self, option: str) -> str | None:
        """Return ``"y"`` or ``"m"`` if ``CONFIG_<option>`` is set so, else None."""
        found = re.search(rf"^CONFIG_{re.escape(option)}=([ym])$", self.config.read_text(), re.M)
        return found.group(1) if found else None
