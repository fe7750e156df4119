"""Parse and build: what survives, and what is refused where."""

import pytest
from acpi_samples import ALL, DRHD, IVHD, IVHD11, dmar, each_real, ivrs, needs_real, sealed

from iommu_emu import acpi
from iommu_emu.acpi.dmar import (
    Andd,
    Atsr,
    AtsrFlags,
    DeviceScope,
    Dmar,
    DmarFlags,
    Drhd,
    DrhdFlags,
    Rmrr,
    Satc,
    SatcFlags,
)
from iommu_emu.acpi.ivrs import DeviceEntry, Entry, HidEntry, Ivhd11, Ivmd, PadEntry


def scoped(*scopes):
    """Return a raw DRHD with these raw scopes."""
    body = DRHD[4:] + b"".join(scopes)
    return b"\0\0" + (4 + len(body)).to_bytes(2, "little") + body


def holding(*entries, head=IVHD):
    """Return a raw IVHD with these raw entries."""
    body = head[4:] + b"".join(entries)
    return head[:2] + (4 + len(body)).to_bytes(2, "little") + body


IOAPIC = bytes.fromhex("03 08 00 00 02 f0 1f 00")
HID = b"\xf0\xa5\x00\x40AMDI0020" + bytes(8) + b"\x02\x09" + b"\\_SB.FUR0"


# What is understood


@needs_real
@each_real
def test_build_parse_real_identical(path):
    data = path.read_bytes()
    assert acpi.build(acpi.parse(data)) == data


@pytest.mark.parametrize("data", ALL[: len(acpi.platforms.names())], ids=acpi.platforms.names())
def test_build_parse_builtin_identical(data):
    assert acpi.build(acpi.parse(data)) == data


def test_build_python_table_computes_length_and_checksum():
    data = acpi.build(Dmar(structures=[Drhd(base_address=0xFED90000)]))
    assert (len(data), data[4:8], sum(data) & 0xFF) == (64, b"\x40\0\0\0", 0)


def test_parse_drhd_fields():
    unit = acpi.parse(dmar(scoped(IOAPIC))).units()[0]
    assert (unit.type, unit.name, unit.offset, unit.length) == (0, "DRHD", 48, 24)
    assert (unit.segment, unit.base_address, unit.register_window) == (0, 0xFED91000, 4096)
    assert unit.include_pci_all


def test_parse_scope_fields():
    scope = acpi.parse(dmar(scoped(IOAPIC))).units()[0].scopes[0]
    assert (scope.type, scope.name, scope.offset, scope.length) == (3, "IOAPIC", 64, 8)
    assert (scope.enumeration_id, scope.start_bus, scope.path) == (2, 0xF0, [(0x1F, 0)])
    assert scope.source_id == 0xF0F8


def test_scope_several_hops_has_no_source_id():
    assert DeviceScope(path=[(0x1C, 4), (0, 0)]).source_id is None


@pytest.mark.parametrize(("size", "window"), [(0, 4096), (4, 65536), (0xF, 1 << 27), (0xF0, 4096)])
def test_drhd_register_window(size, window):
    assert Drhd(size=size).register_window == window


def test_rmrr_region_size_includes_both_ends():
    assert Rmrr(base_address=0x1000, limit_address=0x1FFF).region_size == 0x1000


def test_flag_properties():
    assert Atsr(flags=AtsrFlags.ALL_PORTS).all_ports
    assert Satc(flags=SatcFlags.ATC_REQUIRED).atc_required
    assert not Atsr().all_ports
    assert not Satc().atc_required


def test_host_address_width_is_field_plus_one():
    data = bytearray(dmar(DRHD))
    data[36] = 38
    assert acpi.parse(sealed(data)).host_address_width == 39


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_parse_accepts_buffers(kind):
    assert acpi.parse(kind(dmar(DRHD))).length == 64


def test_record_offset_no_part_of_equality():
    assert Drhd(offset=48) == Drhd(offset=64)


# What survives without being understood


def test_unknown_dmar_structure_survives():
    data = dmar(DRHD, bytes.fromhex("0700 0700 aabbcc"), DRHD)
    unknown = acpi.parse(data).structures[1]
    assert (unknown.name, unknown.type, unknown.rest) == ("UNKNOWN", 7, b"\xaa\xbb\xcc")
    assert acpi.build(acpi.parse(data)) == data


def test_unknown_ivrs_block_survives():
    block = bytes.fromhex("51082000 0002 0000") + bytes(24)
    data = ivrs(IVHD, block)
    unknown = acpi.parse(data).structures[1]
    assert (unknown.name, unknown.type, unknown.flags) == ("UNKNOWN", 0x51, 8)
    assert acpi.build(acpi.parse(data)) == data


def test_unknown_scope_type_survives():
    data = dmar(scoped(bytes.fromhex("09 08 01 02 03 04 05 06")))
    assert acpi.parse(data).units()[0].scopes[0].name == "UNKNOWN"
    assert acpi.build(acpi.parse(data)) == data


