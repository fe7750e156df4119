"""Private apt: what it asks of Debian's tools, and how their failures are told apart."""

import os
from pathlib import Path

import pytest

from iommu_emu.qemu import PackageError, Unreachable, apt, clean_environment, fetch
from iommu_emu.qemu.apt import Package, PrivateApt


def silent(what, done):
    pass


def fake_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an apt-get that runs ``script`` first on PATH."""
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_uris_give_name_version_and_size():
    listing = (
        "NOTE: this is only a listing\n"
        "'http://d/q_2%7e1.deb' qemu_1%3a2~1_amd64.deb 10 MD5Sum:0123\n"
        "'http://d/z_3.deb' z_3_all.deb 4 \n"
    )
    assert apt.parse_uris(listing) == [Package("qemu", "1:2~1", 10), Package("z", "3", 4)]


@pytest.mark.parametrize(
    "said",
    [
        "Err: Temporary failure resolving 'deb.debian.org'",
        "E: Could not connect to 127.0.0.1:1 (127.0.0.1). - connect (111: Connection refused)",
        "Err: Cannot initiate the connection to d:80. - connect (101: Network is unreachable)",
        "Err: Connection timed out [IP: 1.2.3.4 80]",
        "Err: Error reading from server. Remote end closed connection [IP: 1.2.3.4 80]",
        "Err: 503  Service Unavailable [IP: 1.2.3.4 80]",
        "Err: 403  Forbidden [IP: 1.2.3.4 80]",
        "Err: 407  Proxy Authentication Required",
        "Err: Invalid response from proxy: HTTP/1.1 403 Forbidden",
    ],
)
def test_no_answer_is_unreachable(said):
    assert apt.is_unreachable(said)


@pytest.mark.parametrize(
    "said",
    [
        "W: GPG error: http://d trixie InRelease: NO_PUBKEY 0E98404D386FA1D9",
        "E: The repository 'http://proxy.example/debian trixie InRelease' is not signed.",
        "Err: Hash Sum mismatch. Connection failed before",
        "Err: 404  Not Found [IP: 1.2.3.4 80]",
        "E: Release file for http://d/InRelease is not valid yet",
        "E: Unable to locate package qemu-system-x86",
        "E: Write error - write (28: No space left on device)",
    ],
)
def test_wrong_answer_is_a_failure(said):
    assert not apt.is_unreachable(said)


def test_archive_that_refuses_connections_is_unreachable_and_named(own_cache, monkeypatch):
    monkeypatch.setenv(apt.MIRROR_VARIABLE, "http://127.0.0.1:1/debian")
    with pytest.raises(Unreachable, match=r"^http://127.0.0.1:1/debian does not answer: .*refused"):
        fetch(["busybox"])


def test_archive_is_asked_again_before_giving_up(archive):
    path = "/dists/trixie/InRelease"
    archive.replies[path] = 503
    with pytest.raises(Unreachable, match="503"):
        fetch(["busybox"])
    assert archive.requests[path] == 1 + len(apt.PAUSES_S)


def test_filter_that_answers_instead_of_the_archive_is_unreachable(archive):
    for name in ("InRelease", "Release"):
        archive.replies[f"/dists/trixie/{name}"] = 403
    with pytest.raises(Unreachable, match="does not answer: 403 Forbidden"):
        fetch(["busybox"])


def test_package_that_is_missing_is_a_failure(archive):
    with pytest.raises(PackageError, match="Unable to locate package linux-image-cloud-amd64"):
        fetch(["trixie"])


def test_index_signed_by_nobody_we_trust_is_a_failure(archive, monkeypatch, tmp_path):
    (tmp_path / "none.gpg").write_bytes(b"")
    monkeypatch.setattr(apt, "KEYRINGS", (str(tmp_path / "none.gpg"),))
    with pytest.raises(PackageError, match="is not signed"):
        fetch(["busybox"])


def test_index_that_was_changed_is_a_failure(archive):
    path = "/dists/trixie/InRelease"
    genuine = Path(__file__).parent.joinpath("archive", path[1:]).read_bytes()
    archive.replies[path] = genuine.replace(b"2022", b"2021")
    with pytest.raises(PackageError, match="is not signed"):
        fetch(["busybox"])


def test_package_that_was_changed_is_a_failure_and_leaves_nothing(archive, own_cache):
    path = "/pool/busybox-static_1.37.0-6_amd64.deb"
    genuine = Path(__file__).parent.joinpath("archive", path[1:]).read_bytes()
    archive.replies[path] = genuine[:-1] + b"!"
    with pytest.raises(PackageError, match="Hash Sum mismatch"):
        fetch(["busybox"])
    assert [entry.name for entry in own_cache.iterdir()] == ["lock"]


def test_apt_starts_without_preloaded_libraries(own_cache, monkeypatch, tmp_path):
    fake_tools(tmp_path / "bin", monkeypatch, 'echo "E: preloaded: ${ASAN_OPTIONS-none}"; exit 100')
    monkeypatch.setenv("ASAN_OPTIONS", "abort_on_error=1")
    with pytest.raises(PackageError, match="preloaded: none"):
        fetch(["busybox"])


def test_apt_that_hangs_is_ended(own_cache, monkeypatch, tmp_path):
    fake_tools(tmp_path / "bin", monkeypatch, "exec sleep 600")
    monkeypatch.setattr(apt, "LONGEST_RUN_S", 0.0)
    with pytest.raises(Unreachable, match="too slow"):
        fetch(["busybox"])


def test_machine_without_apt_is_told_what_to_do(own_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match=r"apt-get is not here.*set IOMMU_EMU_QEMU"):
        fetch(["qemu"])


def test_machine_without_keys_is_told_what_to_install(own_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(apt, "KEYRINGS", (str(tmp_path / "missing.gpg"),))
    monkeypatch.setattr(apt, "KEY_PARTS", str(tmp_path))
    with pytest.raises(PackageError, match="install the package debian-archive-keyring"):
        fetch(["qemu"])


def test_keys_come_from_apt_where_there_is_no_keyring(monkeypatch, tmp_path):
    (tmp_path / "debian-archive-trixie-stable.asc").touch()
    monkeypatch.setattr(apt, "KEYRINGS", (str(tmp_path / "missing.gpg"),))
    monkeypatch.setattr(apt, "KEY_PARTS", str(tmp_path))
    assert apt.debian_keyrings() == (str(tmp_path / "debian-archive-trixie-stable.asc"),)


def test_settings_of_the_host_reach_apt(own_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(apt, "_host_settings", lambda: ['Acquire::http::Proxy "http://p:3128";'])
    monkeypatch.setattr(PrivateApt, "_run", lambda *arguments: "")
    PrivateApt(tmp_path, keyrings=["/keys"]).use(["trixie"], silent)
    assert 'Acquire::http::Proxy "http://p:3128";' in (tmp_path / "apt.conf").read_text()


def test_clean_environment_keeps_the_rest(monkeypatch):
    monkeypatch.setattr(os, "environ", {"HOME": "/home/me", "LD_PRELOAD": "libasan.so"})
    assert clean_environment(LC_ALL="C") == {"HOME": "/home/me", "LC_ALL": "C"}
