import pytest

from iommu_emu import Bridge, Device, Machine, PortType
from iommu_emu.core import StateError
from iommu_emu.linux.bound_group import DRIVERS, KernelDriver
from iommu_emu.linux.dma_owner import DmaOwnership, GroupDomain
from iommu_emu.linux.iommu_group import IommuGroups
from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.linux.vfio_notifier import KernelBugError, VfioNotifier
from iommu_emu.machine import ReservedRegion
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

VFIO, STUB, PORT = DRIVERS["vfio-pci"], DRIVERS["pci-stub"], DRIVERS["pcieport"]
SHPCHP, NVME, E1000E = DRIVERS["shpchp"], DRIVERS["nvme"], DRIVERS["e1000e"]
FRAMES = range(0x4_0000, 0x8_0000)
USER = "QEMU"


class Conventional(Device):
    port_type = None


@pytest.fixture
def machine():
    machine = Machine(1 << 20)
    VtdUnit(machine, VtdConfig(base=0xFED9_0000, geometry="tiny-2"))
    return machine


@pytest.fixture
def bridge(machine):
    """A conventional bridge that heads a group, at 00:1e.0."""
    return machine.attach(Bridge("bridge", PortType.PCIE_TO_PCI), "00:1e.0")


@pytest.fixture
def nic(machine, bridge):
    return machine.attach(Conventional("NIC"), 0x08, under=bridge)


@pytest.fixture
def disk(machine, nic, bridge):
    return machine.attach(Conventional("disk"), 0x10, under=bridge)


@pytest.fixture
def group(machine, bridge, nic, disk):
    """The group of bridge, NIC and disk."""
    (group,) = IommuGroups(machine)
    return group


@pytest.fixture
def ownership(machine, group):
    return DmaOwnership(machine, group)


@pytest.fixture
def notifier(machine, group):
    return VfioNotifier(machine, group)


def reserve(machine, function):
    requester = (function.address, function.address)
    machine.reserved_regions.append(ReservedRegion(0x8000, 0x8FFF, 0, (requester,)))


def state(ownership):
    return ownership.owner, ownership.owner_count, ownership.domain


FREE = (None, 0, GroupDomain.DEFAULT)


# Drivers.


def test_driver_hazards_of_shpchp_are_its_registers():
    assert SHPCHP.hazards == ["user space's devices can write its registers peer to peer"]


@pytest.mark.parametrize("driver", [PORT, STUB, VFIO])
def test_driver_that_manages_its_dma_has_no_hazards(driver):
    assert (driver.driver_managed_dma, driver.hazards) == (True, [])


# The kernel's side of ownership.


def test_bind_counts_the_driver_in(ownership, nic, disk):
    ownership.bind(nic, E1000E)
    ownership.bind(disk, NVME)
    assert state(ownership) == (None, 2, GroupDomain.DEFAULT)


@pytest.mark.parametrize("driver", [STUB, VFIO])
def test_bind_of_a_driver_that_manages_its_dma_counts_nothing(ownership, nic, driver):
    ownership.bind(nic, driver)
    assert state(ownership) == FREE


def test_unbind_counts_the_driver_out(ownership, nic):
    ownership.bind(nic, E1000E)
    ownership.unbind(nic)
    assert (state(ownership), ownership.drivers) == (FREE, {})


def test_bind_to_a_group_of_user_space_is_busy(ownership, nic, disk):
    ownership.bind(nic, VFIO)
    ownership.claim(USER)
    with pytest.raises(
        RefusedError, match=r"^-EBUSY: group 0 is owned by QEMU; 0000:01:02.0 stays unbound$"
    ):
        ownership.bind(disk, NVME)
    assert state(ownership) == (USER, 1, GroupDomain.BLOCKING)
    assert ownership.drivers == {nic: VFIO}


@pytest.mark.parametrize("driver", [STUB, VFIO])
def test_bind_of_a_safe_driver_to_a_group_of_user_space_is_allowed(ownership, disk, driver):
    ownership.claim(USER)
    ownership.bind(disk, driver)
    assert ownership.drivers == {disk: driver}


