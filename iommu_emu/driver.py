"""What the small software drivers of both vendors share: queues, and what they owe the caches.

A driver programs its unit as an operating system does, through registers and memory alone, and
invalidates strictly: an unmap returns when nothing stale is left. `invalidate=False` stages the
mistake of forgetting that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from iommu_emu.bitfields import Structure
from iommu_emu.core import Access
from iommu_emu.domain import Domain
from iommu_emu.page_table import PAGE_SIZE, EntryFormat, FrameAllocator, PageTable
from iommu_emu.pci.ats import MOST_PENDING
from iommu_emu.unit import Unit

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = [
    "ALL_PAGES",
    "COMMAND_SIZE",
    "MESSAGE_ADDRESS",
    "DeviceTlbTimeoutError",
    "Driver",
    "Fault",
    "check_granularity",
    "check_vector",
    "count_invalidations",
    "invalidation_address",
]

MESSAGE_ADDRESS = 0xFEE0_0000  # of the CPU with APIC ID 0
COMMAND_SIZE = 16  # bytes of a descriptor (VT-d) or command (AMD-Vi)
ALL_PAGES = 0x7FFF_FFFF_FFFF_F000  # with S=1: no size, everything (VT-d 7.2, AMD-Vi 9.2)
LARGEST_SIZED = 51  # log2 of bytes: beyond it, everything is invalidated (os 4.9)

UnitT = TypeVar("UnitT", bound=Unit)


class Fault(Protocol):
    """What a driver reports of a blocked request, whoever the vendor is."""

    @property
    def requester(self) -> int:
        """Requester ID."""

    @property
    def address(self) -> int:
        """Input address; VT-d reports its page."""

    @property
    def access(self) -> Access:
        """What the request tried."""

    @property
    def code(self) -> int:
        """Architectural code."""

    @property
    def name(self) -> str:
        """Short name of the code."""

    @property
    def condition(self) -> str:
        """What the code means."""


def count_invalidations(submitted: Mapping[str, int]) -> int:
    """Return how many of `Driver.submitted` are invalidations: all but waits and the like."""
    return sum(count for name, count in submitted.items() if "Invalidat" in name)


def check_vector(vector: int) -> None:
    """Raise a ValueError unless an interrupt can have this vector."""
    if not 16 <= vector <= 254:
        raise ValueError(f"fault_vector must be in 16..254, not {vector}")


def check_granularity(name: str, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError unless an invalidation can have this granularity."""
    if name not in allowed:
        raise ValueError(f"granularity must be one of {', '.join(allowed)}, not {name!r}")


def invalidation_address(iova: int, size: int) -> tuple[int, int]:
    """Return the smallest (S, address) that covers a range (VT-d 7.2 device-TLB, AMD-Vi 9.2).

    Args:
        iova: first input address.
        size: bytes.
    """
    first, last = iova & ~(PAGE_SIZE - 1), iova + size - 1
    highest = (first ^ last).bit_length() - 1
    if highest < 12:
        return 0, first
    if highest >= LARGEST_SIZED:
        return 1, ALL_PAGES
    return 1, first >> highest + 1 << highest + 1 | ((1 << highest) - PAGE_SIZE)


class DeviceTlbTimeoutError(RuntimeError):
    """A device did not answer an invalidation of its device-TLB in time (VT-d 7.6).

    What was submitted with it may not be done: software has to submit it again.

    Attributes:
        requester: who did not answer, as the unit says.
    """

    def __init__(self, requester: int) -> None:
        super().__init__(
            f"requester {requester:#06x} did not answer an invalidation of its device-TLB in time"
        )
        self.requester = requester


