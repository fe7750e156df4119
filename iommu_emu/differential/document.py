"""docs/differences-from-qemu.md, made from the entries."""

from __future__ import annotations

from collections.abc import Iterator

from iommu_emu.differential.configurations import CONFIGURATIONS
from iommu_emu.differential.entries import Entry, Match, load

INTRODUCTION = """\
# Differences from QEMU

Where QEMU's intel-iommu (11.1, legacy mode) and this project's unit of the same capabilities
differ, what each does, and what decides. Section numbers are those of the project's fact sheet,
which follows the VT-d specification revision 5.10.

This page is made from `iommu_emu/differential/differences.toml` by `iommu-emu diff --document`.
Differential testing (`tests/differential/`, `iommu-emu diff`) explains a difference by one of
these entries or fails; each entry's program is run on both sides by the tests, and an entry whose
difference is gone fails too. "Ends a comparison" means that the two are in different states
afterwards, so the rest of that program is not compared.

Programs are compared that invalidate everything after each change, or exactly what software owes
(VT-d 9.4). QEMU drops more from its caches than it is asked to (all of them when translation is
switched, for example), so what a stale entry answers is the business of the stale-entry oracle.
Nor does a comparison show what QEMU's devices cannot ask: they send no
translation requests, no AtomicOps and no zero-length reads.
"""

__all__ = ["document"]


def document() -> str:
    """Return the text of the page."""
    entries = load()
    rows = [f"| [{entry.title}](#{entry.name}) | {entry.section} |" for entry in entries]
    parts = [
        INTRODUCTION,
        "| difference | decided by |\n|---|---|\n" + "\n".join(rows) + "\n",
        *("\n".join(_entry(entry)) + "\n" for entry in entries),
        _configurations(),
    ]
    return "\n".join(parts)


def _entry(entry: Entry) -> Iterator[str]:
    yield f'<a name="{entry.name}"></a>\n\n## {entry.title}\n'
    yield f"- {entry.section}: {entry.decides}"
    yield f"- Here: {entry.ours}"
    yield f"- QEMU: {entry.qemu}"
    if entry.diverges:
        yield "- Ends a comparison."
    if entry.configuration != "q35":
        yield f"- Configuration: `{entry.configuration}`."
    if entry.beside:
        yield f"- The program shows {', '.join(f'`{name}`' for name in entry.beside)} as well."
    yield f"- Explains, as `{entry.name}`:"
    yield from (f"  - {_match(match)}" for match in entry.matches)
    yield ""
    yield from ("```text", *entry.program.splitlines(), "```")


def _match(match: Match) -> str:
    """Return one kind of finding in words."""
    text = f"{_list(match.fields)} after {_list(match.operations)}"
    conditions = []
    if match.ours:
        conditions.append(f"here {_values(match.ours)}")
    if match.qemu:
        conditions.append(f"in QEMU {_values(match.qemu)}")
    if match.masked:
        conditions.append(f"here QEMU's value and {_values(match.masked)}")
    if match.causes:
        conditions.append(f"with {_list(match.causes)}")
    if match.notes:
        conditions.append(f"and {_list(match.notes)}")
    if match.without:
        conditions.append(f"without {_list(match.without)}")
    for what, fields in (("our", match.state), ("written", match.written)):
        if fields:
            values = ", ".join(f"{name}={value}" for name, value in fields)
            conditions.append(f"{what} `{values}`")
    for holds, words in (
        (match.as_written, "here as it was written"),
        (match.unchanged, "here as it was before"),
        (match.expected, "here as the operation has it"),
    ):
        if holds:
            conditions.append(words)
    if match.detail:
        conditions.append(f"`{match.detail}`")
    return "; ".join([text, *conditions])


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _values(values: tuple[int, ...]) -> str:
    return " or ".join(f"{value:#x}" for value in values)


def _configurations() -> str:
    rows = [
        f"| `{each.name}` | `-device {each.device}` | {each.description} |"
        for each in CONFIGURATIONS.values()
    ]
    return "## Configurations\n\n| name | QEMU | what |\n|---|---|---|\n" + "\n".join(rows) + "\n"