def test_bind_before_the_default_domain_exists_is_deferred(ownership, nic):
    ownership.default_domain_ready = False
    with pytest.raises(RefusedError, match=r"^-EPROBE_DEFER: "):
        ownership.bind(nic, E1000E)
    assert (state(ownership), ownership.drivers) == (FREE, {})


def test_bind_with_pasids_in_use_is_busy(ownership, nic):
    ownership.pasids.add(1)
    with pytest.raises(RefusedError, match=r"^-EBUSY: group 0 has PASIDs in use$"):
        ownership.bind(nic, E1000E)
    assert state(ownership) == FREE


def test_bind_twice_is_busy(ownership, nic):
    ownership.bind(nic, E1000E)
    with pytest.raises(RefusedError, match=r"^-EBUSY: 0000:01:01.0 is bound to e1000e already$"):
        ownership.bind(nic, STUB)
    assert state(ownership) == (None, 1, GroupDomain.DEFAULT)


def test_bind_of_a_bridge_driver_to_an_endpoint_is_an_error(ownership, nic):
    with pytest.raises(ValueError, match=r"^shpchp drives bridges; NIC is none$"):
        ownership.bind(nic, SHPCHP)


def test_bind_of_vfio_to_a_bridge_is_refused(ownership, bridge):
    with pytest.raises(RefusedError, match=r"^-EINVAL: 0000:00:1e.0 is a bridge"):
        ownership.bind(bridge, VFIO)


def test_bind_of_a_stranger_is_an_error(ownership):
    with pytest.raises(ValueError, match=r"^stranger is not in group 0$"):
        ownership.bind(Device("stranger"), NVME)


def test_unbind_of_what_has_no_driver_is_an_error(ownership, nic):
    with pytest.raises(StateError, match=r"^0000:01:01.0 is bound to no driver$"):
        ownership.unbind(nic)


def test_unuse_without_a_user_is_an_error(ownership):
    with pytest.raises(StateError, match=r"has no user of its default domain"):
        ownership.unuse_default_domain()


# User space's side.


def test_claim_blocks_the_group(ownership):
    ownership.claim(USER)
    assert state(ownership) == (USER, 1, GroupDomain.BLOCKING)


def test_claim_next_to_a_kernel_driver_is_not_permitted(ownership, nic, disk):
    ownership.bind(nic, VFIO)
    ownership.bind(disk, NVME)
    with pytest.raises(RefusedError, match=r"^-EPERM: 0000:01:02.0 is bound to nvme"):
        ownership.claim(USER)
    assert state(ownership) == (None, 1, GroupDomain.DEFAULT)


def test_claim_next_to_an_unsafe_bridge_driver_is_not_permitted(ownership, bridge, nic):
    ownership.bind(nic, VFIO)
    ownership.bind(bridge, SHPCHP)
    with pytest.raises(RefusedError) as refusal:
        ownership.claim(USER)
    assert str(refusal.value) == (
        "-EPERM: 0000:00:1e.0 is bound to shpchp, which uses the default domain: "
        "unbind it, or bind pci-stub"
    )
    assert refusal.value.log == ""  # the kernel returns the number alone


@pytest.mark.parametrize("driver", [PORT, STUB])
def test_claim_next_to_a_safe_bridge_driver_is_allowed(ownership, bridge, driver):
    ownership.bind(bridge, driver)
    ownership.claim(USER)
    assert ownership.owner == USER


def test_claim_after_the_bridge_has_pci_stub_instead_is_allowed(ownership, bridge):
    ownership.bind(bridge, SHPCHP)
    ownership.unbind(bridge)
    ownership.bind(bridge, STUB)
    ownership.claim(USER)
    assert ownership.owner_count == 1


def test_claim_twice_is_not_permitted(ownership):
    ownership.claim(USER)
    with pytest.raises(RefusedError, match=r"^-EPERM: group 0 is owned by QEMU$"):
        ownership.claim("another")
    assert state(ownership) == (USER, 1, GroupDomain.BLOCKING)


