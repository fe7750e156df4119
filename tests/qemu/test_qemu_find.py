"""Which QEMU is used, what a kernel offers, and how reports name them."""

import subprocess
from pathlib import Path

import pytest

import iommu_emu
from iommu_emu.qemu import (
    NotAvailable,
    PackageError,
    QemuError,
    clean_environment,
    fetch,
    find_busybox,
    find_kernel,
    find_qemu,
    versions,
)

NEW = "QEMU emulator version 11.1.0 (v11.1.0)"
OLD = "QEMU emulator version 11.0.9"
OURS = "QEMU emulator version 11.1.0 (iommu-emu 0.1.0)"


def program(folder: Path, said: str, status: int = 0) -> Path:
    """Make a qemu-system-x86_64 in ``folder`` that answers --version with ``said``."""
    folder.mkdir()
    file = folder / "qemu-system-x86_64"
    file.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def path(own_cache, monkeypatch, tmp_path):
    """Set PATH to folders, one with each version line; returns the programs in them."""

    def choose(*said: str) -> list[Path]:
        programs = [program(tmp_path / f"bin{number}", each) for number, each in enumerate(said)]
        monkeypatch.setenv("PATH", ":".join([*(str(each.parent) for each in programs), "/bin"]))
        return programs

    choose()
    return choose


def test_qemu_of_the_environment_comes_first(path, monkeypatch, tmp_path):
    path(NEW)
    own = program(tmp_path / "own", NEW)
    monkeypatch.setenv("IOMMU_EMU_QEMU", str(own))
    found = find_qemu()
    assert (found.argv, found.version, found.origin) == ([str(own)], (11, 1, 0), "environment")


@pytest.mark.parametrize(
    ("said", "status", "complaint"),
    [
        (OLD, 0, r"is QEMU 11\.0\.9, too old: point IOMMU_EMU_QEMU at QEMU 11\.1 or later"),
        (NEW, 1, "does not run as QEMU: point"),
        ("GNU bash", 0, "does not run as QEMU: point"),
        (OURS, 0, "does not run as QEMU: point"),
    ],
    ids=["old", "fails", "another-program", "our-stand-in"],
)
def test_qemu_of_the_environment_that_does_not_serve_is_an_error(
    path, monkeypatch, tmp_path, said, status, complaint
):
    path(NEW)
    monkeypatch.setenv("IOMMU_EMU_QEMU", str(program(tmp_path / "own", said, status)))
    with pytest.raises(QemuError, match=complaint):
        find_qemu()


def test_qemu_of_the_environment_that_is_missing_is_an_error(own_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("IOMMU_EMU_QEMU", str(tmp_path / "missing"))
    with pytest.raises(QemuError, match="missing does not run as QEMU"):
        find_qemu()


def test_recent_qemu_on_path_is_used(path):
    (program,) = path(NEW)
    found = find_qemu()
    assert (found.argv, found.origin, found.build) == ([str(program)], "path", NEW)


def test_our_own_stand_in_and_old_ones_on_path_are_passed_over(path):
    programs = path(OURS, OLD, NEW)
    assert find_qemu().argv == [str(programs[2])]


def test_qemu_starts_without_preloaded_libraries(path, monkeypatch, tmp_path):
    (program,) = path(NEW)
    program.write_text(f'#!/bin/sh\necho "{NEW} ${{ASAN_OPTIONS-none}}"\n')
    monkeypatch.setenv("ASAN_OPTIONS", "abort_on_error=1")
    assert find_qemu().build == f"{NEW} none"


def test_missing_qemu_says_what_to_run(path):
    path(OLD)
    with pytest.raises(NotAvailable, match="run `iommu-emu fetch qemu`"):
        find_qemu()


def test_qemu_of_the_cache_comes_last(path, archive, own_cache):
    path(OLD)
    fetch(["qemu"])
    found = find_qemu()
    assert found.argv == [str(own_cache / "qemu/qemu-system-x86_64")]
    assert (found.version, found.origin) == ((11, 1, 3), "cache")


def test_qemu_of_the_cache_that_is_too_old_says_what_to_run(path, archive, monkeypatch):
    fetch(["qemu"])
    monkeypatch.setattr("iommu_emu.qemu.find.OLDEST", (12, 0, 0))
    with pytest.raises(NotAvailable, match=r"1:11\.1\.3.*run `iommu-emu fetch qemu --update`"):
        find_qemu()


def test_launcher_hands_arguments_and_firmware_to_qemu(path, archive, own_cache):
    fetch(["qemu"])
    command = [*find_qemu().argv, "-m", "a b"]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[1] == "arguments: -m a b"


def test_launcher_works_through_a_link(path, archive, own_cache, tmp_path):
    fetch(["qemu"])
    (tmp_path / "link").symlink_to(own_cache / "qemu/qemu-system-x86_64")
    done = subprocess.run([tmp_path / "link"], env=clean_environment(), capture_output=True)
    assert done.returncode == 0


def test_kernel_of_one_package_is_found(archive, own_cache):
    fetch(["bookworm"])
    kernel = find_kernel("bookworm")
    root = own_cache / "bookworm/root"
    assert kernel.release == "6.1.0-1-cloud-amd64"
    assert kernel.image == root / "boot/vmlinuz-6.1.0-1-cloud-amd64"
    assert kernel.modules == root / "lib/modules/6.1.0-1-cloud-amd64"


def test_kernel_of_several_packages_is_found(archive, own_cache):
    fetch(["trixie-backports"])
    kernel = find_kernel("trixie-backports")
    modules = own_cache / "trixie-backports/root/usr/lib/modules/7.2.0-cloud-amd64"
    assert (kernel.modules, kernel.image) == (modules, modules / "vmlinuz")
    assert kernel.has("INTEL_IOMMU") == "y"


def test_kernel_tells_its_configuration(archive):
    fetch(["bookworm"])
    kernel = find_kernel("bookworm")
    options = ("INTEL_IOMMU", "VFIO", "IOMMU")
    assert [kernel.has(option) for option in options] == ["y", "m", None]


def test_missing_kernel_says_what_to_run(own_cache):
    with pytest.raises(NotAvailable, match="run `iommu-emu fetch trixie`"):
        find_kernel("trixie")


def test_unknown_kernel_is_refused_by_name(own_cache):
    with pytest.raises(ValueError, match="no kernel 'sid': there are bookworm, trixie"):
        find_kernel("sid")


def test_damaged_component_says_what_to_run(archive, own_cache):
    fetch(["busybox"])
    (own_cache / "busybox/root/usr/bin/busybox").unlink()
    with pytest.raises(PackageError, match=r"busybox is missing: remove it, run `iommu-emu fetch`"):
        find_busybox()


def test_versions_name_all_that_is_here(path, archive):
    path(NEW)
    fetch(["busybox", "bookworm"])
    assert versions() == {
        "iommu-emu": iommu_emu.__version__,
        "qemu": "11.1.0 (v11.1.0) from path",
        "busybox": "1:1.37.0-6",
        "bookworm": "Linux 6.1.0-1-cloud-amd64 (Debian 6.1.7-1)",
    }