def test_scope_type_0_survives():
    data = dmar(scoped(bytes.fromhex("00 08 00 00 00 00 02 00")))
    assert acpi.parse(data).units()[0].scopes[0].path == [(2, 0)]
    assert acpi.build(acpi.parse(data)) == data


def test_odd_scope_byte_survives():
    data = dmar(scoped(bytes.fromhex("01 09 00 00 00 00 1c 04 aa")))
    scope = acpi.parse(data).units()[0].scopes[0]
    assert (scope.path, scope.rest) == ([(0x1C, 4)], b"\xaa")
    assert acpi.build(acpi.parse(data)) == data


@pytest.mark.parametrize(("number", "size"), [(0x05, 4), (0x41, 8), (0x80, 16), (0xC1, 32)])
def test_unknown_entry_length_by_upper_bits(number, size):
    data = ivrs(holding(bytes([number]) + b"\xaa" * (size - 1), HID))
    unknown, hid = acpi.parse(data).structures[0].entries
    assert (type(unknown), unknown.length, hid.uid_value) == (Entry, size, "\\_SB.FUR0")
    assert acpi.build(acpi.parse(data)) == data


def test_reserved_flag_bits_survive():
    data = bytearray(dmar(DRHD))
    data[37] = 0xF1
    table = acpi.parse(sealed(data))
    assert DmarFlags.INTR_REMAP in table.flags
    assert acpi.build(table)[37] == 0xF1


def test_reserved_bytes_survive():
    data = bytearray(dmar(DRHD))
    data[38:48] = b"0123456789"
    assert acpi.build(acpi.parse(sealed(data)))[38:48] == b"0123456789"


def test_oem_id_non_ascii_survives():
    data = bytearray(dmar(DRHD))
    data[10:16] = b"\xff\x01\x7f\0a\0"
    table = acpi.parse(sealed(data))
    assert table.oem_id == "\xff\x01\x7f\0a"
    assert acpi.build(table)[10:16] == b"\xff\x01\x7f\0a\0"


def test_trailing_bytes_survive():
    data = dmar(DRHD) + b"\xaa\xbb"
    table = acpi.parse(data)
    assert (table.length, table.trailing) == (64, b"\xaa\xbb")
    assert acpi.build(table) == data


def test_structure_zero_padding_survives():
    data = dmar(scoped(IOAPIC, bytes(8)))
    unit = acpi.parse(data).units()[0]
    assert (len(unit.scopes), unit.rest) == (1, bytes(8))
    assert acpi.build(acpi.parse(data)) == data


def test_block_zero_padding_survives():
    data = ivrs(holding(HID, b"\0"))
    block = acpi.parse(data).structures[0]
    assert (len(block.entries), block.rest) == (1, b"\0")
    assert acpi.build(acpi.parse(data)) == data


def test_structure_longer_than_known_survives():
    data = dmar(bytes.fromhex("0300 1800 00000000 0010d9fe00000000 01000000 deadbeef"))
    assert acpi.parse(data).structures[0].rest == bytes.fromhex("deadbeef")
    assert acpi.build(acpi.parse(data)) == data


def test_ivmd_longer_than_known_survives():
    data = ivrs(bytes.fromhex("2007 2800") + bytes(28) + b"12345678")
    assert isinstance(acpi.parse(data).structures[0], Ivmd)
    assert acpi.build(acpi.parse(data)) == data


@pytest.mark.parametrize("end", [b"", b"\0", b"\0\0\0", b"\0junk"])
def test_andd_name_ends_anyhow(end):
    body = bytes.fromhex("000000 01") + b"\\_SB.I2C0" + end
    data = dmar(b"\x04\0" + (4 + len(body)).to_bytes(2, "little") + body)
    andd = acpi.parse(data).structures[0]
    assert (andd.object_name, andd.rest) == ("\\_SB.I2C0", end)
    assert acpi.build(acpi.parse(data)) == data


@pytest.mark.parametrize(("uid_format", "uid"), [(0, b""), (1, b"\1\0"), (1, bytes(8)), (2, b"x")])
def test_hid_uid_of_any_length(uid_format, uid):
    data = ivrs(holding(HID[:20] + bytes([uid_format, len(uid)]) + uid, head=IVHD11))
    entry = acpi.parse(data).structures[0].entries[0]
    assert (entry.uid_format, entry.uid, entry.length) == (uid_format, uid, 22 + len(uid))
    assert acpi.build(acpi.parse(data)) == data


def test_pad_entries_of_both_sizes():
    entries = acpi.parse(ivrs(holding(b"\x40" + bytes(7), bytes(4)))).structures[0].entries
    assert [type(entry) for entry in entries] == [PadEntry, DeviceEntry]
    assert [entry.name for entry in entries] == ["PAD8", "PAD4"]


@pytest.mark.parametrize("revision", [0, 1, 2, 255])
def test_any_revision_parses(revision):
    data = bytearray(ivrs(IVHD))
    data[8] = revision
    assert acpi.parse(sealed(data)).revision == revision