def test_claim_with_pasids_in_use_is_busy(ownership):
    ownership.pasids.add(1)
    with pytest.raises(RefusedError, match=r"^-EBUSY: "):
        ownership.claim(USER)
    assert state(ownership) == FREE


def test_claim_by_nobody_is_an_error(ownership):
    with pytest.raises(ValueError, match=r"^owner must not be None$"):
        ownership.claim(None)


def test_claim_device_counts_each_device_of_one_owner(ownership, nic, disk):
    ownership.claim_device(nic, USER)
    ownership.claim_device(disk, USER)
    assert state(ownership) == (USER, 2, GroupDomain.BLOCKING)


def test_claim_device_of_another_owner_is_not_permitted(ownership, nic, disk):
    ownership.claim_device(nic, USER)
    with pytest.raises(RefusedError, match=r"^-EPERM: "):
        ownership.claim_device(disk, "another")
    assert state(ownership) == (USER, 1, GroupDomain.BLOCKING)


def test_release_device_gives_the_group_back_with_the_last_one(ownership, nic, disk):
    ownership.claim_device(nic, USER)
    ownership.claim_device(disk, USER)
    ownership.release_device(nic)
    assert state(ownership) == (USER, 1, GroupDomain.BLOCKING)
    ownership.release_device(disk)
    assert state(ownership) == FREE


def test_release_lets_the_kernels_drivers_in_again(ownership, nic):
    ownership.claim(USER)
    ownership.release()
    ownership.bind(nic, E1000E)
    assert state(ownership) == (None, 1, GroupDomain.DEFAULT)


def test_release_of_what_is_not_owned_is_an_error(ownership, nic):
    ownership.bind(nic, E1000E)
    with pytest.raises(StateError, match=r"^group 0 is not owned$"):
        ownership.release()
    assert ownership.owner_count == 1


# Firmware's reserved memory.


def test_claim_of_a_group_with_an_rmrr_is_refused_by_the_core(machine, ownership, disk):
    reserve(machine, disk)
    ownership.bind(disk, VFIO)
    with pytest.raises(RefusedError, match=r"^-EINVAL: 0000:01:02.0 must keep") as refusal:
        ownership.claim(USER)
    assert refusal.value.log == (
        "vfio-pci 0000:01:02.0: Firmware has requested this device have a 1:1 IOMMU mapping"
    )
    assert state(ownership) == FREE


def test_attach_of_a_group_with_an_rmrr_is_refused_by_the_old_driver(machine, group, disk):
    reserve(machine, disk)
    ownership = DmaOwnership(machine, group, KernelAge.LINUX_6_1)
    ownership.claim(USER)
    domain = VtdDriver(machine, machine.units[0], FRAMES).create_domain(3)
    with pytest.raises(RefusedError, match=r"^-EPERM: 0000:01:02.0 may go on"):
        ownership.attach_domain(domain)
    assert state(ownership) == (USER, 1, GroupDomain.BLOCKING)


# Moving the members.


@pytest.fixture
def driver(machine):
    driver = VtdDriver(machine, machine.units[0], FRAMES)
    driver.start()
    return driver


@pytest.fixture
def moving(machine, group, driver):
    """An ownership that moves the requester ID which the group shares."""
    default = driver.create_domain(3)
    default.map(0x1000, 0x2000, 0x1000)
    driver.attach(default, 0x0100)

    def attach(function, domain):
        if function.address != 0x0108:  # all behind the bridge have its ID
            return
        if domain is GroupDomain.BLOCKING:
            driver.detach(0x0100)
        else:
            driver.attach(default if domain is GroupDomain.DEFAULT else domain, 0x0100)

    return DmaOwnership(machine, group, attach=attach)


def test_claim_stops_the_devices_dma(moving, nic):
    assert nic.dma.write(0x1000, b"before").ok
    moving.claim(USER)
    assert not nic.dma.write(0x1000, b"after").ok


