"""What a kernel sets up at boot, and what it does when devices come, go, and change hands."""

import pytest
from linux_bed import BOTH, PAGE, TO, TOP, Bed, boot, new_machine, new_port

from iommu_emu.core import NotRamError, StateError
from iommu_emu.devices import Device, MaliciousDevice
from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.bound_group import DRIVERS
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flush_queue import GLOBAL_LIST
from iommu_emu.linux.parameters import KernelBuild
from iommu_emu.linux.reserved_regions import KernelAge
from iommu_emu.machine import ReservedRegion
from iommu_emu.pci.capabilities import Acs
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.capabilities import Capabilities

IDENTITY, STRICT, LAZY = DomainType.IDENTITY, DomainType.STRICT, DomainType.LAZY
VENDORS = ("vtd", "amdvi")


class Azalia(Device):
    vendor_id = 0x8086
    device_id = 0x3A3E


# Boot.


@pytest.mark.parametrize("iommu", VENDORS)
@pytest.mark.parametrize(
    ("parameters", "kind"),
    [
        ("", LAZY),
        ("iommu.strict=0", LAZY),
        ("iommu.strict=1", STRICT),
        ("iommu.passthrough=1", IDENTITY),
        ("iommu=pt iommu.strict=1", IDENTITY),
    ],
)
def test_kernel_default_domain_is_as_the_command_line_says(iommu, parameters, kind):
    assert Bed(iommu, parameters).device.domain.type is kind


@pytest.mark.parametrize("iommu", VENDORS)
@pytest.mark.parametrize("built", [IDENTITY, STRICT, LAZY])
def test_kernel_default_domain_is_as_it_was_built_unless_told_otherwise(iommu, built):
    build = KernelBuild(default=built)
    assert Bed(iommu, build=build).device.domain.type is built
    assert Bed(iommu, "iommu.strict=0 iommu=nopt", build=build).device.domain.type is LAZY


@pytest.mark.parametrize("iommu", VENDORS)
@pytest.mark.parametrize("parameters", ["", "iommu.passthrough=1"])
def test_kernel_device_that_is_not_trusted_is_strict(iommu, parameters):
    device = Bed(iommu, parameters, external=True).device
    assert (device.untrusted, device.domain.type) == (True, STRICT)


def test_kernel_says_at_boot_what_it_does():
    assert Bed("vtd", "iommu.strict=1").log() == [
        "iommu: Default domain type: Translated",
        "iommu: DMA domain TLB invalidation policy: strict mode (set via kernel command line)",
        "pci 0000:00:01.0: Adding to iommu group 0",
        "pci 0000:01:00.0: Adding to iommu group 1",
    ]


@pytest.mark.parametrize(
    ("iommu", "config", "line"),
    [
        (
            "vtd",
            {"capabilities": Capabilities(caching_mode=True)},
            "DMAR: IOMMU batching disallowed due to virtualization",
        ),
        ("amdvi", {"np_cache": True}, "AMD-Vi: Using strict mode due to virtualization"),
    ],
)
def test_kernel_is_strict_on_a_unit_that_caches_what_is_not_present(iommu, config, line):
    bed = Bed(iommu, "iommu.strict=0", config=config)
    assert bed.device.domain.type is STRICT
    assert line in bed.log()


def test_kernel_translates_strictly_where_vtd_has_no_pass_through():
    config = {"capabilities": Capabilities(pass_through=False)}
    assert Bed("vtd", "iommu.passthrough=1", config=config).device.domain.type is STRICT


@pytest.mark.parametrize(("iommu", "off"), [("vtd", "intel_iommu=off"), ("amdvi", "amd_iommu=off")])
def test_kernel_without_iommu_lets_devices_through(iommu, off):
    bed = Bed(iommu, off)
    iova = bed.dma.map_single(bed.device, 0x60_0000, 4, TO)
    assert (iova, bed.evil.read(0x70_0000, 4).ok) == (0x60_0000, True)
    assert not bed.device.translated
    with pytest.raises(StateError, match="no IOMMU in use is before it"):
        _ = bed.device.group


