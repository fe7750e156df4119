"""bounce-buffer: memory beside a buffer, and after it, and what copies do about both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from iommu_emu.clock import MICROSECOND, MILLISECOND
from iommu_emu.core import Access
from iommu_emu.devices.driver import Buffer
from iommu_emu.devices.malicious.ring_overrunner import RingOverrunner
from iommu_emu.devices.malicious.sub_page_reader import SubPageReader
from iommu_emu.devices.nic import NicDriver
from iommu_emu.direction import Direction
from iommu_emu.linux.dma_device import DmaDevice
from iommu_emu.linux.kernel import Linux
from iommu_emu.linux.swiotlb import SLOT_SIZE
from iommu_emu.scenarios.laboratory import PAGE, Attempt, Laboratory
from iommu_emu.scenarios.result import Outcome
from iommu_emu.scenarios.scenario import Attack, Scenario
from iommu_emu.scenarios.workload import packet_costs
from iommu_emu.workloads.packets import DmaApiMapper

SMALL = 512  # bytes of a buffer that shares a page with seven more
TINY = 128
FRAME = 256  # of a receive buffer, and a frame in it
ENTRIES = 4  # of a ring; there are twice as many buffers, which fill half of a page
OVERRUN = 64
INTERVAL = 100 * MICROSECOND  # between two frames
LARGE = 3 * PAGE  # of one that begins and ends inside pages, two whole ones between them
OFFSET = SMALL  # of the large one in its first page
JUMBO = 9000  # bytes of a frame: its buffer has partial pages, and whole ones
MAPPED = MILLISECOND  # for how long a small buffer is mapped
PATIENCE = 30 * MILLISECOND  # for how long a device tries again
BOUNCING = (
    "linux-untrusted",
    "bounce-head-tail",
    "bounce-head-tail-lazy",
    "bounce-whole-lazy",
)  # policies that use the pool of bounce buffers

__all__ = ["SCENARIO"]


@dataclass
class _Bench:
    """A device, and a driver's view of it.

    Attributes:
        lab: the laboratory.
        linux: its kernel.
        stranger: the device.
        device: what the kernel knows of it.
    """

    lab: Laboratory
    linux: Linux
    stranger: SubPageReader
    device: DmaDevice

    def buffer(self, size: int) -> int:
        """Return a buffer of the driver's, zeroed."""
        physical = self.linux.dma.alloc_buffer(self.device, size)
        self.lab.machine.memory.write(physical, bytes(size))
        return physical

    def map(self, physical: int, size: int, direction: Direction) -> int:
        """Map a buffer; let the device use it once, so that caches know it."""
        iova = self.linux.dma.map_single(self.device, physical, size, direction)
        if direction is Direction.TO_DEVICE:
            self.lab.read(self.stranger, iova, size)
        else:
            self.lab.write(self.stranger, iova, b"\x55" * size)
        return iova

    def unmap(self, iova: int, size: int, direction: Direction) -> None:
        """Unmap a buffer."""
        self.linux.dma.unmap_single(self.device, iova, size, direction)

    @property
    def copies(self) -> bool:
        """Whether anything was copied so far."""
        return self.linux.dma.statistics.copied > 0


def _bench(lab: Laboratory, name: str = "stranger") -> _Bench:
    stranger = lab.attach(SubPageReader(name))
    return _Bench(lab, lab.linux, stranger, lab.linux.device(stranger))


# ---- beside the buffer ---------------------------------------------------------------------------


