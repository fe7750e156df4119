"""TOML and JSON forms of a table."""

import json

import pytest
from acpi_samples import ALL, DRHD, IVHD, dmar, each_real, ivrs, needs_real

from iommu_emu import acpi
from iommu_emu.acpi import text
from iommu_emu.acpi.dmar import Andd, DeviceScope, Dmar, DmarFlags, Drhd, DrhdFlags, Rhsa
from iommu_emu.acpi.ivrs import HidEntry, Ivhd11, Ivrs, Requesters

MINIMAL = 'signature = "DMAR"\n'
UNIT = MINIMAL + '[[structures]]\ntype = "DRHD"\n'


@needs_real
@each_real
def test_toml_real_builds_again(path):
    data = path.read_bytes()
    assert acpi.build(acpi.from_toml(acpi.to_toml(acpi.parse(data)))) == data


@needs_real
@each_real
def test_toml_real_equal_table(path):
    table = acpi.parse(path.read_bytes())
    assert acpi.from_toml(acpi.to_toml(table)) == table


def test_toml_of_small_table():
    scope = DeviceScope(type=3, enumeration_id=2, start_bus=0xF0, path=[(0x1F, 0)])
    flags = DrhdFlags.INCLUDE_PCI_ALL
    unit = Drhd(flags=flags, base_address=0xFED91000, scopes=[scope])
    table = Dmar(flags=DmarFlags.INTR_REMAP, structures=[unit])
    assert acpi.to_toml(table) == (
        'signature = "DMAR"\n'
        'flags = ["INTR_REMAP"]\n'
        "\n"
        "[[structures]]\n"
        'type = "DRHD"\n'
        'flags = ["INCLUDE_PCI_ALL"]\n'
        "base_address = 0xfed91000\n"
        "scopes = [\n"
        '    { type = "IOAPIC", enumeration_id = 2, start_bus = 0xf0, path = "1f.0" },\n'
        "]\n"
    )


def test_toml_defaults_left_out():
    assert acpi.to_toml(Dmar()) == MINIMAL


def test_toml_decodes_registers_in_comments():
    assert "iv_info = 0x203043  # EFRSup=1, DmaRemapOptIn=1, " in acpi.to_toml(
        Ivrs(iv_info=0x203043)
    )


def test_toml_empty_description_gets_defaults():
    table = acpi.from_toml(MINIMAL)
    assert (table.oem_id, table.revision, table.host_address_width) == ("IOMEMU", 1, 39)


def test_toml_offsets_filled_in():
    assert [s.offset for s in acpi.from_toml(UNIT + UNIT[len(MINIMAL) :]).structures] == [48, 64]


def test_toml_unnamed_flag_bits():
    table = acpi.from_toml(MINIMAL + 'flags = ["INTR_REMAP", 0x80]')
    assert table.flags == 0x81
    assert 'flags = ["INTR_REMAP", 0x80]' in acpi.to_toml(table)


def test_toml_flags_as_number():
    assert acpi.from_toml(MINIMAL + "flags = 5").flags == 5


def test_toml_several_hops():
    table = acpi.from_toml(UNIT + 'scopes = [{ type = 2, path = "1c.4/00.0" }]')
    assert table.units()[0].scopes[0].path == [(0x1C, 4), (0, 0)]


def test_toml_device_id_as_number_or_text():
    blocks = "[[structures]]\ntype = 0x10\ndevice_id = {}\n"
    toml = 'signature = "IVRS"\n' + blocks.format('"40:00.2"') + blocks.format("0x4002")
    assert [block.device_id for block in acpi.from_toml(toml).structures] == [0x4002, 0x4002]


@pytest.mark.parametrize(
    ("written", "uid"),
    [('"\\\\_SB.FUR0"', b"\\_SB.FUR0"), ("[1, 0]", b"\1\0"), ("1", b"\1" + bytes(7))],
)
def test_toml_uid_forms(written, uid):
    entry = f'{{ type = "ACPI_HID", hid = "AMDI0020", uid = {written} }}'
    toml = f'signature = "IVRS"\n[[structures]]\ntype = 0x40\nentries = [{entry}]'
    assert acpi.from_toml(toml).structures[0].entries[0].uid == uid


def test_toml_unprintable_uid_is_numbers():
    entry = HidEntry(hid="AMDI0020", uid_format=1, uid=b"\1\0")
    toml = acpi.to_toml(Ivrs(structures=[Ivhd11(entries=[entry])]))
    assert '{ type = "ACPI_HID", hid = "AMDI0020", uid_format = 1, uid = [0x01, 0x00] },' in toml


def test_toml_rest_comes_last():
    toml = acpi.to_toml(Dmar(structures=[Andd(object_name="X", rest=b"\0\0")]))
    assert toml.endswith('object_name = "X"\nrest = "00 00"\n')


def test_dict_rest_only_where_there_is_any():
    andd, rhsa = acpi.to_dict(Dmar(structures=[Andd(), Rhsa()]))["structures"]
    assert andd["rest"] == "00"
    assert "rest" not in rhsa