@pytest.mark.parametrize(
    ("parameters", "external", "translated"),
    [
        ("", True, True),
        ("", False, False),
        ("iommu=off", True, True),
        ("intel_iommu=off", True, False),
    ],
)
def test_kernel_built_without_vtd_obeys_the_platforms_opt_in(parameters, external, translated):
    machine = new_machine("vtd")
    machine.platform_opt_in = True
    inside = machine.attach(MaliciousDevice("inside"), under=new_port(machine))
    outside = machine.attach(MaliciousDevice("outside"), under=new_port(machine, external=external))
    linux = boot(machine, parameters, build=KernelBuild(intel_on=False))
    kinds = [linux.device(function).domain.type for function in (inside, outside)]
    assert kinds == [IDENTITY, STRICT if translated else IDENTITY]
    line = "DMAR: Intel-IOMMU force enabled due to platform opt in"
    assert (line in [str(each.text) for each in linux.log]) is translated


@pytest.mark.parametrize("iommu", VENDORS)
def test_kernel_blocks_what_is_not_mapped(iommu):
    assert not Bed(iommu).evil.read(0x60_0000, 4).ok


@pytest.mark.parametrize("iommu", VENDORS)
def test_kernel_maps_reserved_regions_before_it_attaches(iommu):
    machine = new_machine(iommu)
    evil = machine.attach(MaliciousDevice("evil"), under=new_port(machine))
    requesters = ((evil.address, evil.address),)
    machine.reserved_regions.append(ReservedRegion(0x8000, 0x9FFF, 0, requesters))
    linux = boot(machine)
    assert evil.read(0x8000, 4).ok
    assert linux.leaks()["mapped pages"] == 2


def test_kernel_needs_room_for_its_bounce_buffers():
    with pytest.raises(ValueError, match="make ram larger, or the pool smaller"):
        Bed("vtd", pool_size=64 << 20)


@pytest.mark.parametrize("size", [128 << 10, 768 << 10])
def test_kernel_refuses_a_pool_that_swiotlb_cannot_be(size):
    with pytest.raises(ValueError, match="pool_size must be 0 or a power of two"):
        Bed("vtd", pool_size=size)


def test_kernel_refuses_ram_that_overlaps_its_frames():
    with pytest.raises(ValueError, match="ram and frames must not overlap"):
        Bed("vtd", frames=range(0x40_0000, 0x51_0000))


def test_kernel_refuses_ram_that_is_none():
    with pytest.raises(NotRamError):
        Bed("vtd", ram=range(0x80_0000, 0x200_0000))


def test_kernel_pool_size_of_the_command_line_wins():
    assert Bed("vtd", "swiotlb=256", external=True).linux.pool.size == 512 << 10


# Devices that come and go.


@pytest.mark.parametrize("iommu", VENDORS)
def test_kernel_takes_in_a_device_that_is_plugged_in(iommu):
    bed = Bed(iommu)
    device = bed.plug(late := MaliciousDevice("late"))
    iova = bed.dma.map_single(device, 0x60_0000, PAGE, TO)
    assert late.read(iova, 4).ok
    assert device.group is not bed.device.group


def test_kernel_refuses_a_device_it_knows():
    bed = Bed("vtd")
    with pytest.raises(ValueError, match=r"0000:01:00.0 is known already"):
        bed.linux.add(bed.evil)


def test_kernel_does_not_know_what_was_not_added():
    bed = Bed("vtd")
    stranger = bed.machine.attach(MaliciousDevice("stranger"))
    with pytest.raises(ValueError, match="stranger is no device of this kernel"):
        bed.linux.device(stranger)


