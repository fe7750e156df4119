"""A mapping is broken behind a running kernel's back, and the kernel says so.

The guest reads from its disk over and over. We clear the present bits of the page table entry
behind the disk's I/O submission queue, in the guest's memory. Nothing happens at first: the IOTLB
still has the translation. When the kernel next flushes the domain for reasons of its own, the
entry is gone, the disk's next fetch faults, and the kernel prints who, where and why.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from iommu_emu.clock import MILLISECOND, SECOND
from iommu_emu.guest.check import batches_flushes
from iommu_emu.guest.console import KernelFault
from iommu_emu.guest.errors import GuestError
from iommu_emu.guest.mappings import leaf_entry
from iommu_emu.guest.observer import Observer, SeenFault
from iommu_emu.guest.report import Versions
from iommu_emu.guest.session import Session
from iommu_emu.guest.virtual_machine import VirtualMachine
from iommu_emu.memory import PAGE
from iommu_emu.pci.address import format_requester
from iommu_emu.qemu import find_qemu

IO_QUEUE = 1
_ENTRY = 64  # bytes of a submission queue entry (NVM Express 1.4, 4.2)
_READ_WRITE = 3
_RECENT = 4 * MILLISECOND
PHASES = ("break",)

__all__ = ["PHASES", "Broken", "break_mapping"]


@dataclass(frozen=True)
class Broken:
    """What happened.

    Attributes:
        versions: what took part.
        requester: the disk.
        address: IOVA of the page of its submission queue that was in use.
        entry: physical address of the page table entry behind it.
        before: the entry's value.
        after: the value without its present bits.
        stale_uses: how often the disk still got through after that.
        lasted_ms: how long.
        seen: the fault that we recorded.
        said: the fault as the kernel printed it.
    """

    versions: Versions
    requester: int
    address: int
    entry: int
    before: int
    after: int
    stale_uses: int
    lasted_ms: float
    seen: SeenFault
    said: KernelFault

    @property
    def ok(self) -> bool:
        """Whether kernel and emulator agree on who, where and why."""
        seen, said = self.seen, self.said
        theirs = (said.requester, said.address, said.access, said.reason)
        return theirs == (seen.requester, seen.page, seen.access, seen.code)

    def plain(self) -> dict[str, Any]:
        """Return it for programs."""
        seen, said = self.seen, self.said
        return {
            "ok": self.ok,
            "versions": asdict(self.versions),
            "requester": format_requester(self.requester),
            "address": self.address,
            "entry": self.entry,
            "before": self.before,
            "after": self.after,
            "stale_uses": self.stale_uses,
            "lasted_ms": round(self.lasted_ms, 3),
            "kernel": said.text,
            "emulator": {
                "requester": format_requester(seen.requester),
                "access": (seen.access.name or "").lower(),
                "address": seen.address,
                "reason": seen.code,
                "cause": seen.cause.name,
                "condition": seen.cause.condition,
                "section": seen.cause.section,
            },
        }


def break_mapping(session: Session) -> Broken:
    """Run a guest up to its first I/O, and break the mapping that its disk lives by.

    Args:
        session: with `PHASES`, and not run yet.

    Raises:
        GuestError: if the guest cannot be started, or nothing faults in time.
        NotAvailable: if something that it needs is not on this machine.
    """
    with session.started(find_qemu()) as machine:
        session.boot(machine)
        session.begin(session.console.phases[-1])
        console = session.console
        machine.wait(
            lambda: bool(console.asked) or console.ended, session.options.patience, "the first I/O"
        )
        session.begin("break")
        if not batches_flushes(console):
            raise GuestError("this unit makes the kernel flush page by page: nothing would notice")
        if console.ended:
            failed = [check for check in console.checks if not check.ok]
            raise GuestError(f"the guest has no disk: {failed[0].detail if failed else 'it ended'}")
        return _break(session, machine)


def _queue_in_use(session: Session) -> int | None:
    """Return the page of the queue that the disk reads its next commands from.

    None near its end, where the next page takes over soon.
    """
    queue = session.board.nvme.engine.submission[IO_QUEUE]
    address = queue.base + _ENTRY * queue.head
    return None if address % PAGE >= PAGE // 2 else address & ~(PAGE - 1)


def _wait_for_flush(session: Session, machine: VirtualMachine, requester: int) -> int:
    """Wait until the domain has just been flushed, and the queue is in the IOTLB again.

    The next flush is almost 10 ms away then. Returns the IOVA of the queue's page in use.
    """
    observer, unit, clock = session.observer, session.board.unit, session.board.machine.clock
    observer.poll()
    begin = clock.now
    flushes, flushed = _flushes(observer), 0

    def ready() -> bool:
        nonlocal flushes, flushed
        observer.poll()
        if _flushes(observer) > flushes:
            flushes, flushed = _flushes(observer), clock.now
        page = _queue_in_use(session)
        cached = any(e.requester == requester and e.address == page for e in unit.entries("iotlb"))
        recent = flushed and clock.now - flushed < _RECENT
        # A busy host may never be quick enough.
        return cached and bool(recent or clock.now - begin > SECOND)

    machine.wait(ready, session.options.patience, "the guest to read from its disk")
    page = _queue_in_use(session)
    assert page is not None
    return page


def _flushes(observer: Observer) -> int:
    """Count what drops a whole domain; before 4.15, Linux flushes everything (VT-d 7.2)."""
    return observer.invalidations["IOTLB, domain"] + observer.invalidations["IOTLB, global"]


def _break(session: Session, machine: VirtualMachine) -> Broken:
    board, observer, console = session.board, session.observer, session.console
    requester = board.address("nvme")
    memory, clock = board.machine.memory, board.machine.clock
    address = _wait_for_flush(session, machine, requester)
    found = leaf_entry(board.unit, memory, requester, address)
    if found is None:
        raise GuestError(f"the disk's queue at {address:#x} is not mapped: is this passthrough?")
    entry, before = found
    first = len(observer.faults)
    counted = observer.stale_count
    memory.write_u64(entry, before & ~_READ_WRITE)
    begin = clock.now
    machine.wait(
        lambda: len(observer.faults) > first and len(console.faults) > 0,
        session.options.patience,
        "the kernel to notice",
    )
    seen = observer.faults[first]
    return Broken(
        versions=session.versions(find_qemu()),
        requester=requester,
        address=address,
        entry=entry,
        before=before,
        after=before & ~_READ_WRITE,
        stale_uses=observer.stale_count - counted,
        lasted_ms=(seen.time - begin) / 1e6,
        seen=seen,
        said=console.faults[0],
    )
