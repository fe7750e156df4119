"""The parts of differential testing that need no QEMU: text, generator, comparison, shrinking."""

from __future__ import annotations

import pytest

from iommu_emu.differential import CONFIGURATIONS, configuration, format_program, parse_program
from iommu_emu.differential.accesses import MemoryWrite, UnitWrite
from iommu_emu.differential.compare import compare
from iommu_emu.differential.descriptors import oddity
from iommu_emu.differential.entries import parse
from iommu_emu.differential.generator import TOPICS, generate, generate_exact, generate_partial
from iommu_emu.differential.observation import Observation, Step
from iommu_emu.differential.ours import Ours
from iommu_emu.differential.program import (
    Dma,
    Everything,
    Interrupt,
    Invalidate,
    ProgramError,
    RegisterRead,
    RegisterWrite,
    Renumber,
    Store,
    Submit,
)
from iommu_emu.differential.registers import Difference
from iommu_emu.differential.shrink import is_fully_invalidated, shrink
from iommu_emu.differential.software import OperationError
from iommu_emu.differential.vtd import ADAPTER, register_names

NAMES = register_names()
DUMP = 0x110  # bytes of the registers that are compared
OPERATIONS = (
    Store(0x100000, (0x102001, 0)),
    RegisterWrite(0x20, 8, 0x100000),
    RegisterWrite(0x24, 4, 0x1),
    RegisterRead(0x34, 4),
    RegisterRead(0x60, 4),
    Submit(((0x51, 0), (0x12, 0x4000))),
    Invalidate(Everything.QUEUE),
    Dma("a", True, 0x4000, 64),
    Dma("edu", False, 0x4000, 64),
    Interrupt("edu", 0xFEE00018, 0x31),
    Renumber("port", 9),
)
TEXT = """\
store 0x100000 0x102001 0x0
write RTADDR 8 0x100000
write RTADDR+4 4 0x1
read FSTS 4
read 0x60 4
submit 0x51 0x0 0x12 0x4000
invalidate queue
dma-write a 0x4000 64
dma-read edu 0x4000 64
interrupt edu 0xfee00018 0x31
renumber port 9
"""


# ---- text -------------------------------------------------------------------------------------


def test_program_text_has_one_operation_a_line():
    assert format_program(OPERATIONS, NAMES) == TEXT


def test_program_text_is_read_back():
    assert parse_program("# a comment\n\n" + TEXT, NAMES) == OPERATIONS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("jump 1", "line 1: 'jump' is none of the operations store, write"),
        ("write NOTHING 4 0", "there is no register 'NOTHING'"),
        ("write FSTS 3 0", "accessed by 1, 2, 4 or 8 bytes, not 3"),
        ("submit 0x1", "a descriptor has two halves"),
        ("invalidate slowly", "'invalidate slowly'"),
        ("dma-write a", "line 1: 'dma-write a'"),
    ],
)
def test_program_text_errors_name_line_and_reason(line, message):
    with pytest.raises(ProgramError, match=message):
        parse_program(line, NAMES)


def test_configuration_of_no_known_name_is_refused():
    with pytest.raises(ValueError, match=r"configuration must be one of q35, .*, not 'q36'"):
        configuration("q36")


# ---- generator --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [generate, generate_exact, generate_partial])
def test_generator_gives_the_same_program_for_the_same_seed(make):
    assert make(7, "q35") == make(7, "q35")
    assert make(7, "q35").operations != make(8, "q35").operations


def test_generator_reaches_every_topic():
    words = {
        line.split()[0]
        for seed in range(60)
        for line in format_program(generate(seed, "bridges").operations, NAMES).splitlines()
    }
    assert words == {line.split()[0] for line in TEXT.splitlines()}
    assert all(weight > 0 for _, weight in TOPICS.values())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_generator_writes_only_text_that_can_be_read_back(name):
    for seed in range(20):
        operations = generate(seed, name).operations
        assert parse_program(format_program(operations, NAMES), NAMES) == operations


def test_generator_invalidates_everything_before_each_use_of_what_changed():
    for seed in range(100):
        operations = generate(seed, "39-bit").operations
        assert is_fully_invalidated([each for each in operations if not _is_interrupt(each)])


