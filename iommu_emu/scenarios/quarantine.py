"""quarantine: where devices go that Xen takes from a guest, and what they still do there."""

from __future__ import annotations

from dataclasses import dataclass

from iommu_emu.clock import MICROSECOND, MILLISECOND
from iommu_emu.core import Access, BytesLike
from iommu_emu.devices.malicious import MaliciousDevice
from iommu_emu.devices.malicious.deferred_writer import DeferredWriter
from iommu_emu.devices.malicious.hangs_host import HangsHost
from iommu_emu.devices.malicious.post_deassign import PostDeassign
from iommu_emu.policies.policy import XenPolicy
from iommu_emu.scenarios.laboratory import GUEST_RAM, PAGE, RAM, Attempt, Laboratory
from iommu_emu.scenarios.result import Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import guest_costs
from iommu_emu.xen.domain import XenDomain

VICTIM = RAM.start + (1 << 20)  # a page of the hardware domain; the guest has its own at this gfn
IN_FABRIC = 2 * MICROSECOND  # from the device to the IOMMU
PACKET = 64  # bytes
DATA = b"\xff" * PACKET  # no secret has such bytes
STEP = 10 * MILLISECOND  # between two accesses of a device that goes on after it was taken away
TIMES = 10

MODES = ("xen-none", "xen-listed", "xen-basic", "xen-full", "xen-scratch")
UNFIXED = ("xen-xsa-378", "xen-xsa-386", "xen-xsa-400")

__all__ = ["SCENARIO"]


class GuestNic(PostDeassign):
    """The card that the toolstack thinks of; it sends with one phantom function."""

    class_code = 0x020000
    phantom_bits = 1

    def __init__(self, name: str = "nic") -> None:
        super().__init__(name)


class FragileCard(HangsHost):
    """A card whose requests are as long on their way as those of a `DeferredWriter`."""

    def __init__(self) -> None:
        super().__init__("fragile card")

    def on_attach(self) -> None:
        """Settle far away."""
        self.dma.set_latency(IN_FABRIC, 0)


@dataclass
class _Bench:
    """A device in a guest.

    Attributes:
        device: the device.
        guest: who has it; its memory at `VICTIM`, as guests count, is in `GUEST_RAM`.
        secret: what the hardware domain keeps at `VICTIM`, as the machine counts.
        heirs: what somebody else keeps in the guest's memory after it; b"" before.
        sink: what the device's scratch page holds; b"" where it has none.
    """

    device: MaliciousDevice
    guest: XenDomain
    secret: bytes
    heirs: bytes = b""
    sink: bytes = b""


