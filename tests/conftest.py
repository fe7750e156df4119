"""What tests against a real QEMU start from, and how the summary names those that did not run.

A test that needs QEMU or a kernel takes the fixtures below. They fetch on first use. Where the
package archive is out of reach, the test is skipped and the summary says "not run: reason" in a
line of its own; anything else that goes wrong fails the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from iommu_emu.qemu import (
    Kernel,
    NotAvailable,
    Qemu,
    Unreachable,
    fetch,
    find_busybox,
    find_kernel,
    find_qemu,
)

pytest_plugins = ["pytester"]

NOT_RUN = "not run: "
Found = TypeVar("Found")


class Provider:
    """Finds what tests need, fetching it if it is missing; asks an unreachable archive once."""

    def __init__(self) -> None:
        self._reason = ""

    def __call__(self, find: Callable[[], Found], component: str) -> Found:
        try:
            return find()
        except NotAvailable:
            pass
        if not self._reason:
            try:
                fetch([component])
                return find()
            except Unreachable as error:
                self._reason = str(error)
        pytest.skip(f"{NOT_RUN}{self._reason}")


@pytest.fixture(scope="session")
def provide() -> Provider:
    return Provider()


@pytest.fixture(scope="session")
def qemu(provide: Provider) -> Qemu:
    """A QEMU to start: `[*qemu.argv, ...]` with `env=clean_environment()`."""
    return provide(find_qemu, "qemu")


@pytest.fixture(scope="session")
def kernel(provide: Provider) -> Callable[[str], Kernel]:
    """Kernels by name: `kernel("trixie")`."""
    return lambda name: provide(lambda: find_kernel(name), name)


@pytest.fixture(scope="session")
def busybox(provide: Provider) -> Path:
    """A static busybox for initial RAM disks."""
    return provide(find_busybox, "busybox")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith(NOT_RUN):
            reasons[reason] += 1
    for reason, number in reasons.items():
        terminalreporter.write_line(f"{reason} ({number} test{'s' if number > 1 else ''})")