def _is_interrupt(operation: object) -> bool:
    return isinstance(operation, Interrupt)


# ---- our side ---------------------------------------------------------------------------------


def test_ours_submits_where_the_tail_is():
    ours = Ours(configuration("q35"))
    queue = 0x130000
    recording = ours.run(
        (
            RegisterWrite(0x90, 8, queue),
            RegisterWrite(0x18, 4, 1 << 26),
            Submit(((0x12, 0),)),
            Submit(((0x12, 0),)),
        )
    )
    assert recording.accesses[3] == [
        MemoryWrite(queue + 16, (0x12).to_bytes(16, "little")),
        UnitWrite(0x88, 8, 32),
    ]


def test_ours_begins_each_program_afresh():
    ours = Ours(configuration("q35"))
    first = ours.run(OPERATIONS)
    assert ours.run(OPERATIONS) == first


def test_ours_names_a_device_that_is_not_there():
    with pytest.raises(OperationError, match="there is no device 'z'"):
        Ours(configuration("q35")).run((Dma("z", True, 0, 4),))


# ---- descriptors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "text", "error"),
    [
        (0x7, 0, "type 7, high bits 0", 3),
        (0x201, 0, "type 1, high bits 1", 3),
        (0x1, 0, "type 1, granularity 0", 4),
        (0x32, 19, "address mask 19", 4),
        (0x12 | 1 << 33, 0, "type 2, reserved low bits 0x200000000", 4),
        (0x5, 0, "wait with neither status nor interrupt", 0),
        (0x35, 0x1000, "wait with status and interrupt", 0),
        (0x25, 0xD000_0000, "wait, status address is not RAM", 0),
    ],
)
def test_oddity_of_a_descriptor_has_its_error(low, high, text, error):
    capabilities = configuration("q35").capabilities
    found = oddity(low, high, capabilities, lambda address: address < 0x200000)
    assert found is not None
    assert (found.text, found.error) == (text, error)


@pytest.mark.parametrize("low", [0x11, 0x21, 0x31, 0x12, 0x32, 0x4, 0x14, 0x15, 0x55])
def test_oddity_of_an_ordinary_descriptor_is_none(low):
    assert oddity(low, 0, configuration("q35").capabilities, lambda address: True) is None


# ---- comparison -------------------------------------------------------------------------------

STATUS = 0x34
ENTRY = parse("""
[[difference]]
name = "known"
title = ""
section = ""
decides = ""
ours = ""
qemu = ""
program = ""
[[difference.match]]
operations = ["write FSTS"]
fields = ["FSTS.PFO"]
""")
WRITE = RegisterWrite(STATUS, 4, 1)
READ = RegisterRead(STATUS, 4)


def observed(steps: list[Step], **attributes) -> Observation:
    """Return an observation of steps that left no memory."""
    return Observation(steps, memory=(b"", b""), **attributes)


def seen(*values: int, results: tuple[int, ...] = (), **attributes) -> list[Step]:
    """Return steps after which FSTS has these values."""
    steps = []
    for value in values:
        dump = bytearray(DUMP)
        dump[STATUS : STATUS + 4] = value.to_bytes(4, "little")
        steps.append(Step(list(results), bytes(dump), **attributes))
    return steps


def test_compare_reports_the_first_operation_that_differs():
    verdict = compare((WRITE, WRITE), observed(seen(0, 1)), observed(seen(0, 2)), (), ADAPTER)
    assert [str(each) for each in verdict.unexplained] == [
        "write FSTS 4 0x1: FSTS.PFO: 0x1 here, 0x0 in QEMU",
        "write FSTS 4 0x1: FSTS.PPF: 0x0 here, 0x1 in QEMU",
    ]
    assert verdict.compared == 1


def test_compare_carries_what_was_explained_until_it_changes():
    read = seen(1, results=(1,)), seen(0, results=(0,))
    ours, qemu = observed([*seen(1), *read[0]]), observed([*seen(0), *read[1]])
    verdict = compare((WRITE, READ), ours, qemu, ENTRY, ADAPTER)
    assert verdict.unexplained == []
    assert verdict.explained == {"known": 1}


