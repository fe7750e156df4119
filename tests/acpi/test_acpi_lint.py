"""Every rule of the linter, on the smallest table that breaks it, and on real ones."""

import ast
from pathlib import Path

import pytest
from acpi_samples import DRHD, IVHD, dmar, ivrs, needs_real, real

from iommu_emu import acpi


def unit(base=0xFED90000, extra=""):
    return f'[[structures]]\ntype = "DRHD"\nbase_address = {base:#x}\n{extra}\n'


def structure(kind, extra=""):
    return f'[[structures]]\ntype = "{kind}"\n{extra}\n'


def block(entries="", extra="", kind=0x10):
    head = f'[[structures]]\ntype = {kind:#x}\ndevice_id = "00:00.2"\n'
    base = "" if "base_address" in extra else "base_address = 0xfeb80000\n"
    return f"{head}{base}{extra}\nentries = [{entries}]\n"


def memory(extra, kind=0x20):
    base = "start_address = 0x1000\nmemory_length = 0x1000\n"
    keys = [line for line in base.splitlines() if line.split()[0] not in extra]
    flags = "" if "flags" in extra else 'flags = ["UNITY"]\n'
    return block() + f"[[structures]]\ntype = {kind:#x}\n{flags}" + "\n".join([*keys, extra]) + "\n"


ENDPOINT = 'scopes = [{ type = "PCI_ENDPOINT", path = "02.0" }]'
NAMESPACE = 'scopes = [{ type = "NAMESPACE", enumeration_id = 1, path = "15.0" }]'
PORT = 'scopes = [{ type = "PCI_SUB_HIERARCHY", path = "01.0" }]'
CATCH = 'flags = ["INCLUDE_PCI_ALL"]'
GOOD = unit(extra=CATCH)


def rmrr(base, limit, scopes=ENDPOINT):
    return structure("RMRR", f"base_address = {base:#x}\nlimit_address = {limit:#x}\n{scopes}")


ANDD = structure("ANDD", 'device_number = 1\nobject_name = "X"')
START = '{ type = "START_RANGE", device_id = "00:01.0" },'
END = '{ type = "END_RANGE", device_id = "00:1f.7" },'
ALIAS = '{ type = "ALIAS_START_RANGE", device_id = "00:02.0", source_device_id = "00:14.4" },'
HID = '{ type = "ACPI_HID", hid = "AMDI0020"'

