"""Every field of every real table, as iasl reads it and as we do.

The oracle's labels are iasl's; the mappings below translate each. A label without a translation
fails the test, so nothing is compared by accident of a common name.
"""

import json

from acpi_samples import each_real, needs_real

from iommu_emu import acpi
from iommu_emu.acpi.dmar import Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Sidp
from iommu_emu.acpi.ivrs import (
    AliasEntry,
    DeviceEntry,
    ExtendedEntry,
    HidEntry,
    Ivhd10,
    Ivhd11,
    Ivmd,
    SpecialEntry,
)

# What the oracle says about itself and iasl's prose; nothing in a table corresponds to it.
ABOUT_ORACLE = {"type_name", "undecoded_by_iasl", "uid_from_dump", "uid_iasl_overread"}


def field(name):
    return lambda record: getattr(record, name)


def number(name):
    return lambda record: int.from_bytes(getattr(record, name), "little")


def text_hex(name, size):
    return lambda record: getattr(record, name).encode("latin-1").ljust(size, b"\0").hex()


def printed(name):
    """Print as iasl does: a space for what is no printable ASCII."""
    return lambda record: "".join(c if " " <= c <= "~" else " " for c in getattr(record, name))


def bits(**names):
    """Translate a dictionary of bit fields: label to (field, low bit, width)."""
    return lambda record: {
        label: int(getattr(record, name)) >> low & (1 << width) - 1
        for label, (name, low, width) in names.items()
    }


HEADER = {
    "signature": field("signature"),
    "signature_hex": text_hex("signature", 4),
    "table_length": field("length"),
    "revision": field("revision"),
    "checksum": field("checksum"),
    "oem_id": printed("oem_id"),
    "oem_id_hex": text_hex("oem_id", 6),
    "oem_table_id": printed("oem_table_id"),
    "oem_table_id_hex": text_hex("oem_table_id", 8),
    "oem_revision": field("oem_revision"),
    "asl_compiler_id": printed("creator_id"),
    "asl_compiler_id_hex": text_hex("creator_id", 4),
    "asl_compiler_revision": field("creator_revision"),
}
HEADERS = {
    "DMAR": HEADER
    | {
        "host_address_width": lambda table: table.host_address_width - 1,
        "flags": field("flags"),
        "reserved": lambda table: list(table.reserved),
    },
    "IVRS": HEADER | {"virtualization_info": field("iv_info"), "reserved": number("reserved")},
}

SCOPE = {
    "type": field("type"),
    "offset": field("offset"),
    "entry_length": field("length"),
    "flags": field("flags"),
    "reserved": field("reserved"),
    "enumeration_id": field("enumeration_id"),
    "pci_bus_number": field("start_bus"),
    "path": lambda scope: [list(hop) for hop in scope.path],
}

COMMON = {"type": field("type"), "offset": field("offset"), "length": field("length")}
SEGMENT = {"pci_segment_number": field("segment")}
RESERVED = {"reserved": field("reserved")}
FLAGS = {"flags": field("flags")}
IVHD = {
    **COMMON,
    **FLAGS,
    "flags_bits": bits(
        httunen=("flags", 0, 1),
        passpw=("flags", 1, 1),
        respasspw=("flags", 2, 1),
        isoc_control=("flags", 3, 1),
        iotlb_support=("flags", 4, 1),
        coherent=("flags", 5, 1),
        prefetch_support=("flags", 6, 1),
        ppr_support=("flags", 7, 1),
    ),
    "deviceid": field("device_id"),
    "capability_offset": field("capability_offset"),
    "base_address": field("base_address"),
    "pci_segment_group": field("segment"),
    "virtualization_info": field("info"),
}
STRUCTURES = {
    Drhd: COMMON
    | FLAGS
    | SEGMENT
    | {
        "size": field("size"),
        "size_bits": bits(size_pages_log2=("size", 0, 4)),
        "register_base_address": field("base_address"),
    },
    Rmrr: COMMON
    | RESERVED
    | SEGMENT
    | {"base_address": field("base_address"), "end_address_limit": field("limit_address")},
    Atsr: COMMON | FLAGS | RESERVED | SEGMENT,
    Rhsa: COMMON
    | RESERVED
    | {"base_address": field("base_address"), "proximity_domain": field("proximity_domain")},
    Andd: COMMON
    | {
        "reserved": number("reserved"),
        "device_number": field("device_number"),
        "device_name": field("object_name"),
        "device_name_hex": lambda andd: (andd.object_name.encode() + b"\0").hex(),
    },
    Satc: COMMON | FLAGS | RESERVED | SEGMENT,
    Sidp: COMMON | RESERVED | SEGMENT,
    Ivhd10: IVHD | {"feature_reporting": field("features")},
    Ivhd11: IVHD
    | {
        "attributes": field("attributes"),
        "efr_image": field("efr"),
        "reserved": field("efr2"),  # iasl does not know the second register
    },
    Ivmd: COMMON
    | FLAGS
    | {
        "flags_bits": bits(
            unity=("flags", 0, 1),
            readable=("flags", 1, 1),
            writeable=("flags", 2, 1),
            exclusion_range=("flags", 3, 1),
        ),
        "deviceid": field("device_id"),
        "auxiliary_data": field("last_device_id"),
        "reserved": lambda ivmd: ivmd.segment | int.from_bytes(ivmd.reserved, "little") << 16,
        "start_address": field("start_address"),
        "memory_length": field("memory_length"),
    },
    acpi.ivrs.Block: COMMON,
    acpi.dmar.Structure: COMMON,
}