@pytest.mark.parametrize("iommu", VENDORS)
def test_kernel_device_that_goes_leaves_nothing(iommu):
    bed = Bed(iommu, "iommu.strict=0")
    domains = set(bed.device.driver.domains)
    bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    bed.dma.alloc_coherent(bed.device, PAGE)
    bed.linux.remove(bed.evil)
    assert set(bed.linux.leaks().values()) == {0}
    assert set(bed.device.driver.domains) < domains
    assert not bed.evil.read(TOP, 4).ok


def test_kernel_untrusted_member_makes_the_group_strict_whoever_is_first():
    machine = new_machine("vtd")
    port = new_port(machine, external=True, acs=Acs.NONE)  # one group with what is below it
    evil = machine.attach(MaliciousDevice("evil"), under=port)
    linux = boot(machine)
    assert linux.device(evil).group.members == linux.device(port).group.members
    assert linux.device(port).domain.type is STRICT


def test_kernel_driver_that_insists_on_identity_gets_it():
    bed = Bed("vtd")
    audio = bed.machine.attach(Azalia("audio"))
    assert bed.linux.add(audio).domain.type is IDENTITY


def test_kernel_refuses_an_untrusted_device_that_must_be_identity():
    bed = Bed("vtd")
    audio = Azalia("audio")
    with pytest.raises(RefusedError, match=r"-EINVAL: 0000:02:00.0 is not trusted"):
        bed.plug(audio, external=True)
    assert bed.log()[-1] == (
        "pci 0000:02:00.0: Device is not trusted, but driver is overriding group 3 to Passthrough, "
        "refusing to probe."
    )
    assert bed.linux.groups.of(audio) is None
    assert not audio.dma.read(0x60_0000, 4).ok


def test_kernel_that_cannot_map_a_reserved_region_leaves_the_device_blocked():
    bed = Bed("vtd")
    before, domains = bed.linux.leaks(), len(bed.device.driver.domains)
    requesters = ((0x0200, 0x0200),)
    bed.machine.reserved_regions.append(ReservedRegion(1 << 50, (1 << 50) + 4095, 0, requesters))
    with pytest.raises(RefusedError, match="-EINVAL"):
        bed.plug(late := MaliciousDevice("late"))
    assert bed.log()[-1] == (
        "pci 0000:02:00.0: IOMMU driver was not able to establish FW requested direct mapping."
    )
    assert (bed.linux.leaks(), late in bed.linux.devices) == (before, False)
    assert len(bed.device.driver.domains) == domains + 1  # the port's


def test_kernel_boots_beside_a_device_that_it_refuses():
    machine = new_machine("vtd")
    audio = machine.attach(Azalia("audio"), under=new_port(machine, external=True))
    linux = boot(machine)
    assert (audio in linux.devices, linux.groups.of(audio)) == (False, None)


# The type of a group.


@pytest.mark.parametrize("iommu", VENDORS)
def test_type_changes_live_from_dma_to_dma_fq(iommu):
    bed = Bed(iommu, "iommu.strict=1")
    iova = bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    bed.linux.set_type(bed.device.group, "DMA-FQ")
    assert bed.evil.read(iova, 4).ok
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    assert bed.evil.read(iova, 4).ok


@pytest.mark.parametrize("text", ["identity", "DMA", "auto"])
def test_type_change_is_refused_while_a_driver_is_bound(text):
    bed = Bed("vtd", "iommu.strict=0")
    bed.linux.ownership(bed.device.group).bind(bed.evil, DRIVERS["e1000e"])
    with pytest.raises(RefusedError, match=r"-EPERM: 0000:01:00.0 is bound to e1000e"):
        bed.linux.set_type(bed.device.group, text)
    assert bed.device.domain.type is LAZY


