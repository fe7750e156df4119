"""Differential testing: the same programs on a real QEMU and on our unit, compared.

Programs invalidate everything after each change, or exactly what software owes (VT-d 9.4): then
there is one right answer. Others invalidate less, and are held to the stale-entry oracle.

The way of a program:

    generator/ -> program.py -> ours.py: carried out on our unit, as primitive accesses
                                -> accesses.py -> theirs.py: replayed on QEMU over qtest
    observation.py of both -> compare.py, with the known differences of entries.py
                                -> shrink.py: the smallest program that shows what is left

`pair.py` holds both sides of one configuration, `campaign.py` runs many programs over several,
`stale.py` holds under-invalidated programs to the stale-entry oracle, `document.py` makes
docs/differences-from-qemu.md.

`adapter.py` is what this has to know of a kind of unit, and `vtd.py` the one adapter there is,
with `descriptors.py` and `notes.py`. Another mode or vendor brings an adapter, a generator like
`generator/`, and its lines in `configurations.py`.
"""

from iommu_emu.differential.campaign import Campaign, Coverage, Failure
from iommu_emu.differential.configurations import CONFIGURATIONS, Configuration, configuration
from iommu_emu.differential.entries import Entry, Finding, Match, load
from iommu_emu.differential.pair import Pair
from iommu_emu.differential.program import Program, format_program, parse_program
from iommu_emu.differential.stale import OracleRun, WrongAnswer

__all__ = [
    "CONFIGURATIONS",
    "Campaign",
    "Configuration",
    "Coverage",
    "Entry",
    "Failure",
    "Finding",
    "Match",
    "OracleRun",
    "Pair",
    "Program",
    "WrongAnswer",
    "configuration",
    "format_program",
    "load",
    "parse_program",
]
