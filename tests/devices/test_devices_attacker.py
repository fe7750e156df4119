import pytest

from iommu_emu.devices import Attacker
from iommu_emu.devices.attacker import DATA_SIZE

ADDRESS, LENGTH, COMMAND, STATUS, FAULT, DATA = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x800
NEVER, PENDING, DONE, UNSUPPORTED, REMOVED = 0, 1, 2, 3, 5
READ, WRITE = 1, 2


@pytest.fixture
def attacker(machine):
    return machine.attach(Attacker(), "00:05.0")


@pytest.fixture
def register(machine, attacker):
    """The device's registers, as software on the CPU reaches them."""
    base = attacker.bar_address(0)

    def access(offset, value=None, size=4):
        if value is None:
            return machine.mmio_read(base + offset, size)
        machine.mmio_write(base + offset, size, value)
        return None

    return access


@pytest.fixture
def order(register):
    def order(command, address, length):
        register(ADDRESS, address & 0xFFFFFFFF)
        register(ADDRESS + 4, address >> 32)
        register(LENGTH, length)
        register(COMMAND, command)
        return register(STATUS), register(FAULT)

    return order


def test_attacker_writes_what_it_was_given(machine, register, order):
    register(DATA, 0x6C6C6548)
    register(DATA + 4, 0x6F)
    assert order(WRITE, 0x5000, 5) == (DONE, 0)
    assert machine.memory.read(0x5000, 5) == b"Hello"


def test_attacker_reads_into_its_data(machine, register, order):
    machine.memory.write(0x5000, b"secret!!")
    assert order(READ, 0x5000, 8) == (DONE, 0)
    assert register(DATA, size=8).to_bytes(8, "little") == b"secret!!"


def test_attacker_reports_the_fault(driver, attacker, order):
    driver.attach(driver.create_domain(), attacker.address)
    assert order(WRITE, 0x7FFF_1234_5000, 64) == (UNSUPPORTED, 5)
    assert order(READ, 0x7FFF_1234_5000, 64) == (UNSUPPORTED, 6)
    assert [record.address for record in driver.faults()] == [0x7FFF_1234_5000] * 2


def test_attacker_address_has_64_bits(register):
    register(ADDRESS, 0x1122_3344_5566_7788, size=8)
    assert register(ADDRESS, size=8) == 0x1122_3344_5566_7788
    assert register(ADDRESS + 4) == 0x1122_3344


def test_attacker_past_the_end_of_the_address_space_is_refused(order):
    assert order(READ, (1 << 64) - 4, 64)[0] == UNSUPPORTED


def test_attacker_transfers_no_more_than_its_data(register, order, machine):
    machine.memory.write(0x5000, b"x" * 4096)
    assert order(READ, 0x5000, 0xFFFF_FFFF)[0] == DONE
    assert register(LENGTH) == DATA_SIZE


@pytest.mark.parametrize(("command", "length"), [(0, 4), (3, 4), (1 << 31, 4), (READ, 0)])
def test_attacker_ignores_what_is_no_command(order, command, length):
    assert order(command, 0x5000, length) == (NEVER, 0)


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8)])
def test_attacker_answers_aligned_words_alone(attacker, offset, size):
    attacker.bar_write(0, 0, 8, (1 << 64) - 1)
    attacker.bar_write(0, offset, size, 0)
    assert attacker.bar_read(0, offset, size) == 0
    assert attacker.bar_read(0, 0, 8) == (1 << 64) - 1


def test_attacker_that_is_waited_for_is_pending(machine, attacker, register, order):
    attacker.dma.set_latency(100, 0)
    machine.memory.write(0x5000, b"late")
    assert order(READ, 0x5000, 4) == (PENDING, 0)
    machine.advance(1000)
    assert (register(STATUS), register(DATA)) == (DONE, int.from_bytes(b"late", "little"))


def test_attacker_forgets_everything_when_it_is_reset(attacker, register, order):
    register(DATA, 1)
    order(WRITE, 0x5000, 4)
    attacker.on_reset()
    assert [register(r) for r in (ADDRESS, LENGTH, STATUS, FAULT, DATA)] == [0] * 5


def test_attacker_keeps_a_bounded_log(attacker, order):
    for _ in range(1100):
        order(WRITE, 0x5000, 4)
    assert len(attacker.log) == 1024
