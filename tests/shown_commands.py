"""Commands of our documentation with what they print: lines of three dots stand for any others."""

from __future__ import annotations

import re
import shlex

from iommu_emu.cli.main import main

_RUN = re.compile(r"^    \$ iommu-emu ([^\n]+)\n((?:    [^\n]*\n)+)", re.M)


def shown_commands(text: str) -> list[tuple[str, str]]:
    """Return each command with what is shown of its output."""
    return _RUN.findall(text)


def runs_as_shown(command: str, shown: str, capsys, monkeypatch) -> bool:
    """Whether a command succeeds and prints what is shown, on 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    code = main(shlex.split(command))
    printed = capsys.readouterr().out
    print(printed)  # for who has to find the difference
    return code == 0 and _pattern(shown).fullmatch(printed) is not None


def _pattern(shown: str) -> re.Pattern[str]:
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    parts = ["(?:.*\n)*" if line == "..." else re.escape(line) + " *\n" for line in lines]
    return re.compile("\n?" + "".join(parts))
