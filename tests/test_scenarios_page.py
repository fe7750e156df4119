"""docs/scenarios.md: its files and commands work as shown."""

import re
from pathlib import Path

import pytest
from shown_commands import runs_as_shown, shown_commands

from iommu_emu.devices import malicious
from iommu_emu.scenarios import registry

TEXT = (Path(__file__).parents[1] / "docs" / "scenarios.md").read_text()
FILES = re.findall(r"`(\w+\.(?:py|toml))`:\n\n```\w+\n(.*?)```", TEXT, re.S)
RUNS = shown_commands(TEXT)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the files of the page."""
    for name, text in FILES:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("command", "shown"), RUNS, ids=range(len(RUNS)))
def test_page_shows_what_its_commands_print(folder, capsys, monkeypatch, command, shown):
    assert runs_as_shown(command, shown, capsys, monkeypatch)


def test_device_of_the_page_is_one(folder):
    assert malicious.load("prowler.py")("mine").name == "mine"


def test_page_has_all_files_and_commands():
    assert [name for name, _ in FILES] == [
        "lazy_1ms.py", "lazy_reads.py", "prowler.py", "my_server.toml"
    ]  # fmt: skip
    assert len(RUNS) == 4


def test_page_names_every_scenario():
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.M)) == list(registry.names())
