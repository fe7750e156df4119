"""dma-ownership: who may drive what is in a group with a device of user space."""

from __future__ import annotations

from dataclasses import dataclass, field

from iommu_emu.core import Access, Completion
from iommu_emu.devices.base import Device
from iommu_emu.devices.malicious.peer_to_peer_writer import PeerToPeerWriter
from iommu_emu.devices.shpc_bridge import COMMAND, ShpcBridge, SlotState, slot_command
from iommu_emu.linux.bound_group import DRIVERS
from iommu_emu.linux.vfio import UserDomain, Vfio
from iommu_emu.linux.vfio_notifier import KernelBugError
from iommu_emu.pci.capabilities import Acs, PortType
from iommu_emu.pci.config_space import SIZE as CONFIG_SIZE
from iommu_emu.pci.function import Function
from iommu_emu.pci.topology import Bridge
from iommu_emu.refused import RefusedError
from iommu_emu.scenarios.laboratory import PAGE, Laboratory
from iommu_emu.scenarios.result import Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import user_costs

ISOLATED = (
    Acs.SOURCE_VALIDATION | Acs.REQUEST_REDIRECT | Acs.COMPLETION_REDIRECT | Acs.UPSTREAM_FORWARDING
)
GUEST = 0x10_0000  # where the guest's memory is, as its devices see it
DISABLE = slot_command(1, SlotState.DISABLED)

__all__ = ["SCENARIO"]


class _Card(PeerToPeerWriter):
    """The attacker as a card for a conventional bus."""

    port_type = None


class _Disk(Device):
    """Somebody else's device; what it does does not matter."""

    class_code = 0x010802


class _ConventionalDisk(_Disk):
    port_type = None


@dataclass
class _Bench:
    """What an attack has built.

    Attributes:
        vfio: VFIO of the policy's kernel.
        device: the attacker.
        bridge: has registers that a driver of the kernel may rely on.
        others: further endpoints in the attacker's group.
    """

    vfio: Vfio
    device: PeerToPeerWriter
    bridge: ShpcBridge
    others: list[Device] = field(default_factory=list)


def _conventional(lab: Laboratory) -> _Bench:
    """Build a conventional bus: a bridge with a hot-plug controller, the attacker, a disk."""
    bridge = lab.attach(ShpcBridge("bridge"), external=False)
    device = lab.attach(_Card("card"), under=bridge)
    disk = lab.attach(_ConventionalDisk("disk"), under=bridge)
    bench = _Bench(lab.vfio, device, bridge, [disk])
    lab.say(
        "Requests from the conventional bus carry the bridge's requester ID, and between two "
        "cards on it they never leave it: bridge, card and disk are one group."
    )
    return bench


def _switch(lab: Laboratory, acs: Acs) -> _Bench:
    """Build a switch: the attacker below one port, a bridge with a controller below the other."""
    upstream = lab.attach(Bridge("upstream port", PortType.UPSTREAM), external=False)
    ports = [
        lab.attach(Bridge(f"switch port {name}", PortType.DOWNSTREAM, acs=acs), under=upstream)
        for name in "AB"
    ]
    device = lab.attach(PeerToPeerWriter("card"), under=ports[0])
    bridge = lab.attach(ShpcBridge("bridge"), under=ports[1])
    bench = _Bench(lab.vfio, device, bridge)
    for port in ports:
        bench.vfio.bind(port, "pcieport")
    return bench


def _open(lab: Laboratory, bench: _Bench) -> UserDomain | None:
    """Let user space have the attacker's group; None: the kernel refuses."""
    bench.vfio.bind(bench.device, "vfio-pci")
    try:
        domain = bench.vfio.open(bench.device)
    except RefusedError as error:
        lab.refuse(error)
        return None
    lab.note("user space has the group", lane="QEMU")
    return domain


