import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iommu_emu import Device, Machine, acpi
from iommu_emu.acpi.dmar import DeviceScope, Dmar, Drhd, DrhdFlags, Rmrr
from iommu_emu.acpi.ivrs import AliasEntry, DeviceEntry, Ivhd10, Ivmd, IvmdFlags, Ivrs, SpecialEntry
from iommu_emu.pci.address import parse_address
from iommu_emu.pci.topology import Bridge, PortType

ENDPOINT, SUB_HIERARCHY, IOAPIC, HPET = 1, 2, 3, 4
FIRST, SECOND = 0xFED9_0000, 0xFED9_1000


def scope(kind, *path, bus=0, number=0):
    return DeviceScope(type=kind, start_bus=bus, path=list(path), enumeration_id=number)


def drhd(base, *scopes, all_of_it=False, **fields):
    flags = DrhdFlags.INCLUDE_PCI_ALL if all_of_it else DrhdFlags(0)
    return Drhd(base_address=base, flags=flags, scopes=list(scopes), **fields)


def build(*structures, **options):
    return Machine.from_acpi(Dmar(structures=list(structures)), memory=1 << 20, **options)


def unit_number(machine, requester, segment=0):
    unit = machine.core.routed_unit(segment, requester)
    return None if unit is None else unit.number


def test_dmar_bytes_are_parsed():
    table = Dmar(structures=[drhd(FIRST, all_of_it=True)])
    assert Machine.from_acpi(acpi.build(table)).units[0].base == FIRST


def test_dmar_unit_has_the_tables_window_and_address_width():
    table = Dmar(host_address_width=46, structures=[drhd(FIRST, size=4)])
    config = Machine.from_acpi(table).units[0].config
    assert (config.window, config.host_address_width) == (65536, 46)


def test_dmar_unit_config_overrides_the_defaults():
    machine = build(drhd(FIRST), unit_config={"geometry": "tiny-2"})
    assert machine.units[0].config.geometry.name == "tiny-2"


def test_dmar_preset_gives_the_capabilities():
    machine = build(drhd(FIRST), preset="skylake-client")
    assert machine.units[0].read("CAP") & 0xFF == 0x62


def test_dmar_endpoint_scope_is_one_function():
    machine = build(drhd(FIRST, scope(ENDPOINT, (2, 0))), drhd(SECOND, all_of_it=True))
    assert [unit_number(machine, requester) for requester in (0x0F, 0x10, 0x11)] == [1, 0, 1]


def test_dmar_without_include_pci_all_leaves_the_rest_untranslated():
    machine = build(drhd(FIRST, scope(ENDPOINT, (2, 0))))
    assert unit_number(machine, 0x18) is None


def test_dmar_include_pci_all_is_for_its_segment():
    machine = build(drhd(FIRST, all_of_it=True), drhd(SECOND, all_of_it=True, segment=1))
    assert (unit_number(machine, 0x18, 0), unit_number(machine, 0x18, 1)) == (0, 1)


def test_dmar_sub_hierarchy_scope_covers_the_buses_below_the_bridge():
    machine = build(drhd(FIRST, scope(SUB_HIERARCHY, (1, 0))), drhd(SECOND, all_of_it=True))
    assert [unit_number(machine, r) for r in (0x0008, 0x0100, 0x01FF, 0x0200)] == [0, 0, 0, 1]


def test_dmar_sub_hierarchy_covers_what_is_plugged_in_later():
    machine = build(drhd(FIRST, scope(SUB_HIERARCHY, (1, 0))), drhd(SECOND, all_of_it=True))
    port = machine.fabric.find(0, 0x0008)
    dock = machine.attach(Bridge("dock", PortType.UPSTREAM), under=port)
    device = machine.attach(Device(), under=machine.attach(Bridge("d"), under=dock))
    assert machine.unit_of(device).number == 0


def test_dmar_sub_hierarchy_follows_new_bus_numbers():
    machine = build(drhd(FIRST, scope(SUB_HIERARCHY, (1, 0))), drhd(SECOND, all_of_it=True))
    machine.config_write("00:01.0", 0x18, 4, 0x0021_2000)
    assert [unit_number(machine, r) for r in (0x0100, 0x2000, 0x21FF)] == [1, 0, 0]


def test_dmar_two_hop_path_is_walked_through_the_bridge():
    machine = build(drhd(FIRST, scope(ENDPOINT, (0x1C, 4), (0, 2))), drhd(SECOND, all_of_it=True))
    bridge = machine.fabric.find(0, 0x00E4)
    assert (bridge.secondary_number, unit_number(machine, 0x0102)) == (1, 0)