DMAR_CASES = [
    ("note", "revision", 0x08, "revision = 2\n" + GOOD),
    ("warning", "x2apic-opt-out-alone", 0x25, 'flags = ["X2APIC_OPT_OUT"]\n' + GOOD),
    ("error", "no-unit", 0x30, ""),
    ("warning", "structure-order", 0x50, rmrr(0x1000, 0x1FFF) + GOOD),
    ("error", "drhd-base-zero", 0x38, unit(0, CATCH)),
    ("error", "drhd-base-unaligned", 0x38, unit(0xFED90800, CATCH)),
    ("error", "drhd-base-unaligned", 0x38, unit(0xFED91000, CATCH + "\nsize = 4")),
    ("note", "drhd-large-window", 0x35, unit(extra=CATCH + "\nsize = 4")),
    ("warning", "reserved-not-zero", 0x35, unit(extra=CATCH + "\nsize = 0x10")),
    ("error", "drhd-base-duplicate", 0x50, unit(extra=ENDPOINT) + GOOD),
    ("error", "drhd-overlap", 0x38, unit(0xFED91000, ENDPOINT) + unit(extra=CATCH + "\nsize = 1")),
    ("error", "include-pci-all-twice", 0x40, GOOD + unit(0xFED91000, CATCH)),
    ("warning", "include-pci-all-not-last", 0x40, GOOD + unit(0xFED91000, ENDPOINT)),
    ("warning", "drhd-without-devices", 0x30, unit()),
    ("error", "address-too-wide", 0x38, "host_address_width = 31\n" + GOOD),
    ("error", "rmrr-zero", 0x48, GOOD + rmrr(0, 0)),
    ("warning", "rmrr-base-zero", 0x48, GOOD + rmrr(0, 0xFFF)),
    ("error", "rmrr-base-unaligned", 0x48, GOOD + rmrr(1, 0xFFF)),
    ("error", "rmrr-limit-unaligned", 0x50, GOOD + rmrr(4096, 8192)),
    ("error", "rmrr-reversed", 0x50, GOOD + rmrr(8192, 4095)),
    (
        "warning",
        "rmrr-without-devices",
        0x40,
        GOOD + rmrr(4096, 8191, scopes=""),
    ),
    (
        "warning",
        "atsr-all-ports-scopes",
        0x40,
        GOOD + structure("ATSR", 'flags = ["ALL_PORTS"]\n' + PORT),
    ),
    ("warning", "atsr-without-ports", 0x40, GOOD + structure("ATSR")),
    (
        "note",
        "satc-ignored",
        0x40,
        GOOD + structure("SATC", ENDPOINT) + structure("SIDP", ENDPOINT),
    ),
    ("warning", "scope-type", 0x48, GOOD + structure("ATSR", ENDPOINT)),
    ("warning", "scope-type", 0x48, GOOD + structure("SATC", PORT)),
    ("warning", "scope-type", 0x48, GOOD + structure("SIDP", PORT)),
    ("warning", "scope-type", 0x40, unit(extra=CATCH + "\n" + ENDPOINT)),
    (
        "warning",
        "scope-hops",
        0x48,
        GOOD + structure("SATC", ENDPOINT.replace("02.0", "02.0/00.0")),
    ),
    ("error", "scope-empty", 0x40, unit(extra=ENDPOINT.replace("02.0", ""))),
    ("error", "scope-path", 0x40, unit(extra=ENDPOINT.replace("02.0", "20.0"))),
    (
        "warning",
        "reserved-not-zero",
        0x42,
        unit(extra=ENDPOINT.replace("type", 'flags = ["ATC_REQUIRED"], type')),
    ),
    ("error", "scope-in-two-units", 0x58, unit(extra=ENDPOINT) + unit(0xFED91000, ENDPOINT)),
    (
        "warning",
        "ioapic-duplicate",
        0x48,
        unit(extra='scopes = [{ type = 3, path = "1f.0" }, { type = 3, path = "1f.1" }]'),
    ),
    ("warning", "rhsa-without-unit", 0x48, GOOD + structure("RHSA", "base_address = 0x1000")),
    ("warning", "andd-unused", 0x47, GOOD + ANDD),
    ("error", "andd-duplicate", 0x59, unit(extra=NAMESPACE) + 2 * ANDD),
    ("error", "andd-missing", 0x40, unit(extra=NAMESPACE)),
    ("warning", "trailing-bytes", 0x40, "trailing = 'aa'\n" + GOOD),
    ("warning", "identifier-not-ascii", 0x0A, "oem_id = '\xff'\n" + GOOD),
    ("warning", "identifier-not-ascii", 0x10, 'oem_table_id = "\\u0001"\n' + GOOD),
    ("warning", "duplicate-structure", 0x54, GOOD + 2 * structure("RHSA")),
    ("note", "structure-unaligned", 0x47, GOOD + "[[structures]]\ntype=9\nrest='00 00 00'\n" * 2),
    ("note", "unknown-structure-type", 0x40, GOOD + "[[structures]]\ntype = 9\n"),
    ("note", "unknown-scope-type", 0x40, unit(extra="scopes = [{ type = 9, path = '02.0' }]")),
    ("warning", "reserved-not-zero", 0x26, f"reserved = '{'00' * 9}01'\n" + GOOD),
    ("warning", "reserved-not-zero", 0x25, "flags = 0x80\n" + GOOD),
    ("warning", "name-unterminated", 0x51, unit(extra=NAMESPACE) + ANDD + "rest = ''"),
    ("warning", "stray-bytes", 0x54, GOOD + structure("RHSA", "rest = '01'")),
    ("note", "padding", 0x52, unit(extra=NAMESPACE) + ANDD + "rest = '00 00'"),
    ("note", "padding", 0x40, unit(extra=CATCH + "\nrest = '00 00 00 00'")),
]

