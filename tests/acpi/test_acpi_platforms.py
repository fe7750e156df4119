"""The built-in platforms."""

import pytest

from iommu_emu import acpi
from iommu_emu.acpi import platforms
from iommu_emu.acpi.ivrs import Ivhd, Ivmd

each = pytest.mark.parametrize("name", platforms.names())


def test_names():
    assert platforms.names() == [
        "desktop-amdvi",
        "laptop-thunderbolt",
        "q35-amdvi",
        "q35-vtd",
        "server-4-unit",
    ]


@each
def test_platform_has_title_description_and_devices(name):
    platform = platforms.load(name)
    assert platform.title
    assert platform.description
    assert platform.devices


@each
def test_platform_table_has_no_error(name):
    findings = acpi.check(platforms.load(name).table)
    assert [finding for finding in findings if finding.severity == "error"] == []


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("desktop-amdvi", []),
        ("laptop-thunderbolt", []),
        ("q35-amdvi", ["covers-itself"]),  # as QEMU has it
        ("q35-vtd", []),
        ("server-4-unit", []),
    ],
)
def test_platform_findings(name, codes):
    assert [finding.code for finding in acpi.check(platforms.load(name).table)] == codes


@each
def test_platform_topology_bridges_come_first(name):
    reachable = {0, 0x17, 0x80, 0x85}  # root buses
    for device in platforms.load(name).devices:
        assert device.bdf >> 8 in reachable
        if device.secondary is not None:
            assert device.secondary <= device.subordinate
            reachable.add(device.secondary)


@each
def test_platform_device_ids_unique(name):
    bdfs = [device.bdf for device in platforms.load(name).devices]
    assert len(set(bdfs)) == len(bdfs)


def test_laptop_units():
    units = platforms.load("laptop-thunderbolt").table.units()
    assert [(unit.base_address, unit.include_pci_all) for unit in units] == [
        (0xFED90000, False),
        (0xFED91000, True),
    ]


def test_laptop_thunderbolt_port_is_external():
    devices = platforms.load("laptop-thunderbolt").devices
    assert [device.bdf for device in devices if device.external_facing] == [0x0038]


def test_server_has_four_units():
    assert len(platforms.load("server-4-unit").table.units()) == 4


def test_q35_vtd_unit():
    (unit,) = platforms.load("q35-vtd").table.units()
    (scope,) = unit.scopes
    assert (unit.base_address, scope.name, scope.source_id) == (0xFED90000, "IOAPIC", 0xFF00)


def test_q35_amdvi_block():
    (block,) = platforms.load("q35-amdvi").table.blocks()
    assert (block.type, block.device_id, block.base_address) == (0x10, 0x10, 0xFED80000)


def test_desktop_describes_one_iommu_three_times():
    table = platforms.load("desktop-amdvi").table
    assert [block.type for block in table.find(Ivhd)] == [0x10, 0x11, 0x40]
    assert [block.type for block in table.blocks()] == [0x40]


def test_desktop_alias_of_pci_bridge():
    (block,) = platforms.load("desktop-amdvi").table.blocks()
    assert [tuple(r)[:3] for r in block.requesters() if r.alias] == [(0x500, 0x5FF, 0xA4)]


def test_desktop_unity_map():
    (ivmd,) = platforms.load("desktop-amdvi").table.find(Ivmd)
    assert (ivmd.device_id, ivmd.start_address, int(ivmd.flags)) == (0x403, 0x7D900000, 7)


def test_load_unknown_platform_refused():
    with pytest.raises(acpi.AcpiError, match="no built-in platform 'toaster'"):
        platforms.load("toaster")


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("devices = 1", "not iterable"),
        ("devices = [{ kind = 'endpoint' }]", "bdf"),
        ("devices = [{ bdf = 'x', kind = 'endpoint' }]", "'x' is no bus:device.function"),
        ("devices = [{ bdf = '00:00.0', kind = 'toaster' }]", "device kind 'toaster' is none of"),
        ("devices = [{ bdf = '00:00.0', kind = 'root-port' }]", "have a secondary bus"),
        ("devices = [{ bdf = '00:00.0', kind = 'endpoint', size = 1 }]", "size"),
    ],
)
def test_read_bad_platform_refused(section, reason):
    with pytest.raises(acpi.AcpiError, match=f"platform: .*{reason}"):
        platforms.read("test", f'signature = "DMAR"\n[platform]\n{section}')


def test_read_without_platform_section():
    platform = platforms.read("mine", 'signature = "DMAR"')
    assert (platform.title, platform.devices) == ("mine", [])
