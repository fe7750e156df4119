"""Each known difference: its program shows it and nothing else; the document says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iommu_emu.differential import Pair, load, parse_program
from iommu_emu.differential.compare import compare
from iommu_emu.differential.document import document
from iommu_emu.differential.entries import Entry, Finding, Match, parse
from iommu_emu.differential.vtd import register_names

DOCUMENT = Path(__file__).parents[2] / "docs" / "differences-from-qemu.md"
ENTRIES = {entry.name: entry for entry in load()}

MINIMAL = """
[[difference]]
name = "a"
title = "t"
section = "s"
decides = "d"
ours = "o"
qemu = "q"
program = ""
"""
MATCH = """
[[difference.match]]
operations = ["write FSTS"]
fields = ["FSTS.PPF"]
"""


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_entry_program_shows_its_difference_and_no_other(
    entry: Entry, pair: Callable[[str], Pair]
) -> None:
    verdict = pair(entry.configuration).run(parse_program(entry.program, register_names()))
    assert [str(each) for each in verdict.unexplained] == []
    assert set(verdict.explained) == {entry.name, *entry.beside}
    assert verdict.stale is None


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=list(ENTRIES))
def test_entry_is_needed_for_its_program(entry: Entry, pair: Callable[[str], Pair]) -> None:
    both = pair(entry.configuration)
    operations = parse_program(entry.program, register_names())
    both.run(operations)
    recording = both.recording
    seen = both.theirs.replay(recording.accesses, recording.ending)
    others = [other for other in load() if other is not entry]
    verdict = compare(operations, recording.observation, seen, others, both.adapter)
    assert verdict.unexplained


def test_entries_beside_another_exist():
    assert {name for entry in load() for name in entry.beside} - set(ENTRIES) == set()


def test_document_is_made_from_the_entries():
    assert DOCUMENT.read_text() == document()


class Around:
    """Our side around a finding, made up."""

    def __init__(self, state=0, before=0, written=0, expected=()):
        self.state = lambda field: state
        self.before = lambda field: before
        self.written = lambda field: written
        self.expected = lambda field: expected


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"operation": "write FECTL 4 0x0"}, False),
        ({"field": "FSTS.PFO"}, False),
        ({"ours": 0}, False),
        ({"qemu": 1}, False),
        ({"causes": ("LGN.3: read",)}, False),
        ({"causes": ("LGN.3: read", "LGN.2: write")}, True),
    ],
)
def test_match_is_as_narrow_as_operation_field_values_and_cause(changes, fits):
    match = Match(
        ("write FSTS",), ("FSTS.PPF",), ours=(1,), qemu=(0,), causes=("LGN.2",), state=(("X.Y", 1),)
    )
    values = {
        "operation": "write FSTS 4 0x1",
        "field": "FSTS.PPF",
        "ours": 1,
        "qemu": 0,
        "causes": ("LGN.2: write",),
    }
    finding = Finding(step=0, **(values | changes))
    assert match.fits(finding, Around(state=1)) is fits


def test_match_looks_at_the_state_of_our_registers():
    match = Match(("read",), ("A.B",), state=(("X.Y", 1),))
    assert not match.fits(Finding(0, "read A", "A.B", 0, 1), Around(state=0))


def test_match_can_say_that_qemu_has_more_bits():
    match = Match(("read",), ("A.B",), masked=(0xFF,))
    assert match.fits(Finding(0, "read A", "A.B", 0x34, 0x1234), Around())
    assert not match.fits(Finding(0, "read A", "A.B", 0x35, 0x1234), Around())


@pytest.mark.parametrize("condition", ["as_written", "unchanged", "expected"])
def test_match_can_hold_our_value_to_what_it_has_to_be(condition):
    match = Match(("read",), ("A.B",), **{condition: True})
    right = Around(before=5, written=5, expected=(4, 5))
    assert match.fits(Finding(0, "read A", "A.B", 5, 1), right)
    assert not match.fits(Finding(0, "read A", "A.B", 6, 1), right)


def test_match_wants_all_notes_and_nothing_that_excludes_it():
    match = Match(("read",), ("A.B",), notes=("x", "y"), without=("z",))
    for causes, fits in ((("x", "y"), True), (("x",), False), (("x", "y", "z"), False)):
        assert match.fits(Finding(0, "read A", "A.B", 0, 1, causes), Around()) is fits


def test_entries_with_an_unknown_condition_are_refused():
    with pytest.raises(ValueError, match=r"difference 'a': .*match has no wrong"):
        parse(MINIMAL + MATCH + "wrong = 1\n")


def test_entries_without_a_match_are_refused():
    with pytest.raises(ValueError, match="difference 'a': 'match'"):
        parse(MINIMAL)


def test_entries_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="same name: a"):
        parse((MINIMAL + MATCH) * 2)
