import json
import signal
from types import SimpleNamespace

import pytest
from guest_samples import image

from iommu_emu import core
from iommu_emu.cli.guest import story
from iommu_emu.cli.main import main
from iommu_emu.core import Access, Vendor
from iommu_emu.guest.break_mapping import Broken
from iommu_emu.guest.console import KernelFault
from iommu_emu.guest.observer import SeenFault
from iommu_emu.guest.report import Versions


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A user who has fetched nothing, on a machine without QEMU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IOMMU_EMU_QEMU", raising=False)
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main(["guest", *arguments])
        output = capsys.readouterr()
        return SimpleNamespace(code=code, out=output.out, err=output.err)

    return run


def test_cli_kernel_that_is_not_there_is_named(run):
    result = run("linux", "--kernel", "sid")
    assert (result.code, result.out) == (2, "")
    assert "kernel 'sid' is neither a file nor one of bookworm, trixie" in result.err


def test_cli_kernel_that_was_not_fetched_says_what_to_run(run, empty_cache):
    result = run("linux")
    assert result.code == 2
    assert "run `iommu-emu fetch trixie`" in result.err


def test_cli_without_qemu_says_what_to_run(run, empty_cache):
    (empty_cache / "vmlinuz").write_bytes(image("6.1"))
    result = run("linux", "--kernel", str(empty_cache / "vmlinuz"))
    assert result.code == 2
    assert "run `iommu-emu fetch qemu`" in result.err


def test_cli_modules_that_are_no_folder_are_named(run, empty_cache):
    (empty_cache / "vmlinuz").write_bytes(image("6.1"))
    result = run("linux", "--kernel", str(empty_cache / "vmlinuz"), "--modules", "/nonexistent")
    assert result.code == 2
    assert "modules: /nonexistent is no folder" in result.err


@pytest.mark.parametrize("policy", ["strict", "passthrough"])
def test_cli_break_needs_a_kernel_that_flushes_domains(run, policy):
    result = run("linux", "--break", "--policy", policy)
    assert result.code == 2
    assert "--break waits for the kernel to flush the domain: with --policy lazy" in result.err


def test_cli_log_that_cannot_be_written_is_named(run):
    result = run("linux", "--keep-log", "/nonexistent/log")
    assert result.code == 2
    assert "/nonexistent/log: No such file or directory" in result.err


def test_cli_report_that_cannot_be_written_is_named_before_the_guest_starts(run):
    result = run("linux", "--json", "/nonexistent/report.json")
    assert (result.code, result.err) == (
        2,
        "iommu-emu guest: /nonexistent/report.json: No such file or directory\n",
    )


def test_cli_report_of_a_guest_that_never_started_is_not_left_behind(run, empty_cache):
    assert run("linux", "--json", str(empty_cache / "report.json")).code == 2
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--iommu", "amdvi"),
        ("--policy", "loose"),
        ("--unit", "no-such-unit"),
        ("--timeout", "0"),
        ("--timeout", "soon"),
    ],
)
def test_cli_refuses_what_is_no_choice(run, arguments):
    with pytest.raises(SystemExit, match="2"):
        run("linux", *arguments)


def test_cli_list_says_what_to_fetch(run, empty_cache):
    result = run("list")
    assert result.code == 0
    assert "trixie-backports" in result.out
    assert "run `iommu-emu fetch bookworm`" in result.out


def test_cli_list_for_programs(run, empty_cache):
    assert json.loads(run("list", "--json").out) == [
        {"name": name, "release": None, "image": None}
        for name in ("bookworm", "trixie", "trixie-backports")
    ]


@pytest.mark.parametrize("command", [(), ("linux",), ("list",)])
def test_cli_help_teaches(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main(["guest", *command, "--help"])
    assert "iommu-emu guest" in capsys.readouterr().out


def broken(reason=6, stale_uses=16):
    cause = next(row for row in core.faults(Vendor.VTD) if row.code == 6)
    return Broken(
        versions=Versions("0.1.0", "QEMU emulator version 11.1.3", "6.12.0", "trixie"),
        requester=0x0100,
        address=0xFFFE_0000,
        entry=0x1EB_7F00,
        before=0x1F1_F003,
        after=0x1F1_F000,
        stale_uses=stale_uses,
        lasted_ms=5.5,
        seen=SeenFault(0, 0x0100, 0xFFFE_0040, Access.READ, 6, cause),
        said=KernelFault(Access.READ, 0x0100, 0xFFFE_0000, reason, "DMAR: [DMA Read NO_PASID] …"),
    )


def test_cli_story_of_a_broken_mapping_has_both_voices():
    text = story(broken()).plain
    assert "Linux      DMAR: [DMA Read NO_PASID] …" in text
    assert "iommu-emu  01:00.0 read of 0xfffe0040: fault 0x06" in text
    assert "gets through 16 times more: the IOTLB still has it" in text
    assert text.endswith("Both name the same device, page and reason.")


def test_cli_story_claims_no_stale_entry_that_nobody_used():
    text = story(broken(stale_uses=0)).plain
    assert "the disk's next fetch, 5.5 ms later, finds no page" in text
    assert "IOTLB" not in text


def test_cli_story_says_so_when_they_disagree():
    assert story(broken(reason=5)).plain.endswith("They DISAGREE.")


def test_cli_story_for_programs_is_json():
    plain = json.loads(json.dumps(broken().plain()))
    assert (plain["ok"], plain["emulator"]["reason"]) == (True, 6)


def test_cli_leaves_signal_handlers_as_they_were(run):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    run("linux", "--kernel", "sid")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before
