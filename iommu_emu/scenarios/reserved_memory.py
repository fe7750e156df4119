"""reserved-memory: devices that firmware lets use memory behind the operating system's back."""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.clock import MILLISECOND
from iommu_emu.core import BytesLike, Completion
from iommu_emu.devices.malicious import MaliciousDevice
from iommu_emu.devices.malicious.rmrr_squatter import RmrrSquatter
from iommu_emu.direction import Direction
from iommu_emu.linux.reserved_regions import (
    MSI_WINDOW,
    KernelAge,
    format_regions,
    group_regions,
)
from iommu_emu.linux.vfio import UserDomain, Vfio
from iommu_emu.machine import ReservedRegion
from iommu_emu.pci.capabilities import PortType
from iommu_emu.pci.topology import Bridge
from iommu_emu.policies.policy import LinuxPolicy, XenPolicy
from iommu_emu.refused import RefusedError
from iommu_emu.scenarios.laboratory import PAGE, RAM, Laboratory
from iommu_emu.scenarios.result import Costs, Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import guest_costs, user_costs

LINUX = ("rmrr-unchecked", "rmrr-mapped", "rmrr-excluded", "rmrr-direct")
STATUS = 64  # bytes that the device's firmware writes for the platform, again and again
LOCAL = range(0xFFFF_0000, 1 << 32)  # what a careless device takes for its own registers

__all__ = ["SCENARIO"]


class Controller(RmrrSquatter):
    """A storage controller that reports its health to the platform through memory of firmware's.

    Its firmware does so whatever an operating system has in mind for the device.
    """

    class_code = 0x010400

    def __init__(self, name: str = "controller") -> None:
        super().__init__(name, looks_like=(0x103C, 0x323A))


class LegacyKeyboard(Controller):
    """A USB controller whose legacy keyboard emulation was never switched off."""

    class_code = 0x0C0330


class CarelessCard(MaliciousDevice):
    """A card that takes DMA addresses in `LOCAL` for registers of its own.

    Attributes:
        local: bytes that went there instead of to memory.
    """

    class_code = 0x020000

    def __init__(self, name: str = "careless card") -> None:
        super().__init__(name)
        self.local = bytearray(len(LOCAL))

    def receive(self, iova: int, data: BytesLike) -> Completion | None:
        """Write a packet; None: it never left the card."""
        if iova in LOCAL:
            at = iova - LOCAL.start
            self.local[at : at + len(bytes(data))] = data
            return None
        return self.write(iova, data)


@dataclass
class _Bench:
    """A device with reserved memory.

    Attributes:
        vfio: VFIO of the policy's kernel.
        device: the device.
        region: its memory, of the platform's RAM.
        secret: what the platform keeps there.
        status: what the device's firmware writes there.
    """

    vfio: Vfio
    device: Controller
    region: ReservedRegion
    secret: bytes
    status: bytes


def _bench(lab: Laboratory, device: Controller) -> _Bench:
    lab.attach(device)
    region = lab.reserve(device)
    secret = lab.plant(region.base, PAGE)
    bench = _Bench(lab.vfio, device, region, secret, bytes(STATUS))
    lab.say(f"Firmware reserves {region.base:#x}..{region.limit:#x} for the {device.name}.")
    if lab.linux.age is not KernelAge.UNCHECKED:
        regions = group_regions(lab.machine, bench.vfio.rule(device).group, lab.linux.age)
        shown = "; ".join(format_regions(regions).splitlines())
        lab.say(f"Its group's reserved_regions file shows: {shown}.")
    return bench


def _open(lab: Laboratory, bench: _Bench) -> UserDomain | None:
    """Let user space have the device; None: the kernel refuses."""
    bench.vfio.bind(bench.device, "vfio-pci")
    try:
        return bench.vfio.open(bench.device)
    except RefusedError as error:
        lab.refuse(error)
        lab.say("The kernel does not give the device away.")
        return None