def test_dmar_endpoint_inside_anothers_sub_hierarchy_keeps_its_own_unit():
    machine = build(
        drhd(FIRST, scope(ENDPOINT, (1, 0), (0, 0))), drhd(SECOND, scope(SUB_HIERARCHY, (1, 0)))
    )
    assert (unit_number(machine, 0x0100), unit_number(machine, 0x0101)) == (0, 1)


def test_dmar_endpoint_behind_a_pci_bridge_is_routed_by_its_alias():
    machine = build(drhd(FIRST, scope(ENDPOINT, (1, 0), (0, 0), (5, 0))))
    machine.remove(machine.fabric.find(0, 0x0100))
    machine.attach(Bridge("pci", PortType.PCIE_TO_PCI), "01:00.0")
    device = machine.attach(Device(), "03:05.0")
    assert (device.dma.requester, machine.unit_of(device).number) == (0x0300, 0)


def test_dmar_start_bus_becomes_a_root_bus():
    machine = build(drhd(FIRST, scope(ENDPOINT, (4, 0), bus=0x80)))
    assert machine.unit_of(machine.attach(Device(), "80:04.0")).number == 0


def test_dmar_ioapic_is_routed_by_its_source_id():
    machine = build(drhd(FIRST, scope(IOAPIC, (0x1E, 7), bus=0xF0, number=2)))
    assert machine.ioapics == {2: (0, 0xF0F7)}
    assert unit_number(machine, 0xF0F7) == 0


def test_dmar_hpet_keeps_every_source_id():
    scopes = [scope(HPET, (0xF, function), bus=0xFA) for function in (0, 1)]
    assert build(drhd(FIRST, *scopes)).hpets == {0: [(0, 0xFA78), (0, 0xFA79)]}


def test_dmar_unit_at_base_0_is_left_out_with_a_note():
    machine = build(drhd(0), drhd(FIRST, all_of_it=True))
    assert [unit.base for unit in machine.units] == [FIRST]
    assert machine.notes == ["DRHD at 0x0 in segment 0: base 0, left out"]


def test_dmar_unit_listed_twice_is_one_unit_with_a_note():
    machine = build(drhd(FIRST, all_of_it=True), drhd(FIRST, all_of_it=True))
    assert len(machine.units) == 1
    assert machine.notes == ["DRHD at 0xfed90000 in segment 0: listed again, the first one counts"]


def test_dmar_second_include_pci_all_does_not_count():
    machine = build(drhd(FIRST, all_of_it=True), drhd(SECOND, all_of_it=True))
    assert unit_number(machine, 0x18) == 0
    assert "INCLUDE_PCI_ALL as well" in machine.notes[0]


def test_dmar_window_that_reaches_into_the_next_unit_is_cut():
    machine = build(drhd(FIRST, size=4), drhd(SECOND))
    assert machine.units[0].window == 4096
    assert machine.notes == ["DRHD at 0xfed90000: window of 0x10000 bytes cut to 0x1000"]


def test_dmar_unit_at_another_segments_base_is_left_out():
    machine = build(drhd(FIRST), drhd(FIRST, segment=1))
    assert machine.notes == [
        "DRHD at 0xfed90000 in segment 1: another segment's unit is there, left out"
    ]


def test_dmar_unit_at_no_pages_base_is_left_out():
    machine = build(drhd(FIRST + 0x10), drhd(SECOND))
    assert [unit.base for unit in machine.units] == [SECOND]
    assert machine.notes == [
        "DRHD at 0xfed90010 in segment 0: not a page's base, left out",
    ]


@pytest.mark.parametrize(("told", "taken"), [(1, 32), (53, 52), (256, 52)])
def test_dmar_address_width_that_no_machine_has_is_noted(told, taken):
    machine = Machine.from_acpi(Dmar(host_address_width=told, structures=[drhd(FIRST)]))
    assert machine.units[0].config.host_address_width == taken
    assert machine.notes == [f"host address width {told} is none of a machine, taken as {taken}"]


def test_dmar_scope_without_a_path_is_noted():
    assert build(drhd(FIRST, scope(ENDPOINT))).notes == [
        "DRHD at 0xfed90000: a scope without a path"
    ]


def test_dmar_with_more_bridges_than_bus_numbers_is_built_with_notes():
    ports = [scope(SUB_HIERARCHY, (n >> 3, n & 7), bus=bus) for bus in (0, 1) for n in range(256)]
    machine = build(drhd(FIRST, *ports, all_of_it=True))
    assert len(machine.notes) == 512 - 254
    assert "has no bus number left of 256" in machine.notes[0]


