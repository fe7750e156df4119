import pytest

from iommu_emu import Bridge, Device, Machine
from iommu_emu.amdvi.unit import AmdviConfig, AmdviUnit
from iommu_emu.core import Access
from iommu_emu.linux.iommu_group import IommuGroups
from iommu_emu.linux.reserved_regions import (
    KernelAge,
    RegionType,
    ResvRegion,
    check_blocking_domain,
    check_iova,
    check_user_domain,
    device_regions,
    eligibility,
    format_regions,
    group_regions,
    map_direct,
    requires_direct,
    usable_iova,
)
from iommu_emu.machine import ReservedRegion
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.unit import VtdConfig, VtdUnit

DIRECT, RELAXABLE, RESERVED = RegionType.DIRECT, RegionType.DIRECT_RELAXABLE, RegionType.RESERVED
MSI = ResvRegion(0xFEE0_0000, 0xFEEF_FFFF, RegionType.MSI)
HT = ResvRegion(0xFD_0000_0000, 0xFF_FFFF_FFFF, RESERVED)
FIRST, LAST = 0x7A00_0000, 0x7A00_FFFF


class Usb(Device):
    class_code = 0x0C0330


class Graphics(Device):
    class_code = 0x030000


class IsaBridge(Device):
    class_code = 0x060100


class Conventional(Device):
    port_type = None


def reserve(machine, *addresses, first=FIRST, last=LAST, segment=0, **fields):
    requesters = tuple((address, address) for address in addresses)
    machine.reserved_regions.append(ReservedRegion(first, last, segment, requesters, **fields))


@pytest.fixture
def vtd():
    machine = Machine(1 << 20)
    VtdUnit(machine, VtdConfig(base=0xFED9_0000, geometry="tiny-2"))
    return machine


@pytest.fixture
def amdvi():
    machine = Machine(1 << 20)
    AmdviUnit(machine, AmdviConfig(base=0xFEB8_0000, geometry="tiny-2"))
    return machine


@pytest.fixture
def disk(vtd):
    """A device with an RMRR."""
    reserve(vtd, 0x28)
    return vtd.attach(Device("disk"), "00:05.0")


# Regions of a device.


def test_regions_of_a_vtd_device_are_the_msi_window(vtd):
    assert device_regions(vtd, vtd.attach(Device(), "00:05.0")) == [MSI]


def test_regions_of_an_amdvi_device_are_msi_window_and_hypertransport_range(amdvi):
    assert device_regions(amdvi, amdvi.attach(Device(), "00:05.0")) == [MSI, HT]


def test_regions_of_a_device_without_a_unit_are_none():
    machine = Machine(1 << 20)
    assert device_regions(machine, machine.attach(Device())) == []


def test_rmrr_is_a_direct_region(vtd, disk):
    assert device_regions(vtd, disk) == [ResvRegion(FIRST, LAST, DIRECT, "rw"), MSI]


def test_rmrr_of_another_device_is_none_of_its_regions(vtd, disk):
    assert device_regions(vtd, vtd.attach(Device(), "00:06.0")) == [MSI]


def test_rmrr_of_another_segment_is_none_of_its_regions(vtd):
    reserve(vtd, 0x28, segment=1)
    assert device_regions(vtd, vtd.attach(Device(), "00:05.0")) == [MSI]


@pytest.mark.parametrize("model", [Usb, Graphics])
def test_rmrr_of_usb_and_graphics_is_relaxable(vtd, model):
    reserve(vtd, 0x28)
    device = vtd.attach(model(), "00:05.0")
    assert device_regions(vtd, device) == [ResvRegion(FIRST, LAST, RELAXABLE, "rw"), MSI]


def test_rmrr_of_a_bridge_holds_for_devices_below(vtd):
    reserve(vtd, 0xE0)
    port = vtd.attach(Bridge("port"), "00:1c.0")
    assert requires_direct(vtd, vtd.attach(Device(), under=port))


def test_isa_bridge_has_the_first_16_mib_relaxable(vtd):
    bridge = vtd.attach(IsaBridge(), "00:1f.0")
    assert device_regions(vtd, bridge) == [ResvRegion(0, 0xFF_FFFF, RELAXABLE, "rw"), MSI]


def test_ivmd_is_direct_with_its_permissions_even_for_usb(amdvi):
    reserve(amdvi, 0x28, writable=False)
    device = amdvi.attach(Usb(), "00:05.0")
    assert device_regions(amdvi, device)[0] == ResvRegion(FIRST, LAST, DIRECT, "r")