def _give_memory(lab: Laboratory, domain: UserDomain, at: int, size: int = PAGE) -> int | None:
    """Map memory of the guest's with a secret in it; None: the kernel refuses."""
    page = lab.linux.memory.alloc_pages(size // PAGE, "guest")
    lab.machine.memory.write(page, lab.secret(size))
    try:
        domain.map(at, page, size)
    except RefusedError as error:
        lab.refuse(error)
        return None
    return page


# ---- a device that goes on using its memory ---------------------------------------------------


def _under_kernel(lab: Laboratory) -> Outcome:
    """No attack: firmware's traffic goes on under the kernel's own driver, and nothing is lost."""
    bench = _bench(lab, Controller())
    bench.vfio.bind(bench.device, "nvme")
    got = lab.read(bench.device, bench.region.base, PAGE)
    lab.write(bench.device, bench.region.base, bench.status)
    lost = (
        lab.changed(bench.region.base, bench.status) + PAGE - lab.matching(got.data, bench.secret)
    )
    if lost:
        lab.say("Under the kernel's own driver the device is cut off from it.")
    else:
        lab.say(
            "The kernel maps it 1:1 for its own driver, before the device is attached: firmware "
            "does not notice anything."
        )
    return Outcome(corrupted=lost)


def _claim(lab: Laboratory) -> Outcome:
    if isinstance(lab.policy, XenPolicy):
        return _assign(lab, guest_page=False)[0]
    bench = _bench(lab, Controller())
    if _open(lab, bench) is None:
        return lab.outcome()
    if lab.write(bench.device, bench.region.base, bench.status).ok:
        lab.say("The kernel gives it away with that memory, and firmware does not notice anything.")
    else:
        lab.say(
            "The kernel gives it away, into a domain without that memory. Its firmware goes on, "
            "and every access faults from now on: what the platform wanted to know, it never does."
        )
    return lab.outcome()


def _squat(lab: Laboratory) -> Outcome:
    if isinstance(lab.policy, XenPolicy):
        return _assign(lab, guest_page=True)[0]
    return _squat_as(lab, Controller())


def _squat_relaxed(lab: Laboratory) -> Outcome:
    return _squat_as(lab, LegacyKeyboard("USB controller"))


def _squat_as(lab: Laboratory, device: Controller) -> Outcome:
    bench = _bench(lab, device)
    domain = _open(lab, bench)
    if domain is None:
        return lab.outcome()
    page = _give_memory(lab, domain, bench.region.base)
    if page is None:
        lab.say("The guest's memory map must have a hole there, as firmware's has on the host.")
    return _use_region(lab, bench, page)


def _use_region(lab: Laboratory, bench: _Bench, page: int | None) -> Outcome:
    """Let firmware's traffic go on; count what it gets and changes of the guest's page."""
    guest = b"" if page is None else lab.machine.memory.read(page, PAGE)
    lab.revoke("everything but the guest's memory, where the guest's driver wants it")
    got = lab.read(bench.device, bench.region.base, STATUS)
    later = lab.clock.now + MILLISECOND
    written = lab.write(bench.device, bench.region.base, bench.status, until=later)
    if page is None:
        lab.say(f"Firmware's accesses {'reach its memory' if written.ok else 'fault'}.")
        return Outcome()
    leaked = lab.matching(got.data, guest[:STATUS])
    corrupted = lab.changed(page, guest)
    if leaked or corrupted:
        noticed = "and the log tells of it" if lab.faults() else "and no access faults"
        lab.say(
            "The same address means a page of the guest's now. Firmware reads it for a command and "
            f"writes its status over it again and again, {noticed}."
        )
    else:
        lab.say("Firmware goes on, and every access faults.")
    return lab.outcome(leaked=leaked, corrupted=corrupted, forever=written.completion.ok)


def _assign(lab: Laboratory, *, guest_page: bool) -> tuple[Outcome, Controller, bytes]:
    """Let Xen assign a device to a guest, with memory of the guest's at its region or not."""
    device = lab.attach(Controller())
    region = lab.reserve(device)
    secret = lab.plant(region.base, PAGE)
    lab.say(f"Firmware reserves {region.base:#x}..{region.limit:#x} for the {device.name}.")
    ram = range(RAM.start, RAM.start + PAGE)
    guest = lab.xen.create_domain("guest", ram, region.base // PAGE if guest_page else 0)
    try:
        lab.xen.assign(device, guest)
    except RefusedError as error:
        lab.refuse(error)
        lab.say("Xen maps what is reserved 1:1 into the guest, and the guest has no hole for it.")
        return lab.outcome(), device, secret
    noticed = "does not notice anything" if lab.read(device, region.base, STATUS).ok else "faults"
    lab.say(f"Xen maps what is reserved 1:1 into the guest, so firmware {noticed}.")
    return lab.outcome(), device, secret


# ---- memory of the platform's in a guest ------------------------------------------------------


def _reach_platform(lab: Laboratory) -> Outcome:
    if isinstance(lab.policy, XenPolicy):
        _, device, secret = _assign(lab, guest_page=False)
        return _copy_region(lab, device, secret)
    bench = _bench(lab, Controller())
    if _open(lab, bench) is None:
        return lab.outcome()
    return _copy_region(lab, bench.device, bench.secret)


def _copy_region(lab: Laboratory, device: Controller, secret: bytes) -> Outcome:
    """Let the guest's driver point its device at the platform's memory."""
    (region,) = device.regions
    lab.say("The guest's driver tells the device to copy from and to that address.")
    lab.revoke("the platform's memory: a guest has the device")
    got = lab.read(device, region.base, PAGE)
    lab.write(device, region.base, bytes(PAGE))
    leaked = lab.matching(got.data, secret)
    corrupted = lab.changed(region.base, secret)
    if leaked or corrupted:
        lab.say("It is mapped for firmware's sake, and the guest reads and writes it at will.")
    else:
        lab.say("It is not mapped in the guest's domain: the device is stopped.")
    return lab.outcome(leaked=leaked, corrupted=corrupted, forever=bool(leaked or corrupted))


def _hot_add(lab: Laboratory) -> Outcome:
    if isinstance(lab.policy, XenPolicy):
        return _assign(lab, guest_page=True)[0]
    bench = _bench(lab, Controller())
    first = lab.attach(MaliciousDevice("first device"))
    bench.vfio.bind(first, "vfio-pci")
    running = bench.vfio.open(first)
    _give_memory(lab, running, bench.region.base)
    lab.say("A guest runs with another device, and has memory where the region is.")
    domain = _open(lab, bench)
    if domain is None:
        return lab.outcome()
    page = _give_memory(lab, domain, bench.region.base)
    if page is None:
        lab.say("A hole cannot be made in the memory of a guest that runs: no hot plug.")
        domain.close()
        return lab.outcome()
    return _use_region(lab, bench, page)


def _plug_into_group(lab: Laboratory) -> Outcome:
    return _plug_below(lab, lab.machine.attach(Bridge("port without ACS")))


def _plug_behind_bridge(lab: Laboratory) -> Outcome:
    return _plug_below(lab, lab.attach(Bridge("bridge", PortType.PCIE_TO_PCI), external=False))


def _plug_below(lab: Laboratory, port: Bridge) -> Outcome:
    """Plug a device with reserved memory in beside a guest's, below a bridge that isolates none."""
    first = lab.attach(MaliciousDevice("first device"), under=port)
    late = Controller()
    address = port.secondary_number << 8 | 2 << 3
    region = lab.reserve(address)
    secret = lab.plant(region.base, PAGE)
    bench = _Bench(lab.vfio, late, region, secret, bytes(STATUS))
    bench.vfio.bind(first, "vfio-pci")
    domain = bench.vfio.open(first)
    page = _give_memory(lab, domain, region.base)
    lab.say("A guest has a group. A device with reserved memory is plugged into the same group.")
    try:
        lab.machine.attach(late, 2 << 3, under=port)
        lab.linux.add(late)
    except RefusedError as error:
        lab.refuse(error)
        lab.say("The kernel does not let it into the guest's domain.")
        if port.kind is PortType.PCIE_TO_PCI:
            lab.say("But its requests carry the bridge's requester ID, which is in there already.")
        return _use_region(lab, bench, page)
    if lab.linux.age is KernelAge.LINUX_7_2:
        lab.say(
            "The core refuses it the blocking domain alone, and that is not where its group is: "
            "it is put into the guest's domain, which has not got that memory either."
        )
    return _use_region(lab, bench, page)


# ---- addresses that must not be used -----------------------------------------------------------


def _map_over_reserved(lab: Laboratory) -> Outcome:
    device = lab.attach(MaliciousDevice("card"))
    vfio = lab.vfio
    vfio.bind(device, "vfio-pci")
    domain = vfio.open(device)
    first = MSI_WINDOW[0]
    lab.say("The guest has memory where the hardware takes writes for interrupts.")
    page = _give_memory(lab, domain, first)
    if page is None:
        lab.say("The kernel knows the reserved regions of the group, and says no.")
        return lab.outcome()
    before = lab.machine.memory.read(page, PAGE)
    lab.write(device, first, bytes(STATUS))
    reached = lab.changed(page, before)
    lab.say(f"The kernel maps it. Of the device's {STATUS} bytes {reached} reach that memory.")
    return lab.outcome()


def _local_unmarked(lab: Laboratory) -> Outcome:
    return _local_window(lab, marked=False)


def _local_marked(lab: Laboratory) -> Outcome:
    return _local_window(lab, marked=True)


def _local_window(lab: Laboratory, *, marked: bool) -> Outcome:
    """Let a careless card receive a packet, with or without an RMRR that marks its window."""
    card = lab.attach(CarelessCard())
    if marked:
        lab.reserve(card, len(LOCAL), base=LOCAL.start)
        lab.say("Firmware reserves the window for the card: a region that is no memory at all.")
    linux = lab.linux
    vfio = lab.vfio
    vfio.bind(card, "e1000e")
    known = linux.device(card)
    buffer = linux.dma.alloc_buffer(known, PAGE)
    packet = lab.secret(STATUS)
    iova = linux.dma.map_single(known, buffer, PAGE, Direction.FROM_DEVICE)
    card.receive(iova, packet)
    linux.dma.unmap_single(known, iova, PAGE, Direction.FROM_DEVICE)
    lost = lab.changed(buffer, packet)
    lab.say(
        f"The DMA API hands out {iova:#x} first: "
        + ("the card takes it for its own, and the packet is lost." if lost else "nothing is lost.")
    )
    if marked:
        vfio.unbind(card)
        vfio.bind(card, "vfio-pci")
        try:
            vfio.open(card)
            lab.say("The kernel thinks nothing of it when user space asks for the card.")
        except RefusedError as error:
            lab.refuse(error)
            lab.say("But the mark keeps the card from user space as a real region would.")
    return Outcome(corrupted=lost)


# ---- what it costs -------------------------------------------------------------------------------


def _costs(lab: Laboratory) -> Costs:
    """Let the kernel and user space, or a guest of Xen's, map and unmap."""
    return user_costs(lab) if isinstance(lab.policy, LinuxPolicy) else guest_costs(lab)


SCENARIO = Scenario(
    name="reserved-memory",
    title="Devices that firmware lets use memory behind the operating system's back",
    question="Firmware reserved memory for a device (RMRR, IVMD). May user space have the device, "
    "and what comes of it if the device goes on using that memory?",
    source="Linux, 2014: 'iommu/intel: Exclude devices using RMRRs from IOMMU API domains', "
    "Alex Williamson and David Woodhouse",
    answer=(
        "A device that firmware goes on using must not come into a domain where that address "
        "is a guest's page. To refuse the device is safe, but for one that is plugged into a "
        "guest's conventional bus; to map the region as well keeps firmware content, and lets the "
        "guest into it. For regions that count as firmware's past, everybody hopes that they are."
    ),
    policies=(*LINUX, "xen-basic"),
    attacks=(
        Attack(
            name="claim-with-rmrr",
            summary="User space claims a device with reserved memory, which goes on using it.",
            run=_claim,
        ),
        Attack(
            name="firmware-under-kernel",
            summary="No attack: the kernel's own driver has the device, and firmware goes on.",
            run=_under_kernel,
            policies=LINUX,
        ),
        Attack(
            name="rmrr-squatter",
            summary="The same, and the guest has memory of its own at that address.",
            run=_squat,
        ),
        Attack(
            name="rmrr-squatter-relaxed",
            summary="The same with a USB controller, whose region counts as firmware's past.",
            run=_squat_relaxed,
            policies=LINUX,
        ),
        Attack(
            name="rmrr-reached-by-guest",
            summary="A guest makes its device read and write the platform's reserved memory.",
            run=_reach_platform,
        ),
        Attack(
            name="rmrr-hot-add",
            summary="The device is given to a guest that runs and has memory at that address.",
            run=_hot_add,
        ),
        Attack(
            name="rmrr-plug-into-claimed-group",
            summary="The device is plugged into a group that a guest has already.",
            run=_plug_into_group,
            policies=LINUX,
        ),
        Attack(
            name="rmrr-plug-behind-bridge",
            summary="The same on a conventional bus, where all requests carry the bridge's ID.",
            run=_plug_behind_bridge,
            policies=LINUX,
        ),
        Attack(
            name="map-over-reserved",
            summary="User space maps memory over an address that is reserved for interrupts.",
            run=_map_over_reserved,
            policies=LINUX,
        ),
        Attack(
            name="local-window-unmarked",
            summary="A card takes some DMA addresses for its own registers, and nobody knows.",
            run=_local_unmarked,
            policies=LINUX,
        ),
        Attack(
            name="local-window-marked",
            summary="Firmware marks those addresses with an RMRR, so that nobody uses them.",
            run=_local_marked,
            policies=LINUX,
        ),
    ),
    workload=_costs,
)
