"""What the summary says of tests that need QEMU where it cannot be had."""

from pathlib import Path

import pytest

from iommu_emu.qemu import Unreachable
from iommu_emu.qemu.apt import PrivateApt

CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text()

TESTS = """
def test_qemu(qemu): pass
def test_kernel(kernel): kernel("trixie")
"""


@pytest.fixture
def suite(pytester, own_cache, monkeypatch, tmp_path):
    """A test-suite with this project's conftest.py, on a machine without any QEMU."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("iommu_emu.qemu.find.OLDEST", (1000, 0, 0))  # whatever is on PATH
    monkeypatch.setenv("IOMMU_EMU_DEBIAN_MIRROR", "http://127.0.0.1:1/debian")
    pytester.makeconftest(CONFTEST)
    return pytester


def test_unreachable_archive_is_told_in_one_line(suite):
    suite.makepyfile(TESTS)
    result = suite.runpytest("-q")
    result.assert_outcomes(skipped=2)
    told = [line for line in result.outlines if line.startswith("not run: ")]
    assert len(told) == 1
    assert told[0].startswith("not run: http://127.0.0.1:1/debian does not answer: ")
    assert told[0].endswith(" (2 tests)")


def test_unreachable_archive_is_asked_once(suite, monkeypatch):
    asked = []

    def refuse(apt, suites, progress):
        asked.append(suites)
        raise Unreachable("no answer")

    monkeypatch.setattr(PrivateApt, "use", refuse)
    suite.makepyfile(TESTS)
    suite.runpytest("-q").assert_outcomes(skipped=2)
    assert len(asked) == 1


def test_every_reason_has_a_line_of_its_own_under_xdist(suite):
    suite.makepyfile(
        """
        import pytest
        def test_a(): pytest.skip("not run: no archive")
        def test_b(): pytest.skip("not run: no archive")
        def test_c(): pytest.skip("not run: no kernel")
        def test_d(): pytest.skip("gcc is not installed")
        """
    )
    result = suite.runpytest("-q", "-n2")
    told = [line for line in result.outlines if line.startswith("not run: ")]
    assert sorted(told) == ["not run: no archive (2 tests)", "not run: no kernel (1 test)"]


def test_wrong_answer_of_the_archive_is_no_skip(suite, archive):
    archive.replies["/dists/trixie/InRelease"] = b"what?"
    suite.makepyfile(TESTS)
    suite.runpytest("-q").assert_outcomes(errors=1, failed=1)


def test_unusable_qemu_of_the_environment_is_no_skip(suite, monkeypatch):
    monkeypatch.setenv("IOMMU_EMU_QEMU", "/bin/true")
    suite.makepyfile("def test_qemu(qemu): pass")
    suite.runpytest("-q").assert_outcomes(errors=1)


def test_reachable_archive_is_used(suite, archive, monkeypatch):
    monkeypatch.setattr("iommu_emu.qemu.find.OLDEST", (11, 1, 0))
    suite.makepyfile(
        """
        def test_qemu(qemu): assert qemu.origin in ("cache", "path")
        def test_busybox(busybox): assert busybox.read_text() == "a shell"
        def test_kernel(kernel): assert kernel("bookworm").has("INTEL_IOMMU") == "y"
        """
    )
    suite.runpytest("-q").assert_outcomes(passed=3)
