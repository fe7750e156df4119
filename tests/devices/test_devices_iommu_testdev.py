import pytest

from iommu_emu import Machine
from iommu_emu.devices import Edu, IommuTestdev
from iommu_emu.devices.iommu_testdev import Register, TestResult
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit


class Bench:
    def __init__(self, machine, address="00:04.0"):
        self.machine = machine
        self.device = machine.attach(IommuTestdev(), address)

    def read(self, register):
        return self.machine.mmio_read(self.device.bar_address(0) + register, 4)

    def write(self, register, value):
        self.machine.mmio_write(self.device.bar_address(0) + register, 4, value)

    def run(self, iova, physical, length=8):
        for register, value in (
            (Register.IOVA_LOW, iova & 0xFFFF_FFFF),
            (Register.IOVA_HIGH, iova >> 32),
            (Register.PHYSICAL_LOW, physical & 0xFFFF_FFFF),
            (Register.PHYSICAL_HIGH, physical >> 32),
            (Register.LENGTH, length),
            (Register.DOORBELL, 1),
        ):
            self.write(register, value)
        self.read(Register.TRIGGER)
        return TestResult(self.read(Register.RESULT))


@pytest.fixture
def machine():
    return Machine(4 << 20)


@pytest.fixture
def bench(machine):
    return Bench(machine)


def test_testdev_identity_in_config_space(machine, bench):
    assert machine.config_read("00:04.0", 0, 4) == 0x0005_1B36


def test_testdev_starts_idle(bench):
    assert bench.read(Register.RESULT) == TestResult.IDLE


def test_testdev_doorbell_arms_and_disarms(bench):
    bench.write(Register.DOORBELL, 1)
    assert bench.read(Register.RESULT) == TestResult.ARMED
    bench.write(Register.DOORBELL, 0)
    assert bench.read(Register.RESULT) == TestResult.IDLE


def test_testdev_trigger_without_doorbell_is_not_armed(bench):
    bench.read(Register.TRIGGER)
    assert bench.read(Register.RESULT) == TestResult.NOT_ARMED


def test_testdev_trigger_consumes_the_armed_request(bench):
    bench.run(0x1000, 0x1000)
    bench.read(Register.TRIGGER)
    assert bench.read(Register.RESULT) == TestResult.NOT_ARMED


def test_testdev_writes_the_pattern(machine, bench):
    assert bench.run(0x1000, 0x1000, 6) is TestResult.SUCCESS
    assert machine.memory.read(0x1000, 8) == b"\x78\x56\x34\x12\x78\x56\0\0"


@pytest.mark.parametrize("length", [0, (16 << 20) + 1, 0xFFFF_FFFF])
def test_testdev_refuses_a_bad_length(bench, length):
    assert bench.run(0x1000, 0x1000, length) is TestResult.BAD_LENGTH


def test_testdev_write_that_fails_is_told(bench):
    assert bench.run(0x9000_0000, 0x1000) is TestResult.WRITE_FAILED


def test_testdev_write_past_the_address_space_fails(bench):
    assert bench.run((1 << 64) - 4, 0x1000) is TestResult.WRITE_FAILED


def test_testdev_read_back_of_a_hole_fails(bench):
    assert bench.run(0x1000, 0x9000_0000) is TestResult.READ_FAILED


def test_testdev_reads_back_a_bar(machine, bench):
    peer = machine.attach(Edu(dma_mask=0), "00:05.0").bar_address(0)
    assert bench.run(0x1000, peer) is TestResult.MISMATCH
    machine.mmio_write(peer + 4, 4, ~0x1234_5678 & 0xFFFF_FFFF)
    assert bench.run(0x1000, peer + 4, 4) is TestResult.SUCCESS


def test_testdev_reads_ones_back_from_the_interrupt_range(bench):
    assert bench.run(0x1000, 0xFEE0_0000) is TestResult.MISMATCH


def test_testdev_read_back_of_itself_fails(bench):
    assert bench.run(0x1000, bench.device.bar_address(0)) is TestResult.READ_FAILED


def test_testdev_read_back_past_the_end_of_ram_fails(bench):
    assert bench.run(0x1000, (4 << 20) - 2) is TestResult.READ_FAILED


def test_testdev_pair_reading_each_others_trigger_ends(machine, bench):
    other = Bench(machine, "00:05.0")
    for register, value in (
        (Register.PHYSICAL_LOW, bench.device.bar_address(0)),
        (Register.LENGTH, 4),
        (Register.DOORBELL, 1),
    ):
        other.write(register, value)
    assert bench.run(0x1000, other.device.bar_address(0)) is TestResult.MISMATCH
    assert other.read(Register.RESULT) == TestResult.MISMATCH


def test_testdev_read_back_elsewhere_is_a_mismatch(bench):
    assert bench.run(0x1000, 0x2000) is TestResult.MISMATCH


@pytest.mark.parametrize(
    ("attributes", "result"),
    [
        (0b1000, TestResult.BAD_ATTRIBUTES),
        (0b1001, TestResult.SUCCESS),
        (0b1010, TestResult.SUCCESS),
        (0b1011, TestResult.BAD_ATTRIBUTES),
        (0b0000, TestResult.SUCCESS),
        (0b1100, TestResult.SUCCESS),
    ],
)
def test_testdev_checks_security_state_only_if_it_is_valid(bench, attributes, result):
    bench.write(Register.ATTRIBUTES, attributes)
    assert bench.run(0x1000, 0x1000) is result


def test_testdev_access_of_8_bytes_is_two_of_4(machine, bench):
    at = bench.device.bar_address(0) + Register.IOVA_LOW
    machine.mmio_write(at, 8, 0x1122_3344_5566_7788)
    assert bench.read(Register.IOVA_LOW) == 0x5566_7788
    assert bench.read(Register.IOVA_HIGH) == 0x1122_3344
    assert machine.mmio_read(at, 8) == 0x1122_3344_5566_7788


def test_testdev_takes_no_smaller_access(machine, bench):
    machine.mmio_write(bench.device.bar_address(0) + Register.LENGTH, 2, 7)
    assert bench.read(Register.LENGTH) == 0


def test_testdev_goes_through_the_iommu(machine, bench):
    unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000))
    driver = VtdDriver(machine, unit, range(0x10_0000, 0x20_0000))
    driver.start()
    domain = driver.create_domain()
    domain.map(0x7_0000_0000, 0x5000, 4096)
    driver.attach(domain, bench.device.address)
    assert bench.run(0x7_0000_0000, 0x5000) is TestResult.SUCCESS


def test_testdev_is_stopped_by_the_iommu(machine, bench):
    unit = VtdUnit(machine, VtdConfig(base=0xFED9_0000))
    VtdDriver(machine, unit, range(0x10_0000, 0x20_0000)).start()
    assert bench.run(0x5000, 0x5000) is TestResult.WRITE_FAILED
