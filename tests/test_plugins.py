"""Things by name: one small file each."""

import sys

import pytest

from iommu_emu.plugins import Plugins


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """A package of numbers, of which one module is no number."""
    package = tmp_path / "plugin_numbers"
    package.mkdir()
    files = {
        "__init__": "",
        "twenty_one": "NUMBER = 21",
        "two": "NUMBER = 2",
        "text": "NUMBER = 'two'",
        "machinery": "NUMBER = 0",
        "_helper": "NUMBER = 0",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield Plugins(
        "number",
        "plugin_numbers",
        "NUMBER",
        "an integer",
        lambda found: isinstance(found, int),
        {"machinery"},
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "plugin_numbers"]:
        del sys.modules[name]


def test_plugins_are_found_by_their_modules(numbers):
    assert numbers.names == ("text", "twenty-one", "two")
    assert numbers.load("twenty-one") == 21


def test_plugin_that_is_something_else_is_refused(numbers):
    with pytest.raises(ValueError, match=r"^text: defines no NUMBER that is an integer$"):
        numbers.load("text")


def test_unknown_plugin_is_refused_with_the_nearest_name(numbers):
    message = (
        "^number must be one of text, twenty-one, two, or a Python file, "
        "not 'twenty-two'; did you mean twenty-one\\?$"
    )
    with pytest.raises(ValueError, match=message):
        numbers.load("twenty-two")
    with pytest.raises(ValueError, match=r"not '9'$"):
        numbers.load("9")


def test_plugin_can_be_a_users_file(numbers, tmp_path):
    path = tmp_path / "my-number.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Made:\n"
        "    value: int\n"
        "NUMBER = Made(5).value\n"
    )
    assert numbers.load(str(path)) == 5


def test_users_file_that_fails_is_refused_with_its_reason(numbers, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0")
    with pytest.raises(ValueError, match=r"mine.py: ZeroDivisionError: division by zero$"):
        numbers.load(str(path))
    path.write_text("NUMBER = (")
    with pytest.raises(ValueError, match=r"mine.py: SyntaxError: "):
        numbers.load(str(path))
    with pytest.raises(FileNotFoundError):
        numbers.load(str(tmp_path / "missing.py"))