IVRS_CASES = [
    ("note", "revision", 0x08, "revision = 3\n" + block()),
    ("error", "no-iommu", 0x30, ""),
    ("warning", "efr-not-valid", 0x24, block(kind=0x11)),
    ("error", "ivhd-base-zero", 0x38, block(extra="base_address = 0")),
    ("error", "ivhd-base-unaligned", 0x38, block(extra="base_address = 0x1000")),
    ("note", "ivhd-legacy-flags", 0x31, "iv_info=1\n" + block(extra="flags=0x80", kind=0x11)),
    ("warning", "reserved-not-zero", 0x44, block(extra="features = 0xc0000000")),
    ("note", "efr-reserved", 0x48, "iv_info = 1\n" + block(extra="efr = 0x40000000", kind=0x11)),
    ("note", "efr-reserved", 0x50, "iv_info = 1\n" + block(extra="efr2 = 0x400", kind=0x40)),
    ("error", "ivhd-blocks-differ", 0x50, block() + block(extra="base_address = 0x4000")),
    (
        "error",
        "ivhd-base-duplicate",
        0x50,
        block() + block().replace("00:00.2", "40:00.2"),
    ),
    ("error", "range-without-end", 0x48, block(START)),
    ("error", "range-without-end", 0x48, block(START + ALIAS + END)),
    ("error", "range-without-start", 0x48, block(END)),
    ("error", "range-reversed", 0x4C, block(START + END.replace("1f.7", "00.3"))),
    ("warning", "range-interrupted", 0x4C, block(START + '{ type = "SELECT" },' + END)),
    ("warning", "reserved-not-zero", 0x4F, block(START + END.replace('7"', '7", setting = 1'))),
    ("warning", "range-overlap", 0x50, block(START + END + ALIAS + END)),
    ("warning", "covers-itself", 0x48, block('{ type = "SELECT", device_id = "00:00.2" }')),
    ("warning", "covers-itself", 0x48, block(START.replace("01.0", "00.0") + END)),
    (
        "note",
        "iommus-interleaved",
        0x30,
        block(START + END)
        + block(
            START.replace("00:0", "40:0")
            + END.replace("00:1", "40:1")
            + ALIAS.replace("00:02.0", "00:00.3")
            + END.replace("1f.7", "00.3"),
            "base_address = 0x4000",
        ).replace('"00:00.2"', '"40:00.2"'),
    ),
    (
        "warning",
        "device-in-two-iommus",
        0x68,
        block(START + END)
        + block(START + END, "base_address = 0x4000").replace('"00:00.2"', '"40:00.2"'),
    ),
    ("error", "special-handle-duplicate", 0x50, block('{ type = "SPECIAL" },' * 2)),
    ("warning", "special-variety", 0x4F, block('{ type = "SPECIAL", variety = 3 }')),
    ("warning", "hid-outside-40h", 0x48, block(HID + "}")),
    (
        "warning",
        "uid-format",
        0x6C,
        "iv_info = 1\n" + block(HID + ", uid_format = 3 }", kind=0x40),
    ),
    (
        "warning",
        "uid-length",
        0x6D,
        "iv_info = 1\n" + block(HID + ", uid_format = 1, uid = [1, 0] }", kind=0x40),
    ),
    (
        "warning",
        "uid-length",
        0x6D,
        "iv_info = 1\n" + block(HID + ", uid_format = 2 }", kind=0x40),
    ),
    ("error", "ivmd-empty", 0x60, memory("memory_length = 0")),
    ("warning", "ivmd-length-unaligned", 0x60, memory("memory_length = 1")),
    ("warning", "ivmd-start-unaligned", 0x58, memory("start_address = 1")),
    (
        "error",
        "ivmd-wraps",
        0x48,
        memory(f"start_address = {2**64 - 4096}\nmemory_length = 8192"),
    ),
    ("error", "ivmd-range-reversed", 0x4E, memory('device_id = "00:02.0"', 0x22)),
    ("warning", "reserved-not-zero", 0x4E, memory('last_device_id = "00:02.0"', 0x21)),
    ("note", "ivmd-type-23h", 0x48, memory("", 0x23)),
    ("warning", "ivmd-two-kinds", 0x49, memory('flags = ["UNITY", "EXCLUSION_RANGE"]')),
    ("warning", "ivmd-no-kind", 0x49, memory('flags = ["READ"]')),
    ("note", "unknown-block-type", 0x48, block() + "[[structures]]\ntype = 0x51\n"),
    ("note", "unknown-entry-type", 0x48, block('{ type = 0x05, rest = "00 00 00" }')),
    ("warning", "reserved-not-zero", 0x4B, block('{ type = "SELECT", setting = 8 }')),
    ("warning", "reserved-not-zero", 0x24, "iv_info = 4\n" + block()),
]
CASES = [("DMAR", *case) for case in DMAR_CASES] + [("IVRS", *case) for case in IVRS_CASES]


