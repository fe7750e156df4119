"""Memory structures of AMD-Vi: device table, host page tables, commands, event log.

Fields carry the specification's names in lower case. `reserved_*` bits must be 0 and are checked;
`ignored_*` bits are never checked. Bits that newer revisions define and older ones reserve are
fields here; whether a unit checks them follows its extended features (AMD-Vi 4.4).
"""

from __future__ import annotations

from iommu_emu.bitfields import Structure, address, bit, constant, field, ignored, reserved

__all__ = [
    "COMMANDS",
    "EVENTS",
    "CommandHardwareError",
    "CompletionWait",
    "DevTabHardwareError",
    "DeviceTableEntry",
    "IllegalCommandError",
    "IllegalDevTableEntry",
    "InvalidDeviceRequest",
    "InvalidateDevtabEntry",
    "InvalidateInterruptTable",
    "InvalidateIommuAll",
    "InvalidateIommuPages",
    "InvalidateIotlbPages",
    "IoPageFault",
    "IotlbInvTimeout",
    "PageDirectoryEntry",
    "PageTabHardwareError",
    "PageTableEntry",
    "event_structure",
]

DeviceTableEntry = Structure(
    "DeviceTableEntry",
    256,
    "Device table entry, indexed by device ID (AMD-Vi 4.2).",
    [
        bit("v", 0),
        bit("tv", 1),
        reserved(3, 2),
        field("cxl", 6, 4),
        field("had", 8, 7),
        field("mode", 11, 9),
        address("root", 51, 12),
        bit("ppr", 52),
        bit("gprp", 53),
        bit("giov", 54),
        bit("gv", 55),
        field("glx", 57, 56),
        address("gcr3_14_12", 60, 58, shift=12),
        bit("ir", 61),
        bit("iw", 62),
        reserved(63),
        field("domain_id", 79, 64),
        address("gcr3_30_15", 95, 80, shift=15),
        bit("i", 96),
        bit("se", 97),
        bit("sa", 98),
        field("ioctl", 100, 99),
        bit("cache", 101),
        bit("sd", 102),
        bit("ex", 103),
        field("sysmgt", 105, 104),
        bit("sats", 106),
        address("gcr3_51_31", 127, 107, shift=31),
        bit("iv", 128),
        field("inttablen", 132, 129),
        bit("ig", 133),
        address("inttabroot", 179, 134, shift=6),
        reserved(181, 180),
        field("guest_paging_mode", 183, 182),
        bit("initpass", 184),
        bit("eintpass", 185),
        bit("nmipass", 186),
        bit("hptmode", 187),
        field("intctl", 189, 188),
        bit("lint0pass", 190),
        bit("lint1pass", 191),
        reserved(206, 192),
        bit("vimuen", 207),
        field("gdeviceid", 223, 208),
        field("guestid", 239, 224),
        reserved(244, 240),
        ignored(245),
        bit("attrv", 246),
        bit("mode0fc", 247),
        field("snoop_attribute", 255, 248),
    ],
)

PageDirectoryEntry = Structure(
    "PageDirectoryEntry",
    64,
    "Host (v1) page-table entry that points to a table: NextLevel 1 to 6 (AMD-Vi 5.1).",
    [
        bit("pr", 0),
        ignored(4, 1),
        bit("a", 5),
        ignored(8, 6),
        field("next_level", 11, 9),
        address("address", 51, 12),
        reserved(60, 52),
        bit("ir", 61),
        bit("iw", 62),
        ignored(63),
    ],
)

PageTableEntry = Structure(
    "PageTableEntry",
    64,
    "Host (v1) leaf: NextLevel 0, or 7 with the size in the address (AMD-Vi 5.1, 5.3).",
    [
        bit("pr", 0),
        ignored(4, 1),
        bit("a", 5),
        bit("d", 6),
        ignored(8, 7),
        field("next_level", 11, 9),
        address("address", 51, 12),
        reserved(58, 52),
        bit("u", 59),
        bit("fc", 60),
        bit("ir", 61),
        bit("iw", 62),
        ignored(63),
    ],
)