def _disable_slot(lab: Laboratory, bench: _Bench) -> int:
    """Let the device write the controller's command peer to peer; return bytes changed."""
    before = bench.bridge.registers
    driver = bench.vfio.rule(bench.bridge).drivers[bench.bridge].name
    if driver == "shpchp":
        lab.revoke("the bridge's registers, which shpchp relies on")
    _write_bar(lab, bench)
    return sum(a != b for a, b in zip(bench.bridge.registers, before, strict=True))


def _write_bar(lab: Laboratory, bench: _Bench) -> Completion:
    """Let the device write the controller's command, wherever the write goes."""
    completion = bench.device.write_bar(bench.bridge, COMMAND, DISABLE)
    lab.machine.service()
    at = bench.bridge.bar_address(0) + COMMAND
    lab.observe(bench.device, Access.WRITE, at, DISABLE, completion)
    return completion


# ---- peer-to-peer writes to a bridge's registers ---------------------------------------------


def _write_to_shpchp(lab: Laboratory) -> Outcome:
    bench = _conventional(lab)
    bench.vfio.bind(bench.bridge, "shpchp")
    if _open(lab, bench) is None:
        lab.say(
            "shpchp counts on the default domain, so the group is not user space's to claim: "
            "its registers stay what its driver made them."
        )
        return lab.outcome()
    lab.say("The old rule asks nothing of a bridge's driver: the group is viable with shpchp.")
    corrupted = _disable_slot(lab, bench)
    state = bench.bridge.slot_state(1).name.lower()
    seen = "the IOMMU stops the write" if lab.faults() else "no IOMMU saw the write"
    lab.say(
        f"The card writes the controller's command register over the bus: slot 1 is {state} now, "
        f"{seen}, and the driver is not told. Nothing ends this."
    )
    return lab.outcome(corrupted=corrupted, forever=_write_bar(lab, bench).ok)


def _write_to_stub(lab: Laboratory) -> Outcome:
    bench = _conventional(lab)
    bench.vfio.bind(bench.bridge, "shpchp")
    bench.vfio.unbind(bench.bridge)
    bench.vfio.bind(bench.bridge, "pci-stub")
    lab.say("The administrator does as advised: shpchp is unbound, pci-stub has the bridge.")
    if _open(lab, bench) is None:
        return lab.outcome()
    changed = _disable_slot(lab, bench)
    lab.say(
        f"The write lands as before and changes {changed} bytes of registers, but no driver "
        "relies on them: all that the card can harm is in its own group."
    )
    return lab.outcome()


def _write_to_pcieport(lab: Laboratory) -> Outcome:
    upstream = lab.attach(ShpcBridge("upstream port", PortType.UPSTREAM), external=False)
    port = lab.attach(Bridge("switch port", PortType.DOWNSTREAM), under=upstream)
    device = lab.attach(PeerToPeerWriter("card"), under=port)
    bench = _Bench(lab.vfio, device, upstream)
    for each in (upstream, port):
        bench.vfio.bind(each, "pcieport")
    lab.say(
        "The switch has no access control services, so the card is in its port's group. pcieport "
        "does its work in configuration space: no DMA, no registers in memory."
    )
    if _open(lab, bench) is None:
        return lab.outcome()
    used = _configuration(upstream) + _configuration(port)
    changed = _disable_slot(lab, bench)
    now = _configuration(upstream) + _configuration(port)
    harmed = sum(a != b for a, b in zip(now, used, strict=True))
    lab.say(
        f"Both rules allow it. The card's write changes {changed} bytes of the upstream port's "
        f"registers in memory, and {harmed} bytes of what pcieport uses."
    )
    return lab.outcome(corrupted=harmed)


def _configuration(function: Function) -> bytes:
    return bytes(function.config.read(at, 1) for at in range(CONFIG_SIZE))


