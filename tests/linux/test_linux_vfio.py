import pytest

from iommu_emu import Bridge, Device, Machine, PortType
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import StateError
from iommu_emu.linux.dma_owner import GroupDomain
from iommu_emu.linux.kernel import Linux
from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.linux.vfio import Vfio
from iommu_emu.linux.vfio_notifier import KernelBugError, VfioNotifier
from iommu_emu.machine import ReservedRegion
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

FRAMES, RAM = range(0x10_0000, 0x50_0000), range(0x50_0000, 0xF0_0000)
REGION = range(0xF0_0000, 0xF0_1000)


class Conventional(Device):
    port_type = None


@pytest.fixture(params=["vtd", "amdvi"])
def machine(request):
    machine = Machine(16 << 20)
    if request.param == "vtd":
        VtdUnit(machine, VtdConfig(base=0xFED9_0000, geometry="tiny-2"))
    else:
        AmdviUnit(machine, AmdviConfig(base=0xFED8_0000, geometry="tiny-2"))
    return machine


@pytest.fixture
def bridge(machine):
    return machine.attach(Bridge("bridge", PortType.PCIE_TO_PCI), "00:1e.0")


@pytest.fixture
def card(machine, bridge):
    return machine.attach(Conventional("card"), 0x08, under=bridge)


@pytest.fixture
def disk(machine, card, bridge):
    return machine.attach(Conventional("disk"), 0x10, under=bridge)


@pytest.fixture
def boot(machine, disk):
    """Boot a kernel and return its VFIO."""

    def boot(age=KernelAge.LINUX_7_2, **how):
        linux = Linux(machine, frames=FRAMES, ram=RAM, pool_size=0, age=age)
        return Vfio(linux, **how)

    return boot


@pytest.fixture
def reserved(machine, card):
    """Firmware's region of the card."""
    requester = (card.address, card.address)
    machine.reserved_regions.append(ReservedRegion(REGION.start, REGION.stop - 1, 0, (requester,)))


@pytest.fixture(params=[False, True], ids=["ownership", "notifier"])
def vfio(request, boot):
    return boot(KernelAge.LINUX_6_1, notifier=request.param)


@pytest.fixture
def domain(vfio, card):
    vfio.bind(card, "vfio-pci")
    return vfio.open(card)


def test_open_lets_the_device_reach_what_user_space_maps(machine, domain, card):
    domain.map(0x1000, RAM.start, 0x1000)
    assert card.dma.write(0x1000, b"guest").ok
    assert machine.memory.read(RAM.start, 5) == b"guest"


def test_open_lets_the_device_reach_nothing_else(domain, card):
    assert not card.dma.write(RAM.start, b"kernel").ok


def test_unmap_is_strict(domain, card):
    domain.map(0x1000, RAM.start, 0x1000)
    assert card.dma.write(0x1000, b"cached").ok
    domain.unmap(0x1000, 0x1000)
    assert not card.dma.write(0x1000, b"stale").ok


def test_map_over_the_window_of_interrupts_is_refused(domain):
    with pytest.raises(RefusedError, match=r"^-EINVAL: .* overlap the reserved region .*\(msi\)$"):
        domain.map(0xFEE0_0000, RAM.start, 0x1000)


def test_map_over_the_window_of_interrupts_was_not_looked_at(boot, card):
    vfio = boot(KernelAge.UNCHECKED)
    vfio.bind(card, "vfio-pci")
    domain = vfio.open(card)
    domain.map(0xFEE0_0000, RAM.start, 0x1000)
    assert domain.domain.table.lookup(0xFEE0_0000) is not None


def test_close_gives_the_group_back(vfio, domain, disk):
    unit_driver = vfio.linux.device(disk).driver
    domain.close()
    assert domain.ownership.domain is GroupDomain.DEFAULT
    assert domain.domain.id not in unit_driver.domains
    vfio.bind(disk, "nvme")


def test_close_twice_is_an_error(domain):
    domain.close()
    with pytest.raises(StateError, match="is not owned"):
        domain.close()


def test_open_without_vfio_pci_is_an_error(vfio, card):
    with pytest.raises(StateError, match=r"^0000:01:01.0 is not bound to vfio-pci"):
        vfio.open(card)


