"""The ring NIC's driver: rings that somebody else has mapped, buffers mapped in batches."""

import pytest

from iommu_emu import Machine
from iommu_emu.devices.driver import Buffer
from iommu_emu.devices.nic import Nic, NicDriver, Untranslated
from iommu_emu.devices.nic.descriptors import DESCRIPTOR

PAGE = 4096
MEMORY = range(4 << 20, 5 << 20)
RINGS = [Buffer(3 << 20, 3 << 20, PAGE), Buffer((3 << 20) + PAGE, (3 << 20) + PAGE, PAGE)]
ENTRIES = 16


class Batches(Untranslated):
    """Counts the buffers that are mapped and unmapped together."""

    def __init__(self):
        self.mapped = []
        self.unmapped = []

    def map_batch(self, buffers, direction):
        self.mapped.append(len(buffers))
        return [physical for physical, _ in buffers]

    def unmap_batch(self, buffers, direction):
        self.unmapped.append(len(buffers))


class Singles(Untranslated):
    """Notes what is mapped."""

    def __init__(self):
        self.mapped = []

    def map(self, physical, size, direction):
        self.mapped.append(physical)
        return physical


@pytest.fixture
def start():
    """Return what starts a driver with a mapper."""

    def start(mapper, **options):
        machine = Machine(8 << 20)
        nic = machine.attach(Nic())
        driver = NicDriver(machine, nic, MEMORY, mapper, entries=ENTRIES, **options)
        driver.start(causes=0)
        return nic, driver

    return start


def test_nic_driver_does_not_map_rings_that_it_is_given(start):
    mapper = Singles()
    _, driver = start(mapper, rings=RINGS)
    assert mapper.mapped == [MEMORY.start + 2048 * n for n in range(ENTRIES - 1)]
    assert (driver.rx.iova, driver.tx.iova) == (RINGS[0].iova, RINGS[1].iova)


def test_nic_driver_works_with_rings_that_it_is_given(start):
    nic, driver = start(None, rings=RINGS)
    nic.receive(b"frame")
    assert driver.poll() == [b"frame"]
    driver.stop()


@pytest.mark.parametrize("rings", [RINGS[:1], [RINGS[0], Buffer(0, 0, PAGE // 64)]])
def test_nic_driver_rejects_rings_that_are_too_few_or_small(start, rings):
    size = DESCRIPTOR.size * ENTRIES
    with pytest.raises(ValueError, match=f"rings must be two of {size} bytes or more"):
        start(None, rings=rings)


def test_nic_driver_gives_buffers_in_one_batch(start):
    mapper = Batches()
    start(mapper)
    assert mapper.mapped == [ENTRIES - 1]


def test_nic_driver_takes_buffers_in_one_batch(start):
    mapper = Batches()
    nic, driver = start(mapper)
    for frame in (b"a", b"bc", b"def"):
        nic.receive(frame)
    assert [each.data for each in driver.take_all(8)] == [b"a", b"bc", b"def"]
    assert mapper.unmapped == [3]


def test_nic_driver_takes_no_more_than_asked_for(start):
    nic, driver = start(Batches())
    for frame in (b"a", b"b", b"c"):
        nic.receive(frame)
    assert len(driver.take_all(2)) == 2
    assert driver.rx.ready(8) == 1


def test_nic_driver_counts_what_is_ready(start):
    nic, driver = start(None)
    assert driver.rx.ready(8) == 0
    nic.receive(b"a")
    nic.receive(b"b")
    assert (driver.rx.ready(), driver.rx.ready(8)) == (1, 2)
