"""A real QEMU as the client."""

import pytest
from vfio_user_qemu import started
from vfio_user_sample import Sample

from iommu_emu.devices import Edu
from iommu_emu.devices.edu import IDENTIFICATION
from iommu_emu.pci.topology import Bridge
from iommu_emu.vfio_user.commands import FunctionCommands
from iommu_emu.vtd.driver import VtdDriver

MIB = 1 << 20
SAMPLE, EDU, PAGE = 0x28, 0x30, 0x39  # devfn: 05.0, 06.0, 07.1
BAR = 0xFE00_0000
BASE = 0xFED9_0000
LOW = (0, 0xC_0000)  # then come the chipset's ROM and shadow memory
VECTOR = 0x4000  # where messages are sent: memory, so that they can be seen


@pytest.fixture
def served(server, sample, tmp_path):
    return server.serve(sample, tmp_path / "sample.sock", "00:05.0")


@pytest.fixture
def machine_with(qemu, server, tmp_path):
    """Starts QEMUs."""

    def start(*arguments, **options):
        return started(qemu, server, tmp_path, *arguments, **options)

    return start


@pytest.fixture
def guest(machine_with, served):
    """A QEMU with the sample device at 00:05.0, enabled, its BARs at BAR and BAR + 64 KiB."""
    with machine_with("-device", served.qemu_device(addr="0x5")) as guest:
        guest.wait_for(lambda: served.plugged, "the device is plugged")
        guest.enable(SAMPLE, {0: BAR, 2: BAR + 0x1_0000, 3: 0})
        yield guest


def test_qemu_maps_its_memory(guest, machine):
    assert machine.memory.ranges == [LOW, (MIB, 63 * MIB)]


def test_qemu_splits_its_memory_at_the_pci_hole(machine_with, served, machine):
    with machine_with("-device", served.qemu_device(addr="0x5"), memory="4G") as guest:
        guest.wait_for(lambda: served.plugged, "the device is plugged")
        guest.config_read32(SAMPLE, 0)
        assert machine.memory.ranges == [LOW, (MIB, (2 << 30) - MIB), (4 << 30, 2 << 30)]


def test_qemu_shows_the_functions_ids(guest):
    assert guest.config_read32(SAMPLE, 0) == 0x5678_1234


def test_qemu_forwards_accesses_to_bars(guest, sample):
    sample.memory[0][8:12] = bytes.fromhex("78563412")
    assert guest.read32(BAR + 8) == 0x1234_5678
    guest.write32(BAR + 0x10, 0xCAFE_F00D)
    assert guest.read32(BAR + 0x10) == 0xCAFE_F00D  # QEMU posts its writes to BARs
    assert sample.memory[0][0x10:0x14] == bytes.fromhex("0df0feca")


def test_qemu_forwards_the_command_register_and_bars(guest, sample, machine):
    assert sample.config.get(4, 2) & 6 == 6
    assert sample.decoded_bars() == {0: BAR, 2: BAR + 0x1_0000}


def test_qemu_and_device_share_memory_both_ways(guest, sample, machine):
    guest.write32(0x10_0000, 0x1234_5678)
    assert sample.dma.read(0x10_0000, 4).data == bytes.fromhex("78563412")
    sample.dma.write(0x10_0004, bytes.fromhex("efbeadde"))
    assert guest.read32(0x10_0004) == 0xDEAD_BEEF


def test_qemu_delivers_msi(guest, sample):
    at = sample.config.find(0x05)
    guest.config_write(SAMPLE, at + 4, 4, VECTOR)
    guest.config_write(SAMPLE, at + 12, 2, 0x41)
    guest.config_write(SAMPLE, at + 2, 2, 1)
    assert sample.interrupt(0)
    guest.wait_for(lambda: guest.read32(VECTOR) == 0x41, "the message")


def test_qemu_delivers_msix(guest, sample):
    table, vector = BAR + 0x1_0000, 5
    for word, value in enumerate((VECTOR, 0, 0x55, 0)):
        guest.write32(table + 16 * vector + 4 * word, value)
    guest.config_write(SAMPLE, sample.config.find(0x11) + 2, 2, 0x8000)
    assert sample.interrupt(vector)
    guest.wait_for(lambda: guest.read32(VECTOR) == 0x55, "the message")


def test_qemu_delivers_intx(machine_with, server, tmp_path):
    edu = Edu()
    endpoint = server.serve(edu, tmp_path / "edu.sock", "00:06.0")
    with machine_with("-device", endpoint.qemu_device(addr="0x6")) as guest:
        guest.wait_for(lambda: endpoint.plugged, "the device is plugged")
        guest.enable(EDU, {0: BAR})
        assert guest.read32(BAR) == IDENTIFICATION
        guest.write32(BAR + 0x60, 1)
        status = 1 << 19  # interrupt status, in the upper half of the command register's dword
        guest.wait_for(lambda: guest.config_read32(EDU, 4) & status, "the interrupt")
        guest.write32(BAR + 0x64, 1)
        assert not guest.config_read32(EDU, 4) & status


def test_qemu_reset_resets_the_function(guest, sample):
    before = sample.resets
    guest.command("outb", 0xCF9, 6)
    guest.wait_for(lambda: sample.resets > before, "the reset")
    assert sample.config.get(4, 2) & 6 == 0