def test_attached_domain_is_what_the_device_reaches(machine, moving, driver, nic):
    domain = driver.create_domain(3)
    domain.map(0x1000, 0x3000, 0x1000)
    moving.claim(USER)
    moving.attach_domain(domain)
    nic.dma.write(0x1000, b"guest")
    assert machine.memory.read(0x3000, 5) == b"guest"
    assert moving.domain is domain


def test_detached_domain_leaves_the_device_blocked(moving, driver, nic):
    moving.claim(USER)
    moving.attach_domain(driver.create_domain(3))
    moving.detach_domain()
    assert moving.domain is GroupDomain.BLOCKING


def test_released_group_reaches_the_kernels_domain_again(machine, moving, nic):
    moving.claim(USER)
    moving.release()
    nic.dma.write(0x1000, b"kernel")
    assert machine.memory.read(0x2000, 6) == b"kernel"


def test_attach_domain_over_another_is_busy(moving, driver):
    moving.claim(USER)
    moving.attach_domain(driver.create_domain(3))
    with pytest.raises(RefusedError, match=r"^-EBUSY: "):
        moving.attach_domain(driver.create_domain(3))


def test_attach_domain_without_an_owner_is_an_error(moving, driver):
    with pytest.raises(StateError, match=r"claim it first$"):
        moving.attach_domain(driver.create_domain(3))


def test_detach_domain_of_a_blocked_group_is_an_error(ownership):
    ownership.claim(USER)
    with pytest.raises(StateError, match=r"is on no domain of an owner's"):
        ownership.detach_domain()


def test_claim_that_fails_half_way_moves_everybody_back(machine, group, bridge, nic, disk):
    where = dict.fromkeys(group.members, GroupDomain.DEFAULT)

    def attach(function, domain):
        if function is disk:
            raise MemoryError("no frame left")
        where[function] = domain

    ownership = DmaOwnership(machine, group, attach=attach)
    with pytest.raises(MemoryError):
        ownership.claim(USER)
    assert state(ownership) == FREE
    assert set(where.values()) == {GroupDomain.DEFAULT}


def test_device_that_comes_to_an_owned_group_is_moved_and_cannot_be_bound(machine, bridge, nic):
    groups = IommuGroups(machine)
    moved = []
    ownership = DmaOwnership(
        machine, groups.of(nic), attach=lambda function, domain: moved.append((function, domain))
    )
    ownership.claim(USER)
    late = machine.attach(Conventional("late"), 0x18, under=bridge)
    groups.add(late)
    ownership.device_added(late)
    assert moved[-1] == (late, GroupDomain.BLOCKING)
    with pytest.raises(RefusedError, match=r"^-EBUSY: "):
        ownership.bind(late, NVME)


# The type of the default domain.


def test_type_change_while_a_driver_is_bound_is_refused(ownership, nic):
    ownership.bind(nic, E1000E)
    with pytest.raises(RefusedError, match=r"^-EPERM: 0000:01:01.0 is bound to e1000e"):
        ownership.check_type_change()


def test_type_change_while_a_driver_is_bound_was_busy_before(machine, group, nic):
    ownership = DmaOwnership(machine, group, KernelAge.LINUX_6_1)
    ownership.bind(nic, E1000E)
    with pytest.raises(RefusedError, match=r"^-EBUSY: 0000:01:01.0 is bound to e10") as refusal:
        ownership.check_type_change()
    assert refusal.value.log == "iommu: Device is still bound to driver"


def test_type_change_while_user_space_owns_the_group_is_refused(ownership):
    ownership.claim(USER)
    with pytest.raises(RefusedError, match=r"^-EPERM: group 0 is owned by QEMU$"):
        ownership.check_type_change()


def test_type_change_with_pci_stub_alone_is_allowed(ownership, nic):
    ownership.bind(nic, STUB)
    assert ownership.check_type_change() is None


# Reports.


