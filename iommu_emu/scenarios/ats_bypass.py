"""ats-bypass: what a device gets away with that translates for itself."""

from __future__ import annotations

from typing import Any

from iommu_emu.clock import MILLISECOND, SECOND
from iommu_emu.core import AddressType
from iommu_emu.devices import Device
from iommu_emu.devices.malicious import MaliciousDevice
from iommu_emu.devices.malicious.translated_forger import TranslatedForger
from iommu_emu.devices.malicious.translation_keeper import TranslationKeeper
from iommu_emu.devices.nvme import Nvme
from iommu_emu.direction import Direction
from iommu_emu.hung import HungError
from iommu_emu.linux.domain_type import DomainType
from iommu_emu.pci.ats import AT_ONCE, NEVER, WRONGLY, Answering, late
from iommu_emu.policies.policy import LinuxPolicy
from iommu_emu.scenarios.laboratory import GUEST_RAM, PAGE, RAM, Laboratory
from iommu_emu.scenarios.result import Costs, Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import block_costs, guest_costs

VICTIM = RAM.start + (1 << 20)  # a page that no device was ever given
PACKET = 64  # bytes
LATE = 500 * MILLISECOND  # within what VT-d's unit waits for, and beyond what AMD's driver does

# How long a device that lost a page goes on, and how often it tries: (until, every), ns.
PHASES = ((30 * MILLISECOND, MILLISECOND), (SECOND, 10 * MILLISECOND), (100 * SECOND, SECOND))

LINUX = ("linux-strict", "linux-lazy", "linux-noats", "linux-untrusted")
XEN = ("xen-basic", "xen-ats")

__all__ = ["SCENARIO"]


class PlainForger(TranslatedForger):
    """A forger without ATS capability, whom software has no reason to allow anything."""

    ats = False


class Accelerator(MaliciousDevice):
    """A device with a device-TLB, and its own idea of when to answer for it."""

    ats = True

    def __init__(self, answering: Answering) -> None:
        super().__init__("accelerator")
        self.answer(answering)

    def answer(self, answering: Answering) -> None:
        """Answer so from now on."""
        assert self.ats_capability is not None
        self.ats_capability.answering = answering


def _plug_in(lab: Laboratory, device: MaliciousDevice) -> None:
    """Plug a device in; under Xen a guest has it."""
    lab.attach(device)
    if isinstance(lab.policy, LinuxPolicy):
        lab.linux.device(device)
        return
    guest = lab.xen.create_domain("guest", GUEST_RAM)
    lab.xen.assign(device, guest)
    lab.say("A guest has the device.")


# ---- requests that say they are translated -------------------------------------------------------


def _forge(lab: Laboratory, device: TranslatedForger) -> Outcome:
    """Read and write a page that was never the device's, by its physical address."""
    _plug_in(lab, device)
    secret = lab.plant(VICTIM, PAGE)
    lab.revoke("that page never was")
    how: dict[str, Any] = {} if _untranslated(lab, device) else {"at": AddressType.TRANSLATED}
    if how:
        lab.say("The device marks requests for a physical address as translated already.")
    read = lab.read(device, VICTIM, PAGE, **how)
    write = lab.write(device, VICTIM, bytes(PACKET), **how)
    if read.ok and not how:
        lab.say("The device needs no forgery: nothing translates for it.")
    elif read.ok:
        lab.say("The IOMMU looks at no page table for them, and lets them through.")
    elif not read.completion.fault:
        lab.say("The root port blocks them: they never reach the IOMMU, and nothing is recorded.")
    else:
        lab.say("The device may not use ATS, so the IOMMU refuses them, and records it.")
    return lab.outcome(
        leaked=lab.matching(read.data, secret),
        corrupted=lab.changed(VICTIM, secret),
        forever=write.ok,
    )


def _untranslated(lab: Laboratory, device: MaliciousDevice) -> bool:
    if not isinstance(lab.policy, LinuxPolicy):
        return False
    return lab.linux.device(device).domain.type is DomainType.IDENTITY


def forge(lab: Laboratory) -> Outcome:
    """Forge with a device that software lets use ATS if it lets any."""
    return _forge(lab, TranslatedForger())


