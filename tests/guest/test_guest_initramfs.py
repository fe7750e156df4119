import re
import shutil
import subprocess

import pytest
from test_guest_cpio import entries

from iommu_emu.guest import helper
from iommu_emu.guest.errors import GuestError
from iommu_emu.guest.initramfs import INIT, build_initramfs
from iommu_emu.guest.kernel import GuestKernel
from iommu_emu.guest.modules import Module
from iommu_emu.guest.session import PHASES, Options, settings_of


@pytest.fixture
def files():
    modules = [Module("b", b"B"), Module("a", b"A")]
    archive = build_initramfs(b"busybox", b"helper", modules, {"PHASES": "x y", "Q": "it's"})
    return {name: (mode, content) for name, mode, content, _ in entries(archive)}


def test_initramfs_has_what_the_guest_starts_with(files):
    assert files["init"] == (0o100755, INIT.read_bytes())
    assert files["bin/busybox"] == (0o100755, b"busybox")
    assert files["bin/iemu"] == (0o100755, b"helper")
    assert files["dev/console"][0] == 0o20600


def test_initramfs_lists_modules_in_the_order_in_which_they_load(files):
    assert files["modules/order"][1] == b"b.ko\na.ko\n"
    assert files["modules/b.ko"][1] == b"B"


def test_initramfs_settings_are_quoted_for_the_shell(files):
    assert files["etc/check.conf"][1] == b"PHASES='x y'\nQ='it'\"'\"'s'\n"


def test_initramfs_script_is_valid_for_a_shell():
    subprocess.run(["sh", "-n", str(INIT)], check=True)


def test_initramfs_script_has_every_phase():
    defined = [line.split("(")[0] for line in INIT.read_text().splitlines() if "() {" in line]
    assert [f"phase_{name}" for name in (*PHASES, "break")] == [
        name for name in defined if name.startswith("phase_")
    ]


def test_initramfs_script_uses_no_setting_that_nobody_makes(tmp_path):
    settings = settings_of(Options(GuestKernel("k", tmp_path, "6.1", None)))
    assert set(re.findall(r"\$\{?([A-Z_]{2,})", INIT.read_text())) == settings.keys()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("helper") / "iemu"
    flags = ["-std=gnu11", "-O2", "-static", "-Wall", "-Wextra", "-Werror"]
    command = ["gcc", *flags, str(helper.SOURCE), "-o", str(path)]
    subprocess.run(command, env=helper.clean_environment(), check=True)
    return path


def test_helper_without_a_command_says_how_it_is_used(program):
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: iemu dma BDF read|write IOVA LENGTH")


@pytest.mark.parametrize(
    "arguments",
    [("dma", "ffff:ff:1f.7", "read", "0", "4"), ("look", "/nonexistent", "1")],
)
def test_helper_says_what_it_cannot_open(program, arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("open /")


def test_helper_is_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = helper.compile_helper()
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler any more
    assert helper.compile_helper() == first
    assert [path.name[:5] for path in (tmp_path / "iommu-emu/guest").iterdir()] == ["iemu-"]


def test_helper_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestError, match=r"install gcc$"):
        helper.compile_helper()


def test_helper_that_does_not_compile_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho cannot find -lc >&2; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{shutil.which('sh').rpartition('/')[0]}")
    with pytest.raises(GuestError, match=r"is libc6-dev there.*cannot find -lc$"):
        helper.compile_helper()
    assert list((tmp_path / "iommu-emu/guest").iterdir()) == []
