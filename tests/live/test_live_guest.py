"""Guests beside the matrix: other policies and kernels, things that end in the middle."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from installed_command import IOMMU_EMU

from iommu_emu.guest import (
    GuestError,
    GuestTimeoutError,
    Options,
    Session,
    break_mapping,
    choose_kernel,
)
from iommu_emu.guest.break_mapping import PHASES as BREAK_PHASES

COMMAND = (IOMMU_EMU, "guest", "linux")
PATIENCE = 60.0


@pytest.fixture
def trixie(guest_kernel):
    return guest_kernel("trixie")


def verdicts(report):
    return {check.name: check.ok for _, check in report.results}


def test_live_passthrough_faults_for_user_space_alone(trixie):
    report = Session(Options(trixie, policy="passthrough")).run()
    assert report.ok, report.plain()
    assert [fault.address for fault in report.console.faults] == [0x4000_0000]
    assert report.mappings["nvme"].pass_through


def test_live_break_lets_the_kernel_name_what_we_broke(trixie):
    session = Session(Options(trixie, policy="lazy", phases=BREAK_PHASES))
    broken = break_mapping(session)
    assert broken.ok, broken
    assert (broken.said.requester, broken.said.address) == (0x0100, broken.address)


@pytest.mark.parametrize("preset", ["qemu-q35-caching-mode", "skylake-client"])
def test_live_other_units_pass_every_check(trixie, preset):
    report = Session(Options(trixie, policy="lazy", preset=preset)).run()
    assert report.ok, report.plain()


def test_live_kernel_by_path_finds_its_modules(trixie):
    options = Options(choose_kernel(str(trixie.image)), phases=("facts", "vfio"))
    assert verdicts(Session(options).run())["vfio-dma"]


def test_live_kernel_without_a_driver_says_which(trixie):
    options = Options(trixie, append="initcall_blacklist=nvme_init", phases=("facts", "nvme"))
    report = Session(options).run()
    assert not report.ok
    assert verdicts(report)["driver-nvme"] is False


def test_live_kernel_without_vfio_is_checked_but_for_that(trixie, tmp_path):
    (tmp_path / "modules.builtin").write_text("kernel/drivers/nvme/host/nvme.ko\n")
    kernel = choose_kernel(str(trixie.image), tmp_path)
    report = Session(Options(kernel, phases=("facts", "nvme", "fault", "vfio"))).run()
    assert report.ok, report.plain()
    assert [name for name, _ in report.console.skipped] == ["vfio"]


def test_live_kernel_that_does_not_drive_our_iommu_is_told_so_at_once(trixie):
    report = Session(Options(trixie, append="intel_iommu=off")).run()
    failed = [check for _, check in report.results if not check.ok]
    assert failed[0].name == "group-0000:01:00.0"
    assert "this kernel does not drive our IOMMU" in failed[0].detail
    assert report.console.phases == ["modules", "facts"]


def test_live_kernel_that_is_told_to_be_quiet_is_heard(trixie):
    options = Options(trixie, append="quiet loglevel=1", phases=("facts", "fault"))
    assert Session(options).run().ok


def test_live_kernel_that_panics_is_quoted(trixie):
    with pytest.raises(GuestError, match=r"(?s)in phase kernel: .*Kernel panic"):
        Session(Options(trixie, append="init=/nonexistent rdinit=/nonexistent")).run()


def test_live_guest_that_takes_too_long_is_ended_with_its_last_lines(trixie):
    options = Options(trixie, patience=1.0, append="initcall_debug ignore_loglevel")
    with pytest.raises(GuestTimeoutError, match=r"took more than 1 s\n"):
        Session(options).run()


@pytest.fixture
def started(trixie, tmp_path):
    """A run of the command whose kernel is booting; the process, and QEMU's ID."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        COMMAND,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stderr:
                if line.strip() == "kernel":
                    break
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield process, int(children.split()[0])
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def is_gone(pid):
    """Whether a process has ended, waiting for it a while; a zombie has."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        os.sched_yield()
    return False


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_live_killed_in_the_middle_leaves_no_qemu(started, number, code):
    process, qemu = started
    process.send_signal(number)
    assert process.wait(PATIENCE) == code
    assert is_gone(qemu)


def test_live_qemu_killed_in_the_middle_is_reported(started):
    process, qemu = started
    os.kill(qemu, signal.SIGKILL)
    assert process.wait(PATIENCE) == 2
    assert "the guest ended while we waited for" in process.stderr.read()


def test_live_command_writes_its_report_and_log(trixie, tmp_path):
    report, log = tmp_path / "report.json", tmp_path / "log"
    done = subprocess.run(
        [*COMMAND, "--json", str(report), "--keep-log", str(log)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "every check passed" in done.stdout) == (0, True)
    assert json.loads(report.read_text())["ok"]
    assert "IEMU end" in log.read_text()