def test_type_change_was_refused_with_a_log_line_before_linux_6_4():
    bed = Bed("vtd", "iommu.strict=0", age=KernelAge.LINUX_6_1)
    bed.linux.ownership(bed.device.group).bind(bed.evil, DRIVERS["e1000e"])
    with pytest.raises(RefusedError, match="-EBUSY"):
        bed.linux.set_type(bed.device.group, "DMA")
    assert bed.log()[-1] == "iommu: Device is still bound to driver"


def test_type_change_is_refused_while_buffers_are_mapped():
    bed = Bed("vtd", "iommu.strict=0")
    bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    with pytest.raises(RefusedError, match="-EPERM: group 1 has 1 buffers mapped"):
        bed.linux.set_type(bed.device.group, "DMA")


@pytest.mark.parametrize("iommu", VENDORS)
def test_type_change_without_drivers_makes_a_new_domain(iommu):
    bed = Bed(iommu, "iommu.strict=0")
    before = bed.linux.leaks()
    old = bed.device.domain
    bed.linux.set_type(bed.device.group, "identity")
    assert (bed.device.domain.type, bed.evil.read(0x60_0000, 4).ok) == (IDENTITY, True)
    bed.linux.set_type(bed.device.group, "auto")
    assert (bed.device.domain.type, bed.evil.read(0x60_0000, 4).ok) == (LAZY, False)
    assert bed.device.domain is not old
    assert bed.linux.leaks() == before


def test_type_that_is_none_is_refused():
    bed = Bed("vtd")
    with pytest.raises(RefusedError, match="-EINVAL: type must be one of identity, DMA, DMA-FQ"):
        bed.linux.set_type(bed.device.group, "lazy")


def test_type_of_an_untrusted_device_stays_strict():
    bed = Bed("vtd", external=True)
    with pytest.raises(RefusedError, match=r"-EINVAL: group 1 must have type DMA, as 0000:01:00.0"):
        bed.linux.set_type(bed.device.group, "identity")


def test_type_of_an_untrusted_device_can_be_made_lazy_live():
    bed = Bed("vtd", external=True)
    bed.linux.set_type(bed.device.group, "DMA-FQ")  # nobody looks at trust on this way
    assert bed.device.domain.type is LAZY


def test_type_of_an_untrusted_device_could_not_be_made_lazy_before():
    bed = Bed("vtd", external=True, age=KernelAge.LINUX_6_1)
    with pytest.raises(RefusedError, match=r"-EINVAL: 0000:01:00.0 is not trusted"):
        bed.linux.set_type(bed.device.group, "DMA-FQ")
    assert bed.log()[-1] == "pci 0000:01:00.0: Device cannot be in Translated domain"
    assert bed.device.domain.type is STRICT


def test_type_of_a_device_that_is_bounced_in_part_stays_strict():
    bed = Bed("vtd", external=True, bounce=BounceRule.HEAD_TAIL)
    with pytest.raises(RefusedError, match="bounced in part must be unmapped strictly"):
        bed.linux.set_type(bed.device.group, "DMA-FQ")


# The attribute that was proposed.


def test_attribute_of_root_changes_the_whole_group():
    machine = new_machine("vtd")
    port = new_port(machine, acs=Acs.NONE)
    first, second = (
        machine.attach(MaliciousDevice(name, (0x8086, number)), under=port)
        for name, number in (("first", 1), ("second", 2))
    )
    linux = boot(machine, "iommu.strict=1")
    linux.attribute(first, lazy=True)
    assert linux.device(second).domain.type is LAZY


@pytest.mark.parametrize("external", [False, True])
def test_attribute_is_inherited_by_whoever_has_the_same_ids(external):
    bed = Bed("vtd", "iommu.strict=1")
    bed.linux.attribute(bed.evil, lazy=True)
    impostor = bed.plug(MaliciousDevice("impostor"), external=external)
    assert (impostor.untrusted, impostor.domain.type) == (False, LAZY)


