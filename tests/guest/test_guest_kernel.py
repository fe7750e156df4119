import pytest
from guest_samples import folder, image, module

from iommu_emu.guest.errors import GuestError, MissingDriverError
from iommu_emu.guest.kernel import GuestKernel, choose_kernel, release_of
from iommu_emu.guest.session import Options
from iommu_emu.qemu import NotAvailable


@pytest.fixture
def kernel_path(tmp_path):
    path = tmp_path / "boot/vmlinuz-6.1.0-test"
    path.parent.mkdir()
    path.write_bytes(image("6.1.0-test"))
    return path


def test_kernel_release_is_what_the_image_says(kernel_path):
    assert release_of(kernel_path) == "6.1.0-test"


@pytest.mark.parametrize(
    ("release", "version"), [("6.1.0-50-cloud", (6, 1)), ("7.2", (7, 2)), ("custom", (65536, 0))]
)
def test_kernel_version_is_two_numbers(tmp_path, release, version):
    assert GuestKernel("k", tmp_path, release, None).version == version


@pytest.mark.parametrize(
    ("release", "policy", "words"),
    [
        ("5.10.0", "strict", "intel_iommu=on,strict iommu.passthrough=0"),
        ("5.14.0", "strict", "intel_iommu=on iommu.passthrough=0 iommu.strict=1"),
        ("6.1.0", "lazy", "intel_iommu=on iommu.passthrough=0 iommu.strict=0"),
        ("6.1.0", "passthrough", "intel_iommu=on iommu=pt"),
    ],
)
def test_kernel_is_told_its_policy_in_words_that_it_knows(tmp_path, release, policy, words):
    kernel = GuestKernel("k", tmp_path, release, None)
    assert Options(kernel, policy=policy, append="quiet").command_line.endswith(f" {words} quiet")


def test_kernel_takes_no_policy_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match=r"^policy must be one of strict, lazy, passthrough, not"):
        Options(GuestKernel("k", tmp_path, "6.1", None), policy="loose")


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(0x1000), bytes(0x1000)])
def test_kernel_that_is_no_bzimage_is_refused(tmp_path, data):
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with pytest.raises(GuestError, match=f"^kernel {path} is no bzImage"):
        release_of(path)


def test_kernel_that_is_no_file_is_refused_with_the_names_there_are():
    with pytest.raises(GuestError, match="neither a file nor one of bookworm, trixie"):
        choose_kernel("sid")


def test_kernel_that_was_not_fetched_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotAvailable, match="iommu-emu fetch trixie"):
        choose_kernel("trixie")


@pytest.mark.parametrize("lib", ["lib/modules", "usr/lib/modules"])
def test_kernel_finds_its_modules_beside_its_folder(tmp_path, kernel_path, lib):
    path = folder(tmp_path / lib / "6.1.0-test", {})
    found = choose_kernel(str(kernel_path)).modules
    assert found is not None
    assert found.path == path


def test_kernel_finds_its_modules_in_its_own_folder(tmp_path):
    path = folder(tmp_path / "modules/7.0-test", {})
    (path / "vmlinuz").write_bytes(image("7.0-test"))
    found = choose_kernel(str(path / "vmlinuz")).modules
    assert found is not None
    assert found.path == path


def test_kernel_without_modules_has_to_have_everything_built_in(kernel_path):
    kernel = choose_kernel(str(kernel_path))
    assert (kernel.modules, kernel.drivers(["nvme"])) == (None, [])


def test_kernel_takes_modules_of_its_own_release(tmp_path, kernel_path):
    path = folder(tmp_path / "m", {"a.ko": module(vermagic="6.1.0-test SMP preempt")})
    assert [each.name for each in choose_kernel(str(kernel_path), path).drivers(["a"])] == ["a"]


def test_kernel_leaves_out_optional_drivers_that_it_does_not_have(tmp_path, kernel_path):
    path = folder(tmp_path / "m", {"a.ko": module(), "b.ko": module(depends="gone")})
    found = choose_kernel(str(kernel_path), path).drivers([], ["b", "c", "a"])
    assert [each.name for each in found] == ["a"]


def test_kernel_must_have_the_drivers_that_are_needed(tmp_path, kernel_path):
    kernel = choose_kernel(str(kernel_path), folder(tmp_path / "m", {}))
    with pytest.raises(MissingDriverError, match=r"^driver nvme is neither built into the kernel"):
        kernel.drivers(["nvme"], ["vfio-pci"])


def test_kernel_refuses_modules_of_another_release(tmp_path, kernel_path):
    path = folder(tmp_path / "m", {"a.ko": module(vermagic="6.2.0 SMP preempt")})
    with pytest.raises(GuestError, match=r"are of Linux 6\.2\.0, the kernel is 6\.1\.0-test"):
        choose_kernel(str(kernel_path), path).drivers(["a"])
