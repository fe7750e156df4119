import pytest

from iommu_emu import Bridge, Device, Machine, PortType
from iommu_emu.linux.iommu_group import (
    REQUIRED_ACS,
    IommuGroups,
    acs_gap,
    device_name,
    enable_acs,
)
from iommu_emu.pci.capabilities import Acs, acs_control, add_acs
from iommu_emu.pci.function import HEADER_TYPE
from iommu_emu.pci.topology import FirmwareAlias
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

ROOT, UP, DOWN = PortType.ROOT_PORT, PortType.UPSTREAM, PortType.DOWNSTREAM
ALL_ACS = Acs(0x7F)
CONTROL = 0x106  # of an ACS capability that is the only extended one


class Conventional(Device):
    port_type = None


class Integrated(Device):
    port_type = PortType.INTEGRATED_ENDPOINT


@pytest.fixture
def machine():
    machine = Machine(1 << 20)
    VtdUnit(machine, VtdConfig(base=0xFED9_0000, geometry="tiny-2"))
    return machine


@pytest.fixture
def root_port(machine):
    return machine.attach(Bridge("root port", acs=REQUIRED_ACS), "00:1c.0")


def switch(machine, root_port, acs):
    """A switch with two downstream ports, a device below each."""
    upstream = machine.attach(Bridge("up", UP), under=root_port)
    ports = [
        machine.attach(Bridge("down", DOWN, acs=acs), n << 3, under=upstream) for n in range(2)
    ]
    return [machine.attach(Device(), under=port) for port in ports]


def isolated_function(machine, address, acs=REQUIRED_ACS):
    function = Device()
    add_acs(function.config, acs)
    return machine.attach(function, address)


def groups(machine, *, acs=True):
    """Members of each group as addresses, by number."""
    if acs:
        enable_acs(machine)
    found = IommuGroups(machine)
    return {g.number: " ".join(device_name(f)[5:] for f in g.members) for g in found}


# What the operating system switches on.


def test_acs_required_services_are_switched_on(machine):
    port = machine.attach(Bridge("port", acs=ALL_ACS), "00:1c.0")
    enable_acs(machine)
    assert port.acs == REQUIRED_ACS


def test_acs_services_that_a_port_lacks_stay_off(machine):
    port = machine.attach(Bridge("port", acs=Acs.SOURCE_VALIDATION), "00:1c.0")
    enable_acs(machine)
    assert port.acs == Acs.SOURCE_VALIDATION


def test_acs_translation_blocking_is_on_at_an_external_facing_port(machine):
    port = machine.attach(Bridge("port", acs=ALL_ACS, external_facing=True), "00:1c.0")
    enable_acs(machine)
    assert port.acs == REQUIRED_ACS | Acs.TRANSLATION_BLOCKING


def test_acs_translation_blocking_is_on_below_an_external_facing_port(machine):
    machine.attach(Bridge("port", external_facing=True), "00:1c.0")
    function = isolated_function(machine, "01:00.0", ALL_ACS)
    enable_acs(machine)
    assert acs_control(function.config) == REQUIRED_ACS | Acs.TRANSLATION_BLOCKING


def test_acs_translation_blocking_is_on_without_ats(machine):
    port = machine.attach(Bridge("port", acs=ALL_ACS), "00:1c.0")
    enable_acs(machine, ats=False)
    assert port.acs == REQUIRED_ACS | Acs.TRANSLATION_BLOCKING


# Which function keeps its requests from peers.


def test_acs_gap_of_a_port_names_the_services_that_are_off(machine, root_port):
    root_port.config.write(CONTROL, 2, Acs.SOURCE_VALIDATION | Acs.COMPLETION_REDIRECT)
    assert acs_gap(root_port) == "with ACS RR, UF off"


def test_acs_gap_service_that_the_capability_lacks_counts_as_on(machine):
    port = machine.attach(Bridge("port", acs=Acs.SOURCE_VALIDATION), "00:1c.0")
    enable_acs(machine)
    assert acs_gap(port) == ""


def test_acs_gap_egress_control_that_the_capability_lacks_counts_as_off(machine, root_port):
    enable_acs(machine)
    assert acs_gap(root_port, REQUIRED_ACS | Acs.EGRESS_CONTROL) == "with ACS EC off"


def test_acs_gap_port_without_the_capability_has_one(machine):
    assert acs_gap(machine.attach(Bridge("port"), "00:1c.0")) == "without ACS"