def test_attribute_does_not_hold_for_other_ids():
    bed = Bed("vtd", "iommu.strict=1")
    bed.linux.attribute(bed.evil, lazy=True)
    other = bed.plug(MaliciousDevice("other", (0x8086, 0x10D3)))
    assert other.domain.type is STRICT


# User space.


@pytest.mark.parametrize("iommu", VENDORS)
def test_ownership_moves_the_group_for_real(iommu):
    bed = Bed(iommu, "iommu.passthrough=1")
    ownership = bed.linux.ownership(bed.device.group)
    ownership.claim("QEMU")
    blocked = bed.evil.read(0x60_0000, 4).ok
    domain = bed.linux.user_domain(bed.device.group)
    domain.map(0x1000, 0x60_0000, PAGE)
    ownership.attach_domain(domain)
    mapped = bed.evil.read(0x1000, 4).ok
    ownership.release()
    assert (blocked, mapped, bed.evil.read(0x60_0000, 4).ok) == (False, True, True)


@pytest.mark.parametrize("iommu", VENDORS)
def test_ownership_of_user_space_is_strict_whatever_the_default(iommu):
    bed = Bed(iommu, "iommu.strict=0")
    ownership = bed.linux.ownership(bed.device.group)
    ownership.claim("QEMU")
    domain = bed.linux.user_domain(bed.device.group)
    domain.map(0x1000, 0x60_0000, PAGE)
    ownership.attach_domain(domain)
    assert bed.evil.read(0x1000, 4).ok
    domain.unmap(0x1000, PAGE)
    assert not bed.evil.read(0x1000, 4).ok


def test_ownership_keeps_the_kernels_dma_out():
    bed = Bed("vtd")
    bed.linux.ownership(bed.device.group).claim("QEMU")
    with pytest.raises(StateError, match=r"the DMA of 0000:01:00.0 is not the kernel's"):
        bed.dma.map_single(bed.device, 0x60_0000, PAGE, BOTH)


def test_ownership_of_lazy_leftovers_is_released_by_the_timer():
    bed = Bed("vtd", "iommu.strict=0")
    before = bed.linux.leaks()
    iova = bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    bed.linux.ownership(bed.device.group).claim("QEMU")
    bed.machine.clock.advance(10_000_000)
    assert bed.linux.leaks() == before


# What an administrator sees.


def test_faults_are_printed_as_vtd_prints_them():
    bed = Bed("vtd")
    bed.evil.write(0x60_0000, b"x")
    (line,) = bed.linux.faults()
    assert line.startswith(
        "DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x600000 "
        "[fault reason 0x05] "
    )
    assert bed.log()[-1] == line


def test_faults_are_printed_as_amdvi_prints_them():
    bed = Bed("amdvi")
    bed.evil.write(0x60_0123, b"x")
    assert bed.linux.faults() == [
        "evil 0000:01:00.0: AMD-Vi: Event logged "
        f"[IO_PAGE_FAULT domain={bed.device.domain.number:#06x} address=0x600123 flags=0x0020]"
    ]


def test_faults_are_taken_once():
    bed = Bed("vtd")
    bed.evil.write(0x60_0000, b"x")
    bed.linux.faults()
    assert bed.linux.faults() == []


def test_kernel_with_the_list_of_all_domains_flushes_every_unit_at_once():
    bed = Bed("vtd", "iommu.strict=0", queue=GLOBAL_LIST)
    device = bed.plug(other := MaliciousDevice("other"))
    pairs = [(bed.evil, bed.device), (other, device)]
    iovas = [bed.dma.map_single(d, 0x60_0000, PAGE, TO) for _, d in pairs]
    for (function, d), iova in zip(pairs, iovas, strict=True):
        function.read(iova, 4)
        bed.dma.unmap_single(d, iova, PAGE, TO)
    assert bed.device.domain.queue is device.domain.queue
    bed.machine.clock.advance(10_000_000)
    assert [f.read(i, 4).ok for (f, _), i in zip(pairs, iovas, strict=True)] == [False, False]