CompletionWait = Structure(
    "CompletionWait",
    128,
    "COMPLETION_WAIT command (AMD-Vi 9.1).",
    [
        bit("s", 0),
        bit("i", 1),
        bit("f", 2),
        address("store_address", 51, 3),
        reserved(59, 52),
        constant("opcode", 63, 60, 1),
        field("store_data", 127, 64),
    ],
)

InvalidateDevtabEntry = Structure(
    "InvalidateDevtabEntry",
    128,
    "INVALIDATE_DEVTAB_ENTRY command (AMD-Vi 9.1).",
    [
        field("device_id", 15, 0),
        reserved(59, 16),
        constant("opcode", 63, 60, 2),
        reserved(127, 64),
    ],
)

InvalidateIommuPages = Structure(
    "InvalidateIommuPages",
    128,
    "INVALIDATE_IOMMU_PAGES command (AMD-Vi 9.1).",
    [
        field("pasid", 19, 0),
        reserved(31, 20),
        field("domain_id", 47, 32),
        reserved(59, 48),
        constant("opcode", 63, 60, 3),
        bit("s", 64),
        bit("pde", 65),
        bit("gn", 66),
        reserved(75, 67),
        address("address", 127, 76),
    ],
)

InvalidateIotlbPages = Structure(
    "InvalidateIotlbPages",
    128,
    "INVALIDATE_IOTLB_PAGES command, for a device-TLB (AMD-Vi 9.1); needs IotlbSup.",
    [
        field("device_id", 15, 0),
        field("pasid_15_8", 23, 16),
        field("max_pending", 31, 24),
        field("queue_id", 47, 32),
        field("pasid_7_0", 55, 48),
        field("pasid_19_16", 59, 56),
        constant("opcode", 63, 60, 4),
        bit("s", 64),
        reserved(65),
        bit("gn", 66),
        reserved(67),
        field("type", 69, 68),
        reserved(75, 70),
        address("address", 127, 76),
    ],
)

InvalidateInterruptTable = Structure(
    "InvalidateInterruptTable",
    128,
    "INVALIDATE_INTERRUPT_TABLE command (AMD-Vi 9.1).",
    [
        field("device_id", 15, 0),
        reserved(59, 16),
        constant("opcode", 63, 60, 5),
        reserved(127, 64),
    ],
)

InvalidateIommuAll = Structure(
    "InvalidateIommuAll",
    128,
    "INVALIDATE_IOMMU_ALL command (AMD-Vi 9.1); needs EFR.IASup.",
    [reserved(59, 0), constant("opcode", 63, 60, 8), reserved(127, 64)],
)

COMMANDS: dict[int, Structure] = {
    structure["opcode"].value: structure
    for structure in (
        CompletionWait,
        InvalidateDevtabEntry,
        InvalidateIommuPages,
        InvalidateIotlbPages,
        InvalidateInterruptTable,
        InvalidateIommuAll,
    )
}
"""Commands by opcode."""

# Events: bits that the specification leaves undefined are written as 0 and named reserved.

IllegalDevTableEntry = Structure(
    "IllegalDevTableEntry",
    128,
    "ILLEGAL_DEV_TABLE_ENTRY event (AMD-Vi 10.1).",
    [
        field("device_id", 15, 0),
        field("pasid_high", 19, 16),
        reserved(26, 20),
        bit("vnr", 27),
        reserved(28),
        bit("vevent", 29),
        bit("vptr", 30),
        bit("vcmd", 31),
        field("pasid_low", 47, 32),
        bit("gn", 48),
        reserved(50, 49),
        bit("i", 51),
        reserved(52),
        bit("rw", 53),
        reserved(54),
        bit("rz", 55),
        bit("tr", 56),
        reserved(59, 57),
        constant("code", 63, 60, 1),
        reserved(65, 64),
        address("address", 127, 66),
    ],
)