def test_open_that_is_refused_leaves_nothing_behind(vfio, card, disk):
    vfio.bind(card, "vfio-pci")
    vfio.bind(disk, "nvme")
    driver = vfio.linux.device(card).driver
    before = dict(driver.domains), driver.frames.available, vfio.linux.leaks()
    with pytest.raises(RefusedError, match=r"0000:01:02.0 is bound to nvme"):
        vfio.open(card)
    assert (dict(driver.domains), driver.frames.available, vfio.linux.leaks()) == before
    rule = vfio.rule(card)
    assert not rule.live if isinstance(rule, VfioNotifier) else rule.owner is None


def test_open_twice_is_refused(vfio, domain, card):
    with pytest.raises(RefusedError, match=r"^-E(PERM|BUSY): "):
        vfio.open(card, "another")


def test_bind_of_an_unknown_driver_is_an_error(vfio, card):
    with pytest.raises(ValueError, match=r"^driver must be one of vfio-pci, .*, not 'vfio'$"):
        vfio.bind(card, "vfio")


def test_bind_of_what_has_no_group_is_an_error(vfio):
    with pytest.raises(ValueError, match=r"^stranger has no group: no IOMMU serves it$"):
        vfio.bind(Device("stranger"), "nvme")


def test_unbind_lets_another_driver_in(vfio, disk):
    vfio.bind(disk, "nvme")
    vfio.unbind(disk)
    vfio.bind(disk, "pci-stub")
    assert vfio.rule(disk).drivers[disk].name == "pci-stub"


def test_ownership_keeps_a_late_driver_out(boot, card, disk):
    vfio = boot()
    vfio.bind(card, "vfio-pci")
    vfio.open(card)
    with pytest.raises(RefusedError, match=r"^-EBUSY: "):
        vfio.bind(disk, "nvme")


def test_notifier_stops_the_machine_for_a_late_driver(boot, card, disk):
    vfio = boot(KernelAge.LINUX_6_1, notifier=True)
    vfio.bind(card, "vfio-pci")
    vfio.open(card)
    with pytest.raises(KernelBugError):
        vfio.bind(disk, "nvme")
    assert "kernel BUG" in vfio.linux.log.lines[-1].text


def test_device_that_comes_is_where_its_group_is(machine, vfio, domain, bridge):
    domain.map(0x1000, RAM.start, 0x1000)
    late = machine.attach(Conventional("late"), 0x18, under=bridge)
    vfio.linux.add(late)
    vfio.device_added(late)
    assert late.dma.write(0x1000, b"late").ok


def test_notifier_logs_a_device_that_comes(machine, boot, card, bridge):
    vfio = boot(KernelAge.LINUX_6_1, notifier=True)
    vfio.bind(card, "vfio-pci")
    vfio.open(card)
    late = machine.attach(Conventional("late"), 0x18, under=bridge)
    vfio.linux.add(late)
    vfio.device_added(late)
    line = "pci 0000:01:03.0: Device added to live group 0!"
    assert vfio.linux.log.lines[-1].text == line


# Firmware's reserved memory.


def test_claim_of_a_reserved_device_is_logged_as_the_core_does(reserved, boot, card):
    vfio = boot()
    vfio.bind(card, "vfio-pci")
    with pytest.raises(RefusedError, match=r"^-EINVAL: "):
        vfio.open(card)
    assert vfio.linux.log.lines[-1].text == (
        "vfio-pci 0000:01:01.0: Firmware has requested this device have a 1:1 IOMMU mapping"
    )


def test_mapped_reserved_memory_is_reached_by_user_spaces_device(machine, reserved, boot, card):
    vfio = boot(KernelAge.UNCHECKED, map_reserved=True)
    vfio.bind(card, "vfio-pci")
    domain = vfio.open(card)
    assert card.dma.write(REGION.start, b"platform").ok
    with pytest.raises(RefusedError, match=r"overlap the reserved region .*\(direct\)$"):
        domain.map(REGION.start, RAM.start, 0x1000)


def test_unchecked_kernel_maps_over_reserved_memory(machine, reserved, boot, card):
    vfio = boot(KernelAge.UNCHECKED)
    vfio.bind(card, "vfio-pci")
    vfio.open(card).map(REGION.start, RAM.start, 0x1000)
    assert card.dma.write(REGION.start, b"status").ok
    assert machine.memory.read(RAM.start, 6) == b"status"
