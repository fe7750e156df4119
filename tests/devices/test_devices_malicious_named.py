"""The malicious devices that have a name, each with what it is good at."""

import pytest

from iommu_emu import Machine, Status
from iommu_emu.amdvi.driver import AmdviDriver
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.clock import MICROSECOND, MILLISECOND
from iommu_emu.devices import Attacker, Device, MaliciousDevice, malicious
from iommu_emu.devices.base import Bar
from iommu_emu.devices.malicious.deferred_writer import DeferredWriter
from iommu_emu.devices.malicious.hangs_host import HangsHost
from iommu_emu.devices.malicious.impostor import Impostor
from iommu_emu.devices.malicious.peer_to_peer_writer import PeerToPeerWriter
from iommu_emu.devices.malicious.post_deassign import PostDeassign
from iommu_emu.devices.malicious.ring_overrunner import JUNK, RingOverrunner
from iommu_emu.devices.malicious.rmrr_squatter import MARK, RmrrSquatter
from iommu_emu.devices.malicious.sub_page_reader import SubPageReader
from iommu_emu.devices.malicious.translated_forger import TranslatedForger
from iommu_emu.devices.nic import Control, Nic, Register
from iommu_emu.devices.nic.descriptors import DESCRIPTOR
from iommu_emu.machine import ReservedRegion
from iommu_emu.pci.capabilities import serial_number, set_serial_number
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

ADDRESS = "00:05.0"
TABLES = range(0x10_0000, 0x20_0000)


@pytest.fixture(params=["vtd", "amdvi"])
def driver(request, machine):
    """A unit of either vendor, translating."""
    if request.param == "vtd":
        driver = VtdDriver(machine, VtdUnit(machine, VtdConfig(base=0xFED9_0000)), TABLES)
    else:
        unit = AmdviUnit(machine, AmdviConfig(base=0xFEB8_0000))
        driver = AmdviDriver(machine, unit, TABLES, buses=1)
    driver.start()
    return driver


# Finding them.


def test_malicious_names():
    assert malicious.names() == (
        "deferred-writer",
        "hangs-host",
        "impostor",
        "peer-to-peer-writer",
        "post-deassign",
        "ring-overrunner",
        "rmrr-squatter",
        "sub-page-reader",
        "translated-forger",
        "translation-keeper",
    )


@pytest.mark.parametrize("name", malicious.names())
def test_malicious_each_is_made_without_arguments_and_attached(machine, name):
    assert isinstance(machine.attach(malicious.load(name)()), MaliciousDevice)


def test_malicious_of_a_users_own(machine, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from iommu_emu.devices.malicious import MaliciousDevice\n"
        "class Mine(MaliciousDevice):\n    device_id = 0x4D31\n"
        "DEVICE = Mine\n"
    )
    assert malicious.load(str(path)).device_id == 0x4D31


def test_malicious_name_with_a_slip_is_an_error_with_a_hint():
    with pytest.raises(ValueError, match=r"'imposter'; did you mean impostor\?"):
        malicious.load("imposter")


