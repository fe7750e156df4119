"""The README's examples run as shown."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
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
