"""deferred-invalidation: what a device still reaches after an unmap, and who lets it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from iommu_emu.devices.malicious.device import MaliciousDevice
from iommu_emu.devices.malicious.impostor import Impostor
from iommu_emu.direction import Direction
from iommu_emu.linux.dma_device import DmaDevice
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.linux.flush_queue import PER_CPU
from iommu_emu.linux.vfio import Vfio
from iommu_emu.pci.topology import Bridge
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import PAGE, Attempt, Laboratory
from iommu_emu.scenarios.result import Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import known_device, packet_costs

GUEST_PAGE = 0x1000  # where a guest has its page
FRAME = 1500  # bytes of a packet
TRIES = 100  # of a device, in the time after which a queue is flushed

__all__ = ["SCENARIO"]

TO, FROM = Direction.TO_DEVICE, Direction.FROM_DEVICE


@dataclass
class _Victim:
    """A driver with its device, which does what it wants.

    Attributes:
        lab: the laboratory.
        function: the device.
        device: what the kernel knows of it.
    """

    lab: Laboratory
    function: MaliciousDevice
    device: DmaDevice

    def map(self, physical: int, direction: Direction) -> int:
        """Map a page of the driver's; the device uses it once, as it should.

        By the calls for batches, of which some policies make more than of single ones.
        """
        buffers = [(physical, PAGE)]
        (iova,) = self.lab.linux.dma.map_batch(self.device, buffers, direction)
        if direction is TO:
            self.lab.read(self.function, iova, PAGE)
        else:
            self.lab.write(self.function, iova, b"\x55" * PAGE)
        return iova

    def unmap_and_free(self, physical: int, iova: int, direction: Direction) -> None:
        """Unmap the page, and give it back to the kernel."""
        self.lab.linux.dma.unmap_batch(self.device, [(iova, PAGE)], direction)
        self.lab.linux.dma.free_buffer(self.device, physical)

    def page(self) -> int:
        """Return a page of the driver's with a packet in it."""
        physical = self.lab.linux.dma.alloc_buffer(self.device, PAGE)
        self.lab.machine.memory.write(physical, b"a packet".ljust(PAGE, b"."))
        return physical

    def keep_reading(self, iova: int) -> Attempt:
        """Let the device read, again and again, until it fails or nothing can be expected."""
        until, every = _patience(self.lab)
        return self.lab.read(self.function, iova, PAGE, until=until, every=every)

    def keep_writing(self, iova: int) -> Attempt:
        """Let the device write zeros, as `keep_reading`."""
        until, every = _patience(self.lab)
        return self.lab.write(self.function, iova, bytes(PAGE), until=until, every=every)


def _patience(lab: Laboratory) -> tuple[int, int]:
    """Return until when a device tries, and how often: three times as long as a flush waits."""
    policy = lab.policy
    timeout = policy.queue.timeout if isinstance(policy, LinuxPolicy) else PER_CPU.timeout
    return lab.clock.now + 3 * timeout, timeout // TRIES


def _victim(lab: Laboratory, name: str = "nic") -> _Victim:
    function = lab.attach(MaliciousDevice(name))
    return _Victim(lab, function, known_device(lab, function))


def _taken_over(lab: Laboratory, owner: str = "sshd") -> tuple[int, bytes]:
    """Let somebody have a page for a secret: the one that was freed last, if it is to be had."""
    page = lab.linux.memory.alloc_pages(1, owner)
    return page, lab.plant(page, PAGE)


def _outcome(victim: _Victim, attempt: Attempt, leaked: int = 0, corrupted: int = 0) -> Outcome:
    """Tell how it ended, and return what it came to."""
    lab = victim.lab
    endless = attempt.landed == attempt.tried
    if not attempt.ok:
        lab.say("The unmap returned when the invalidation was complete: the first try faults.")
    elif not endless:
        lab.say("A cached translation still leads there, until a flush drops it.")
    elif victim.device.domain.type is DomainType.IDENTITY:
        lab.say("Nothing is translated, so nothing can be taken back: the device goes on.")
    else:
        lab.say("What the device uses is mapped for good, whatever is unmapped: it goes on.")
    if attempt.ok and not (leaked or corrupted):
        lab.say("But what it leads to is nobody else's meanwhile.")
    return lab.outcome(leaked=leaked, corrupted=corrupted, forever=attempt.ok and endless)


# ---- memory that is somebody else's --------------------------------------------------------------


def read_after_unmap(lab: Laboratory) -> Outcome:
    """Read a sent packet's page after it went to somebody else."""
    lab.say("A packet is sent; its page is unmapped and freed, and sshd gets one for its keys.")
    return _read_after_unmap(lab, _victim(lab))


def _read_after_unmap(lab: Laboratory, victim: _Victim) -> Outcome:
    physical = victim.page()
    iova = victim.map(physical, TO)
    victim.unmap_and_free(physical, iova, TO)
    _, secret = _taken_over(lab)
    lab.revoke("the packet is unmapped, and its page free")
    attempt = victim.keep_reading(iova)
    return _outcome(victim, attempt, leaked=lab.matching(attempt.data, secret))