def found(table):
    return [(finding.severity, finding.code, finding.offset) for finding in acpi.check(table)]


@pytest.mark.parametrize(("signature", "severity", "code", "offset", "toml"), CASES)
def test_check_finds(signature, severity, code, offset, toml):
    table = acpi.from_toml(f'signature = "{signature}"\n{toml}')
    assert (severity, code, offset) in found(table)


@pytest.mark.parametrize("data", [dmar(DRHD), ivrs(IVHD)], ids=["dmar", "ivrs"])
def test_check_good_table_has_no_finding(data):
    assert acpi.check(acpi.parse(data)) == []


ONE_ID = '{ type = "START_RANGE", device_id = "00:1f.7" },' + END
OTHER = block(ONE_ID, "base_address = 0x4000").replace('"00:00.2"', '"40:00.2"')


@pytest.mark.parametrize(
    ("signature", "code", "toml"),
    [
        ("DMAR", "address-too-wide", "host_address_width = 32\n" + unit(0xFFFFF000, CATCH)),
        ("DMAR", "rmrr-reversed", GOOD + rmrr(4096, 4096)),
        ("DMAR", "andd-unused", unit(extra=NAMESPACE) + ANDD),
        ("DMAR", "andd-missing", unit(extra=NAMESPACE) + ANDD),
        ("DMAR", "drhd-overlap", unit(extra=ENDPOINT) + unit(0xFED91000, CATCH)),
        ("DMAR", "include-pci-all-twice", GOOD + unit(0xFED91000, CATCH + "\nsegment = 1")),
        ("IVRS", "range-reversed", block(ONE_ID)),
        ("IVRS", "covers-itself", block('{ type = "ALL" }')),
        ("IVRS", "ivmd-wraps", memory(f"start_address = {2**64 - 4096}")),
        ("IVRS", "ivmd-range-reversed", memory("device_id = 8\nlast_device_id = 8", 0x22)),
        ("IVRS", "ivhd-base-duplicate", block() + block(kind=0x11)),
        ("IVRS", "device-in-two-iommus", block(START + END) + OTHER.replace("00:1f", "40:1f")),
    ],
)
def test_check_does_not_find(signature, code, toml):
    table = acpi.from_toml(f'signature = "{signature}"\n{toml}')
    assert code not in [finding.code for finding in acpi.check(table)]


def test_check_ranges_that_share_one_id_overlap():
    table = acpi.from_toml('signature = "IVRS"\n' + block(START + END + ONE_ID))
    assert found(table) == [("warning", "range-overlap", 0x50)]


def test_check_iommus_that_share_one_id():
    table = acpi.from_toml('signature = "IVRS"\n' + block(START + END) + OTHER)
    assert ("warning", "device-in-two-iommus", 0x68) in found(table)


def test_check_range_is_compared_with_the_furthest_one():
    short = START.replace("01.0", "02.0") + END.replace("1f.7", "03.0")
    table = acpi.from_toml('signature = "IVRS"\n' + block(START + END + short + ONE_ID))
    assert found(table) == [("warning", "range-overlap", 0x50), ("warning", "range-overlap", 0x58)]


