"""`iommu-emu acpi`: output, exit codes, and one line for bad input."""

import argparse
import io
import json

import pytest
from acpi_samples import DRHD, dmar

from iommu_emu import acpi
from iommu_emu.cli.acpi import add_parser


@pytest.fixture
def run(capsys):
    """Return a function that runs a command and returns exit code, output and errors."""

    def command(*arguments):
        parser = argparse.ArgumentParser(prog="iommu-emu")
        add_parser(parser.add_subparsers())
        args = parser.parse_args(["acpi", *map(str, arguments)])
        code = args.run(args)
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.bin"
    path.write_bytes(dmar(DRHD))
    return path


@pytest.fixture
def unsealed(good):
    data = bytearray(good.read_bytes())
    data[9] ^= 1
    good.write_bytes(data)
    return good


def test_show_tree_names_structures(run):
    code, out, _ = run("show", "laptop-thunderbolt")
    assert code == 0
    assert "0x0048 DRHD  0xfed91000-0xfed91fff (4 KiB)  INCLUDE_PCI_ALL" in out
    assert "0x0040 PCI_ENDPOINT  00:02.0" in out


def test_show_tree_names_interrupt_sources(run):
    assert "0x0058 IOAPIC  2 at 00:1e.7" in run("show", "laptop-thunderbolt")[1]


def test_show_tree_keeps_backslashes_and_escapes_control_characters(run, tmp_path):
    andd = acpi.dmar.Andd(object_name="\\_SB.I2C0")
    path = tmp_path / "andd.bin"
    path.write_bytes(acpi.build(acpi.Dmar(oem_id="\x1b[31m", structures=[andd])))
    out = run("show", path)[1]
    assert "object_name \\_SB.I2C0" in out
    assert "\\u001b[31m" in out
    assert "\x1b" not in out


def test_show_tree_of_ivrs(run):
    code, out, _ = run("show", "desktop-amdvi")
    assert code == 0
    assert "0x0064 SPECIAL  I/O APIC 33 as 00:14.0" in out


def test_show_json(run, good):
    code, out, _ = run("show", good, "--json")
    told = json.loads(out)
    assert (code, told["signature"], told["checksum_ok"]) == (0, "DMAR", True)
    assert [structure["name"] for structure in told["structures"]] == ["DRHD"]


def test_show_toml_builds_again(run, good, tmp_path):
    description = tmp_path / "table.toml"
    description.write_text(run("show", good, "--toml")[1])
    code, _, _ = run("build", description, tmp_path / "again.bin")
    assert code == 0
    assert (tmp_path / "again.bin").read_bytes() == good.read_bytes()


def test_show_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(dmar(DRHD))))
    assert run("show", "-")[0] == 0


def test_show_wrong_checksum_refused(run, unsealed):
    code, out, err = run("show", unsealed)
    assert (code, out) == (2, "")
    assert err.startswith(f"iommu-emu acpi: {unsealed}: offset 0x9: checksum is 0x")
    assert err.count("\n") == 1


def test_show_wrong_checksum_ignored(run, unsealed):
    code, out, _ = run("show", unsealed, "--json", "--ignore-checksum")
    assert (code, json.loads(out)["checksum_ok"]) == (0, False)


def test_show_tree_tells_wrong_checksum(run, unsealed):
    assert "checksum wrong" in run("show", unsealed, "--ignore-checksum")[1]


@pytest.mark.parametrize("command", ["show", "check"])
def test_truncated_table_refused(run, good, command):
    good.write_bytes(good.read_bytes()[:-1])
    code, out, err = run(command, good)
    assert (code, out) == (2, "")
    reason = "offset 0x4: table of 64 bytes overruns the 63 that are there"
    assert err == f"iommu-emu acpi: {good}: {reason}\n"


def test_show_missing_file_refused(run):
    code, _, err = run("show", "toaster")
    assert code == 2
    assert err.startswith("iommu-emu acpi: toaster: neither a file nor a built-in platform")


def test_show_directory_refused(run, tmp_path):
    code, _, err = run("show", tmp_path)
    assert (code, err) == (2, f"iommu-emu acpi: {tmp_path}: Is a directory\n")


def test_check_clean_table(run):
    assert run("check", "laptop-thunderbolt") == (0, "errors 0, warnings 0, notes 0\n", "")


def test_check_warnings_do_not_fail(run):
    code, out, _ = run("check", "q35-amdvi")
    assert code == 0
    assert out.splitlines()[-1] == "errors 0, warnings 1, notes 0"


def test_check_wrong_checksum_is_an_error(run, unsealed):
    code, out, _ = run("check", unsealed)
    assert code == 1
    assert out.startswith("0x0009 error   checksum: checksum is 0x")
    assert out.splitlines()[0].endswith("(ACPI 5.2.6)")


def test_check_json(run, unsealed):
    code, out, _ = run("check", unsealed, "--json")
    (finding,) = json.loads(out)
    assert code == 1
    assert set(finding) == {"severity", "code", "offset", "reason", "section"}


def test_build_platform_file(run, tmp_path):
    description = tmp_path / "mine.toml"
    description.write_text('signature = "IVRS"\n[platform]\ntitle = "Mine"\n')
    assert run("build", description, tmp_path / "out.bin")[0] == 0
    assert acpi.parse((tmp_path / "out.bin").read_bytes()) == acpi.Ivrs()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"signature = 'FACP'", "signature 'FACP' is none of DMAR, IVRS"),
        (b"\xff", "offset 0x0: no UTF-8 text: invalid start byte"),
    ],
)
def test_build_bad_description_refused(run, tmp_path, text, reason):
    description = tmp_path / "bad.toml"
    description.write_bytes(text)
    code, _, err = run("build", description, tmp_path / "out.bin")
    assert (code, err) == (2, f"iommu-emu acpi: {description}: {reason}\n")
    assert not (tmp_path / "out.bin").exists()


def test_list_names_all_platforms(run):
    code, out, _ = run("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == acpi.platforms.names()


@pytest.mark.parametrize("arguments", [[], ["show"], ["check"], ["build"], ["list"]])
def test_help_has_example_and_exit_codes(run, capsys, arguments):
    with pytest.raises(SystemExit):
        run(*arguments, "--help")
    out = capsys.readouterr().out
    assert "example:\n  iommu-emu acpi " in out
    assert "exit codes:" in out


def test_build_names_the_output_that_cannot_be_written(run, tmp_path):
    description = tmp_path / "a.toml"
    description.write_text(run("show", "--toml", "q35-vtd")[1])
    code, _, err = run("build", description, tmp_path)
    assert (code, err) == (2, f"iommu-emu acpi: {tmp_path}: Is a directory\n")


def test_show_without_a_terminal_keeps_a_record_in_a_line(run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "(4 KiB)  INCLUDE_PCI_ALL" in run("show", "server-4-unit")[1]