def _write_beside_group(lab: Laboratory) -> Outcome:
    bench = _switch(lab, Acs.NONE)
    bench.vfio.bind(bench.bridge, "shpchp")
    own = lab.linux.groups.of(bench.device)
    other = lab.linux.groups.of(bench.bridge)
    if own is None or other is None or own is other:
        raise AssertionError("the switch's ports are expected in groups of their own")
    lab.say(
        f"Linux puts the card with its switch port into group {own.number}, the bridge below the "
        f"other port into group {other.number}: it looks at what is above a function only."
    )
    if _open(lab, bench) is None:
        return lab.outcome()
    corrupted = _disable_slot(lab, bench)
    lab.say(
        "But a switch without access control services sends the write from port to port. Neither "
        "rule helps against groups that are drawn too small (a fix was proposed in 2025)."
    )
    return lab.outcome(corrupted=corrupted, forever=_write_bar(lab, bench).ok)


def _write_redirected(lab: Laboratory) -> Outcome:
    bench = _switch(lab, ISOLATED)
    bench.vfio.bind(bench.bridge, "shpchp")
    domain = _open(lab, bench)
    if domain is None:
        return lab.outcome()
    lab.say("The ports redirect requests, so card and bridge are apart and shpchp may stay.")
    corrupted = _disable_slot(lab, bench)
    if not lab.faults():
        raise AssertionError("the write is expected to fault")
    lab.say("The write goes up to the IOMMU, is translated as any other, and faults.")
    page = lab.linux.memory.alloc_pages(1, "guest")
    at = bench.bridge.bar_address(0)
    domain.map(at, page, PAGE)
    own = _write_bar(lab, bench)
    landed = lab.machine.memory.read(page + COMMAND, len(DISABLE)) == DISABLE
    if not own.ok or not landed:
        raise AssertionError("the card is expected to reach its guest's memory")
    lab.say(
        "With memory of the guest mapped at that address the card reaches that memory, and still "
        "not the bridge."
    )
    return Outcome(corrupted=corrupted)


# ---- drivers of the kernel and user space in one group ---------------------------------------


def _claim_beside_driver(lab: Laboratory) -> Outcome:
    bench = _conventional(lab)
    bench.vfio.bind(bench.bridge, "pci-stub")
    bench.vfio.bind(bench.others[0], "nvme")
    if _open(lab, bench) is None:
        lab.say("The disk in the group is the kernel's, and the card could reach all it reaches.")
    return lab.outcome()


def _untranslated_before(lab: Laboratory) -> Outcome:
    card = lab.attach(PeerToPeerWriter("card"), external=False)
    vfio, linux = lab.vfio, lab.linux
    group = linux.device(card).group
    linux.set_type(group, "identity")
    page = linux.memory.alloc_pages(1, "kernel")
    secret = lab.plant(page, PAGE)
    if not lab.read(card, page, PAGE).ok:
        raise AssertionError("the card is expected to reach all of memory before")
    lab.say("The card's group is not translated, as with iommu=pt: the card reaches all of memory.")
    vfio.bind(card, "vfio-pci")
    domain = vfio.open(card)
    lab.revoke("all that is not the guest's: user space has the group")
    got = lab.read(card, page, PAGE)
    leaked = lab.matching(got.data, secret)
    lab.say(
        "User space has the group now, and the card goes on reading the kernel's memory: it "
        f"{'still gets it' if leaked else 'faults'}."
    )
    domain.map(page, linux.memory.alloc_pages(1, "guest"), PAGE)
    if not lab.read(card, page, PAGE).ok:
        raise AssertionError("the card is expected to reach its guest's memory")
    return Outcome(leaked=leaked)


def _bind_to_claimed(lab: Laboratory) -> Outcome:
    bench = _conventional(lab)
    bench.vfio.bind(bench.bridge, "pci-stub")
    if _open(lab, bench) is None:
        return lab.outcome()
    return _late_driver(lab, bench, bench.others[0])


def _plug_into_claimed(lab: Laboratory) -> Outcome:
    bench = _conventional(lab)
    bench.vfio.bind(bench.bridge, "pci-stub")
    domain = _open(lab, bench)
    if domain is None:
        return lab.outcome()
    page = lab.linux.memory.alloc_pages(1, "guest")
    domain.map(GUEST, page, PAGE)
    late = lab.attach(_ConventionalDisk("late disk"), under=bench.bridge)
    bench.vfio.device_added(late)
    reached = late.dma.write(GUEST, b"late").ok
    lab.say(
        "A disk is plugged into the bus. It has the bridge's requester ID, so it is in the "
        f"guest's domain with the others{' and reaches its memory' if reached else ''}."
    )
    return _late_driver(lab, bench, late)


