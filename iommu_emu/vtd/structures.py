"""Memory structures of VT-d in legacy mode: tables, invalidation descriptors, fault records.

Fields carry the specification's mnemonics in lower case. `reserved_*` bits must be 0 and are
checked when the entry is present; `ignored_*` bits are never checked. What is reserved only for
some units (address bits above the host address width, domain-ID bits above CAP.ND, SNP without
ECAP.SC) is a plain field here and the walker's business.
"""

from __future__ import annotations

from iommu_emu.bitfields import Structure, address, bit, constant, field, ignored, reserved

__all__ = [
    "DESCRIPTORS",
    "ContextEntry",
    "ContextInvalidation",
    "DeviceTlbInvalidation",
    "FaultRecording",
    "InterruptEntryInvalidation",
    "IotlbInvalidation",
    "RootEntry",
    "SecondStageDirectory",
    "SecondStagePage1G",
    "SecondStagePage2M",
    "SecondStagePage4K",
    "SecondStageTable",
    "WaitDescriptor",
    "second_stage_page",
    "second_stage_table",
]

RootEntry = Structure(
    "RootEntry",
    128,
    "Root entry of legacy mode, indexed by bus (VT-d 4.1).",
    [bit("p", 0), reserved(11, 1), address("ctp", 63, 12), reserved(127, 64)],
)

ContextEntry = Structure(
    "ContextEntry",
    128,
    "Context entry of legacy mode, indexed by device and function (VT-d 4.3).",
    [
        bit("p", 0),
        bit("fpd", 1),
        field("tt", 3, 2),
        reserved(11, 4),
        address("ssptptr", 63, 12),
        field("aw", 66, 64),
        ignored(70, 67),
        reserved(71),
        field("did", 87, 72),
        reserved(127, 88),
    ],
)

SecondStageDirectory = Structure(
    "SecondStageDirectory",
    64,
    "Second-stage PML5E or PML4E (VT-d 4.8).",
    [
        bit("r", 0),
        bit("w", 1),
        ignored(6, 2),
        reserved(7),
        bit("a", 8),
        ignored(10, 9),
        reserved(11),
        address("address", 51, 12),
        ignored(60, 52),
        ignored(61),
        reserved(62),
        ignored(63),
    ],
)

SecondStageTable = Structure(
    "SecondStageTable",
    64,
    "Second-stage PDPE or PDE that points to a table (VT-d 4.8).",
    [
        bit("r", 0),
        bit("w", 1),
        ignored(6, 2),
        constant("ps", 7, 7, 0),
        bit("a", 8),
        ignored(10, 9),
        reserved(11),
        address("address", 51, 12),
        ignored(60, 52),
        ignored(61),
        reserved(62),
        ignored(63),
    ],
)


def _page(name: str, description: str, shift: int) -> Structure:
    """A leaf; a large one has PS set and no address bits below its size."""
    large = shift > 12
    return Structure(
        name,
        64,
        description,
        [
            bit("r", 0),
            bit("w", 1),
            ignored(2),
            field("emt", 5, 3),
            bit("ipat", 6),
            constant("ps", 7, 7, 1) if large else ignored(7),
            bit("a", 8),
            bit("d", 9),
            ignored(10),
            bit("snp", 11),
            *([reserved(shift - 1, 12)] if large else []),
            address("address", 51, shift),
            ignored(60, 52),
            ignored(61),
            reserved(62),
            ignored(63),
        ],
    )


SecondStagePage4K = _page("SecondStagePage4K", "Second-stage PTE: a 4 KiB page (VT-d 4.8).", 12)
SecondStagePage2M = _page("SecondStagePage2M", "Second-stage PDE of a 2 MiB page (VT-d 4.8).", 21)
SecondStagePage1G = _page("SecondStagePage1G", "Second-stage PDPE of a 1 GiB page (VT-d 4.8).", 30)


def second_stage_page(level: int) -> Structure:
    """Return the leaf format of a level: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB."""
    return {1: SecondStagePage4K, 2: SecondStagePage2M, 3: SecondStagePage1G}[level]


def second_stage_table(level: int) -> Structure:
    """Return the format of an entry at level 2 to 5 that points to the next table."""
    return SecondStageDirectory if level > 3 else SecondStageTable


ContextInvalidation = Structure(
    "ContextInvalidation",
    128,
    "Context-cache invalidation descriptor (VT-d 7.2).",
    [
        constant("type", 3, 0, 1),
        field("g", 5, 4),
        reserved(8, 6),
        constant("type_high", 11, 9, 0),
        reserved(15, 12),
        field("did", 31, 16),
        field("sid", 47, 32),
        field("fm", 49, 48),
        reserved(127, 50),
    ],
)

IotlbInvalidation = Structure(
    "IotlbInvalidation",
    128,
    "IOTLB invalidation descriptor (VT-d 7.2).",
    [
        constant("type", 3, 0, 2),
        field("g", 5, 4),
        bit("dw", 6),
        bit("dr", 7),
        reserved(8),
        constant("type_high", 11, 9, 0),
        reserved(15, 12),
        field("did", 31, 16),
        reserved(63, 32),
        field("am", 69, 64),
        bit("ih", 70),
        reserved(75, 71),
        address("addr", 127, 76),
    ],
)

DeviceTlbInvalidation = Structure(
    "DeviceTlbInvalidation",
    128,
    "Device-TLB invalidation descriptor (VT-d 7.2).",
    [
        constant("type", 3, 0, 3),
        reserved(8, 4),
        constant("type_high", 11, 9, 0),
        field("pfsid_low", 15, 12),
        field("mip", 20, 16),
        reserved(31, 21),
        field("sid", 47, 32),
        reserved(51, 48),
        field("pfsid_high", 63, 52),
        bit("s", 64),
        reserved(75, 65),
        address("addr", 127, 76),
    ],
)

InterruptEntryInvalidation = Structure(
    "InterruptEntryInvalidation",
    128,
    "Interrupt-entry-cache invalidation descriptor (VT-d 7.2).",
    [
        constant("type", 3, 0, 4),
        bit("g", 4),
        reserved(8, 5),
        constant("type_high", 11, 9, 0),
        reserved(26, 12),
        field("im", 31, 27),
        field("iidx", 47, 32),
        reserved(127, 48),
    ],
)

WaitDescriptor = Structure(
    "WaitDescriptor",
    128,
    "Invalidation wait descriptor (VT-d 7.2).",
    [
        constant("type", 3, 0, 5),
        bit("if_", 4),
        bit("sw", 5),
        bit("fn", 6),
        bit("pd", 7),
        reserved(8),
        constant("type_high", 11, 9, 0),
        reserved(31, 12),
        field("status_data", 63, 32),
        reserved(65, 64),
        address("status_address", 127, 66),
    ],
)

DESCRIPTORS: dict[int, Structure] = {
    structure["type"].value: structure
    for structure in (
        ContextInvalidation,
        IotlbInvalidation,
        DeviceTlbInvalidation,
        InterruptEntryInvalidation,
        WaitDescriptor,
    )
}
"""Invalidation descriptors by their type field."""

FaultRecording = Structure(
    "FaultRecording",
    128,
    "Fault recording register FRCD (VT-d 2.10).",
    [
        reserved(11, 0),
        address("fi", 63, 12),
        field("sid", 79, 64),
        reserved(91, 80),
        bit("t2", 92),
        bit("priv", 93),
        bit("exe", 94),
        bit("pp", 95),
        field("fr", 103, 96),
        field("pv", 123, 104),
        field("at", 125, 124),
        bit("t1", 126),
        bit("f", 127),
    ],
)
