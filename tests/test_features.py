"""docs/features.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "features.md").read_text()


def test_features_page_names_only_tests_that_exist():
    defined = set()
    for path in ROOT.glob("tests/**/test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.M))
    assert set(re.findall(r"`(test_\w+)`", TEXT)) - defined == set()


def test_features_page_names_only_files_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_features_page_shows_a_test_for_what_is_done():
    rows = [line for line in TEXT.splitlines() if re.search(r"\| done \|", line)]
    assert [row for row in rows if not re.search(r"\| done \| \S", row)] == []