SETTING = {
    "data_setting": field("setting"),
    "data_setting_bits": bits(
        initpass=("setting", 0, 1),
        eintpass=("setting", 1, 1),
        nmipass=("setting", 2, 1),
        reserved=("setting", 3, 1),
        system_mgmt=("setting", 4, 2),
        lint0_pass=("setting", 6, 1),
        lint1_pass=("setting", 7, 1),
    ),
}
ENTRY = {"type": field("type"), "offset": field("offset")} | SETTING
DEVICE = ENTRY | {"device_id": field("device_id")}
ENTRIES = {
    DeviceEntry: DEVICE,
    AliasEntry: DEVICE
    | {
        "reserved": field("reserved"),
        "source_used_device_id": field("source_device_id"),
        "reserved_2": field("reserved_2"),
    },
    ExtendedEntry: DEVICE | {"extended_data": field("extended")},
    SpecialEntry: ENTRY
    | {
        "device_id": field("reserved"),
        "handle": field("handle"),
        "source_used_device_id": field("source_device_id"),
        "variety": field("variety"),
    },
    HidEntry: DEVICE
    | {
        "acpi_hid": field("hid"),
        "acpi_hid_hex": text_hex("hid", 8),
        "acpi_cid": lambda entry: int(text_hex("cid", 8)(entry), 16),
        "uid_format": field("uid_format"),
        "uid_length": field("uid_length"),
        "uid": field("uid_value"),
        "uid_hex": lambda entry: entry.uid.hex(),
    },
}


def translated(record, mapping, labels):
    return {label: mapping[label](record) for label in labels}


def compare(oracle, record, mapping, children=()):
    told = {key: value for key, value in oracle.items() if key not in {*ABOUT_ORACLE, *children}}
    assert translated(record, mapping, told) == told


@needs_real
@each_real
def test_oracle_header(path):
    oracle = json.loads(path.with_suffix(".json").read_text())
    table = acpi.parse(path.read_bytes())
    compare(oracle["header"], table, HEADERS[oracle["kind"]])


@needs_real
@each_real
def test_oracle_structures(path):
    oracle = json.loads(path.with_suffix(".json").read_text())
    table = acpi.parse(path.read_bytes())
    for told, structure in zip(oracle["structures"], table.structures, strict=True):
        mapping = STRUCTURES[type(structure)]
        compare(told, structure, mapping, children={"device_scopes", "device_entries"})


@needs_real
@each_real
def test_oracle_scopes_and_entries(path):
    oracle = json.loads(path.with_suffix(".json").read_text())
    table = acpi.parse(path.read_bytes())
    for told, structure in zip(oracle["structures"], table.structures, strict=True):
        scopes = getattr(structure, "scopes", [])
        for scope_told, scope in zip(told.get("device_scopes", []), scopes, strict=True):
            compare(scope_told, scope, SCOPE)
        entries = getattr(structure, "entries", [])
        for entry_told, entry in zip(told.get("device_entries", []), entries, strict=True):
            compare(entry_told, entry, ENTRIES[type(entry)])