@pytest.mark.parametrize("kind", [PortType.PCIE_TO_PCI, PortType.PCI_TO_PCIE])
def test_acs_gap_bridge_to_conventional_pci_always_has_one(machine, kind):
    bridge = machine.attach(Bridge("bridge", kind, acs=REQUIRED_ACS), "00:1c.0")
    enable_acs(machine)
    assert acs_gap(bridge) == "of a kind that never has ACS"


def test_acs_gap_conventional_function_has_one(machine):
    assert acs_gap(machine.attach(Conventional(), "00:05.0")).startswith("conventional PCI")


@pytest.mark.parametrize("model", [Device, Integrated])
def test_acs_gap_single_function_device_has_none(machine, model):
    assert acs_gap(machine.attach(model(), "00:05.0")) == ""


def test_acs_gap_single_function_that_says_multifunction_has_one(machine):
    device = machine.attach(Device(), "00:05.0")
    device.config.set(HEADER_TYPE, 1, 0x80)
    assert acs_gap(device) == "without ACS"


# Groups from the topology.


def test_groups_number_in_order_of_enumeration(machine):
    machine.attach(Bridge("second", acs=REQUIRED_ACS), "00:1d.0")
    machine.attach(Bridge("first", acs=REQUIRED_ACS), "00:1c.0")
    machine.attach(Device(), "01:00.0")
    machine.attach(Device(), "02:00.0")
    machine.attach(Device(), "00:1f.0")
    # The root bus first, then behind 00:1c.0 (bus 2), then behind 00:1d.0 (bus 1).
    expected = ["00:1c.0", "00:1d.0", "00:1f.0", "02:00.0", "01:00.0"]
    assert groups(machine) == dict(enumerate(expected))


def test_groups_device_without_a_unit_has_none():
    machine = Machine(1 << 20)
    device = machine.attach(Device())
    assert IommuGroups(machine).of(device) is None


def test_groups_number_unit_by_unit():
    machine = Machine.from_platform("laptop-thunderbolt")
    for place in ("00:02.0", "00:00.0", "00:14.0"):
        machine.attach(Integrated(), place)
    found = groups(machine)
    assert (found[0], found[1]) == ("00:02.0", "00:00.0")  # graphics have the first unit


def test_group_below_an_isolating_root_port_is_the_devices_own(machine, root_port):
    machine.attach(Device(), under=root_port)
    assert groups(machine) == {0: "00:1c.0", 1: "01:00.0"}


def test_group_below_a_root_port_without_acs_is_the_ports(machine):
    port = machine.attach(Bridge("port"), "00:1c.0")
    machine.attach(Device(), under=port)
    assert groups(machine) == {0: "00:1c.0 01:00.0"}


def test_group_below_a_root_port_with_acs_left_off_is_the_ports(machine, root_port):
    machine.attach(Device(), under=root_port)
    assert groups(machine, acs=False) == {0: "00:1c.0 01:00.0"}


def test_group_below_a_switch_with_acs_is_the_devices_own(machine, root_port):
    switch(machine, root_port, REQUIRED_ACS)
    expected = ["00:1c.0", "01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"]
    assert groups(machine) == dict(enumerate(expected))


def test_group_below_a_switch_without_acs_is_its_downstream_ports(machine, root_port):
    switch(machine, root_port, Acs.NONE)
    # Requests can go from one downstream port to the other, but Linux judges a downstream port
    # by the path above it, and single-function upstream ports count as isolating (os 4.8).
    expected = ["00:1c.0", "01:00.0", "02:00.0 03:00.0", "02:01.0 04:00.0"]
    assert groups(machine) == dict(enumerate(expected))


def test_group_of_two_functions_without_acs_is_one(machine):
    machine.attach(Device(), "00:05.0")
    machine.attach(Device(), "00:05.1")
    machine.attach(Device(), "00:06.0")
    assert groups(machine) == {0: "00:05.0 00:05.1", 1: "00:06.0"}


def test_group_of_isolated_functions_is_each_ones_own(machine):
    isolated_function(machine, "00:05.0")
    isolated_function(machine, "00:05.1")
    assert groups(machine) == {0: "00:05.0", 1: "00:05.1"}


def test_group_of_an_isolated_function_is_its_own_among_others(machine):
    machine.attach(Device(), "00:05.0")
    isolated_function(machine, "00:05.1")
    machine.attach(Device(), "00:05.2")
    assert groups(machine) == {0: "00:05.0 00:05.2", 1: "00:05.1"}


