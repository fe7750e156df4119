import pytest

from iommu_emu import Bridge, Device, Machine, PortType, Status
from iommu_emu.core import StateError
from iommu_emu.pci.address import format_requester, parse_address, requester_id
from iommu_emu.pci.capabilities import Acs
from iommu_emu.pci.function import Bar


class Conventional(Device):
    port_type = None


@pytest.fixture
def root_port(machine):
    return machine.attach(Bridge("root port"), "00:1c.0")


def test_address_parses_segment_bus_device_function():
    assert parse_address("0002:81:1f.7") == (2, 0x81FF)


@pytest.mark.parametrize("text", ["00:20.0", "00:00.8", "00", "100:00.0", "00:00.0 "])
def test_address_refuses_what_is_none(text):
    with pytest.raises(ValueError):
        parse_address(text)


def test_address_formats_as_it_parses():
    assert (format_requester(0x81FF), format_requester(0x81FF, 2)) == ("81:1f.7", "0002:81:1f.7")


def test_requester_id_names_the_part_that_is_too_large():
    with pytest.raises(ValueError, match=r"^device must be in 0\.\.31, not 32$"):
        requester_id(0, 32, 0)


def test_topology_endpoint_on_the_root_bus_has_its_own_requester_id(machine):
    device = machine.attach(Device(), "00:05.1")
    assert machine.fabric.requester(device) == 0x0029


def test_topology_function_below_a_root_port_keeps_its_own_requester_id(machine, root_port):
    device = machine.attach(Device(), under=root_port)
    assert machine.fabric.requester(device) == 0x0100


def test_topology_function_below_a_switch_keeps_its_own_requester_id(machine, root_port):
    upstream = machine.attach(Bridge("up", PortType.UPSTREAM), under=root_port)
    downstream = machine.attach(Bridge("down", PortType.DOWNSTREAM), under=upstream)
    device = machine.attach(Device(), under=downstream)
    assert machine.fabric.requester(device) == 0x0300


def test_topology_alias_behind_pcie_to_pci_bridge_is_secondary_bus_00_0(machine, root_port):
    bridge = machine.attach(Bridge("bridge", PortType.PCIE_TO_PCI), under=root_port)
    device = machine.attach(Conventional(), "02:07.0")
    assert bridge.secondary_number == 2
    assert machine.fabric.requester(device) == 0x0200


def test_topology_alias_behind_pci_to_pcie_bridge_is_the_bridge(machine):
    bridge = machine.attach(Bridge("bridge", PortType.PCI_TO_PCIE), "00:1e.0")
    device = machine.attach(Device(), under=bridge)
    assert machine.fabric.requester(device) == 0x00F0


def test_topology_alias_behind_conventional_bridge_is_the_bridge(machine):
    bridge = machine.attach(Bridge("bridge", None), "00:1e.0")
    device = machine.attach(Conventional(), under=bridge)
    assert machine.fabric.requester(device) == 0x00F0


def test_topology_alias_behind_two_bridges_is_the_upper_ones(machine, root_port):
    upper = machine.attach(Bridge("upper", PortType.PCIE_TO_PCI), under=root_port)
    lower = machine.attach(Bridge("lower", None), "02:04.0")
    device = machine.attach(Conventional(), "03:01.0")
    assert machine.fabric.aliases(device) == [0x0308, 0x0220, 0x0200]
    assert (upper.secondary_number, lower.secondary_number) == (2, 3)


def test_topology_dma_carries_the_alias(machine, unit, root_port):
    machine.attach(Bridge("bridge", PortType.PCIE_TO_PCI), under=root_port)
    device = machine.attach(Conventional(), "02:07.0")
    assert device.dma.requester == 0x0200


def test_topology_ports_above_cover_the_buses_below(machine, root_port):
    upstream = machine.attach(Bridge("up", PortType.UPSTREAM), under=root_port)
    machine.attach(Bridge("down", PortType.DOWNSTREAM), under=upstream)
    assert (root_port.secondary_number, root_port.subordinate_number) == (1, 3)


def test_topology_new_bus_number_moves_the_requester_id(machine, root_port):
    device = machine.attach(Device(), under=root_port)
    machine.config_write("00:1c.0", 0x18, 4, 0x0009_0900)
    assert device.dma.requester == 0x0900
    assert machine.config_read("09:00.0", 0, 2) == 0x1234


def test_topology_config_read_of_an_absent_function_gives_all_ones(machine):
    assert machine.config_read("00:1f.0", 0, 4) == 0xFFFF_FFFF