def write_after_unmap(lab: Laboratory) -> Outcome:
    """Write to a received packet's page after it went to somebody else."""
    victim = _victim(lab)
    physical = victim.page()
    iova = victim.map(physical, FROM)
    victim.unmap_and_free(physical, iova, FROM)
    page, secret = _taken_over(lab, "login")
    lab.say("A packet is received; its page is freed, and the kernel keeps a user's ID in one.")
    lab.revoke("the packet is unmapped, and its page free")
    attempt = victim.keep_writing(iova)
    corrupted = lab.changed(page, secret)
    if corrupted:
        lab.say("The device writes zeros over it, the ID of root.")
    return _outcome(victim, attempt, corrupted=corrupted)


def coherent_after_free(lab: Laboratory) -> Outcome:
    """Read a descriptor ring's page after it went to somebody else."""
    victim = _victim(lab)
    dma = lab.linux.dma
    ring = dma.alloc_coherent(victim.device, PAGE)
    lab.read(victim.function, ring.iova, PAGE)
    dma.free_coherent(victim.device, ring)
    _, secret = _taken_over(lab)
    lab.say("A driver frees its ring of descriptors, and sshd gets a page for its keys.")
    lab.revoke("the ring is unmapped and freed")
    attempt = victim.keep_reading(ring.iova)
    return _outcome(victim, attempt, leaked=lab.matching(attempt.data, secret))


def own_reuse(lab: Laboratory) -> Outcome:
    """Read a page that the same driver uses for something else by now."""
    victim = _victim(lab)
    physical = victim.page()
    iova = victim.map(physical, TO)
    victim.unmap_and_free(physical, iova, TO)
    secret = lab.plant(lab.linux.dma.alloc_buffer(victim.device, PAGE), PAGE)
    lab.say("A packet's page is freed; its driver gets one again, for another user's packet.")
    lab.revoke("the other packet was never mapped")
    attempt = victim.keep_reading(iova)
    leaked = lab.matching(attempt.data, secret)
    if leaked:
        lab.say("It is the same one: keeping it for this device alone would not help that user.")
    return _outcome(victim, attempt, leaked=leaked)


# ---- devices that are not what they seem ---------------------------------------------------------


def impostor(lab: Laboratory) -> Outcome:
    """Plug a device with a trusted one's IDs into an external port."""
    lab.say("Into a Thunderbolt port comes a device with the IDs of the trusted one inside.")
    return _impostor(lab, external=True)


def impostor_unmarked(lab: Laboratory) -> Outcome:
    """The same in a slot that firmware does not mark as external."""
    lab.say("Into a slot that firmware does not mark comes a device with a trusted one's IDs.")
    return _impostor(lab, external=False)


def _impostor(lab: Laboratory, *, external: bool) -> Outcome:
    trusted = lab.attach(MaliciousDevice("trusted nic"), external=False)
    known_device(lab, trusted)
    function = lab.attach(Impostor(original=trusted), external=external)
    device = lab.linux.device(function)
    device.opt_in = lab.linux.device(trusted).opt_in  # the same driver binds to it
    if device.untrusted:
        lab.say("The kernel goes by the port: below this one it trusts nobody.")
    elif external:
        lab.say("The kernel goes by what root said of these IDs: it trusts the device.")
    else:
        lab.say("The kernel has no reason to distrust it.")
    return _read_after_unmap(lab, _Victim(lab, function, device))


def _group_of_two(lab: Laboratory) -> tuple[_Victim, _Victim]:
    """Return a NIC that is trusted, and a device beside it of which nobody said anything."""
    external = isinstance(lab.policy, LinuxPolicy) and lab.policy.external
    port = lab.machine.attach(Bridge("port without ACS", external_facing=external))
    nic, mate = (lab.attach(MaliciousDevice(name), under=port) for name in ("nic", "sound card"))
    mate.config.set(0x02, 2, 0x0667)  # another device ID
    known = known_device(lab, nic)
    return _Victim(lab, nic, known), _Victim(lab, mate, lab.linux.device(mate))


def group_mate(lab: Laboratory) -> Outcome:
    """Be in the group of a device that may be lazy."""
    _, mate = _group_of_two(lab)
    lab.say("A sound card is in one group with a NIC, of which alone it was said: it may be lazy.")
    outcome = _read_after_unmap(lab, mate)
    if lab.linux.dma.statistics.deferred:
        lab.say("A group has one domain, and strictness is the domain's: the card is lazy as well.")
    elif mate.device.domain.queue is not None:
        lab.say("The domain has a flush queue, but for unmaps that ask for it; these do not.")
    return outcome


def group_eavesdrop(lab: Laboratory) -> Outcome:
    """Use the translations of the device beside it."""
    nic, mate = _group_of_two(lab)
    physical = nic.page()
    iova = nic.map(physical, TO)
    lab.read(mate.function, iova, PAGE)
    nic.unmap_and_free(physical, iova, TO)
    _, secret = _taken_over(lab)
    lab.say("A sound card in the NIC's group reads a NIC's packet while it is mapped, and after.")
    lab.revoke("the NIC's packet is unmapped, and its page free")
    attempt = mate.keep_reading(iova)
    return _outcome(mate, attempt, leaked=lab.matching(attempt.data, secret))