def test_unaligned_structures_parse():
    two_hops = bytes.fromhex("01 0a 00 00 00 00 1c04 0000")
    data = dmar(scoped(two_hops), DRHD)
    assert [unit.offset for unit in acpi.parse(data).units()] == [48, 74]
    assert acpi.build(acpi.parse(data)) == data


# What is refused

SHORT = dmar(DRHD)
BAD_CHECKSUM = SHORT[:9] + bytes([SHORT[9] ^ 1]) + SHORT[10:]


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"", 0, "signature b'' is none of DMAR, IVRS"),
        (b"FACP" + SHORT[4:], 0, "signature b'FACP' is none of DMAR, IVRS"),
        (b"DMAR", 4, "4 bytes, the header alone has 48"),
        (SHORT[:47], 47, "47 bytes, the header alone has 48"),
        (SHORT[:-1], 4, "table of 64 bytes overruns the 63 that are there"),
        (SHORT[:4] + bytes(4) + SHORT[8:], 4, "table of length 0, its header alone has 48"),
        (BAD_CHECKSUM, 9, f"checksum is {SHORT[9] ^ 1:#04x}, should be {SHORT[9]:#04x}"),
        (dmar(bytes(4)), 48, "Structure of length 0, its header alone has 4"),
        (dmar(b"\0\0\3\0"), 48, "Structure of length 3, its header alone has 4"),
        (dmar(DRHD, b"\0\0"), 64, "2 stray bytes, too few for the header of a Structure"),
        (dmar(DRHD[:-1]), 48, "Structure of 16 bytes overruns the 15 that are left"),
        (dmar(b"\0\0\x0c\0" + DRHD[4:12]), 48, "Drhd needs 16 bytes and has 12"),
        (dmar(scoped(b"\3\0" + IOAPIC[2:])), 64, "DeviceScope of length 0, its header alone has 6"),
        (dmar(scoped(b"\3\4\0\0")), 64, "4 stray bytes, too few for the header of a DeviceScope"),
        (dmar(scoped(b"\3\x09" + IOAPIC[2:])), 64, "DeviceScope of 9 bytes overruns the 8 that"),
        (dmar(scoped(b"\3\5" + IOAPIC[2:])), 64, "DeviceScope of length 5, its header alone has 6"),
        (ivrs(bytes(4)), 48, "Block of length 0, its header alone has 4"),
        (ivrs(b"\x20\0\x10\0" + bytes(12)), 48, "Ivmd needs 32 bytes and has 16"),
        (ivrs(holding(b"\2\0\0")), 72, "Entry of 4 bytes overruns the 3 that are left"),
        (ivrs(holding(b"\x48\0\0\0")), 72, "Entry of 8 bytes overruns the 4 that are left"),
        (ivrs(holding(HID[:-1])), 72, "Entry of 31 bytes overruns the 30 that are left"),
        (ivrs(holding(HID[:10])), 72, "Entry of 22 bytes overruns the 10 that are left"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parse_bad_input_refused(data, offset, reason):
    with pytest.raises(acpi.AcpiError) as caught:
        acpi.parse(data)
    assert caught.value.offset == offset
    assert caught.value.reason.startswith(reason)


def test_parse_lenient_reports_checksum():
    table = acpi.parse(BAD_CHECKSUM, strict=False)
    assert (table.checksum, table.checksum_ok) == (BAD_CHECKSUM[9], False)


def test_build_repairs_checksum():
    assert acpi.build(acpi.parse(BAD_CHECKSUM, strict=False)) == SHORT


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (Dmar(oem_id="SEVENTY"), "Dmar: "),
        (Dmar(oem_id="\u20ac"), "Dmar: "),
        (Dmar(host_address_width=0), "Dmar: "),
        (Dmar(structures=[Drhd(segment=1 << 16)]), "Drhd: "),
        (Dmar(structures=[Drhd(scopes=[DeviceScope(path=[(256, 0)])])]), "DeviceScope: path"),
        (Dmar(structures=[Drhd(scopes=[DeviceScope(path=[(0, 0)] * 125)])]), "DeviceScope: "),
        (Dmar(structures=[Andd(object_name="\u20ac")]), "Andd: object_name"),
        (acpi.Ivrs(structures=[Ivhd11(entries=[HidEntry(uid=bytes(256))])]), "HidEntry: "),
    ],
)
def test_build_value_out_of_range_refused(table, reason):
    with pytest.raises(acpi.AcpiError) as caught:
        acpi.build(table)
    assert caught.value.reason.startswith(reason)


def test_build_of_something_else_refused():
    with pytest.raises(acpi.AcpiError, match="bytes is no table"):
        acpi.build(b"DMAR")


def test_find_returns_one_kind():
    table = Dmar(structures=[Drhd(), Rmrr(), Drhd(flags=DrhdFlags.INCLUDE_PCI_ALL)])
    assert table.find(Rmrr) == [Rmrr()]
    assert [unit.include_pci_all for unit in table.units()] == [False, True]