def test_check_wrong_checksum():
    data = bytearray(dmar(DRHD))
    data[9] ^= 0xFF
    assert found(acpi.parse(data, strict=False)) == [("error", "checksum", 9)]


def test_check_every_finding_has_reason_and_section():
    for signature, *_, toml in CASES:
        for finding in acpi.check(acpi.from_toml(f'signature = "{signature}"\n{toml}')):
            assert finding.reason
            assert finding.section.split()[-1][0].isdigit()


def test_check_every_code_is_tested():
    tested = {code for _, _, code, _, _ in CASES} | {"checksum"}
    written = set()
    for path in Path(acpi.__file__).parent.glob("lint*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                code = node.args[1]
                written |= {code.value} if isinstance(code, ast.Constant) else set()
    assert written <= tested


# The quirks that the README of the shared tables lists.

QUIRKS = [
    ("DRHD base 0 with INTR_REMAP clear", "ThinkPad-E15-Gen-2", "drhd-base-zero", 0x68),
    ("every structure listed twice", "MacPro7-1", "duplicate-structure", 0xB0),
    ("two INCLUDE_PCI_ALL units", "MacPro7-1", "include-pci-all-twice", 0x158),
    ("unaligned structures after two hops", "DL360-G7", "structure-unaligned", 0xC6),
    ("unaligned structures after two hops", "DL380e-Gen8", "structure-unaligned", 0x146),
    ("RMRR 0-0", "Compaq-6730b", "rmrr-zero", 0x80),
    ("other RMRRs at 0", "dmar-x-iasl-template", "rmrr-base-zero", 0x50),
    ("RMRR limit not page-aligned", "Compaq-6730b", "rmrr-limit-unaligned", 0x88),
    ("64 KiB register windows", "960QHA", "drhd-large-window", 0x35),
    ("64 KiB register windows", "MSI_Prestige-13", "drhd-large-window", 0x35),
    ("SIDP and SATC", "960QHA", "satc-ignored", 0x98),
    ("SIDP and SATC", "MSI_Prestige-13", "satc-ignored", 0x98),
    ("non-zero reserved bytes in scopes", "surface-laptop-go-3", "reserved-not-zero", 0x5B),
    ("non-ASCII OEM ids", "Compaq-6730b", "identifier-not-ascii", 0x10),
    ("non-ASCII OEM ids", "DL360-G7", "identifier-not-ascii", 0x1C),
    ("IVMD 22h of length 1", "gpd-win4", "ivmd-length-unaligned", 0xE0),
    ("overlapping range and alias range", "X555QG", "range-overlap", 0x50),
    ("four interleaved IOMMUs", "ROG-ZENITH-II", "iommus-interleaved", 0x58),
    ("two IOAPIC entries with one handle", "A320M-S2H", "special-handle-duplicate", 0x70),
    ("range covers the IOMMU itself", "Tyan-S8225", "covers-itself", 0x48),
    ("integer UID of length 2", "Zenbook-S-16", "uid-length", 0x1ED),
    ("block type 51h", "T14s-Gen-3", "unknown-block-type", 0x1C4),
]


@needs_real
@pytest.mark.parametrize(
    ("quirk", "part", "code", "offset"), QUIRKS, ids=[f"{q[0]}, {q[1]}" for q in QUIRKS]
)
def test_check_real_quirk(quirk, part, code, offset):
    assert (code, offset) in [(f.code, f.offset) for f in acpi.check(real(part))]


@needs_real
def test_check_thinkpad_reason_tells_interrupt_remapping():
    (finding,) = [f for f in acpi.check(real("ThinkPad-E15-Gen-2")) if f.severity == "error"]
    assert finding.reason == "DRHD base is 0 and INTR_REMAP is clear"


@needs_real
def test_check_ordinary_laptop_has_no_error():
    assert [f for f in acpi.check(real("NLx0MU")) if f.severity == "error"] == []
