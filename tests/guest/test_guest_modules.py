import gzip
import lzma
import shutil
import subprocess

import pytest
from guest_samples import folder, module

from iommu_emu.guest.errors import GuestError
from iommu_emu.guest.modules import ModuleFolder, module_information


def order(path, *names):
    return [each.name for each in ModuleFolder(path).load_order(names)]


def test_modules_load_after_what_they_depend_on(tmp_path):
    folder(
        tmp_path,
        {
            "nvme.ko": module(depends="nvme-core"),
            "nvme-core.ko": module(depends="t10-pi,crc64"),
            "t10-pi.ko": module(depends="crc64"),
            "crc64.ko": module(depends=""),
        },
    )
    assert order(tmp_path, "nvme") == ["crc64", "t10_pi", "nvme_core", "nvme"]


def test_modules_that_are_built_in_are_left_out(tmp_path):
    folder(tmp_path, {"vfio-pci.ko": module(depends="vfio,irqbypass")}, ["vfio", "irqbypass"])
    assert order(tmp_path, "vfio-pci", "vfio") == ["vfio_pci"]


def test_modules_wanted_twice_load_once(tmp_path):
    folder(tmp_path, {"a.ko": module(depends="b"), "b.ko": module()})
    assert order(tmp_path, "b", "a", "a") == ["b", "a"]


def test_modules_soft_dependency_loads_before_if_it_is_there(tmp_path):
    folder(tmp_path, {"a.ko": module(softdep="pre: b gone post: c"), "b.ko": module()})
    assert order(tmp_path, "a") == ["b", "a"]


def test_modules_that_depend_on_each_other_end(tmp_path):
    folder(tmp_path, {"a.ko": module(depends="b"), "b.ko": module(depends="a")})
    assert order(tmp_path, "a") == ["b", "a"]


def test_modules_missing_dependency_is_named_with_who_needs_it(tmp_path):
    folder(tmp_path, {"nvme.ko": module(depends="nvme-core")})
    with pytest.raises(GuestError, match=r"^driver nvme_core \(needed by nvme\) is neither built"):
        order(tmp_path, "nvme")


def test_modules_missing_driver_is_named_with_the_folder(tmp_path):
    folder(tmp_path, {})
    with pytest.raises(GuestError, match=f"driver nvme is neither .* nor in {tmp_path}$"):
        order(tmp_path, "nvme")


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".xz", lambda data: lzma.compress(data, check=lzma.CHECK_CRC32)),
        (".gz", gzip.compress),
    ],
)
def test_modules_are_decompressed(tmp_path, suffix, compress):
    data = module(depends="")
    folder(tmp_path, {f"a.ko{suffix}": compress(data)})
    assert ModuleFolder(tmp_path).load_order(["a"])[0].data == data


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
def test_modules_compressed_with_zstd_are_decompressed(tmp_path):
    data = module(depends="")
    packed = subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout
    folder(tmp_path, {"a.ko.zst": packed})
    assert ModuleFolder(tmp_path).load_order(["a"])[0].data == data


def test_modules_compressed_with_zstd_need_the_program(tmp_path, monkeypatch):
    folder(tmp_path, {"a.ko.zst": b"anything"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestError, match=r"install the package zstd$"):
        order(tmp_path, "a")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\2\1" + b"\xff" * 100])
def test_modules_that_are_no_elf_file_are_refused(tmp_path, data):
    folder(tmp_path, {"a.ko": data})
    with pytest.raises(GuestError, match=r"^module .*/a.ko: "):
        order(tmp_path, "a")


def test_modules_broken_compression_is_refused(tmp_path):
    folder(tmp_path, {"a.ko.xz": b"no xz at all"})
    with pytest.raises(GuestError, match=r"^module .*/a.ko.xz: "):
        order(tmp_path, "a")


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_modules_cut_short_are_refused_or_say_nothing_wrong(tmp_path, cut):
    data = module(depends="b", license="GPL")[:-cut] if cut else module(depends="b", license="GPL")
    try:
        information = module_information(data, tmp_path)
    except GuestError:
        return
    assert information in ({}, {"depends": ["b"], "license": ["GPL"]})


def test_modules_compressed_file_that_is_cut_short_is_refused(tmp_path):
    folder(tmp_path, {"a.ko.xz": lzma.compress(module(depends=""))[:-20]})
    with pytest.raises(GuestError, match=r"^module .*/a.ko.xz is cut short"):
        order(tmp_path, "a")


def test_modules_folder_of_an_unpacked_package_is_found(tmp_path):
    folder(tmp_path / "lib/modules/6.1.0", {"a.ko": module()})
    assert ModuleFolder(tmp_path).path == tmp_path / "lib/modules/6.1.0"


def test_modules_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(GuestError, match=f"^modules: {tmp_path}/x is no folder"):
        ModuleFolder(tmp_path / "x")