def forge_without_ats(lab: Laboratory) -> Outcome:
    """Forge with a device that has no ATS to be allowed."""
    return _forge(lab, PlainForger())


# ---- translations that outlive their mapping -----------------------------------------------------


def _lose_a_page(lab: Laboratory, device: MaliciousDevice) -> Outcome:
    """Let a device lose a page to somebody else, and go on reading it."""
    _plug_in(lab, device)
    linux, known = lab.linux, lab.linux.device(device)
    page = linux.dma.alloc_buffer(known, PAGE)
    iova = linux.dma.map_single(known, page, PAGE, Direction.TO_DEVICE)
    lab.read(device, iova, PAGE)
    if known.ats:
        lab.say("The device has the translation of a page in its device-TLB.")
    else:
        lab.say("The device may not use ATS: it has no translation of its own.")
    begun = lab.clock.now
    try:
        linux.dma.unmap_single(known, iova, PAGE, Direction.TO_DEVICE)
    except HungError:
        lab.say(
            "The unmap waits for the device's answer. At each time-out the kernel asks again, "
            "with interrupts off: the CPU is locked up. Nobody else ever gets the page."
        )
        return lab.outcome(hung=True)
    _tell_how_long(lab, lab.clock.now - begun)
    linux.dma.free_buffer(known, page)
    begun = lab.clock.now
    try:
        _wait_for(lab, page)
    except HungError:
        lab.say(
            "The page is kept for the device until the flush. That waits for the device's answer, "
            "with interrupts off, and locks a CPU up: nobody else ever gets the page."
        )
        return lab.outcome(hung=True)
    if lab.clock.now != begun:
        took = (lab.clock.now - begun) // MILLISECOND
        lab.say(f"The page is kept for the device for {took} ms, until the flush counts as done.")
    secret = lab.plant(page, PAGE)
    lab.revoke("the page is sshd's now")
    return _go_on_reading(lab, device, iova, secret)


def _wait_for(lab: Laboratory, page: int) -> None:
    """Let sshd allocate memory until it gets that page."""
    memory = lab.linux.memory
    while True:
        found = memory.alloc_pages(1, "sshd")
        if found == page:
            return
        memory.free_pages(found)
        if not lab.clock.run_to_next_event():
            raise HungError("nothing gives the page back")


def _tell_how_long(lab: Laboratory, took: int) -> None:
    if took >= MILLISECOND:
        lab.say(f"The unmap takes {took // MILLISECOND} ms, which a CPU spends on waiting.")
    else:
        lab.say("The unmap returns at once.")


def _go_on_reading(lab: Laboratory, device: MaliciousDevice, iova: int, secret: bytes) -> Outcome:
    start = lab.clock.now
    leaked, hung, ok = 0, False, True
    try:
        for until, every in PHASES:
            attempt = lab.read(device, iova, PAGE, until=start + until, every=every)
            leaked = max(leaked, lab.matching(attempt.data, secret))
            ok = attempt.completion.ok
            if not ok:
                break
        lab.clock.advance_to(max(lab.clock.now, start + PHASES[-1][0]))
    except HungError:
        hung, ok = True, False
    if leaked and not hung:
        lab.say(
            "Its device-TLB serves what is somebody else's meanwhile"
            + (", and nothing ever ends that." if ok else ", until it has dropped it.")
        )
    elif leaked:
        lab.say(
            "Its device-TLB serves what is somebody else's meanwhile. The flush comes too late, "
            "waits for the answer with interrupts off, and locks a CPU up."
        )
    else:
        lab.say("It meets a fault.")
    return lab.outcome(leaked=leaked, forever=ok, hung=hung)


def keep(lab: Laboratory) -> Outcome:
    """Answer invalidations, and drop nothing."""
    return _lose_a_page(lab, TranslationKeeper("accelerator"))


def never_answer(lab: Laboratory) -> Outcome:
    """Drop nothing, and say nothing."""
    return _lose_a_page(lab, Accelerator(NEVER))


def answer_late(lab: Laboratory) -> Outcome:
    """Drop and answer after half a second."""
    return _lose_a_page(lab, Accelerator(late(LATE)))


