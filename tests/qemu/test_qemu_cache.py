"""The cache: complete or absent, shared, and updated only on request."""

import contextlib
import fcntl
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from iommu_emu.qemu import NotAvailable, PackageError, Unreachable, apt, cache, fetch
from iommu_emu.qemu.cache import cache_folder, read_manifest

BUSYBOX = "/pool/busybox-static_1.37.0-6_amd64.deb"


def test_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "iommu-emu"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_folder_is_in_the_home_otherwise(monkeypatch, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder() == tmp_path / ".cache/iommu-emu"


def test_fetch_unpacks_what_is_wanted_and_no_more(archive, own_cache):
    fetch(["qemu"])
    files = {str(path.relative_to(own_cache)) for path in own_cache.rglob("*") if not path.is_dir()}
    assert files == {
        "lock",
        "qemu/manifest.json",
        "qemu/qemu-system-x86_64",
        "qemu/root/usr/bin/qemu-system-x86_64",
        "qemu/root/usr/lib64/ld-linux-x86-64.so.2",
        "qemu/root/usr/lib/x86_64-linux-gnu/libexample.so.1",
    }


def test_fetch_leaves_out_what_only_installing_needs(archive):
    fetch(["qemu"])
    assert archive.requests["/pool/adduser_3_amd64.deb"] == 0


def test_fetch_returns_manifests_that_the_cache_keeps(archive):
    manifests = fetch(["busybox"])
    assert manifests == {"busybox": read_manifest("busybox")}
    assert manifests["busybox"].mirror == archive.url
    assert [each.version for each in manifests["busybox"].packages] == ["1:1.37.0-6"]
    assert manifests["busybox"].size == len("a shell")


def test_fetch_tells_its_steps(archive):
    steps = []
    fetch(["busybox"], progress=lambda what, done: steps.append(what))
    assert list(dict.fromkeys(steps)) == [
        "busybox: reading Debian's indexes (trixie)",
        "busybox: downloading 1 packages, 0 MiB",
        "busybox: unpacking",
    ]


def test_second_fetch_asks_nobody(archive):
    fetch(["busybox"])
    archive.requests.clear()
    fetch(["busybox"])
    assert archive.requests == {}


def test_indexes_are_read_once_for_several_components(archive):
    fetch(["qemu", "busybox"])
    assert archive.requests["/dists/trixie/InRelease"] == 1


def test_update_without_news_keeps_what_is_there(archive):
    before = fetch(["busybox"])
    archive.requests.clear()
    assert fetch(["busybox"], update=True) == before
    assert archive.requests[BUSYBOX] == 0


def test_update_replaces_what_is_older(archive, own_cache, monkeypatch):
    fetch(["busybox"])
    newer = cache.COMPONENTS["busybox"]
    newer = type(newer)(**{**vars(newer), "suites": ("trixie", "trixie-backports")})
    monkeypatch.setitem(cache.COMPONENTS, "busybox", newer)
    manifest = fetch(["busybox"], update=True)["busybox"]
    assert manifest.version("busybox") == "1:1.38.0-1~bpo13+1"
    assert (own_cache / "busybox/root/usr/bin/busybox").read_text() == "a newer shell"
    assert sorted(entry.name for entry in own_cache.iterdir()) == ["busybox", "lock"]


def test_update_that_fails_keeps_what_is_there(archive, own_cache):
    before = fetch(["busybox"])
    archive.replies["/dists/trixie/InRelease"] = 503
    with pytest.raises(Unreachable):
        fetch(["busybox"], update=True)
    assert read_manifest("busybox") == before["busybox"]


def test_what_a_killed_process_left_is_cleared(archive, own_cache):
    (own_cache / ".work.killed/packages").mkdir(parents=True)
    (own_cache / "busybox/root").mkdir(parents=True)
    fetch(["busybox"])
    assert sorted(entry.name for entry in own_cache.iterdir()) == ["busybox", "lock"]


def test_component_is_absent_until_it_is_complete(archive, monkeypatch):
    def refuse(files, folder, progress):
        folder.mkdir()
        raise PackageError("does not unpack")

    monkeypatch.setattr(cache, "unpack", refuse)
    with pytest.raises(PackageError, match="does not unpack"):
        fetch(["busybox"])
    with pytest.raises(NotAvailable):
        read_manifest("busybox")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"packages": [{"name": "x"}]}', "\0"])
def test_manifest_that_is_unreadable_counts_as_absent(archive, own_cache, text):
    (own_cache / "busybox").mkdir(parents=True)
    (own_cache / "busybox/manifest.json").write_text(text)
    with pytest.raises(NotAvailable, match="iommu-emu fetch busybox"):
        read_manifest("busybox")


def test_manifest_of_another_layout_counts_as_absent(archive, own_cache):
    fetch(["busybox"])
    file = own_cache / "busybox/manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": cache.FORMAT + 1}))
    with pytest.raises(NotAvailable):
        read_manifest("busybox")


def test_two_at_once_fetch_it_once(archive):
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: fetch(["busybox"]), range(2)))
    assert results[0] == results[1]
    assert archive.requests[BUSYBOX] == 1


def test_fetch_waits_for_another_process(archive, own_cache):
    own_cache.mkdir(parents=True)
    waits = threading.Event()

    def progress(what, done):
        if what == "waiting for another process that fetches":
            waits.set()

    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as held:
        file = held.enter_context((own_cache / "lock").open("w"))
        fcntl.flock(file, fcntl.LOCK_EX)
        result = pool.submit(fetch, ["busybox"], progress=progress)
        assert waits.wait(60)
        assert archive.requests == {}
        held.close()
        assert result.result(60).keys() == {"busybox"}


def test_lock_that_is_never_released_is_an_error(archive, own_cache, monkeypatch):
    monkeypatch.setattr(cache, "LONGEST_WAIT_S", 0.0)
    own_cache.mkdir(parents=True)
    with (own_cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PackageError, match=r"another process holds .*lock"):
            fetch(["busybox"])


def test_unknown_component_is_refused_by_name():
    with pytest.raises(ValueError, match="no component 'windows': there are qemu, busybox"):
        fetch(["windows"])


def test_host_of_another_architecture_is_told_what_to_do(own_cache, monkeypatch):
    monkeypatch.setattr(cache.platform, "machine", lambda: "aarch64")
    with pytest.raises(PackageError, match=r"aarch64.*set IOMMU_EMU_QEMU"):
        fetch(["qemu"])


def test_qemu_that_does_not_start_is_a_failure(archive, monkeypatch):
    monkeypatch.setattr("iommu_emu.qemu.launcher._SCRIPT", "#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(PackageError, match="the fetched QEMU does not start: broken"):
        fetch(["qemu"])
    with pytest.raises(NotAvailable):
        read_manifest("qemu")


def test_mirror_is_the_users_choice(monkeypatch):
    monkeypatch.setenv(apt.MIRROR_VARIABLE, "http://mirror.example/debian")
    assert apt.chosen_mirror() == "http://mirror.example/debian"