def test_malicious_file_without_a_device_is_an_error(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("DEVICE = 7\n")
    with pytest.raises(ValueError, match="defines no DEVICE that is a class derived from Device"):
        malicious.load(str(path))


def test_malicious_attacker_is_one_of_them():
    assert issubclass(Attacker, MaliciousDevice)


# impostor


def test_impostor_shows_everything_that_identifies_its_original(machine):
    original = machine.attach(Nic(), "00:06.0")
    set_serial_number(original.config, 0x0123_4567_89AB_CDEF)
    machine.attach(Impostor(original=original), ADDRESS)
    for offset in (0x00, 0x08, 0x2C):
        assert machine.config_read(ADDRESS, offset, 4) == machine.config_read("00:06.0", offset, 4)
    assert serial_number(machine.fabric.find(0, 0x0028).config) == 0x0123_4567_89AB_CDEF


def test_impostor_of_a_device_without_serial_number_has_none():
    assert serial_number(Impostor(original=Nic()).config) is None


# ring-overrunner

RING, BUFFER, SIZE = 0x20_0000, 0x20_1000, 32


@pytest.fixture
def overrunner(machine):
    """One with a receive ring of 4 descriptors, the first of which has a buffer."""
    nic = machine.attach(RingOverrunner(overrun=16), ADDRESS)
    machine.memory.write(RING, DESCRIPTOR.pack(BUFFER, SIZE, 0, 0))
    bar = nic.bar_address(0)
    for register, value in ((Register.BASE_LOW, RING), (Register.SIZE, 4)):
        machine.mmio_write(bar + Register.RECEIVE + register, 4, value)
    machine.mmio_write(bar + Register.CONTROL, 4, Control.RECEIVE)
    machine.mmio_write(bar + Register.RECEIVE + Register.TAIL, 4, 1)
    return nic


def test_ring_overrunner_looks_like_the_honest_one():
    shown, honest = RingOverrunner().config, Nic().config
    assert [shown.read(at, 4) for at in (0, 8, 0x34)] == [honest.read(at, 4) for at in (0, 8, 0x34)]


def test_ring_overrunner_receives_and_goes_on_behind_the_buffer(machine, overrunner):
    overrunner.receive(b"frame")
    expected = b"frame".ljust(SIZE, b"\0") + JUNK * 16 + b"\0"
    assert machine.memory.read(BUFFER, SIZE + 17) == expected
    assert [(at, done.ok) for at, done in overrunner.overruns] == [(BUFFER + SIZE, True)]
    assert overrunner.statistics.rx_frames == 1


def test_ring_overrunner_without_a_buffer_overruns_none(machine, overrunner):
    overrunner.receive(b"first")
    overrunner.receive(b"second")
    assert [completion.ok for completion in overrunner.log] == [True, True]  # one descriptor


def test_ring_overrunner_writes_behind_the_ring(machine, overrunner):
    overrunner.overrun_ring()
    assert machine.memory.read(RING + 4 * 16 - 1, 18) == b"\0" + JUNK * 16 + b"\0"


# sub-page-reader


def test_sub_page_reader_gets_the_rest_of_the_page(driver, machine):
    device = machine.attach(SubPageReader(), ADDRESS)
    domain = driver.create_domain()
    domain.map(0x8000, 0x5000, 4096)
    driver.attach(domain, device.address)
    machine.memory.write(0x5000, b"a" * 0x800 + b"." * 0x200 + b"b" * 0x600)
    before, behind = device.given(0x8800, 0x200)
    assert (before.data, behind.data) == (b"a" * 0x800, b"b" * 0x600)


def test_sub_page_reader_of_whole_pages_gets_nothing(machine):
    device = machine.attach(SubPageReader(), ADDRESS)
    assert [completion.data for completion in device.given(0x4000, 0x2000)] == [b"", b""]


# deferred-writer


def test_deferred_writer_arrives_after_its_mapping_is_gone(driver, machine):
    device = machine.attach(DeferredWriter(), ADDRESS)
    domain = driver.create_domain()
    domain.map(0x8000, 0x5000, 4096)
    driver.attach(domain, device.address)
    sent = device.write(0x8000, b"late")
    domain.unmap(0x8000, 4096)
    machine.advance(MILLISECOND - 1)
    assert sent.pending
    machine.advance(1)
    assert (sent.ok, machine.memory.read(0x5000, 4)) == (False, bytes(4))


def test_deferred_writer_past_the_iommu_lands_where_its_mapping_was(machine):
    device = machine.attach(DeferredWriter(in_fabric=0, to_memory=50), ADDRESS)
    device.write(0x5000, b"late")
    assert device.dma.in_flight == (0, 1)
    machine.advance(50)
    assert machine.memory.read(0x5000, 4) == b"late"


def test_deferred_writer_is_not_recalled_by_removal(machine):
    device = machine.attach(DeferredWriter(), ADDRESS)
    device.write(0x5000, b"late")
    machine.remove(device)
    machine.advance(MILLISECOND)
    assert machine.memory.read(0x5000, 4) == b"late"


# post-deassign


def test_post_deassign_goes_on_until_it_is_stopped_by_the_tables(driver, machine):
    device = machine.attach(PostDeassign(), ADDRESS)
    domain = driver.create_domain()
    domain.map(0x8000, 0x5000, 4096)
    driver.attach(domain, device.address)
    reads = device.keep_reading(0x8000, 4, interval=10, times=4)
    machine.advance(20)
    driver.detach(device.address)
    machine.advance(20)
    assert [completion.ok for completion in reads] == [True, True, False, False]


def test_post_deassign_writes_again_and_again(machine):
    device = machine.attach(PostDeassign(), ADDRESS)
    device.keep_writing(0x5000, b"mine", interval=10, times=2)
    machine.advance(10)
    machine.memory.write(0x5000, b"ours")
    machine.advance(10)
    assert machine.memory.read(0x5000, 4) == b"mine"


# rmrr-squatter


def test_rmrr_squatter_uses_what_firmware_reserved_for_it(machine):
    machine.reserved_regions += [
        ReservedRegion(0x5000, 0x5FFF, 0, ((0x0028, 0x0028),)),
        ReservedRegion(0x6000, 0x6FFF, 0, ((0x0030, 0x00FF),)),
    ]
    device = machine.attach(RmrrSquatter(), ADDRESS)
    device.squat(interval=MICROSECOND, times=1)
    machine.advance(MICROSECOND)
    marks = [machine.memory.read(base, len(MARK)) == MARK for base in (0x5000, 0x6000)]
    assert marks == [True, False]


# translated-forger


def test_translated_forger_is_refused_where_ats_is_not_allowed(driver, machine):
    device = machine.attach(TranslatedForger(), ADDRESS)
    driver.attach(driver.create_domain(), device.address)
    assert not device.read_physical(0x5000, 4).ok
    assert not device.write_physical(0x5000, b"mine").ok


# peer-to-peer-writer


class Peer(Device):
    bar_layout = (Bar(1, 4096),)

    def bar_write(self, bar, offset, size, value):
        self.got = bar, offset, value


def test_peer_to_peer_writer_reaches_a_bar(machine):
    device, peer = machine.attach(PeerToPeerWriter()), machine.attach(Peer())
    device.write_bar(peer, 8, b"\x01\0\0\0", bar=1)
    machine.service()
    assert peer.got == (1, 8, 1)


def test_peer_to_peer_writer_wants_a_bar_that_is_there(machine):
    device = machine.attach(PeerToPeerWriter())
    with pytest.raises(ValueError, match=r"bar of Peer must be one of \[1\], not 0"):
        device.write_bar(Peer(), 0, b"x")


# hangs-host


@pytest.fixture
def fragile(driver, machine):
    """A fragile device with a read-only page at 8000h."""
    device = machine.attach(HangsHost(), ADDRESS)
    domain = driver.create_domain()
    domain.map(0x8000, 0x5000, 4096, "r")
    driver.attach(domain, device.address)
    return device


def test_hangs_host_does_not_hang_while_it_is_allowed(fragile):
    assert fragile.read(0x8000, 4).ok
    assert not fragile.host_hung


def test_hangs_host_survives_a_missing_permission(fragile):
    assert not fragile.write(0x8000, b"data").ok
    assert not fragile.host_hung


def test_hangs_host_on_what_is_not_present(fragile, machine):
    machine.advance(7)
    fragile.read(0x9000, 4)
    assert (fragile.host_hung, fragile.hung_at) == (True, 7)


def test_hangs_host_sends_nothing_more(fragile):
    fragile.write(0x9000, b"data")
    assert fragile.read(0x8000, 4).status is Status.BUSY


def test_hangs_host_without_an_iommu_never():
    device = Machine(1 << 20).attach(HangsHost())
    device.read(1 << 40, 4)
    assert not device.host_hung
