"""docs/scenarios.md: its files and commands work as shown."""

import re
import shlex
from pathlib import Path

import pytest

from iommu_emu.cli.main import main
from iommu_emu.devices import malicious
from iommu_emu.scenarios import registry

TEXT = (Path(__file__).parents[1] / "docs" / "scenarios.md").read_text()
FILES = re.findall(r"`(\w+\.(?:py|toml))`:\n\n```\w+\n(.*?)```", TEXT, re.S)
RUNS = re.findall(r"^    \$ iommu-emu ([^\n]+)\n((?:    [^\n]*\n)+)", TEXT, re.M)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files of the page."""
    for name, text in FILES:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def pattern(shown):
    """Return a pattern for an output of which lines of three dots stand for any others."""
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    parts = ["(?:.*\n)*" if line == "..." else re.escape(line) + " *\n" for line in lines]
    return re.compile("\n?" + "".join(parts))


@pytest.mark.parametrize(("command", "shown"), RUNS, ids=range(len(RUNS)))
def test_page_shows_what_its_commands_print(folder, capsys, monkeypatch, command, shown):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(shlex.split(command)) == 0
    printed = capsys.readouterr().out
    assert pattern(shown).fullmatch(printed), printed


def test_device_of_the_page_is_one(folder):
    assert malicious.load("prowler.py")("mine").name == "mine"


def test_page_has_all_files_and_commands():
    assert [name for name, _ in FILES] == [
        "lazy_1ms.py", "lazy_reads.py", "prowler.py", "my_server.toml"
    ]  # fmt: skip
    assert len(RUNS) == 4


def test_page_names_every_scenario():
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.M)) == list(registry.names())