# ---- who else ------------------------------------------------------------------------------------


def read_after_user_unmap(lab: Laboratory) -> Outcome:
    """Read a guest's page after the guest gave it back."""
    victim = _victim(lab)
    function = victim.function
    vfio = Vfio(lab.linux)
    vfio.bind(function, "vfio-pci")
    guest = vfio.open(function)
    page = lab.linux.memory.alloc_pages(1, "guest")
    guest.map(GUEST_PAGE, page, PAGE)
    lab.read(function, GUEST_PAGE, PAGE)
    guest.unmap(GUEST_PAGE, PAGE)
    lab.linux.memory.free_pages(page)
    _, secret = _taken_over(lab)
    lab.say("A guest with a device of its own gives a page back, and sshd gets it.")
    lab.revoke("the guest's page is unmapped and freed")
    attempt = lab.read(function, GUEST_PAGE, PAGE)
    leaked = lab.matching(attempt.data, secret)
    lab.say("A domain of user space never is lazy, whatever the kernel's own are.")
    return _outcome(victim, attempt, leaked=leaked)


def live_switch(lab: Laboratory) -> Outcome:
    """Be switched to DMA-FQ while in use, without being trusted."""
    victim = _victim(lab)
    lab.say("An administrator writes DMA-FQ to the type of an external device's group.")
    lab.linux.set_type(victim.device.group, "DMA-FQ")
    lab.say("From DMA to DMA-FQ the change is made live, and nobody looks at trust on this way.")
    return _read_after_unmap(lab, victim)


_STANDARD = ("linux-strict", "linux-lazy", "linux-passthrough", "linux-untrusted")
_PROPOSALS = ("lazy-coherent-only", "lazy-opt-in", "lazy-device-private", "lazy-attribute")

SCENARIO = Scenario(
    name="deferred-invalidation",
    title="Should unmaps wait for their invalidation?",
    question=(
        "Invalidating for each unmap is slow, and waiting for many leaves a window. How wide is "
        "it, what is it good for, who is let in by each proposal, and what does each one save?"
    ),
    source=(
        "Linux, 2019: 'iommu: set the default iommu-dma mode as non-strict', Zhen Lei, "
        "Jean-Philippe Brucker, Robin Murphy, Hanjun Guo"
    ),
    answer=(
        "A lazy flush leaves a page to the device for up to 10 ms after it went to somebody "
        "else, and a kernel takes every device for trusted that comes by an unmarked port. "
        "Keeping freed memory for its device helps everybody but users of the same device; an "
        "attribute by IDs lets an impostor in, calls that opt in open the window again, and "
        "coherent memory alone saves nothing where buffers are mapped one by one. Speed "
        "without a window takes other buffers (shadow-copy) or fewer invalidations "
        "(fast-and-safe)."
    ),
    policies=(
        "linux-strict",
        "linux-lazy",
        "linux-lazy-single",
        "linux-legacy-250",
        "linux-passthrough",
        "linux-untrusted",
        *_PROPOSALS,
        "shadow-copy",
        "permanent",
        "fast-and-safe",
    ),
    attacks=(
        Attack(
            name="read-after-unmap",
            summary="A device reads a page that it was sent, after it went to somebody else.",
            run=read_after_unmap,
        ),
        Attack(
            name="write-after-unmap",
            summary="A device writes to a page that it filled, after it went to somebody else.",
            run=write_after_unmap,
        ),
        Attack(
            name="coherent-after-free",
            summary="A device reads its ring of descriptors after it was freed.",
            run=coherent_after_free,
        ),
        Attack(
            name="own-reuse",
            summary="A device reads a page that its own driver uses for another user's data.",
            run=own_reuse,
        ),
        Attack(
            name="impostor",
            summary="A device with a trusted one's IDs comes in by an external port.",
            run=impostor,
            policies=(*_STANDARD, *_PROPOSALS),
        ),
        Attack(
            name="impostor-unmarked",
            summary="The same by a slot that firmware does not mark as external.",
            run=impostor_unmarked,
            policies=(*_STANDARD, *_PROPOSALS),
        ),
        Attack(
            name="group-mate",
            summary="A device shares the group of one that may be lazy.",
            run=group_mate,
            policies=(*_STANDARD, *_PROPOSALS),
        ),
        Attack(
            name="group-eavesdrop",
            summary="A device uses what the one beside it, in the same group, had mapped.",
            run=group_eavesdrop,
            policies=(*_STANDARD, *_PROPOSALS),
        ),
        Attack(
            name="read-after-user-unmap",
            summary="A device of a guest reads a page that the guest gave back.",
            run=read_after_user_unmap,
            policies=_STANDARD,
        ),
        Attack(
            name="live-switch",
            summary="An external device's group is switched to lazy while it is in use.",
            run=live_switch,
            policies=("linux-untrusted",),
        ),
    ),
    workload=partial(packet_costs, size=FRAME),
)
