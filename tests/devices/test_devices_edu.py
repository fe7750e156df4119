import pytest

from iommu_emu import Machine
from iommu_emu.core import Status
from iommu_emu.devices import Edu

MSI_ADDRESS = 0xFEE0_0000
MILLISECOND = 1_000_000


class Driver:
    """Registers of an edu by offset."""

    def __init__(self, machine, edu):
        self.machine, self.edu, self.bar = machine, edu, edu.bar_address(0)

    def read(self, offset, size=4):
        return self.machine.mmio_read(self.bar + offset, size)

    def write(self, offset, value, size=4):
        self.machine.mmio_write(self.bar + offset, size, value)

    def dma(self, source, destination, count, command):
        for offset, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command)):
            self.write(offset, value, 8)


@pytest.fixture
def machine():
    return Machine(1 << 20)


@pytest.fixture
def edu(machine):
    return Driver(machine, machine.attach(Edu(), "00:02.0"))


def test_edu_identity_in_config_space(machine, edu):
    assert machine.config_read("00:02.0", 0, 4) == 0x11E8_1234
    assert machine.config_read("00:02.0", 8, 4) == 0x00FF_0010


def test_edu_identification_register(edu):
    assert edu.read(0x00) == 0x0100_00ED


def test_edu_liveness_reads_the_complement(edu):
    edu.write(0x04, 0x1234_5678)
    assert edu.read(0x04) == 0xEDCB_A987


@pytest.mark.parametrize(
    ("value", "factorial"), [(0, 1), (5, 120), (13, 1_932_053_504), (33, 1 << 31), (1 << 31, 0)]
)
def test_edu_factorial_is_taken_modulo_32_bits(edu, value, factorial):
    edu.write(0x08, value)
    assert edu.read(0x08) == factorial


def test_edu_factorial_takes_its_latency(machine):
    edu = Driver(machine, machine.attach(Edu(factorial_latency=50)))
    edu.write(0x08, 4)
    assert edu.read(0x20) & 1
    machine.advance(50)
    assert (edu.read(0x20) & 1, edu.read(0x08)) == (0, 24)


def test_edu_factorial_raises_interrupt_1_if_asked(edu):
    edu.write(0x20, 0x80)
    edu.write(0x08, 3)
    assert edu.read(0x24) == 1


@pytest.mark.parametrize(("offset", "size"), [(0x00, 8), (0x28, 4), (0x40000, 4), (0x9C, 4)])
def test_edu_reads_all_ones_where_nothing_is(edu, offset, size):
    assert edu.read(offset, size) == (1 << 8 * size) - 1


@pytest.mark.parametrize(("offset", "size"), [(0x00, 1), (0x00, 2), (0x80, 1), (0x02, 4)])
def test_edu_reads_0_by_accesses_that_it_does_not_take(edu, offset, size):
    assert edu.read(offset, size) == 0


def test_edu_raised_interrupts_accumulate(edu):
    edu.write(0x60, 0x10)
    edu.write(0x60, 0x01)
    assert (edu.read(0x24), edu.edu.intx) == (0x11, True)


def test_edu_acknowledge_lowers_the_pin_when_nothing_is_left(edu):
    edu.write(0x60, 0x11)
    edu.write(0x64, 0x01)
    assert (edu.read(0x24), edu.edu.intx) == (0x10, True)
    edu.write(0x64, 0x10)
    assert (edu.read(0x24), edu.edu.intx) == (0, False)


def test_edu_uses_msi_when_enabled(machine, edu):
    at = edu.edu.config.find(0x05)
    machine.config_write("00:02.0", at + 4, 4, MSI_ADDRESS)
    machine.config_write("00:02.0", at + 12, 2, 0x44)
    machine.config_write("00:02.0", at + 2, 2, 1)
    edu.write(0x60, 1)
    assert ([i.vector for i in machine.interrupts], edu.edu.intx) == ([0x44], False)


def test_edu_has_msi_without_masks(machine, edu):
    at = edu.edu.config.find(0x05)
    assert machine.config_read("00:02.0", at, 4) == 0x0080_0005