def test_toml_strange_strings_survive():
    table = Dmar(oem_id='\x7f"\\\x00\xff\n')
    assert acpi.from_toml(acpi.to_toml(table)) == table


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("", "signature None is none of DMAR, IVRS"),
        ("signature = []", "signature [] is none of DMAR, IVRS"),
        ("signature =", "no TOML: "),
        (MINIMAL + "colour = 1", "table: unknown key 'colour'"),
        (MINIMAL + "checksum = 1", "table: unknown key 'checksum'"),
        (MINIMAL + "revision = 'x'", "table.revision: 'x' is no integer"),
        (MINIMAL + "revision = true", "table.revision: True is no integer"),
        (MINIMAL + "revision = -1", "table.revision: -1 is negative"),
        (MINIMAL + "revision = 256", "Dmar: "),
        (MINIMAL + "oem_id = 1", "table.oem_id: 1 is no string"),
        (MINIMAL + "flags = ['X']", "table.flags: 'X' is none of INTR_REMAP, X2APIC_OPT_OUT"),
        (MINIMAL + "flags = [1.5]", "table.flags: 1.5 is no integer"),
        (MINIMAL + "reserved = 'zz'", "table.reserved: non-hexadecimal number"),
        (MINIMAL + "reserved = '00'", "Dmar: "),
        (MINIMAL + "structures = 1", "table.structures: 1 is no array"),
        (MINIMAL + "structures = [1]", "table.structures[0]: the type is missing"),
        (MINIMAL + "[[structures]]", "table.structures[0]: the type is missing"),
        (MINIMAL + "structures = [{type = 'X'}]", "table.structures[0].type: 'X' is none of DRHD"),
        (UNIT + "entries = []", "table.structures[0]: unknown key 'entries'"),
        (UNIT + "scopes = [{}]", "table.structures[0].scopes[0]: the type is missing"),
        (UNIT + "scopes = [{type = 1, path = '1c'}]", "table.structures[0].scopes[0].path: "),
        (UNIT + "scopes = [{type = 1, path = '1c.100'}]", "DeviceScope: path"),
    ],
)
def test_toml_bad_description_refused(toml, reason):
    with pytest.raises(acpi.AcpiError) as caught:
        acpi.from_toml(toml)
    assert str(caught.value).startswith(reason)


def test_dict_of_dmar():
    told = acpi.to_dict(acpi.parse(dmar(DRHD)))
    assert told["signature"] == "DMAR"
    assert (told["length"], told["revision"], told["checksum_ok"]) == (64, 1, True)
    assert (told["host_address_width"], told["host_address_width_field"]) == (39, 38)
    assert told["structures"] == [
        {
            "type": 0,
            "name": "DRHD",
            "offset": 48,
            "length": 16,
            "flags": 1,
            "flags_bits": ["INCLUDE_PCI_ALL"],
            "size": 0,
            "segment": 0,
            "base_address": 0xFED91000,
            "register_window": 4096,
            "scopes": [],
        }
    ]


def test_dict_of_ivrs():
    (block,) = acpi.to_dict(acpi.parse(ivrs(IVHD)))["structures"]
    assert (block["type"], block["name"], block["offset"], block["length"]) == (16, "IVHD", 48, 24)
    assert (block["device_id"], block["base_address"], block["entries"]) == (2, 0xFD100000, [])
    assert block["features_bits"]["PASmax"] == 15


def test_dict_of_uid():
    entry = HidEntry(hid="AMDI0020", uid_format=2, uid=b"x")
    table = acpi.parse(acpi.build(Ivrs(structures=[Ivhd11(entries=[entry])])))
    (told,) = acpi.to_dict(table)["structures"][0]["entries"]
    assert (told["uid"], told["uid_value"], told["uid_length"]) == ("78", "x", 1)


def test_dict_tells_wrong_checksum():
    data = bytearray(dmar(DRHD))
    data[9] ^= 1
    told = acpi.to_dict(acpi.parse(data, strict=False))
    assert (told["checksum"], told["checksum_ok"]) == (data[9], False)


@pytest.mark.parametrize("data", ALL)
def test_dict_is_json(data):
    told = acpi.to_dict(acpi.parse(data))
    assert json.loads(json.dumps(told))["length"] == len(data)


@pytest.mark.parametrize("requester", [0, 0x00E4, 0x4002, 0xFFFF])
def test_bdf_round_trip(requester):
    assert text.parse_bdf(text.format_bdf(requester)) == requester


@pytest.mark.parametrize("wrong", ["", "00:1c", "00:1c.8", "00:20.0", "100:00.0", "00:1c.3 "])
def test_bdf_nonsense_refused(wrong):
    with pytest.raises(ValueError, match=r"is no bus:device\.function"):
        text.parse_bdf(wrong)


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (4096, "4 KiB"),
        (65537, "65537 bytes"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_size_in_largest_exact_unit(size, written):
    assert text.format_size(size) == written


def test_requesters_is_a_tuple_of_numbers_first():
    assert Requesters._fields[:4] == ("first", "last", "alias", "setting")