def test_ivmd_of_a_bridge_does_not_hold_for_devices_below(amdvi):
    reserve(amdvi, 0xE0)
    port = amdvi.attach(Bridge("port"), "00:1c.0")
    assert not requires_direct(amdvi, amdvi.attach(Device(), under=port))


@pytest.mark.parametrize(
    ("age", "region"),
    [
        (KernelAge.LINUX_6_1, ResvRegion(FIRST, LAST, RESERVED)),
        (KernelAge.LINUX_7_2, ResvRegion(FIRST, LAST, DIRECT, "rw")),
    ],
)
def test_ivmd_exclusion_range_by_kernel_age(amdvi, age, region):
    reserve(amdvi, 0x28, exclusion=True)
    assert device_regions(amdvi, amdvi.attach(Device(), "00:05.0"), age)[0] == region


# Regions of a group.


def test_group_regions_that_touch_are_one(vtd):
    reserve(vtd, 0x28)
    reserve(vtd, 0x29, first=LAST + 1, last=LAST + 0x1000)
    vtd.attach(Device(), "00:05.0")
    vtd.attach(Device(), "00:05.1")
    (group,) = IommuGroups(vtd)
    assert group_regions(vtd, group) == [ResvRegion(FIRST, LAST + 0x1000, DIRECT, "rw"), MSI]


def test_group_regions_of_two_types_stay_two(vtd):
    reserve(vtd, 0x28, 0x29)
    vtd.attach(Usb(), "00:05.0")
    vtd.attach(Device(), "00:05.1")
    (group,) = IommuGroups(vtd)
    assert [region.type for region in group_regions(vtd, group)] == [
        DIRECT,
        RELAXABLE,
        RegionType.MSI,
    ]


def test_group_regions_in_sysfs(vtd):
    reserve(vtd, 0x28)
    vtd.attach(Usb(), "00:05.0")
    (group,) = IommuGroups(vtd)
    assert format_regions(group_regions(vtd, group)) == (
        "0x000000007a000000 0x000000007a00ffff direct-relaxable\n"
        "0x00000000fee00000 0x00000000feefffff msi\n"
    )


@pytest.mark.parametrize(
    ("kind", "text"), [(DIRECT, "direct"), (RESERVED, "reserved"), (RegionType.SW_MSI, "msi")]
)
def test_region_type_in_sysfs(kind, text):
    assert kind.text == text


# Who may be claimed for user space.


def test_rmrr_device_is_refused_the_blocking_domain_by_the_core(vtd, disk):
    with pytest.raises(RefusedError, match=r"^-EINVAL: 0000:00:05.0 must keep") as refusal:
        check_blocking_domain(vtd, disk, KernelAge.LINUX_7_2)
    assert refusal.value.log == (
        "vfio-pci 0000:00:05.0: Firmware has requested this device have a 1:1 IOMMU mapping"
    )


def test_rmrr_device_is_refused_a_user_domain_by_the_old_driver(vtd, disk):
    with pytest.raises(RefusedError, match=r"^-EPERM: 0000:00:05.0 may go on") as refusal:
        check_user_domain(vtd, disk, KernelAge.LINUX_6_1)
    assert refusal.value.log == (
        "vfio-pci 0000:00:05.0: DMAR: Device is ineligible for IOMMU domain attach "
        "due to platform RMRR requirement"
    )


@pytest.mark.parametrize(
    ("age", "error"),
    [(KernelAge.UNCHECKED, None), (KernelAge.LINUX_6_1, "EPERM"), (KernelAge.LINUX_7_2, "EINVAL")],
)
def test_eligibility_of_an_rmrr_device_by_kernel_age(vtd, disk, age, error):
    refusal = eligibility(vtd, disk, age)
    assert (refusal and refusal.error) == error


@pytest.mark.parametrize("age", KernelAge)
def test_eligibility_of_a_relaxable_device_at_any_age(vtd, age):
    reserve(vtd, 0x28)
    assert eligibility(vtd, vtd.attach(Usb(), "00:05.0"), age) is None


@pytest.mark.parametrize(
    ("age", "error"), [(KernelAge.LINUX_6_1, None), (KernelAge.LINUX_7_2, "EINVAL")]
)
def test_eligibility_of_an_ivmd_device_by_kernel_age(amdvi, age, error):
    reserve(amdvi, 0x28)
    refusal = eligibility(amdvi, amdvi.attach(Usb(), "00:05.0"), age)
    assert (refusal and refusal.error) == error