def _small_buffer(bench: _Bench) -> tuple[int, list[tuple[int, bytes]]]:
    """Return a small buffer, and what others keep around it: address and secret of each."""
    memory = bench.linux.memory
    others = [memory.kmalloc(SMALL, "sshd")]
    buffer = bench.buffer(SMALL)
    others += [memory.kmalloc(SMALL, "sshd") for _ in range(PAGE // SMALL - 2)]
    return buffer, [(address, bench.lab.plant(address, SMALL)) for address in others]


def _tell_where(bench: _Bench, buffer: int, iova: int, reached: int) -> None:
    if reached:
        bench.lab.say(
            "Translation is by pages, and the page is mapped as it is: the device reaches "
            f"all of it. Its buffer begins at {iova % PAGE:#x} there."
        )
    elif bench.copies:
        kept = "as in its own page" if iova % PAGE == buffer % PAGE else "the start of a slot"
        bench.lab.say(
            "What is mapped is a copy of the buffer in a page that nothing else is in: "
            f"for the device it begins at {iova % PAGE:#x}, {kept}."
        )
    else:
        bench.lab.say(
            "The buffer is from memory that was mapped for the device once and for all, "
            "and nobody else has any of it."
        )


def sub_page_read(lab: Laboratory) -> Outcome:
    """Read the whole page around a small buffer."""
    bench = _bench(lab)
    buffer, others = _small_buffer(bench)
    lab.revoke("the rest of the page never was")
    iova = bench.map(buffer, SMALL, Direction.TO_DEVICE)
    while_mapped = lab.clock.now + MAPPED
    got = lab.read(bench.stranger, iova & -PAGE, PAGE, until=while_mapped).data
    bench.unmap(iova, SMALL, Direction.TO_DEVICE)
    after = lab.read(bench.stranger, iova & -PAGE, PAGE, until=lab.clock.now + PATIENCE)
    leaked = sum(len(secret) for _, secret in others if secret in got or secret in after.data)
    lab.say(f"A driver maps {SMALL} bytes for reading; keys of sshd lie in the rest of the page.")
    _tell_where(bench, buffer, iova, leaked)
    if not leaked:
        return Outcome()
    _tell_how_long(lab, after)
    return lab.outcome(leaked=leaked, forever=_keeps(after))


def sub_page_write(lab: Laboratory) -> Outcome:
    """Write the whole page around a small buffer."""
    bench = _bench(lab)
    buffer, others = _small_buffer(bench)
    lab.revoke("the rest of the page never was")
    iova = bench.map(buffer, SMALL, Direction.FROM_DEVICE)
    lab.write(bench.stranger, iova & -PAGE, bytes(PAGE), until=lab.clock.now + MAPPED)
    bench.unmap(iova, SMALL, Direction.FROM_DEVICE)
    until = lab.clock.now + PATIENCE
    after = lab.write(bench.stranger, iova & -PAGE, bytes(PAGE), until=until)
    corrupted = sum(lab.changed(address, secret) for address, secret in others)
    lab.say(f"A driver maps {SMALL} bytes for writing; keys of sshd lie in the rest of the page.")
    _tell_where(bench, buffer, iova, corrupted)
    if not corrupted and bench.copies:
        lab.say("After the unmap, only the buffer's own bytes are copied back.")
    if not corrupted:
        return Outcome()
    _tell_how_long(lab, after)
    return lab.outcome(corrupted=corrupted, forever=_keeps(after))


def _tell_how_long(lab: Laboratory, after: Attempt) -> None:
    """Tell of a device that reaches others' memory when that ends."""
    if not after.ok:
        lab.say("That ends with the unmap.")
    elif not _keeps(after):
        lab.say("That goes on after the unmap, until a flush drops the cached translation.")
    else:
        lab.say("That goes on after the unmap, and nothing ends it.")


def ring_overrun(lab: Laboratory) -> Outcome:
    """Receive frames with a controller that writes behind each buffer."""
    nic = lab.attach(RingOverrunner(overrun=OVERRUN))
    linux, device = lab.linux, lab.linux.device(nic)
    dma, size = linux.dma, 2 * ENTRIES * FRAME
    rings = dma.alloc_coherent(device, 2 * PAGE)
    buffers = dma.alloc_buffer(device, size)
    behind = linux.memory.kmalloc(size, "sshd")
    secret = lab.plant(behind, size)
    driver = NicDriver(
        lab.machine,
        nic,
        range(buffers, buffers + size),
        DmaApiMapper(dma, device),
        entries=ENTRIES,
        buffer_size=FRAME,
        rings=[Buffer(rings.physical + at, rings.iova + at, PAGE) for at in (0, PAGE)],
    )
    driver.start(causes=0)
    lab.say(f"A driver receives into buffers of {FRAME} bytes; keys of sshd lie behind the last.")
    lab.revoke("what is behind a buffer never was")
    lost = 0
    for _ in range(2 * ENTRIES):  # each buffer once
        lab.clock.advance(INTERVAL)
        frame = lab.secret(FRAME)
        nic.receive(frame)
        address, overrun = nic.overruns[-1]
        lab.observe(nic, Access.WRITE, address, OVERRUN, overrun)
        lost += driver.poll() != [frame]
    corrupted = lab.changed(behind, secret)
    lab.say(
        f"{'Every frame arrives' if not lost else f'All frames but {lost} arrive'} as sent; the "
        f"controller writes {OVERRUN} bytes more behind it, and the driver does not notice."
    )
    if corrupted:
        lab.say("Behind the last buffer, in the same page, they overwrite a key.")
    elif not any(completion.ok for _, completion in nic.overruns):
        lab.say("The IOMMU stops them.")
    elif dma.statistics.copied:
        lab.say("They stay in the page of the buffer's copy: only the frame is copied out of it.")
    else:
        lab.say("The memory around the buffers is the device's alone: they reach nothing else.")
    return lab.outcome(corrupted=corrupted)


# ---- after the unmap -----------------------------------------------------------------------------


def _keeps(attempt: Attempt) -> bool:
    """Whether the last of many tries got through, so that nothing ended them but patience."""
    return attempt.landed == attempt.tried


def _tell_after(bench: _Bench, attempt: Attempt, damage: int, what: str) -> None:
    say = bench.lab.say
    if not attempt.ok:
        say("The unmap returns when the invalidation is complete: every access faults.")
        return
    if _keeps(attempt):
        say("Nothing is unmapped for the device, ever: it goes on.")
    else:
        say("The invalidation waits for the flush queue's timer; cached translations still work.")
    if damage:
        say(f"The device {what}.")
    elif bench.copies:
        say("But all that the device reaches is a copy, in memory that nobody else gets meanwhile.")
    else:
        say("But the pages are the device's for good, and others get other ones.")


def unaligned_read_after_free(lab: Laboratory) -> Outcome:
    """Read a large buffer after its pages went to somebody else."""
    bench = _bench(lab)
    pages = bench.buffer(LARGE + PAGE)
    lab.say("A driver maps three pages' worth from the middle of a page, unmaps and frees them.")
    return _read_after_free(bench, pages, OFFSET, LARGE)


def aligned_read_after_free(lab: Laboratory) -> Outcome:
    """Read a whole page after it went to somebody else."""
    bench = _bench(lab)
    page = bench.buffer(PAGE)
    lab.say("A driver maps one whole page, unmaps and frees it.")
    if bench.device.untrusted and lab.linux.parameters.bounce:
        lab.say("Whole pages are mapped in place: nothing of others is in them.")
    return _read_after_free(bench, page, 0, PAGE)


def _read_after_free(bench: _Bench, pages: int, offset: int, size: int) -> Outcome:
    lab, linux = bench.lab, bench.linux
    total = -(-(offset + size) // PAGE) * PAGE
    iova = bench.map(pages + offset, size, Direction.TO_DEVICE)
    bench.unmap(iova, size, Direction.TO_DEVICE)
    linux.dma.free_buffer(bench.device, pages)
    taken = linux.memory.alloc_pages(total // PAGE, "sshd")
    secret = lab.plant(taken, total)
    lab.revoke("the buffer is unmapped, and its pages may be sshd's")
    first = iova & -PAGE
    length = -(-(iova % PAGE + size) // PAGE) * PAGE
    attempt = lab.read(bench.stranger, first, length, until=lab.clock.now + PATIENCE)
    got = attempt.data
    leaked = sum(PAGE for start in range(0, total, PAGE) if secret[start : start + PAGE] in got)
    _tell_after(bench, attempt, leaked, "reads what sshd keeps there now")
    return lab.outcome(leaked=leaked, forever=attempt.ok and _keeps(attempt))


def write_after_check(lab: Laboratory) -> Outcome:
    """Change a packet after the kernel has checked it."""
    bench = _bench(lab)
    pages = bench.buffer(LARGE + PAGE)
    buffer = pages + OFFSET
    iova = bench.map(buffer, LARGE, Direction.FROM_DEVICE)
    bench.unmap(iova, LARGE, Direction.FROM_DEVICE)
    checked = lab.machine.memory.read(buffer, LARGE)
    lab.say("The device delivers a packet; the driver unmaps it, and a firewall looks at it.")
    lab.revoke("the packet is unmapped, and was checked")
    attempt = lab.write(bench.stranger, iova, bytes(LARGE), until=lab.clock.now + PATIENCE)
    corrupted = lab.changed(buffer, checked)
    _tell_after(bench, attempt, corrupted, "puts another packet in its place")
    return lab.outcome(corrupted=corrupted, forever=attempt.ok and _keeps(attempt))


# ---- in the pool ---------------------------------------------------------------------------------


def _fill_pool(bench: _Bench, disk: _Bench) -> list[tuple[int, int, bytes]]:
    """Let a disk's driver map as many small secrets as the CPU's part of the pool holds.

    Returns:
        IOVA, address and secret of each.
    """
    pool = bench.linux.pool
    assert pool is not None
    slots = min((pool.used_slots + pool.free_slots) // pool.areas, pool.free_slots)
    mapped = []
    for _ in range(slots * SLOT_SIZE // PAGE):
        address = disk.linux.memory.kmalloc(SMALL, disk.stranger.name)
        secret = bench.lab.plant(address, SMALL)
        iova = disk.linux.dma.map_single(disk.device, address, SMALL, Direction.TO_DEVICE)
        mapped.append((iova, address, secret))
    return mapped


def slot_leftovers(lab: Laboratory) -> Outcome:
    """Read what another device's data left in the slots around a bounced buffer."""
    bench, disk = _bench(lab), _bench(lab, "external disk")
    mapped = _fill_pool(bench, disk)
    for iova, _, _ in mapped:
        disk.unmap(iova, SMALL, Direction.TO_DEVICE)
    lab.clock.advance(PATIENCE)
    lab.say("A disk's data went through every slot of the pool, and is still in them.")
    buffer = bench.buffer(TINY)
    iova = bench.map(buffer, TINY, Direction.TO_DEVICE)
    lab.revoke("what is in the slots around its buffer never was")
    got = lab.read(bench.stranger, iova & -PAGE, PAGE).data
    pieces = [secret[at : at + TINY] for *_, secret in mapped for at in range(0, SMALL, TINY)]
    leaked = sum(len(piece) for piece in pieces if piece in got)
    if leaked:
        lab.say("The device reads it around its own, smaller buffer.")
    else:
        lab.say("Before the device may look, the rest of its page is cleared.")
    return lab.outcome(leaked=leaked, forever=True) if leaked else Outcome()


def slot_reuse(lab: Laboratory) -> Outcome:
    """Read a slot after it went to another device's data."""
    bench, disk = _bench(lab), _bench(lab, "external disk")
    buffer = bench.buffer(SMALL)
    iova = bench.map(buffer, SMALL, Direction.TO_DEVICE)
    bench.unmap(iova, SMALL, Direction.TO_DEVICE)
    lab.revoke("its slots are free again")
    lab.say(
        "A bounced buffer is unmapped; then a disk's driver maps buffers until the pool is full."
    )
    secrets = [secret for _, _, secret in _fill_pool(bench, disk)]
    attempt = lab.read(bench.stranger, iova & -PAGE, PAGE, until=lab.clock.now + PATIENCE)
    leaked = sum(len(secret) for secret in secrets if secret in attempt.data)
    if leaked:
        lab.say(
            "The slots went to the disk at once, while a cached translation still leads there: "
            "the device reads the disk's data."
        )
    elif attempt.ok:
        lab.say(
            "A cached translation still leads to the slots, but they are kept back until the "
            "flush: the device reads its own old data."
        )
    else:
        lab.say("The invalidation was complete before the slots were free: the access faults.")
    return lab.outcome(leaked=leaked)


SCENARIO = Scenario(
    name="bounce-buffer",
    title="Bounce buffers for devices that nobody trusts",
    question=(
        "An IOMMU protects pages, and buffers are smaller. What does copying them protect, which "
        "kinds of copies may be unmapped lazily, and what do they cost?"
    ),
    source=(
        "Linux, 2019: 'iommu: Bounce page for untrusted devices', v3 and v4, Lu Baolu, "
        "Robin Murphy, Konrad Rzeszutek Wilk"
    ),
    answer=(
        "Strict invalidation does not help what shares a page with a buffer; copies do. If "
        "whole pages between head and tail stay mapped in place, unmapping must be strict; if "
        "all of a buffer is copied, it may be lazy, as long as the slots wait for the flush "
        "too. Buffers that are mapped for good need no copy, but the device can change what "
        "was checked already."
    ),
    policies=(
        "linux-strict",
        "linux-lazy",
        "linux-nobounce",
        "linux-untrusted",
        "bounce-head-tail",
        "bounce-head-tail-lazy",
        "bounce-whole-lazy",
        "shadow-copy",
        "permanent",
    ),
    attacks=(
        Attack(
            name="sub-page-read",
            summary="A device reads the whole page around a buffer of 512 bytes.",
            run=sub_page_read,
        ),
        Attack(
            name="sub-page-write",
            summary="A device writes the whole page around a buffer of 512 bytes.",
            run=sub_page_write,
        ),
        Attack(
            name="ring-overrun",
            summary="A network controller writes more into each receive buffer than it holds.",
            run=ring_overrun,
        ),
        Attack(
            name="unaligned-read-after-free",
            summary="A device reads a buffer of several pages after they went to somebody else.",
            run=unaligned_read_after_free,
        ),
        Attack(
            name="aligned-read-after-free",
            summary="The same with a buffer that is one whole page.",
            run=aligned_read_after_free,
        ),
        Attack(
            name="write-after-check",
            summary="A device changes a packet after the kernel has checked it.",
            run=write_after_check,
        ),
        Attack(
            name="slot-leftovers",
            summary="A device reads what others' data left in the slots around its buffer.",
            run=slot_leftovers,
            policies=BOUNCING,
        ),
        Attack(
            name="slot-reuse",
            summary="A device reads a slot after it went to another device's data.",
            run=slot_reuse,
            policies=BOUNCING,
        ),
    ),
    workload=partial(packet_costs, frames=150, size=JUMBO),
)
