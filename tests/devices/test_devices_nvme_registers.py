"""NVMe registers: what software reads before it enables the controller, and how it resets it."""

import pytest
from nvme_bed import ACQ, AQA, ASQ, CC, CSTS, Bed

from iommu_emu.devices import Nvme
from iommu_emu.devices.nvme.specification import Feature, NvmOpcode

EN = 1
SIZES = 6 << 16 | 4 << 20
FATAL = 2
FLR = 1 << 15


@pytest.fixture
def fresh():
    """A controller as it is after power-on."""
    return Bed()


def configure(bed, cc=SIZES | EN, aqa=0x1F_001F, asq=0x40_0000, acq=0x41_0000):
    bed.driver.write(AQA, aqa)
    bed.driver.write(ASQ, asq, 8)
    bed.driver.write(ACQ, acq, 8)
    bed.driver.write(CC, cc)
    return bed.csts


def test_nvme_class_code_is_an_nvm_express_io_controller(fresh):
    assert fresh.machine.config_read("00:03.0", 8, 4) >> 8 == 0x01_0802


def test_nvme_capabilities(fresh):
    cap = fresh.driver.read(0, 8)
    assert cap & 0xFFFF == 1023  # MQES
    assert cap >> 16 & 1 == 1  # CQR
    assert cap >> 32 & 0xF == 0  # DSTRD
    assert cap >> 36 & 1 == 0  # NSSRS
    assert cap >> 37 & 0xFF == 1  # CSS: NVM
    assert (cap >> 48 & 0xF, cap >> 52 & 0xF) == (0, 4)  # MPSMIN, MPSMAX
    assert cap >> 56 == 0  # neither PMR nor CMB


def test_nvme_version_is_1_4(fresh):
    assert fresh.driver.read(8) == 0x0001_0400


def test_nvme_registers_are_read_in_any_part(fresh):
    assert fresh.driver.read(4) == fresh.driver.read(0, 8) >> 32
    assert fresh.driver.read(0x0A, 2) == 1


@pytest.mark.parametrize("offset", [0x20, 0x38, 0x40, 0xFF8, 0x1000, 0x1FFC])
def test_nvme_registers_that_are_not_there_read_zero(fresh, offset):
    assert fresh.driver.read(offset) == 0


def test_nvme_admin_queue_registers_keep_their_page_aligned_parts(fresh):
    fresh.driver.write(ASQ, 0x1234_5678_9ABC_DEF1, 8)
    fresh.driver.write(ACQ, 0xFFFF_FFFF)
    fresh.driver.write(ACQ + 4, 0x77)
    fresh.driver.write(AQA, 0xFFFF_FFFF)
    assert fresh.driver.read(ASQ, 8) == 0x1234_5678_9ABC_D000
    assert fresh.driver.read(ACQ, 8) == 0x77_FFFF_F000
    assert fresh.driver.read(AQA) == 0x0FFF_0FFF


@pytest.mark.parametrize(("offset", "size"), [(CC, 1), (CC, 2)])
def test_nvme_writes_of_less_than_a_dword_are_dropped(fresh, offset, size):
    fresh.driver.write(offset, 0x31, size)
    assert fresh.driver.read(offset) == 0


def test_nvme_interrupt_mask_is_set_and_cleared_by_ones(fresh):
    fresh.driver.write(0x0C, 0x0F)
    fresh.driver.write(0x10, 0x03)
    assert (fresh.driver.read(0x0C), fresh.driver.read(0x10)) == (0x0C, 0x0C)


def test_nvme_enable_makes_it_ready(fresh):
    assert configure(fresh) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"cc": SIZES | EN | 1 << 4},  # CSS: a reserved command set
        {"cc": SIZES | EN | 5 << 7},  # MPS above CAP.MPSMAX
        {"cc": SIZES | EN | 1 << 11},  # AMS: weighted round robin is not there
        {"aqa": 0x1F_0000},  # a queue of one entry
        {"aqa": 0x0000_001F},
        {"cc": SIZES | EN | 4 << 7, "asq": 0x40_1000},  # not aligned to MPS
    ],
    ids=["css", "mps", "ams", "asqs", "acqs", "asq"],
)
def test_nvme_enable_with_an_impossible_configuration_is_fatal(fresh, wrong):
    assert configure(fresh, **wrong) == FATAL
    fresh.driver.write(CC, 0)
    assert fresh.csts == 0
    assert configure(fresh) == 1