def _bench(lab: Laboratory, device: MaliciousDevice, requester: int | None = None) -> _Bench:
    """Let a guest have a device and use it, so that caches hold what it uses.

    The device is quarantined before, if the toolstack lists it.
    """
    if not device.attached:
        lab.attach(device)
    xen = lab.xen
    if isinstance(lab.policy, XenPolicy) and device.name in lab.policy.quarantined:
        xen.assign(device, xen.dom_io)
        lab.say(f"The toolstack puts the {device.name} into quarantine before a guest gets it.")
    guest = xen.create_domain("guest", GUEST_RAM, VICTIM // PAGE)
    xen.assign(device, guest)
    if not lab.read(device, VICTIM, PACKET, requester=requester).ok:
        raise AssertionError("the device is expected to reach its guest's memory")
    return _Bench(device, guest, lab.plant(VICTIM, PAGE))


def _take(lab: Laboratory, bench: _Bench) -> None:
    """Destroy the guest; its device goes wherever the policy says, its memory to somebody."""
    lab.xen.destroy_domain(bench.guest)
    lab.revoke(f"the guest that had the {bench.device.name} is gone")
    bench.heirs = lab.plant(GUEST_RAM.start, PAGE)
    device = lab.xen.device(bench.device)
    if device.owner is lab.xen.dom_io and device.quarantine is not None:
        page = device.quarantine.scratch_page
        bench.sink = b"" if page is None else lab.plant(page, PAGE)
    where = {
        lab.xen.dom_io: "goes into quarantine",
        lab.xen.hardware_domain: "goes back to the hardware domain",
    }.get(device.owner, "stays where it was, though Xen thinks that it was taken")
    lab.say(f"The guest is destroyed, and its {bench.device.name} {where}.")


def _leaked(lab: Laboratory, bench: _Bench, data: BytesLike) -> int:
    """Count the bytes of the hardware domain's and the heir's pages in what a read brought."""
    return lab.matching(data, bench.secret) + lab.matching(data, bench.heirs)


def _corrupted(lab: Laboratory, bench: _Bench) -> int:
    """Count the bytes of those pages that a write changed."""
    return lab.changed(VICTIM, bench.secret) + lab.changed(GUEST_RAM.start, bench.heirs)


def _sank(lab: Laboratory, bench: _Bench, data: BytesLike = b"") -> bool:
    """Return whether a read came from the device's scratch page, or a write went there."""
    quarantine = lab.xen.device(bench.device).quarantine
    if quarantine is None or quarantine.scratch_page is None or not bench.sink:
        return False
    changed = lab.changed(quarantine.scratch_page, bench.sink)
    return bool(changed or lab.matching(data, bench.sink))


def _end(
    lab: Laboratory,
    *,
    passed: bool,
    sank: bool = False,
    leaked: int = 0,
    corrupted: int = 0,
    forever: bool = False,
    hung: bool | None = None,
) -> Outcome:
    """Tell what came of it, and who noticed.

    Args:
        lab: the laboratory.
        passed: whether an access got through.
        sank: whether it went to the device's scratch page.
        leaked: bytes of others that it brought.
        corrupted: bytes of others that it changed.
        forever: whether nothing ends that.
        hung: whether the host stopped; None: the device is none that could stop it.
    """
    if leaked or corrupted:
        done = [
            f"{verb} {n} bytes" for verb, n in (("reads", leaked), ("overwrites", corrupted)) if n
        ]
        lab.say(f"It {' and '.join(done)} that are not its guest's.")
    elif passed and not sank:
        raise AssertionError("an access got through to where none is expected")
    elif sank:
        lab.say("It gets through to the device's scratch page, which holds nothing of anybody's.")
    if lab.faults() and hung is None:
        lab.say("It meets a fault, and Xen's log tells of it.")
    elif lab.faults() and not hung:
        lab.say("It faults at a page that is there and must not be written: the host survives.")
        lab.say("Xen's log tells of it.")
    elif not hung:
        lab.say("Nothing faults: no administrator hears of it.")
    if hung:
        lab.say("The fault hangs the host: nobody reads a log any more.")
    return lab.outcome(leaked=leaked, corrupted=corrupted, forever=forever, hung=bool(hung))


# ---- in flight at deassignment -----------------------------------------------------------------


def _fly(lab: Laboratory, device: MaliciousDevice, access: Access) -> Outcome:
    """Destroy the guest while a request of its device is in the fabric; wait for its end."""
    bench = _bench(lab, device)
    payload: bytes | int = PACKET
    if access is Access.READ:
        what, completion = "read", device.read(VICTIM, PACKET)
    else:
        payload = DATA
        what, completion = "write", device.write(VICTIM, payload)
    lab.say(f"The {device.name} has sent a {what}, which is still in the fabric.")
    _take(lab, bench)
    lab.follow(device, access, VICTIM, payload, [completion])
    return _end(
        lab,
        passed=completion.ok,
        sank=_sank(lab, bench, completion.data),
        leaked=_leaked(lab, bench, completion.data),
        corrupted=_corrupted(lab, bench),
        hung=device.host_hung if isinstance(device, HangsHost) else None,
    )


def _in_flight_write(lab: Laboratory) -> Outcome:
    return _fly(lab, DeferredWriter("nic", in_fabric=IN_FABRIC), Access.WRITE)


def _in_flight_read(lab: Laboratory) -> Outcome:
    return _fly(lab, DeferredWriter("nic", in_fabric=IN_FABRIC), Access.READ)


def _fragile_write(lab: Laboratory) -> Outcome:
    return _fly(lab, FragileCard(), Access.WRITE)


def _fragile_read(lab: Laboratory) -> Outcome:
    return _fly(lab, FragileCard(), Access.READ)


# ---- sent after deassignment -------------------------------------------------------------------


def _write_after(lab: Laboratory) -> Outcome:
    return _go_on_writing(lab, GuestNic())


def _write_unlisted(lab: Laboratory) -> Outcome:
    return _go_on_writing(lab, PostDeassign("forgotten card"))


def _go_on_writing(lab: Laboratory, device: PostDeassign) -> Outcome:
    bench = _bench(lab, device)
    _take(lab, bench)
    attempt = _keep_writing(lab, device, VICTIM)
    return _end(
        lab,
        passed=attempt.ok,
        sank=_sank(lab, bench),
        corrupted=_corrupted(lab, bench),
        forever=attempt.completion.ok,
    )


def _read_after(lab: Laboratory) -> Outcome:
    return _go_on_reading(lab, GuestNic())


def _phantom_read(lab: Laboratory) -> Outcome:
    """A phantom function, which is not to be forgotten where the device goes."""
    device = GuestNic()
    lab.attach(device)
    phantom = lab.xen.device(device).phantoms[0]
    lab.say("It sends with the requester ID of a phantom function.")
    return _go_on_reading(lab, device, requester=phantom)


def _go_on_reading(lab: Laboratory, device: GuestNic, requester: int | None = None) -> Outcome:
    bench = _bench(lab, device, requester)
    _take(lab, bench)
    attempt = _keep_reading(lab, device, VICTIM, requester)
    return _end_reading(lab, bench, attempt)


def _end_reading(lab: Laboratory, bench: _Bench, attempt: Attempt) -> Outcome:
    return _end(
        lab,
        passed=attempt.ok,
        sank=_sank(lab, bench, attempt.data),
        leaked=_leaked(lab, bench, attempt.data),
        forever=attempt.completion.ok,
    )


# ---- while the guest still has it ----------------------------------------------------------------


def _guest_faults(lab: Laboratory) -> Outcome:
    device = HangsHost("fragile card")
    bench = _bench(lab, device)
    lab.say("The guest lets its device read where the guest has no memory.")
    attempt = lab.read(device, VICTIM + 2 * len(GUEST_RAM), PACKET)
    assert lab.xen.device(device).owner is bench.guest
    return _end(lab, passed=attempt.ok, hung=device.host_hung)


# ---- reserved memory -----------------------------------------------------------------------------


def _squat(lab: Laboratory) -> Outcome:
    device = GuestNic()
    lab.attach(device)
    region = lab.reserve(device)
    firmware = lab.plant(region.base, PAGE)
    bench = _bench(lab, device)
    _take(lab, bench)
    read = _keep_reading(lab, device, region.base)
    write = _keep_writing(lab, device, region.base)
    return _end(
        lab,
        passed=read.ok or write.ok,
        sank=_sank(lab, bench, read.data),
        leaked=lab.matching(read.data, firmware[:PACKET]),
        corrupted=lab.changed(region.base, firmware),
        forever=read.completion.ok or write.completion.ok,
    )


def _firmware_dma(lab: Laboratory) -> Outcome:
    """No attack: a card goes on doing what firmware reserved memory for; nothing may get lost."""
    device = HangsHost("nic")
    lab.attach(device)
    region = lab.reserve(device)
    bench = _bench(lab, device)
    _take(lab, bench)
    lab.say("For firmware, the card writes to the memory that firmware reserved for it.")
    attempt = lab.write(device, region.base, DATA)
    lost = lab.changed(region.base, DATA)
    if not lost:
        lab.say("It gets through, as it must.")
        return Outcome()
    if not device.host_hung:
        lab.say(f"Its {lost} bytes never get there.")
    _end(lab, passed=attempt.ok, sank=_sank(lab, bench), hung=device.host_hung)
    return Outcome(hung=True) if device.host_hung else Outcome(corrupted=lost)


def _dead_guest(lab: Laboratory) -> Outcome:
    device = GuestNic()
    lab.attach(device)
    lab.reserve(device)
    bench = _bench(lab, device)
    _take(lab, bench)
    lab.xen.create_domain("next guest", GUEST_RAM)
    bench.heirs = lab.plant(GUEST_RAM.start, PAGE)
    lab.say("The next guest gets the memory of the dead one.")
    attempt = _keep_reading(lab, device, VICTIM)
    if lab.matching(attempt.data, bench.heirs):
        lab.say(
            "The card still translates through page tables of the dead guest, freed since: for "
            "as long as nobody has overwritten them, it reads the next guest's memory."
        )
    elif lab.matching(attempt.data, bench.secret):
        lab.say("What it reads is the hardware domain's own page at that address.")
    return _end_reading(lab, bench, attempt)


def _left_behind(lab: Laboratory) -> Outcome:
    device, partner = GuestNic(), PostDeassign("other card")
    lab.attach(device)
    lab.attach(partner)
    region = lab.reserve(device)
    bench = _bench(lab, device)
    lab.xen.assign(partner, bench.guest)
    if not lab.read(partner, region.base, PACKET).ok:
        raise AssertionError("reserved memory is expected in the guest while it has the card")
    firmware = lab.plant(region.base, PAGE)
    lab.xen.deassign(device)
    lab.revoke("the card with reserved memory was taken from the guest")
    lab.say("The guest loses the card with reserved memory, and keeps another one.")
    attempt = _keep_reading(lab, partner, region.base)
    leaked = lab.matching(attempt.data, firmware)
    return _end(lab, passed=attempt.ok, leaked=leaked, forever=attempt.completion.ok)


# ---- going on and on -----------------------------------------------------------------------------


def _keep_reading(
    lab: Laboratory, device: PostDeassign, address: int, requester: int | None = None
) -> Attempt:
    made = device.keep_reading(address, PAGE, interval=STEP, times=TIMES, requester=requester)
    return lab.follow(device, Access.READ, address, PAGE, made)


def _keep_writing(lab: Laboratory, device: PostDeassign, address: int) -> Attempt:
    made = device.keep_writing(address, DATA, interval=STEP, times=TIMES)
    return lab.follow(device, Access.WRITE, address, DATA, made)


SCENARIO = Scenario(
    name="quarantine",
    title="Where devices go that Xen takes from a guest",
    question="A guest is gone, and its device goes on. What does the device reach, what faults, "
    "does the host survive it, and who notices?",
    source="xen-devel, March 2020: 'IOMMU: make DMA containment of quarantined devices optional', "
    "Jan Beulich, with the review's counter-proposal",
    answer=(
        "Without quarantine a device is the hardware domain's again and reaches its memory. Basic "
        "quarantine stops it with faults, which hang a host with a fragile device. A page to read "
        "from (full), or to read from and write to (scratch-page), lets that host live, and nobody "
        "hears of what goes there. A list protects the devices on it. Nothing helps against faults "
        "that the guest itself provokes."
    ),
    policies=(*MODES, *UNFIXED),
    attacks=(
        Attack(
            name="in-flight-write",
            summary="A write of the guest's is in the fabric when the guest is destroyed.",
            run=_in_flight_write,
            policies=MODES,
        ),
        Attack(
            name="in-flight-read",
            summary="The same with a read.",
            run=_in_flight_read,
            policies=MODES,
        ),
        Attack(
            name="write-after-deassign",
            summary="The device goes on writing to what were its guest's addresses.",
            run=_write_after,
            policies=MODES,
        ),
        Attack(
            name="read-after-deassign",
            summary="The device goes on reading from there.",
            run=_read_after,
            policies=MODES,
        ),
        Attack(
            name="phantom-read-after-deassign",
            summary="The same with the requester ID of a phantom function.",
            run=_phantom_read,
            policies=MODES,
        ),
        Attack(
            name="unlisted-write-after-deassign",
            summary="A device that nobody put on the toolstack's list goes on writing.",
            run=_write_unlisted,
            policies=MODES,
        ),
        Attack(
            name="fragile-in-flight-write",
            summary="A write is in flight, of a device whose not-present fault hangs the host.",
            run=_fragile_write,
            policies=MODES,
        ),
        Attack(
            name="fragile-in-flight-read",
            summary="The same with a read.",
            run=_fragile_read,
            policies=MODES,
        ),
        Attack(
            name="guest-faults-fragile",
            summary="The guest makes such a device fault while it still has it.",
            run=_guest_faults,
            policies=MODES,
        ),
        Attack(
            name="quarantined-squatter",
            summary="A device in quarantine reads and writes what firmware reserved for it.",
            run=_squat,
            policies=MODES,
        ),
        Attack(
            name="firmware-dma-in-quarantine",
            summary="A fragile device with reserved memory does its duty there for firmware.",
            run=_firmware_dma,
        ),
        Attack(
            name="dead-guests-device",
            summary="The device of a dead guest reads what has become the next guest's memory.",
            run=_dead_guest,
        ),
        Attack(
            name="unity-map-left-behind",
            summary="A guest reaches reserved memory after the device it was for is gone.",
            run=_left_behind,
        ),
    ),
    workload=guest_costs,
)