IoPageFault = Structure(
    "IoPageFault",
    128,
    "IO_PAGE_FAULT event (AMD-Vi 10.1).",
    [
        field("device_id", 15, 0),
        field("pasid_high", 19, 16),
        reserved(26, 20),
        bit("vnr", 27),
        reserved(28),
        bit("vevent", 29),
        bit("vptr", 30),
        bit("vcmd", 31),
        field("domain_id", 47, 32),
        bit("gn", 48),
        bit("nx", 49),
        bit("us", 50),
        bit("i", 51),
        bit("pr", 52),
        bit("rw", 53),
        bit("pe", 54),
        bit("rz", 55),
        bit("tr", 56),
        reserved(59, 57),
        constant("code", 63, 60, 2),
        field("address", 127, 64),
    ],
)

DevTabHardwareError = Structure(
    "DevTabHardwareError",
    128,
    "DEV_TAB_HARDWARE_ERROR event (AMD-Vi 10.1).",
    [
        field("device_id", 15, 0),
        reserved(50, 16),
        bit("i", 51),
        reserved(52),
        bit("rw", 53),
        reserved(55, 54),
        bit("tr", 56),
        field("type", 58, 57),
        reserved(59),
        constant("code", 63, 60, 3),
        reserved(67, 64),
        address("address", 127, 68),
    ],
)

PageTabHardwareError = Structure(
    "PageTabHardwareError",
    128,
    "PAGE_TAB_HARDWARE_ERROR event (AMD-Vi 10.1).",
    [
        field("device_id", 15, 0),
        field("pasid_high", 19, 16),
        reserved(31, 20),
        field("domain_id", 47, 32),
        bit("gn", 48),
        reserved(50, 49),
        bit("i", 51),
        reserved(52),
        bit("rw", 53),
        reserved(55, 54),
        bit("tr", 56),
        field("type", 58, 57),
        reserved(59),
        constant("code", 63, 60, 4),
        reserved(66, 64),
        address("address", 127, 67),
    ],
)

IllegalCommandError = Structure(
    "IllegalCommandError",
    128,
    "ILLEGAL_COMMAND_ERROR event (AMD-Vi 10.1).",
    [
        reserved(59, 0),
        constant("code", 63, 60, 5),
        reserved(67, 64),
        address("address", 127, 68),
    ],
)

CommandHardwareError = Structure(
    "CommandHardwareError",
    128,
    "COMMAND_HARDWARE_ERROR event (AMD-Vi 10.1).",
    [
        reserved(56, 0),
        field("type", 58, 57),
        reserved(59),
        constant("code", 63, 60, 6),
        field("address", 127, 64),
    ],
)

IotlbInvTimeout = Structure(
    "IotlbInvTimeout",
    128,
    "IOTLB_INV_TIMEOUT event (AMD-Vi 10.1).",
    [
        field("device_id", 15, 0),
        reserved(59, 16),
        constant("code", 63, 60, 7),
        reserved(67, 64),
        address("address", 127, 68),
    ],
)

InvalidDeviceRequest = Structure(
    "InvalidDeviceRequest",
    128,
    "INVALID_DEVICE_REQUEST event (AMD-Vi 10.1, types in 10.2).",
    [
        field("device_id", 15, 0),
        field("pasid_high", 19, 16),
        reserved(31, 20),
        field("pasid_low", 47, 32),
        bit("gn", 48),
        reserved(55, 49),
        bit("tr", 56),
        field("type", 59, 57),
        constant("code", 63, 60, 8),
        field("address", 127, 64),
    ],
)

EVENTS: dict[int, Structure] = {
    structure["code"].value: structure
    for structure in (
        IllegalDevTableEntry,
        IoPageFault,
        DevTabHardwareError,
        PageTabHardwareError,
        IllegalCommandError,
        CommandHardwareError,
        IotlbInvTimeout,
        InvalidDeviceRequest,
    )
}
"""Event log entries by code."""


def event_structure(data: bytes) -> Structure | None:
    """Return the structure of a 16-byte log entry, or None if its code is not known."""
    return EVENTS.get(data[7] >> 4)
