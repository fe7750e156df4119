"""Mutated tables: parse refuses them with AcpiError, or keeps every byte. Nothing else happens."""

import argparse
import contextlib
import io
import json

import pytest
from acpi_samples import ALL, sealed
from hypothesis import given, settings
from hypothesis import strategies as st

from iommu_emu import acpi
from iommu_emu.acpi.view import render
from iommu_emu.cli.acpi import add_parser

BYTES = st.sampled_from([0, 1, 2, 3, 4, 6, 8, 0x10, 0x40, 0x48, 0x7F, 0x80, 0xF0, 0xFF])


@st.composite
def mutated(draw):
    """Draw a table with a few bytes overwritten, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(ALL)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(1, 40))
        match draw(
            st.sampled_from(["overwrite", "flip", "delete", "double", "insert", "truncate"])
        ):
            case "overwrite":
                data[at : at + 1] = bytes([draw(BYTES)])
            case "flip":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "delete":
                del data[at : at + size]
            case "double":
                data[at:at] = data[at : at + size]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "truncate":
                del data[at:]
    # Most of them with an honest length and checksum: otherwise few would get past the header.
    return sealed(data) if len(data) >= 48 and draw(st.integers(0, 3)) else bytes(data)


def parsed(data):
    """Return the table, or None if it was refused properly."""
    try:
        return acpi.parse(data, strict=False)
    except acpi.AcpiError as error:
        refusal = error
    assert refusal.reason
    assert 0 <= refusal.offset <= len(data)
    return None


def repaired(data, table):
    """Return the bytes with the checksum that `build` writes."""
    return data[:9] + acpi.build(table)[9:10] + data[10:]


@settings(max_examples=1000, deadline=None)
@given(mutated())
def test_mutated_table_refused_or_kept(data):
    table = parsed(data)
    if table is not None:
        assert acpi.build(table) == repaired(data, table)


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_mutated_table_strict_refused_or_identical(data):
    with contextlib.suppress(acpi.AcpiError):
        assert acpi.build(acpi.parse(data)) == data


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_mutated_table_description_builds_again(data):
    table = parsed(data)
    if table is not None:
        assert acpi.build(acpi.from_toml(acpi.to_toml(table))) == repaired(data, table)


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_mutated_table_can_be_judged_and_shown(data):
    table = parsed(data)
    if table is not None:
        assert all(0 <= finding.offset <= len(data) for finding in acpi.check(table))
        assert json.loads(json.dumps(acpi.to_dict(table)))["length"] == table.length
        assert render(table).children


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200).map(lambda tail: sealed(ALL[0][:48] + tail)))
def test_random_structures_refused_or_kept(data):
    table = parsed(data)
    if table is not None:
        assert acpi.build(table) == data


@pytest.mark.parametrize("command", ["show", "check"])
@settings(max_examples=100, deadline=None)
@given(data=mutated())
def test_mutated_table_command_line(command, data):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["acpi", command, "-"])
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = args.run(args)
    assert code in ({0, 2} if command == "show" else {0, 1, 2})
    assert err.getvalue().count("\n") == (1 if code == 2 else 0)


def test_every_truncation_of_every_table_refused():
    for data in ALL:
        for size in range(0, len(data), 7):
            with pytest.raises(acpi.AcpiError):
                acpi.parse(data[:size])