def test_report_of_an_ownership_names_what_is_in_the_way(ownership, nic, bridge):
    ownership.bind(nic, VFIO)
    ownership.bind(bridge, SHPCHP)
    assert ownership.report() == (
        "group 0 is not viable:\n"
        "  0000:00:1e.0 is bound to shpchp, which uses the default domain: "
        "unbind it, or bind pci-stub"
    )


def test_report_of_a_viable_group(ownership, nic):
    ownership.bind(nic, VFIO)
    assert (ownership.viable, ownership.report()) == (True, "group 0 is viable")


def test_blockers_count_users_that_are_no_drivers(ownership, nic):
    ownership.use_default_domain(nic)
    assert ownership.blockers() == ["1 more count on the default domain"]


# The notifier's rule.


@pytest.mark.parametrize("driver", [VFIO, STUB])
def test_notifier_group_with_allowed_drivers_is_viable(notifier, nic, driver):
    notifier.bind(nic, driver)
    notifier.open()
    assert notifier.live


def test_notifier_group_with_another_driver_is_not_viable(notifier, nic, disk):
    notifier.bind(nic, VFIO)
    notifier.bind(disk, NVME)
    with pytest.raises(RefusedError, match=r"^-EINVAL: 0000:01:02.0 is bound to nvme"):
        notifier.open()
    assert not notifier.live


def test_notifier_accepts_any_driver_of_a_bridge_unsafe_as_it_is(notifier, nic, bridge):
    notifier.bind(nic, VFIO)
    notifier.bind(bridge, SHPCHP)
    notifier.open()
    assert notifier.report() == (
        "group 0 is viable, but unsafe:\n"
        "  0000:00:1e.0 is bound to shpchp: "
        "user space's devices can write its registers peer to peer"
    )


def test_notifier_bind_to_a_live_group_is_the_end_of_the_kernel(notifier, nic, disk):
    notifier.bind(nic, VFIO)
    notifier.open()
    with pytest.raises(KernelBugError, match=r"0000:01:02.0 of live group 0 was bound to nvme"):
        notifier.bind(disk, NVME)
    assert notifier.drivers[disk] is NVME  # too late: it was bound first


def test_notifier_bind_after_user_space_has_left_is_harmless(notifier, nic, disk):
    notifier.bind(nic, VFIO)
    notifier.open()
    notifier.close()
    notifier.bind(disk, NVME)
    assert not notifier.viable


def test_notifier_unbind_makes_a_group_viable(notifier, nic):
    notifier.bind(nic, E1000E)
    notifier.unbind(nic)
    assert notifier.viable


def test_notifier_device_that_comes_to_a_live_group_is_a_warning(notifier, nic):
    notifier.open()
    notifier.device_added(nic)
    assert notifier.warnings == ["pci 0000:01:01.0: Device added to live group 0!"]


def test_notifier_device_that_comes_to_an_idle_group_is_nothing(notifier, nic):
    notifier.device_added(nic)
    assert notifier.warnings == []


def test_notifier_group_with_an_rmrr_is_refused(machine, notifier, disk):
    reserve(machine, disk)
    with pytest.raises(RefusedError, match=r"^-EPERM: 0000:01:02.0 may go on"):
        notifier.open()
    assert not notifier.live


def test_notifier_group_with_an_rmrr_was_accepted_before_the_check(machine, group, disk):
    reserve(machine, disk)
    notifier = VfioNotifier(machine, group, KernelAge.UNCHECKED)
    notifier.open()
    assert notifier.live


def test_notifier_group_opens_once(notifier):
    notifier.open()
    with pytest.raises(RefusedError, match=r"^-EBUSY: user space has group 0 open already$"):
        notifier.open()


def test_notifier_close_without_a_user_is_an_error(notifier):
    with pytest.raises(StateError, match=r"^user space does not have group 0 open$"):
        notifier.close()


def test_driver_of_ones_own_is_a_record(ownership, nic):
    ownership.bind(nic, KernelDriver("mine", driver_managed_dma=True, uses_dma=False))
    assert ownership.hazards() == [
        "0000:01:01.0 is bound to mine: user space's devices can write its registers peer to peer"
    ]