def test_eligibility_on_a_platform_follows_its_table():
    machine = Machine.from_platform("server-4-unit")
    vga = machine.attach(Conventional("BMC"), machine.places["BMC VGA"])
    refusal = eligibility(machine, vga)
    assert refusal is not None
    assert "0x75460000..0x75470fff" in refusal.reason


# Which addresses user space may map.

REGIONS = [ResvRegion(FIRST, LAST, DIRECT, "rw"), ResvRegion(0, 0xFFFF, RELAXABLE, "rw"), MSI]


def test_usable_iova_leaves_out_all_but_relaxable_regions():
    assert usable_iova(REGIONS, (1 << 39) - 1) == [
        (0, FIRST - 1),
        (LAST + 1, 0xFEDF_FFFF),
        (0xFEF0_0000, (1 << 39) - 1),
    ]


def test_usable_iova_ends_inside_a_region():
    assert usable_iova(REGIONS, FIRST + 5) == [(0, FIRST - 1)]


def test_usable_iova_regions_may_overlap():
    inner = ResvRegion(FIRST + 0x1000, FIRST + 0x1FFF, RESERVED)
    assert usable_iova([*REGIONS, inner], LAST + 1) == [(0, FIRST - 1), (LAST + 1, LAST + 1)]


@pytest.mark.parametrize(
    ("iova", "size"), [(0, 0x1000), (FIRST - 0x1000, 0x1000), (LAST + 1, 0x1000)]
)
def test_iova_beside_reserved_regions_or_in_a_relaxable_one_is_allowed(iova, size):
    assert check_iova(REGIONS, iova, size) is None


@pytest.mark.parametrize(
    ("iova", "size"), [(FIRST - 1, 2), (LAST, 1), (0, 1 << 32), (0xFEE0_0000, 4)]
)
def test_iova_that_overlaps_a_reserved_region_is_refused(iova, size):
    with pytest.raises(RefusedError, match=r"^-EINVAL: .* overlap the reserved region"):
        check_iova(REGIONS, iova, size)


@pytest.mark.parametrize(("iova", "size"), [(-1, 1), (0, 0), (1 << 64, 1), ((1 << 64) - 1, 2)])
def test_iova_outside_64_bits_is_an_error(iova, size):
    with pytest.raises(ValueError, match="must name bytes in"):
        check_iova(REGIONS, iova, size)


# Direct mappings in the kernel's domains.


@pytest.fixture
def domain(vtd):
    driver = VtdDriver(vtd, vtd.units[0], range(0x4_0000, 0x8_0000))
    driver.start()
    return driver.create_domain(3)


def test_map_direct_maps_direct_and_relaxable_regions_one_to_one(domain):
    assert map_direct(domain, REGIONS) == 0x2_0000
    assert domain.table.lookup(FIRST + 0x1234) == (FIRST + 0x1234, Access.READ | Access.WRITE)
    assert domain.table.lookup(0xFEE0_0000) is None


def test_map_direct_leaves_pages_that_are_mapped(domain):
    domain.map(FIRST + 0x1000, 0x5000, 0x1000, "r")
    assert map_direct(domain, REGIONS[:1]) == LAST + 1 - FIRST - 0x1000
    assert domain.table.lookup(FIRST + 0x1000) == (0x5000, Access.READ)


def test_map_direct_twice_maps_nothing_more(domain):
    map_direct(domain, REGIONS)
    assert map_direct(domain, REGIONS) == 0


@pytest.mark.parametrize("base", [1 << 39, 0])
def test_map_direct_of_what_cannot_be_leaves_nothing_mapped(domain, base):
    size = 0x1000 if base else 1 << 33
    available = domain._driver.frames.available
    with pytest.raises(ValueError):
        map_direct(domain, [*REGIONS, ResvRegion(base, base + size - 1, DIRECT, "rw")])
    assert domain.table.lookup(FIRST) is None
    assert domain._driver.frames.available == available


def test_map_direct_lets_an_rmrr_device_reach_its_memory(vtd):
    device = vtd.attach(Device(), "00:05.0")
    reserve(vtd, 0x28, first=0x1_0000, last=0x1_0FFF)
    driver = VtdDriver(vtd, vtd.units[0], range(0x4_0000, 0x8_0000))
    driver.start()
    domain = driver.create_domain(3)
    map_direct(domain, device_regions(vtd, device))
    driver.attach(domain, 0x28)
    assert device.dma.write(0x1_0FF0, b"status").ok
    assert vtd.memory.read(0x1_0FF0, 6) == b"status"