def test_qemu_that_is_killed_takes_everything_along(guest, served, machine, sample):
    sample.dma.set_latency(1000, 1000)
    sample.dma.write(0x10_0000, b"in flight")
    guest.kill()
    guest.wait_for(lambda: served.connection is None, "the end of the connection")
    assert not sample.attached
    assert machine.memory.ranges == []
    machine.advance(2000)
    assert machine.ports == []


def test_qemu_that_is_killed_is_followed_by_another_one(machine_with, served, machine):
    for value in (1, 2):
        with machine_with("-device", served.qemu_device(addr="0x5")) as guest:
            guest.wait_for(lambda: served.plugged, "the device is plugged")
            guest.enable(SAMPLE, {0: BAR})
            assert guest.read32(BAR) == value - 1  # the model's memory is not part of a reset
            guest.write32(BAR, value)
            assert guest.read32(BAR) == value
            guest.kill()


def test_qemu_is_told_of_a_server_that_ends(guest, server, served):
    served.connection.close("enough")
    server.run_once(0)
    assert guest.process.poll() is None
    assert guest.read32(0) == 0


# A unit in QEMU's machine.


@pytest.fixture
def page(server, unit, tmp_path):
    return server.serve_unit(unit, tmp_path / "unit.sock")


@pytest.fixture
def guest_with_unit(machine_with, served, page):
    """A QEMU with the sample device, and a unit's registers where no function is found."""
    devices = ["-device", served.qemu_device(addr="0x5")]
    devices += ["-device", page.qemu_device(addr="0x7.0x1")]
    with machine_with(*devices) as guest:
        guest.wait_for(lambda: served.plugged and page.plugged, "both are plugged")
        guest.enable(SAMPLE, {0: BAR})
        guest.enable(PAGE, {0: BASE})
        yield guest


def test_qemu_reaches_a_units_registers(guest_with_unit, unit):
    assert guest_with_unit.read32(BASE) == 0x10
    guest_with_unit.write32(BASE + 0x3C, 0x41)
    assert guest_with_unit.read32(BASE + 0x3C) == 0x41  # QEMU posts its writes to BARs
    assert unit.read("FEDATA") == 0x41


def test_qemu_maps_the_same_memory_once_for_all_functions(guest_with_unit, machine):
    guest_with_unit.config_read32(SAMPLE, 0)
    assert machine.memory.ranges == [LOW, (MIB, 63 * MIB)]


def test_qemu_guest_memory_holds_the_units_tables(guest_with_unit, machine, unit, sample):
    driver = VtdDriver(machine, unit, range(MIB, 2 * MIB))
    driver.start()
    domain = driver.create_domain()
    driver.attach(domain, SAMPLE)
    domain.map(0x7000_0000, 0x4000, 4096)
    sample.dma.write(0x7000_0010, bytes.fromhex("efbeadde"))
    assert guest_with_unit.read32(0x4010) == 0xDEAD_BEEF


def test_qemu_takes_a_units_interrupt(guest_with_unit, machine, unit, sample, page, events):
    VtdDriver(machine, unit, range(MIB, 2 * MIB)).start(fault_vector=0x41)
    assert sample.dma.write(0x7000_0000, b"nowhere").fault
    guest_with_unit.wait_for(lambda: events[-1].kind == "interrupt", "the interrupt")
    guest_with_unit.wait_for(lambda: not page.connection.owed, "the reply")
    assert events[-1].kind == "interrupt"


def test_qemu_refuses_a_units_interrupt_without_bus_mastering(
    guest_with_unit, machine, unit, sample, page, events
):
    guest_with_unit.config_write(PAGE, 4, 2, 2)
    VtdDriver(machine, unit, range(MIB, 2 * MIB)).start(fault_vector=0x41)
    assert sample.dma.write(0x7000_0000, b"nowhere").fault
    guest_with_unit.wait_for(lambda: events[-1].kind == "interrupt-refused", "the refusal")
    assert events[-1].details["data"] == 0x41


def test_qemu_below_a_root_port(machine_with, server, machine, tmp_path):
    port = machine.attach(Bridge("root port"), "00:03.0")
    sample = Sample()
    endpoint = server.serve(sample, tmp_path / "sample.sock", f"{port.secondary_number:02x}:00.0")
    arguments = ["-device", "pcie-root-port,id=rp0,addr=0x3,chassis=1,slot=1"]
    arguments += ["-device", endpoint.qemu_device(bus="rp0")]
    with machine_with(*arguments) as guest:
        guest.wait_for(lambda: endpoint.plugged, "the device is plugged")
        assert sample.dma.requester == 0x0100


@pytest.mark.parametrize("messages", [1, 2, 4, 8, 16, 32])
def test_qemu_that_is_killed_in_the_middle_leaves_nothing(
    machine_with, served, page, machine, sample, monkeypatch, messages
):
    seen = []
    handle = FunctionCommands.handle

    def counted(self, command, body, fds):
        seen.append(command)
        return handle(self, command, body, fds)

    monkeypatch.setattr(FunctionCommands, "handle", counted)
    devices = ["-device", page.qemu_device(addr="0x7.0x1")]
    devices += ["-device", served.qemu_device(addr="0x5")]
    with machine_with(*devices) as guest:
        guest.wait_for(lambda: len(seen) >= messages, f"{messages} messages")
        guest.kill()
        guest.wait_for(lambda: not (served.connection or page.connection), "the end")
    assert machine.memory.ranges == []
    assert not sample.attached