def test_topology_config_read_behind_an_unnumbered_bridge_gives_all_ones(machine, root_port):
    machine.attach(Device(), under=root_port)
    machine.config_write("00:1c.0", 0x18, 4, 0)
    assert machine.config_read("01:00.0", 0, 4) == 0xFFFF_FFFF


def test_topology_attach_to_a_taken_address_is_refused(machine):
    machine.attach(Device("first"), "00:05.0")
    with pytest.raises(ValueError, match=r"^address 00:05.0 is taken by first$"):
        machine.attach(Device(), "00:05.0")


def test_topology_attach_to_a_missing_bus_shows_the_tree(machine, root_port):
    with pytest.raises(ValueError, match="there is no bus 0000:07"):
        machine.attach(Device(), "07:00.0")


def test_topology_attach_twice_is_refused(machine):
    device = machine.attach(Device())
    with pytest.raises(StateError, match="attached already"):
        machine.attach(device)


def test_topology_attach_below_a_bridge_that_is_nowhere_is_refused():
    device = Device()
    with pytest.raises(StateError, match=r"'loose'.* is not attached to this machine"):
        Machine().attach(device, under=Bridge("loose"))
    assert not device.attached


def test_topology_attach_below_a_bridge_of_another_machine_is_refused():
    bridge = Machine().attach(Bridge("elsewhere"))
    with pytest.raises(StateError, match=r"'elsewhere'.* is not attached to this machine"):
        Machine().attach(Device(), under=bridge)


def test_topology_attach_of_a_bridge_below_itself_is_refused():
    bridge = Bridge("ouroboros")
    with pytest.raises(StateError, match=r"'ouroboros'.* is not attached to this machine"):
        Machine().attach(bridge, under=bridge)
    assert not bridge.attached


def test_topology_a_bridge_is_no_endpoint():
    with pytest.raises(ValueError, match="kind of a bridge must be a port or bridge"):
        Bridge("bridge", PortType.ENDPOINT)


def test_topology_acs_controls_start_off_and_are_data(machine):
    port = machine.attach(Bridge("port", acs=Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT))
    assert port.acs is Acs.NONE
    port.config.write(0x106, 2, 0x7F)
    assert port.acs == Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT


def test_bus_master_cleared_keeps_a_function_from_sending(machine):
    device = machine.attach(Device(), "00:05.0")
    machine.config_write("00:05.0", 0x04, 2, 0x0002)
    assert device.dma.write(0x1000, b"x").status is Status.BUSY
    assert machine.memory.read(0x1000, 1) == b"\0"


def test_bus_master_cleared_in_a_bridge_answers_unsupported_request(machine, root_port):
    device = machine.attach(Device(), under=root_port)
    machine.config_write("00:1c.0", 0x04, 2, 0x0002)
    assert device.dma.write(0x1000, b"x").status is Status.UNSUPPORTED_REQUEST


def test_bus_master_set_again_lets_it_send(machine):
    device = machine.attach(Device(), "00:05.0")
    machine.config_write("00:05.0", 0x04, 2, 0x0002)
    machine.config_write("00:05.0", 0x04, 2, 0x0006)
    assert device.dma.write(0x1000, b"x").ok


def test_secondary_bus_reset_resets_what_is_below(machine, root_port):
    resets = []

    class Resettable(Device):
        def on_reset(self):
            resets.append(self.config.read(0x04, 2))

    machine.attach(Resettable(), under=root_port)
    machine.config_write("00:1c.0", 0x3E, 2, 1 << 6)
    assert resets == [0]


def test_bridge_has_room_for_two_bars():
    assert set(Bridge("bridge", bars=(Bar(0, 4096), Bar(1, 4096))).bars) == {0, 1}


@pytest.mark.parametrize("bar", [Bar(2, 4096), Bar(1, 4096, wide=True)])
def test_bridge_bar_where_its_bus_numbers_are_is_an_error(bar):
    with pytest.raises(ValueError, match="BARs of a bridge must be 0 and 1, not"):
        Bridge("bridge", bars=(bar,))


@pytest.mark.parametrize(
    ("numbers", "message"), [((256, 0), "secondary must be"), ((1, -1), "subordinate must be")]
)
def test_bridge_bus_number_out_of_range_is_an_error(machine, numbers, message):
    bridge = machine.attach(Bridge("bridge"))
    with pytest.raises(ValueError, match=message):
        bridge.set_bus_numbers(*numbers)
    assert (bridge.secondary_number, bridge.subordinate_number) == (1, 1)
