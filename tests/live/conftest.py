"""Guests run once and looked at by many tests."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from iommu_emu.guest import GuestKernel, Options, Report, Session, choose_kernel
from iommu_emu.recording import Replay, read, replay

KERNELS = ("bookworm", "trixie", "trixie-backports")


@pytest.fixture(scope="session")
def guest_kernel(qemu, busybox, kernel) -> Callable[[str], GuestKernel]:
    """Kernels by name, with all that a guest needs fetched."""

    def find(name: str) -> GuestKernel:
        kernel(name)
        return choose_kernel(name)

    return find


@dataclass(frozen=True)
class Cell:
    """One run of the matrix.

    Attributes:
        kernel: name of the kernel.
        policy: policy of the kernel.
        report: what came out.
        recording: file of the run.
    """

    kernel: str
    policy: str
    report: Report
    recording: Path

    def check(self, name: str) -> tuple[bool, bool | None]:
        """Verdicts of the guest, and of the host on the disk's content if it has one."""
        verdicts = {check.name: check.ok for _, check in self.report.results}
        return verdicts[name], verdicts.get(f"medium-{name}")

    def replayed(self) -> Replay:
        """Play the recorded run again, without its guest."""
        return replay(read(self.recording))


@pytest.fixture(
    scope="session",
    params=[(kernel, policy) for kernel in KERNELS for policy in ("strict", "lazy")],
    ids=lambda cell: "-".join(cell),
)
def cell(request, guest_kernel, tmp_path_factory) -> Cell:
    """The matrix: each kernel with each policy, booted once."""
    name, policy = request.param
    recording = tmp_path_factory.mktemp("recording") / f"{name}-{policy}.iemu"
    options = Options(guest_kernel(name), policy=policy, record=recording)
    return Cell(name, policy, Session(options).run(), recording)