def answer_wrongly(lab: Laboratory) -> Outcome:
    """Drop at once, and answer what nobody asked."""
    return _lose_a_page(lab, Accelerator(WRONGLY))


def keep_silent_as_guest(lab: Laboratory) -> Outcome:
    """Do not answer when the guest gives a page back; read what becomes of it."""
    device = Accelerator(AT_ONCE)
    _plug_in(lab, device)
    page = GUEST_RAM.start
    lab.read(device, page, PAGE)
    device.answer(NEVER)
    guest = lab.xen.device(device).owner
    try:
        guest.remove_memory(range(page, page + PAGE))
    except HungError:
        lab.say("The guest gives a page back. Xen waits for the device's answer, for ever.")
        return lab.outcome(hung=True)
    if guest.crashed:
        lab.say(
            "The guest gives a page back. Xen waits for the device's answer for a second, "
            "switches its ATS off, and crashes the guest."
        )
    elif lab.driver.device_tlbs:
        lab.say(
            "The guest gives a page back. Xen looks for the device's answer 1,000 times, then it "
            "goes on as if it had come."
        )
    else:
        lab.say("The guest gives a page back. The device may not use ATS: nobody asks it.")
    secret = lab.plant(page, PAGE)
    lab.revoke("the page is somebody else's")
    return _go_on_reading(lab, device, page, secret)


# ---- what it costs -------------------------------------------------------------------------------


class CachingDisk(Nvme):
    """An NVMe controller with a device-TLB, which it answers for at once."""

    ats = True


class CachingCard(Device):
    """A guest's device with one."""

    ats = True


def costs(lab: Laboratory) -> Costs:
    """Read from a disk with a device-TLB, or map and unmap for a guest that has such a device."""
    if isinstance(lab.policy, LinuxPolicy):
        return block_costs(lab, CachingDisk)
    return guest_costs(lab, CachingCard)


SCENARIO = Scenario(
    name="ats-bypass",
    title="Devices that translate for themselves",
    question="A device with a device-TLB says what is translated, and when it has forgotten a "
    "translation. What does it reach if it lies, or keeps quiet, and what becomes of the host?",
    source="iommu, May 2014: 'can't you do PCIe transactions which claim to be already "
    "translated?', David Woodhouse; and March 2019: what deferral does to ATS time-outs",
    answer=(
        "Whoever may use ATS is believed: a device that lies reaches all of memory, strict or "
        "lazy, and nobody hears of it. One that does not answer locks up a CPU with VT-d, while "
        "AMD's driver goes on after 100 ms and leaves the page to it. What helps against both is "
        "to allow ATS to trusted devices only."
    ),
    policies=(*LINUX, "lazy-device-private", "linux-passthrough", *XEN, "xen-xsa-373"),
    attacks=(
        Attack(
            name="translated-request-forged",
            summary="A device marks requests for physical addresses as translated already.",
            run=forge,
            policies=(*LINUX, "linux-passthrough", *XEN),
        ),
        Attack(
            name="translated-request-without-ats",
            summary="The same from a device that has no ATS capability.",
            run=forge_without_ats,
            policies=(*LINUX, *XEN),
        ),
        Attack(
            name="stale-device-tlb",
            summary="A device answers every invalidation of its device-TLB, and drops nothing.",
            run=keep,
            policies=LINUX,
        ),
        Attack(
            name="invalidation-never-answered",
            summary="A device does not answer, and uses the translations that it should drop.",
            run=never_answer,
            policies=(*LINUX, "lazy-device-private"),
        ),
        Attack(
            name="invalidation-answered-late",
            summary="A device takes half a second to answer, and uses the time.",
            run=answer_late,
            policies=(*LINUX, "lazy-device-private"),
        ),
        Attack(
            name="invalidation-answered-wrongly",
            summary="A device drops what it should, and answers for another invalidation.",
            run=answer_wrongly,
            policies=LINUX,
        ),
        Attack(
            name="guests-device-never-answers",
            summary="A guest gives a page back, and its device does not answer.",
            run=keep_silent_as_guest,
            policies=(*XEN, "xen-xsa-373"),
        ),
    ),
    workload=costs,
)