def test_compare_wants_an_explanation_for_a_new_value():
    ours, qemu = observed(seen(1, 0)), observed(seen(0, 1))
    verdict = compare((WRITE, RegisterWrite(0x38, 4, 0)), ours, qemu, ENTRY, ADAPTER)
    assert [each.step for each in verdict.unexplained] == [1]


def test_compare_takes_the_end_of_qemu_for_a_difference():
    verdict = compare(
        (WRITE,), observed(seen(0)), observed([], died="SIGABRT: size == 4"), (), ADAPTER
    )
    assert [(each.field, each.detail) for each in verdict.unexplained] == [
        ("abort", "SIGABRT: size == 4")
    ]


@pytest.mark.parametrize(("overwritten", "fields"), [(False, ["stale"]), (True, [])])
def test_compare_knows_no_exact_program_behind_an_overwritten_table(overwritten, fields):
    ours = observed([*seen(0, overwritten=overwritten), *seen(0, stale=True)])
    verdict = compare((WRITE, WRITE), ours, observed(seen(0, 0)), (), ADAPTER, exact=True)
    assert [each.field for each in verdict.unexplained] == fields
    assert verdict.stale == 1


def test_compare_stops_at_a_stale_entry():
    verdict = compare(
        (WRITE, WRITE), observed(seen(1, 1, stale=True)), observed(seen(0, 0)), (), ADAPTER
    )
    assert (verdict.stale, verdict.unexplained, verdict.compared) == (0, [], 0)


def test_compare_reports_a_stale_entry_that_had_been_invalidated():
    verdict = compare(
        (WRITE,), observed(seen(0, stale=True, clean=True)), observed(seen(0)), (), ADAPTER
    )
    assert [each.field for each in verdict.unexplained] == ["stale"]


def test_differences_of_bits_of_no_field_are_reported_as_reserved():
    ours, qemu = (0x8).to_bytes(4, "little"), (0x9).to_bytes(4, "little")
    assert list(NAMES.differences(0x34, ours, qemu)) == [Difference("FSTS.PFO", 0, 1)]
    assert list(NAMES.differences(0xA4, bytes(4), (1 << 16).to_bytes(4, "little"))) == [
        Difference("IEDATA.reserved", 0, 1 << 16)
    ]


def test_differences_outside_every_register_are_reported_by_offset():
    assert list(NAMES.differences(0x60, bytes(4), bytes((0, 1, 0, 0)))) == [
        Difference("+0x061", 0, 1)
    ]


# ---- shrinking --------------------------------------------------------------------------------


def test_shrink_leaves_what_shows_the_difference():
    wanted = {OPERATIONS[1], OPERATIONS[3]}
    small = shrink(OPERATIONS, lambda candidate: wanted <= set(candidate))
    assert set(small) == wanted


def test_shrink_makes_operations_simpler():
    def shows(candidate):
        return any(
            isinstance(each, Submit) and (0x12, 0x4000) in each.descriptors for each in candidate
        )

    assert shrink(OPERATIONS, shows) == (Submit(((0x12, 0x4000),)),)


def test_shrink_asks_only_about_fully_invalidated_programs():
    program = (Store(0, (1,)), Invalidate(Everything.QUEUE), Dma("a", True, 0, 4))
    asked = []

    def shows(candidate):
        asked.append(tuple(candidate))
        return len(candidate) == len(program)

    shrink(program, shows)
    assert (program[0], program[2]) not in asked


@pytest.mark.parametrize(
    ("between", "whole"),
    [
        ((), False),
        ((Invalidate(Everything.QUEUE),), True),
        ((Invalidate(Everything.ROOT),), True),
        ((Invalidate(Everything.QUEUE), Renumber("port", 9)), False),
        ((Invalidate(Everything.QUEUE), RegisterWrite(0x18, 4, 0)), False),
    ],
)
def test_fully_invalidated_is_every_change_before_a_transfer(between, whole):
    program = (Store(0, (1,)), *between, Dma("a", True, 0, 4))
    assert is_fully_invalidated(program) is whole