def test_rmrr_is_a_reserved_region_of_its_devices():
    rmrr = Rmrr(base_address=0x8000, limit_address=0x9FFF, scopes=[scope(ENDPOINT, (0x14, 0))])
    (region,) = build(drhd(FIRST), rmrr).reserved_regions
    assert (region.base, region.limit, region.requesters) == (0x8000, 0x9FFF, ((0xA0, 0xA0),))


@pytest.mark.parametrize(("base", "limit"), [(0, 0), (0x9000, 0x8FFF)])
def test_rmrr_without_memory_is_left_out(base, limit):
    machine = build(drhd(FIRST), Rmrr(base_address=base, limit_address=limit))
    assert machine.reserved_regions == []
    assert machine.notes == [f"RMRR {base:#x}..{limit:#x}: no memory, left out"]


def test_platform_has_its_bridges_and_names_its_places():
    machine = Machine.from_platform("laptop-thunderbolt")
    port = machine.fabric.find(*parse_address(machine.places["Thunderbolt"]))
    assert (port.external_facing, port.secondary_number, port.subordinate_number) == (True, 1, 0x2A)


def test_platform_device_goes_through_the_unit_that_the_table_says():
    machine = Machine.from_platform("server-4-unit")
    nvme = machine.attach(Device(), machine.places["NVMe"])
    assert machine.unit_of(nvme).base == 0xD37F_C000


def test_platform_device_behind_the_pci_bridge_is_aliased():
    machine = Machine.from_platform("server-4-unit")
    vga = machine.attach(Device(), machine.places["BMC VGA"])
    assert vga.dma.requester == 0x0200


def test_platform_that_does_not_exist_is_refused():
    with pytest.raises(acpi.AcpiError, match="no built-in platform 'nope'"):
        Machine.from_platform("nope")


def ivrs(*entries, ivmd=(), **fields):
    block = Ivhd10(device_id=0x0002, base_address=0xFEB8_0000, entries=list(entries), **fields)
    return Machine.from_acpi(Ivrs(structures=[block, *ivmd]), memory=1 << 20)


def entry(kind, requester):
    return DeviceEntry(type=kind, device_id=requester)


def test_ivrs_selected_device_is_routed():
    machine = ivrs(entry(2, 0x0010))
    assert [unit_number(machine, requester) for requester in (0x0F, 0x10, 0x11)] == [None, 0, None]


def test_ivrs_range_is_routed():
    machine = ivrs(entry(3, 0x0008), entry(4, 0x01FF))
    assert [unit_number(machine, r) for r in (0x07, 0x08, 0x1FF, 0x200)] == [None, 0, 0, None]


def test_ivrs_ioapic_is_routed_by_its_source_id():
    machine = ivrs(SpecialEntry(handle=33, source_device_id=0x00A0, variety=1))
    assert machine.ioapics == {33: (0, 0x00A0)}
    assert unit_number(machine, 0x00A0) == 0


def test_ivrs_alias_is_the_requester_id_of_its_device():
    machine = ivrs(AliasEntry(type=0x42, device_id=0x0028, source_device_id=0x0030))
    device = machine.attach(Device(), "00:05.0")
    assert (device.dma.requester, machine.unit_of(device).number) == (0x0030, 0)


def test_ivrs_unit_knows_its_own_function():
    assert ivrs(entry(2, 0x10)).units[0].config.device_id == 0x0002


def test_ivmd_is_a_reserved_region():
    ivmd = Ivmd(
        type=0x22,
        flags=IvmdFlags.UNITY | IvmdFlags.READ,
        device_id=0x10,
        last_device_id=0x17,
        start_address=0x8000,
        memory_length=0x2000,
    )
    (region,) = ivrs(entry(2, 0x10), ivmd=[ivmd]).reserved_regions
    assert (region.base, region.limit, region.requesters) == (0x8000, 0x9FFF, ((0x10, 0x17),))
    assert (region.readable, region.writable, region.exclusion) == (True, False, False)


def test_table_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="table must be a DMAR or IVRS, not int"):
        Machine.from_acpi(5)


@settings(max_examples=100, deadline=None)
@given(
    platform=st.sampled_from(["laptop-thunderbolt", "server-4-unit", "q35-vtd"]),
    edits=st.lists(st.tuples(st.integers(36, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_dmar_builds_or_is_refused_with_a_reason(platform, edits):
    data = bytearray(acpi.build(acpi.platforms.load(platform).table))
    for offset, value in edits:
        data[36 + offset % (len(data) - 36)] = value
    try:
        table = acpi.parse(data, strict=False)
        machine = Machine.from_acpi(table, memory=1 << 20, unit_config={"geometry": "tiny-2"})
        units = len(machine.units)
    except ValueError:  # AcpiError is one, too
        units = 0
    assert units <= 4
