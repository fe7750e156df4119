"""The environment in which foreign programs start."""

from __future__ import annotations

import os

# A sanitizer run preloads its runtime into everything. QEMU brings a C library of its own, and
# apt's findings about itself are not ours to collect.
DROPPED = frozenset(
    {
        "LD_PRELOAD",
        "ASAN_OPTIONS",
        "LSAN_OPTIONS",
        "TSAN_OPTIONS",
        "UBSAN_OPTIONS",
    }
)


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without preloaded libraries, plus ``changes``.

    Every program that is not ours (QEMU, apt, dpkg) is started with it, so that a test run under
    a sanitizer works like any other.
    """
    kept = {name: value for name, value in os.environ.items() if name not in DROPPED}
    return {**kept, **changes}