def test_group_of_root_ports_in_one_device_without_acs_is_one_with_what_is_below(machine):
    for function in range(2):
        port = machine.attach(Bridge("port"), f"00:1c.{function}")
        machine.attach(Device(), under=port)
    assert groups(machine) == {0: "00:1c.0 00:1c.1 01:00.0 02:00.0"}


def test_group_behind_a_pcie_to_pci_bridge_is_the_bridges(machine, root_port):
    machine.attach(Bridge("bridge", PortType.PCIE_TO_PCI), under=root_port)
    machine.attach(Conventional(), "02:01.0")
    machine.attach(Conventional(), "02:02.0")
    assert groups(machine) == {0: "00:1c.0", 1: "01:00.0 02:01.0 02:02.0"}


def test_group_behind_a_pcie_to_pci_bridge_below_a_port_without_acs_is_the_ports(machine):
    port = machine.attach(Bridge("port"), "00:1c.0")
    machine.attach(Bridge("bridge", PortType.PCIE_TO_PCI), under=port)
    machine.attach(Conventional(), "02:01.0")
    assert groups(machine) == {0: "00:1c.0 01:00.0 02:01.0"}


def test_group_behind_a_conventional_bridge_is_the_bridges(machine):
    bridge = machine.attach(Bridge("bridge", None), "00:1e.0")
    machine.attach(Conventional(), under=bridge)
    assert groups(machine) == {0: "00:1e.0 01:00.0"}


def test_group_of_functions_that_firmware_aliases_on_a_bus_is_one(machine):
    machine.fabric.firmware_aliases.append(FirmwareAlias(0, 0x30, 0x30, 0x28))
    machine.attach(Device(), "00:05.0")
    machine.attach(Device(), "00:06.0")
    machine.topology_changed()
    assert groups(machine) == {0: "00:05.0 00:06.0"}


def test_group_of_an_alias_takes_the_functions_that_its_device_does_not_isolate(machine):
    machine.fabric.firmware_aliases.append(FirmwareAlias(0, 0x30, 0x30, 0x29))
    for place in ("00:05.0", "00:05.1", "00:06.0"):
        machine.attach(Device(), place)
    machine.topology_changed()
    assert groups(machine) == {0: "00:05.0 00:05.1 00:06.0"}


def test_group_on_an_amdvi_unit_follows_the_same_rules():
    machine = Machine.from_platform("desktop-amdvi")
    machine.attach(Conventional(), "05:00.0")
    found = groups(machine)
    assert "00:14.4 05:00.0" in found.values()


def test_group_describes_why_each_member_is_there(machine):
    port = machine.attach(Bridge("port"), "00:1c.0")
    machine.attach(Device("disk"), under=port)
    assert IommuGroups(machine).describe() == (
        "group 0\n"
        "  0000:00:1c.0 port: first of its group\n"
        "  0000:01:00.0 disk: it is below 0000:00:1c.0 port, without ACS"
    )


# Coming and going.


def test_groups_hot_plugged_device_takes_the_lowest_free_number(machine, root_port):
    device = machine.attach(Device(), under=root_port)
    machine.attach(Device(), "00:1f.0")
    enable_acs(machine)
    found = IommuGroups(machine)
    found.remove(root_port)
    assert found.of(device).number == 2
    assert found.add(machine.attach(Device(), "00:03.0")).number == 0


def test_groups_last_member_takes_the_group_with_it(machine):
    device = machine.attach(Device())
    found = IommuGroups(machine)
    found.remove(device)
    assert (len(found), found.of(device)) == (0, None)


def test_groups_stay_when_acs_changes_later(machine, root_port):
    device = machine.attach(Device(), under=root_port)
    found = IommuGroups(machine)
    enable_acs(machine)
    assert found.of(device) is found.of(root_port)


def test_groups_add_twice_is_refused(machine):
    device = machine.attach(Device("disk"))
    found = IommuGroups(machine)
    with pytest.raises(ValueError, match=r"^disk is in group 0 already$"):
        found.add(device)


def test_groups_add_of_what_is_not_attached_is_refused(machine):
    with pytest.raises(ValueError, match=r"^disk is not attached to this machine$"):
        IommuGroups(machine).add(Device("disk"))


def test_groups_remove_of_what_has_none_is_refused(machine):
    with pytest.raises(ValueError, match=r"^disk has no group$"):
        IommuGroups(machine).remove(Device("disk"))
