"""The README's examples run as shown."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
from shown_commands import runs_as_shown, shown_commands

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)+)", re.S)


def test_readme_examples_print_what_the_readme_says():
    namespace: dict[str, object] = {}
    for code, shown in BLOCK.findall(README.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        assert printed.getvalue() == re.sub("(?m)^    ", "", shown)


def test_readme_has_two_examples():
    assert len(BLOCK.findall(README.read_text())) == 2


@pytest.mark.parametrize(("command", "shown"), shown_commands(README.read_text()))
def test_readme_commands_print_what_the_readme_says(command, shown, capsys, monkeypatch):
    assert runs_as_shown(command, shown, capsys, monkeypatch)


def test_example_first_dma_is_stopped_outside_its_page(capsys):
    runpy.run_path(str(ROOT / "examples" / "first_dma.py"))
    inside, outside, record = capsys.readouterr().out.splitlines()
    assert inside == "inside:  b'hello'"
    assert outside.startswith("outside: <Completion UNSUPPORTED_REQUEST")
    assert "read of 0x5000: fault 0x06" in record