def _late_driver(lab: Laboratory, bench: _Bench, disk: Device) -> Outcome:
    """Let the kernel probe a driver for a disk whose group is user space's."""
    try:
        bench.vfio.bind(disk, "nvme")
    except RefusedError as error:
        lab.refuse(error)
        lab.say("The kernel's driver is kept off the group: probing it fails, and that is all.")
        return lab.outcome()
    except KernelBugError:
        lab.say(
            "The driver starts, and then the notifier finds a live group that is not viable. It "
            "cannot take the driver back: it stops the machine."
        )
        return lab.outcome(hung=True)
    return lab.outcome()


def _type_change(lab: Laboratory) -> Outcome:
    disk = lab.attach(_Disk("disk"))
    group = lab.linux.groups.of(disk)
    if group is None:
        raise AssertionError("the disk is expected in a group")
    ownership = lab.linux.ownership(group)
    ownership.bind(disk, DRIVERS["nvme"])
    try:
        lab.linux.set_type(group, "identity")
    except RefusedError as error:
        lab.refuse(error)
        lab.say("Mappings of a driver that runs would be gone at once: it must be unbound first.")
    ownership.unbind(disk)
    lab.linux.set_type(group, "identity")
    lab.say("Once the driver is unbound, root may change the type.")
    return lab.outcome()


SCENARIO = Scenario(
    name="dma-ownership",
    title="Who may drive what is in a group with a device of user space",
    question="A device is assigned to user space. Which drivers may stay bound next to it, and "
    "what can it do to those that should not?",
    source="Linux, 2022: 'vfio: Remove iommu group notifier', Lu Baolu and Alex Williamson",
    answer=(
        "The old rule asks nothing of a bridge's driver, so that a card can write its "
        "registers, and all it can do about a driver that comes later is to stop the machine. "
        "Ownership refuses both with an error. Drivers that do without DMA and without "
        "registers in memory may stay under both rules, and neither helps where groups are "
        "too small, as below a switch without access control services."
    ),
    policies=("vfio-notifier", "vfio-ownership"),
    attacks=(
        Attack(
            name="peer-write-shpchp",
            summary="An assigned card writes the registers of its bridge, which shpchp drives.",
            run=_write_to_shpchp,
        ),
        Attack(
            name="peer-write-pci-stub",
            summary="The same with pci-stub on the bridge, as is recommended.",
            run=_write_to_stub,
        ),
        Attack(
            name="peer-write-pcieport",
            summary="The same with a switch, whose ports pcieport drives.",
            run=_write_to_pcieport,
        ),
        Attack(
            name="peer-write-beside-group",
            summary="An assigned card writes a bridge below the next port of a switch without ACS.",
            run=_write_beside_group,
        ),
        Attack(
            name="peer-write-redirected",
            summary="The same with ports that redirect requests to the IOMMU.",
            run=_write_redirected,
        ),
        Attack(
            name="claim-beside-driver",
            summary="User space claims a group in which the kernel drives a disk.",
            run=_claim_beside_driver,
        ),
        Attack(
            name="untranslated-before-claim",
            summary="A card that was not translated goes on reading after user space got it.",
            run=_untranslated_before,
        ),
        Attack(
            name="bind-to-claimed-group",
            summary="The kernel's driver is bound to a disk in a group that user space has.",
            run=_bind_to_claimed,
        ),
        Attack(
            name="plug-into-claimed-group",
            summary="A disk is plugged into a group that user space has, and a driver comes.",
            run=_plug_into_claimed,
        ),
        Attack(
            name="type-change-while-bound",
            summary="Root changes the type of a group's domain while a driver runs.",
            run=_type_change,
        ),
    ),
    workload=user_costs,
)