def test_edu_pin_goes_down_for_good_when_msi_is_enabled(machine, edu):
    control = edu.edu.config.find(0x05) + 2
    edu.write(0x60, 1)
    machine.config_write("00:02.0", control, 2, 1)
    assert (edu.edu.intx, edu.edu.interrupt_status) == (False, False)
    machine.config_write("00:02.0", control, 2, 0)
    assert not edu.edu.intx
    edu.write(0x60, 2)
    assert edu.edu.intx


def test_edu_dma_from_ram_takes_100_ms(machine, edu):
    machine.memory.write(0x1000, b"lecture")
    edu.dma(0x1000, 0x40000, 7, 1)
    machine.advance(100 * MILLISECOND - 1)
    assert edu.read(0x98) == 1
    machine.advance(1)
    assert (edu.read(0x98), bytes(edu.edu.buffer[:7])) == (0, b"lecture")


def test_edu_dma_to_ram(machine, edu):
    edu.edu.buffer[16:20] = b"data"
    edu.dma(0x40010, 0x2000, 4, 3)
    machine.advance(100 * MILLISECOND)
    assert machine.memory.read(0x2000, 4) == b"data"


def test_edu_dma_raises_interrupt_100h_if_asked(machine, edu):
    edu.dma(0x1000, 0x40000, 4, 5)
    machine.advance(100 * MILLISECOND)
    assert edu.read(0x24) == 0x100


def test_edu_dma_registers_are_locked_while_it_runs(machine, edu):
    edu.dma(0x1000, 0x40000, 4, 1)
    edu.write(0x90, 4096)
    assert edu.read(0x90) == 4


def test_edu_dma_command_without_start_is_ignored(edu):
    edu.write(0x98, 2)
    assert edu.read(0x98) == 0


def test_edu_dma_drives_28_address_bits(machine, edu):
    machine.memory.write(0x1000, b"low!")
    edu.dma(0x5000_1000, 0x40000, 4, 1)
    machine.advance(100 * MILLISECOND)
    assert bytes(edu.edu.buffer[:4]) == b"low!"


def test_edu_dma_masks_only_where_it_starts(machine):
    edu = Driver(machine, machine.attach(Edu(dma_mask=0x1FFF)))
    machine.memory.write(0x1FFE, b"over")
    edu.dma(0x5FFE, 0x40000, 4, 1)
    machine.advance(100 * MILLISECOND)
    assert bytes(edu.edu.buffer[:4]) == b"over"


@pytest.mark.parametrize(
    ("destination", "count"), [(0x40001, 4096), (0x3FFFF, 4), (0x40000, 0), (0x40000, 1 << 63)]
)
def test_edu_dma_outside_the_buffer_is_not_done(machine, edu, destination, count):
    edu.dma(0x1000, destination, count, 1)
    machine.advance(100 * MILLISECOND)
    assert (edu.read(0x98), edu.edu.last_dma) == (0, None)


def test_edu_dma_that_fails_ends_with_its_status_known(machine, edu):
    edu.dma(0x800_0000, 0x40000, 4, 1)
    machine.advance(100 * MILLISECOND)
    assert (edu.read(0x98), edu.edu.last_dma.status) == (0, Status.UNSUPPORTED_REQUEST)


def test_edu_reset_leaves_registers_and_the_transfer_under_way(machine, edu):
    edu.write(0x04, 5)
    edu.edu.buffer[:4] = b"kept"
    edu.dma(0x40000, 0x2000, 4, 3)
    edu.edu.reset()
    edu.edu.place_bar(0, edu.bar)
    machine.config_write("00:02.0", 0x04, 2, 6)
    assert (edu.read(0x04), edu.read(0x98)) == (0xFFFF_FFFA, 3)
    machine.advance(100 * MILLISECOND)
    assert machine.memory.read(0x2000, 4) == b"kept"


def test_edu_reset_takes_the_pin_down(edu):
    edu.write(0x60, 1)
    edu.edu.reset()
    assert not edu.edu.intx


def test_edu_removed_during_a_transfer_does_not_do_it(machine, edu):
    edu.edu.buffer[:4] = b"gone"
    edu.dma(0x40000, 0x2000, 4, 3)
    machine.remove(edu.edu)
    machine.advance(200 * MILLISECOND)
    assert machine.memory.read(0x2000, 4) == bytes(4)


def test_edu_refuses_a_negative_latency():
    with pytest.raises(ValueError, match=r"^dma_latency must be in 0\.\.2\*\*64-1, not -1$"):
        Edu(dma_latency=-1)