class Driver(ABC, Generic[UnitT]):
    """Programs one unit.

    Args:
        machine: the machine.
        unit: the unit, as it is after reset.
        frames: range of RAM that the driver may use for its tables and queues.
        invalidation: "queue", "register" (VT-d only), or "none": caches are never invalidated.

    Attributes:
        frames: allocator of that RAM.
        device_tlbs: of each attached device that may use ATS, by requester ID: how many
            invalidations its device-TLB takes before it has answered one.
        submitted: how many commands or descriptors went to the unit's queue, by the name of
            their structure, for example "IotlbInvalidation" or "InvalidateIommuPages".

    Raises:
        ValueError: if the unit does not support the way of invalidation.
    """

    WAYS: tuple[str, ...] = ("queue", "none")
    STRUCTURES: ClassVar[Mapping[int, Structure]]  # what goes to the queue, by type or opcode
    WAIT: ClassVar[str]  # the vendor's name of the command that tells when others are complete
    QUEUE: str  # what the vendor calls its ring of commands, which is one page here
    QUEUE_HEAD: str  # the register with the byte offset of what the unit does next
    QUEUE_TAIL: str  # the same of what software puts next: the doorbell

    def __init__(
        self, machine: Machine, unit: UnitT, frames: range, invalidation: str = "queue"
    ) -> None:
        if invalidation not in self.WAYS:
            raise ValueError(f"invalidation must be one of {self.WAYS}, not {invalidation!r}")
        self.machine = machine
        self.unit = unit
        self.invalidation = invalidation
        self.memory = machine.memory
        self.frames = FrameAllocator(self.memory, frames)
        self.submitted: Counter[str] = Counter()
        self.domains: dict[int, Domain] = {}
        self.attached: dict[int, int] = {}  # requester ID: domain ID
        self.device_tlbs: dict[int, int] = {}
        self._queue = 0  # address of the ring of commands; 0: not on
        self._tail = 0

    # ---- what vendors provide ----------------------------------------------------------------

    @abstractmethod
    def start(self, *, fault_vector: int = 0x30) -> None:
        """Bring the unit up with every device blocked.

        Args:
            fault_vector: interrupt vector of the unit's fault events, 16..254.
        """

    @abstractmethod
    def entry_format(self) -> EntryFormat:
        """Return how page-table entries are encoded for this unit."""

    @abstractmethod
    def domain_ids(self) -> range:
        """Return the domain IDs that domains may have."""

    @property
    @abstractmethod
    def has_device_tlbs(self) -> bool:
        """Whether the unit knows ATS."""

    @abstractmethod
    def _translating(self, domain: Domain, ats: bool) -> bytes:
        """Return the entry of a device that translates through a domain."""

    @abstractmethod
    def _blocked(self) -> bytes:
        """Return the entry of a blocked device."""

    @abstractmethod
    def _set_entry(
        self,
        requester: int,
        entry: bytes,
        domain_id: int | None,
        queue_depth: int,
        invalidate: bool,
        wait: bool,
    ) -> None:
        """Write a device's entry, and invalidate what the specification asks for.

        Args:
            requester: of the device.
            entry: context entry or device table entry.
            domain_id: what it is attached to then; None: nothing.
            queue_depth: of its device-TLB; 0: it may not use ATS.
            invalidate: see `attach`.
            wait: see `attach`.
        """

    @abstractmethod
    def pass_through(self, requester: int, *, invalidate: bool = True, wait: bool = True) -> None:
        """Let a device reach physical memory untranslated, without ATS; see `attach`.

        Raises:
            ValueError: if the unit does not support that.
        """

    @abstractmethod
    def mapped(self, domain: Domain, iova: int, size: int) -> None:
        """Do what is owed after something was mapped."""

    @abstractmethod
    def _start_range(self, domain: Domain, iova: int, size: int, keep_tables: bool) -> None:
        """Submit the invalidation of what the unit holds of a range, at least."""

    @abstractmethod
    def _start_domain(self, domain: Domain) -> None:
        """Submit the invalidation of what the unit holds of a domain."""

    @abstractmethod
    def _start_device_tlb(self, requester: int, sized: int, address: int) -> None:
        """Submit the invalidation of a device-TLB; see `invalidation_address` for the last two."""

    @abstractmethod
    def submit_wait(self) -> Callable[[], bool]:
        """Let the unit say when everything submitted so far is complete.

        Returns:
            Whether it has said so; raises a RuntimeError if the unit reports an error instead.
        """

    @abstractmethod
    def faults(self) -> Sequence[Fault]:
        """Take what the unit recorded, oldest first, and clear it."""

    # ---- shared ------------------------------------------------------------------------------

    def attach(
        self,
        domain: Domain,
        requester: int,
        *,
        ats: bool = False,
        queue_depth: int = MOST_PENDING,
        invalidate: bool = True,
        wait: bool = True,
    ) -> None:
        """Let a device translate through a domain.

        A device that is attached already changes its domain.

        Args:
            domain: a domain of this driver.
            requester: requester ID, 16 bits.
            ats: let it ask for translations, and use what it got; its capability's enable bit
                comes after this. What is invalidated for the domain then is for it as well.
            queue_depth: for `ats`: invalidations that it takes at once, 1..32.
            invalidate: False leaves the old context in the caches.
            wait: False: the invalidations are submitted, and `wait` is the caller's.

        Raises:
            ValueError: if an argument is outside its range, or the unit knows no ATS, or has no
                queue to invalidate device-TLBs with.
            DeviceTlbTimeoutError: if the device had a device-TLB, and does not answer; it is
                attached all the same.
        """
        self._check_domain(domain)
        if ats:
            self._check_ats(queue_depth)
        entry = self._translating(domain, ats)
        self._set_entry(requester, entry, domain.id, queue_depth if ats else 0, invalidate, wait)

    def detach(self, requester: int, *, invalidate: bool = True, wait: bool = True) -> None:
        """Block a device; see `attach` for the arguments.

        Raises:
            ValueError: if it is not attached.
            DeviceTlbTimeoutError: if it has a device-TLB, and does not answer; it is detached
                all the same.
        """
        if requester not in self.attached:
            raise ValueError(f"requester {requester:#06x} is not attached")
        self._set_entry(requester, self._blocked(), None, 0, invalidate, wait)

    def start_range_invalidation(
        self, domain: Domain, iova: int, size: int, *, keep_tables: bool = False
    ) -> None:
        """Submit the invalidation of the translations of a range, at least.

        Args:
            domain: whose.
            iova: first input address.
            size: bytes.
            keep_tables: no table changed but those with the leaves.
        """
        self._start_range(domain, iova, size, keep_tables)
        for requester in self.device_tlbs_of(domain):
            self.invalidate_device_tlb(requester, iova, size)

    def start_domain_invalidation(self, domain: Domain) -> None:
        """Submit the invalidation of every translation of a domain."""
        self._start_domain(domain)
        for requester in self.device_tlbs_of(domain):
            self.invalidate_device_tlb(requester)

    def device_tlbs_of(self, domain: Domain) -> list[int]:
        """Return the requester IDs of the devices of a domain that may have device-TLBs.

        Those are invalidated last: they could fetch what the unit still holds (VT-d 9.4).
        """
        return [user for user in self.device_tlbs if self.attached.get(user) == domain.id]

    def invalidate_device_tlb(self, requester: int, iova: int = 0, size: int | None = None) -> None:
        """Start an invalidation of a device's device-TLB; `wait` for it (VT-d 7.2, AMD-Vi 9.2).

        Args:
            requester: of the device.
            iova: first input address.
            size: bytes; the smallest power of two around them is invalidated; None: everything.
        """
        self._check_requester(requester)
        sized, address = (1, ALL_PAGES) if size is None else invalidation_address(iova, size)
        if self.invalidation == "queue":
            self._start_device_tlb(requester, sized, address)

    def invalidate_range(
        self, domain: Domain, iova: int, size: int, *, keep_tables: bool = False
    ) -> None:
        """Do `start_range_invalidation`, and `wait`."""
        self.start_range_invalidation(domain, iova, size, keep_tables=keep_tables)
        self.wait()

    def invalidate_domain(self, domain: Domain) -> None:
        """Invalidate every translation of a domain, and `wait`."""
        self.start_domain_invalidation(domain)
        self.wait()

    def wait(self) -> None:
        """Return once every invalidation submitted so far is complete; virtual time passes.

        Raises:
            TimeoutError: if nothing is left that could complete them.
            DeviceTlbTimeoutError: if a device did not answer, on VT-d. AMD-Vi logs an event, and
                the command counts as complete (AMD-Vi 8).
            RuntimeError: if the unit reports an error; or from inside a timer, unless they are
                complete at once.
        """
        self._until(self.submit_wait(), self.WAIT)

    def when_complete(
        self, complete: Callable[[], None], failed: Callable[[Exception], None] | None = None
    ) -> None:
        """Do what `wait` does without waiting.

        Args:
            complete: called once every invalidation submitted so far is complete.
            failed: called instead with the RuntimeError that `wait` would have raised; None: it
                is raised where virtual time passes.
        """
        complete_now = self.submit_wait()

        def happened() -> bool:
            try:
                if not complete_now():
                    return False
            except RuntimeError as error:
                if failed is None:
                    raise
                failed(error)
                return True
            complete()
            return True

        self.machine.expect(happened)

    def submit(self, *commands: bytes) -> None:
        """Put raw commands or descriptors on the unit's queue and ring its doorbell.

        Raises:
            RuntimeError: if the queue is not on.
            TimeoutError: if the queue stays full.
        """
        if self._queue == 0:
            raise RuntimeError(f"the {self.QUEUE} is not on")
        for command in commands:
            self._put(command)
        self.unit.write(self.QUEUE_TAIL, self._tail)

    def _put(self, command: bytes) -> None:
        following = (self._tail + COMMAND_SIZE) % PAGE_SIZE
        if self._head() == following:
            self.unit.write(self.QUEUE_TAIL, self._tail)
            self._until(lambda: self._head() != following, f"{self.QUEUE} full")
        self.memory.write(self._queue + self._tail, command)
        self._tail = following
        structure = self.STRUCTURES.get(self._type_of(command))
        self.submitted[structure.name if structure else "unknown"] += 1

    @staticmethod
    @abstractmethod
    def _type_of(command: bytes) -> int:
        """Return the key of `STRUCTURES` that a command has."""

    def _head(self) -> int:
        return self.unit.read(self.QUEUE_HEAD)

    def create_domain(self, levels: int = 4, *, domain_id: int | None = None) -> Domain:
        """Return a new, empty domain.

        Args:
            levels: depth of its page table.
            domain_id: domain ID, for who hands them out; None: the lowest free one.

        Raises:
            ValueError: if the unit does not support the depth, the ID is taken, or the unit is
                out of domain IDs.
        """
        if domain_id is None:
            free = (number for number in self.domain_ids() if number not in self.domains)
            domain_id = next(free, None)
        elif domain_id in self.domains or not 0 <= domain_id < self.domain_ids().stop:
            raise ValueError(
                f"domain_id must be a free one below {self.domain_ids().stop}, not {domain_id}"
            )
        if domain_id is None:
            raise ValueError(f"all {len(self.domain_ids())} domain IDs are taken")
        table = PageTable(self.memory, self.frames, self.entry_format(), levels)
        domain = Domain(self, domain_id, table)
        self.domains[domain_id] = domain
        return domain

    def destroy_domain(self, domain: Domain) -> None:
        """Free a domain, its tables and its ID.

        Raises:
            ValueError: if devices are attached to it.
        """
        users = [requester for requester, used in self.attached.items() if used == domain.id]
        if users:
            raise ValueError(f"requester {users[0]:#06x} is attached to domain {domain.id}")
        domain.flush()
        self.frames.release(domain.table.frames())
        del self.domains[domain.id]

    def _check_requester(self, requester: int) -> None:
        if not 0 <= requester <= 0xFFFF:
            raise ValueError(f"requester must be in 0..0xffff, not {requester:#x}")

    def _note(self, requester: int, domain_id: int | None, queue_depth: int) -> None:
        """Remember what a device was attached to; a queue depth of 0: without ATS."""
        for there, value in ((self.attached, domain_id), (self.device_tlbs, queue_depth or None)):
            if value is None:
                there.pop(requester, None)
            else:
                there[requester] = value

    def _check_ats(self, queue_depth: int) -> None:
        if not self.has_device_tlbs:
            raise ValueError("ats must be False: the unit does not support device-TLBs")
        if self.invalidation == "register":
            raise ValueError("ats needs invalidation by queue: registers reach no device-TLB")
        if not 1 <= queue_depth <= MOST_PENDING:
            raise ValueError(f"queue_depth must be in 1..{MOST_PENDING}, not {queue_depth}")

    def _check_domain(self, domain: Domain) -> None:
        if self.domains.get(domain.id) is not domain:
            raise ValueError(f"domain {domain.id} is not one of this driver's")

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Let virtual time pass until something is done."""
        while not done():
            if not self.machine.clock.run_to_next_event():
                raise TimeoutError(f"{what}: not complete, and no event is due")
