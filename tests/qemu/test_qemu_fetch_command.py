"""`iommu-emu fetch` as people and programs see it."""

import json

import pytest

from iommu_emu.cli.main import main
from iommu_emu.qemu import COMPONENTS


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # tables are folded to the terminal's width


def test_fetch_reports_what_is_there_now(archive, own_cache, capsys):
    assert main(["fetch", "busybox", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folder"] == str(own_cache)
    assert report["components"]["busybox"] == {
        "version": "1:1.37.0-6",
        "mirror": archive.url,
        "fetched": report["components"]["busybox"]["fetched"],
        "bytes": len("a shell"),
        "packages": {"busybox-static": "1:1.37.0-6"},
    }


def test_fetch_shows_its_steps_on_standard_error(archive, capsys):
    main(["fetch", "busybox", "--json"])
    assert capsys.readouterr().err.splitlines() == [
        "busybox: reading Debian's indexes (trixie)",
        "busybox: downloading 1 packages, 0 MiB",
        "busybox: unpacking",
    ]


def test_list_fetches_nothing(archive, own_cache, capsys):
    assert main(["fetch", "--list"]) == 0
    assert archive.requests == {}
    assert not own_cache.exists()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == list(COMPONENTS)


def test_list_shows_versions(archive, capsys):
    main(["fetch", "bookworm"])
    capsys.readouterr()
    main(["fetch", "bookworm", "--list"])
    assert "Linux 6.1.0-1-cloud-amd64 (Debian 6.1.7-1)" in capsys.readouterr().out


def test_unknown_component_is_bad_input(own_cache, capsys):
    assert main(["fetch", "windows"]) == 2
    assert capsys.readouterr().err.startswith("iommu-emu fetch: no component 'windows': there are")


def test_unreachable_archive_is_not_run(own_cache, monkeypatch, capsys):
    monkeypatch.setenv("IOMMU_EMU_DEBIAN_MIRROR", "http://127.0.0.1:1/debian")
    assert main(["fetch", "busybox"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("iommu-emu fetch: not run: http://127.0.0.1:1/debian does not answer")


def test_wrong_answer_is_told(archive, capsys):
    assert main(["fetch", "trixie"]) == 1
    said = capsys.readouterr().err
    assert "Unable to locate package linux-image-cloud-amd64" in said
    assert "not run" not in said


def test_cache_that_cannot_be_written_is_told(archive, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["fetch", "busybox"]) == 1
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["/bin/true", "/nonexistent"])
def test_list_tells_of_an_unusable_qemu(own_cache, monkeypatch, capsys, value):
    monkeypatch.setenv("IOMMU_EMU_QEMU", value)
    main(["fetch", "--list"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"QEMU in use: IOMMU_EMU_QEMU={value} does not run as QEMU")