def test_nvme_controller_reset_keeps_the_admin_queue_registers(nvme):
    before = [nvme.driver.read(register, 8) for register in (ASQ, ACQ)]
    nvme.driver.disable()
    assert nvme.csts == 0
    assert [nvme.driver.read(register, 8) for register in (ASQ, ACQ)] == before
    assert nvme.driver.read(CC) == SIZES


def test_nvme_controller_reset_deletes_io_queues(nvme):
    nvme.driver.disable()
    nvme.driver.enable()
    nvme.driver.ring_tail(1, 1)
    assert nvme.nvme.statistics.doorbell_errors == 1


def test_nvme_controller_reset_returns_features_to_their_defaults(nvme):
    nvme.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    nvme.driver.disable()
    nvme.driver.enable()
    assert nvme.get_feature(Feature.VOLATILE_WRITE_CACHE).result == 1


def test_nvme_works_again_after_a_controller_reset(nvme):
    nvme.write(0, b"before a reset!!" * 32)
    nvme.driver.disable()
    nvme.driver.enable()
    nvme.driver.create_queues(1)
    assert nvme.read(0, 1) == b"before a reset!!" * 32


def test_nvme_doorbells_before_enabling_do_nothing(fresh):
    fresh.driver.ring_tail(0, 1)
    assert fresh.nvme.statistics.doorbell_errors == 0


@pytest.mark.parametrize("notification", [1, 2], ids=["normal", "abrupt"])
def test_nvme_shutdown_completes(nvme, notification):
    nvme.driver.write(CC, SIZES | EN | notification << 14)
    assert nvme.csts == 1 | 2 << 2


def test_nvme_reserved_shutdown_notification_does_nothing(nvme):
    nvme.driver.write(CC, SIZES | EN | 3 << 14)
    assert nvme.csts == 1


def test_nvme_shutdown_before_enabling_completes_and_is_forgotten(fresh):
    fresh.driver.write(CC, SIZES | 1 << 14)
    assert fresh.csts == 2 << 2
    assert configure(fresh) == 1


def test_nvme_takes_no_commands_after_a_shutdown(nvme):
    nvme.driver.shut_down()
    nvme.driver.submit(nvme.io, NvmOpcode.FLUSH, nsid=1)
    assert nvme.driver.peek(nvme.io) is None


def test_nvme_reset_after_a_shutdown_makes_it_usable(nvme):
    nvme.driver.shut_down()
    nvme.driver.disable()
    assert nvme.csts == 0
    nvme.driver.enable()
    assert nvme.csts == 1


def test_nvme_removal_without_shutdown_counts_as_unsafe(nvme):
    nvme.machine.remove(nvme.nvme)
    assert nvme.nvme.logs.unsafe_shutdowns == 1


def test_nvme_removal_after_a_shutdown_is_safe(nvme):
    nvme.driver.shut_down()
    nvme.machine.remove(nvme.nvme)
    assert nvme.nvme.logs.unsafe_shutdowns == 0


def flr(bed):
    bed.machine.config_write("00:03.0", bed.nvme.pcie + 8, 2, FLR)


def test_nvme_has_function_level_reset(fresh):
    capabilities = fresh.machine.config_read("00:03.0", fresh.nvme.pcie + 4, 4)
    assert capabilities >> 28 & 1 == 1


def test_nvme_function_level_reset_clears_registers_and_configuration(nvme):
    flr(nvme)
    config = nvme.nvme.config
    assert config.read(nvme.nvme.pcie + 8, 2) & FLR == 0
    assert config.read(4, 2) == 0
    assert nvme.nvme.bar_read(0, CC, 4) == 0
    assert nvme.nvme.bar_read(0, CSTS, 4) == 0
    assert nvme.nvme.bar_read(0, ASQ, 8) == 0
    assert nvme.nvme.statistics.function_resets == 1


def test_nvme_works_again_after_a_function_level_reset(nvme):
    nvme.write(3, b"before an FLR!!!" * 32)
    command, bar = nvme.nvme.config.read(4, 2), nvme.nvme.bar_address(0)
    flr(nvme)
    nvme.machine.config_write("00:03.0", 0x10, 4, bar)
    nvme.machine.config_write("00:03.0", 4, 2, command)
    nvme.ready()
    assert nvme.read(3, 1) == b"before an FLR!!!" * 32


def test_nvme_serial_must_be_printable():
    with pytest.raises(ValueError, match=r"^serial must be 1\.\.20 printable ASCII characters"):
        Nvme(serial="x" * 21)
