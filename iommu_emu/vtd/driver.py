"""A small software driver for VT-d in legacy mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from iommu_emu.core import Access
from iommu_emu.domain import Domain
from iommu_emu.driver import (
    COMMAND_SIZE,
    MESSAGE_ADDRESS,
    DeviceTlbTimeoutError,
    Driver,
    check_granularity,
    check_vector,
)
from iommu_emu.page_table import PAGE_SIZE, EntryFormat
from iommu_emu.pci.ats import MOST_PENDING
from iommu_emu.vtd.capabilities import Capabilities
from iommu_emu.vtd.faults import FaultRecord
from iommu_emu.vtd.structures import (
    DESCRIPTORS,
    ContextEntry,
    ContextInvalidation,
    DeviceTlbInvalidation,
    IotlbInvalidation,
    RootEntry,
    WaitDescriptor,
    second_stage_page,
    second_stage_table,
)
from iommu_emu.vtd.unit import VtdUnit

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["QueueError", "SecondStageFormat", "VtdDriver"]

GRANULARITIES = {"global": 1, "domain": 2, "device": 3, "page": 3}
FRCD_F = 1 << 127


class SecondStageFormat(EntryFormat):
    """Second-stage entries (VT-d 4.8).

    Args:
        capabilities: of the unit.
        host_address_width: bits.
    """

    def __init__(self, capabilities: Capabilities, host_address_width: int) -> None:
        self.levels = capabilities.levels
        self.page_shifts = frozenset({12}) | capabilities.large_pages
        self.preferred_shifts = self.page_shifts
        self.output_bits = host_address_width
        self._widest = capabilities.guest_address_width

    def input_bits(self, levels: int) -> int:
        """Return the width of an input address: min(MGAW, AGAW) (VT-d 4.3)."""
        return min(self._widest, 12 + 9 * levels)

    def table_entry(self, level: int, address: int) -> int:
        """Return the entry that points to a table."""
        return second_stage_table(level).build_int(r=1, w=1, address=address)

    def leaf_entry(self, shift: int, permissions: Access) -> int:
        """Return the entry of a page at address 0."""
        leaf = second_stage_page((shift - 12) // 9 + 1)
        return leaf.build_int(r=int(Access.READ in permissions), w=int(Access.WRITE in permissions))


@dataclass(frozen=True)
class QueueError:
    """What a driver found, and cleared, while it waited for the queue (VT-d 7.6).

    Attributes:
        name: "ITE", a device did not answer in time; or "ICE", one answered what it was not
            asked.
        requester: of the device.
        head: descriptor at the queue's head.
        prior: descriptor before it.
    """

    name: str
    requester: int
    head: bytes
    prior: bytes


class VtdDriver(Driver[VtdUnit]):
    """Programs a VT-d unit; see `Driver` for what both vendors offer.

    Attributes:
        on_queue_error: called with what is found while waiting for the queue.
    """

    WAYS = ("queue", "register", "none")
    STRUCTURES = DESCRIPTORS
    WAIT = "invalidation wait descriptor"
    QUEUE = "invalidation queue"
    QUEUE_HEAD = "IQH"
    QUEUE_TAIL = "IQT"

    def __init__(
        self, machine: Machine, unit: VtdUnit, frames: range, invalidation: str = "queue"
    ) -> None:
        super().__init__(machine, unit, frames, invalidation)
        if invalidation == "queue" and not unit.capabilities.queued_invalidation:
            raise ValueError("invalidation must not be 'queue': the unit has no queue")
        self._contexts: dict[int, int] = {}  # bus: address of its context table
        self._waits = 0
        self._pending: dict[int, int] = {}  # number of a wait: its place in the queue
        self._aborted: dict[int, int] = {}  # number of a wait: who did not answer
        self._root = 0
        self._status = 0
        self.on_queue_error: Callable[[QueueError], None] = lambda error: None

    @staticmethod
    def _type_of(command: bytes) -> int:
        return command[0] & 0xF

    # ---- bringing the unit up ----------------------------------------------------------------

    def start(self, *, fault_vector: int = 0x30) -> None:
        """Bring the unit up with every device blocked (VT-d 2.4).

        Args:
            fault_vector: interrupt vector of fault events, 16..254.
        """
        check_vector(fault_vector)
        self._root = self.frames.take()
        self.unit.write("RTADDR", self._root)
        self.command("SRTP", True, "RTPS")
        if self.invalidation == "queue":
            self._start_queue()
        self.invalidate_context()
        self.invalidate_iotlb()
        self.wait()
        self.unit.write("FEDATA", fault_vector)
        self.unit.write("FEADDR", MESSAGE_ADDRESS)
        self.unit.write("FEUADDR", 0)
        self.unit.write_field("FECTL", "IM", 0)
        self.command("TE", True, "TES")

    def stop(self) -> None:
        """Switch translation off: every request passes untranslated from then on."""
        self.command("TE", False, "TES")

    def _start_queue(self) -> None:
        self._queue = self.frames.take()
        self._status = self.frames.take()
        self._tail = 0
        self.unit.write("IQT", 0)
        self.unit.write("IQA", self._queue)
        self.command("QIE", True, "QIES")

    def command(self, command: str, on: bool, status: str) -> None:
        """Change one bit of GCMD and wait for its status bit (VT-d 2.4).

        Args:
            command: field of GCMD.
            on: wanted state; one-shot commands take True.
            status: field of GSTS.
        """
        one_shot = sum(self.unit.field_info("GCMD", name).mask for name in ("SRTP", "WBF", "SIRTP"))
        mask = self.unit.field_info("GCMD", command).mask
        kept = self.unit.read("GSTS") & ~one_shot & ~mask
        self.unit.write("GCMD", kept | (mask if on else 0))
        wanted = int(on and command != "WBF")
        self._until(lambda: self.unit.field("GSTS", status) == wanted, f"GCMD.{command}")

    # ---- devices -----------------------------------------------------------------------------

    def entry_format(self) -> EntryFormat:
        """Return how page-table entries are encoded for this unit."""
        return SecondStageFormat(self.unit.capabilities, self.unit.config.host_address_width)

    def domain_ids(self) -> range:
        """Return the usable domain IDs: 0 tags faulting entries (VT-d 9.5), 1 pass-through."""
        return range(2, 1 << self.unit.capabilities.domain_bits)

    def context_entry_address(self, requester: int) -> int:
        """Return the address of a device's context entry; its context table is made if needed."""
        self._check_requester(requester)
        bus = requester >> 8
        if bus not in self._contexts:
            table = self._contexts[bus] = self.frames.take()
            root = RootEntry.build(p=1, ctp=table)
            self.memory.write(self._root + RootEntry.size * bus, root)
            if self.unit.capabilities.caching_mode:
                self.invalidate_context()
                self.wait()
        return self._contexts[bus] + ContextEntry.size * (requester & 0xFF)

    @property
    def has_device_tlbs(self) -> bool:
        """Whether the unit knows ATS (ECAP.DT)."""
        return self.unit.capabilities.device_tlbs

    def _translating(self, domain: Domain, ats: bool) -> bytes:
        table = domain.table
        return ContextEntry.build(
            p=1, tt=int(ats), ssptptr=table.root, aw=table.levels - 2, did=domain.id
        )

    def _blocked(self) -> bytes:
        return bytes(ContextEntry.size)

    def pass_through(self, requester: int, *, invalidate: bool = True, wait: bool = True) -> None:
        """Let a device reach physical memory untranslated; see `Driver.pass_through`."""
        capabilities = self.unit.capabilities
        if not capabilities.pass_through:
            raise ValueError("the unit does not support pass-through (ECAP.PT)")
        entry = ContextEntry.build(p=1, tt=2, aw=max(capabilities.levels) - 2, did=1)
        self._set_entry(requester, entry, 1, 0, invalidate, wait)

    def _set_entry(
        self,
        requester: int,
        entry: bytes,
        domain_id: int | None,
        queue_depth: int,
        invalidate: bool,
        wait: bool,
    ) -> None:
        """Write a context entry, and invalidate as VT-d 9.4 asks."""
        address = self.context_entry_address(requester)
        old = ContextEntry.parse(self.memory.read(address, ContextEntry.size))
        self.memory.write(address, entry)
        self._note(requester, domain_id, queue_depth)
        if not invalidate:
            return
        if old.p:
            self.invalidate_context("device", old.did, requester)
            self.invalidate_iotlb("domain", old.did)
            if old.tt == 1:
                self.invalidate_device_tlb(requester)
        elif self.unit.capabilities.caching_mode:
            self.invalidate_context("device", 0, requester)
            self.invalidate_iotlb("domain", domain_id or 0)
        else:
            self._flush_write_buffer()
            return
        if wait:
            self.wait()

    # ---- what mappings owe -------------------------------------------------------------------

    def mapped(self, domain: Domain, iova: int, size: int) -> None:
        """Do what is owed after something was mapped (VT-d 9.5, RWBF)."""
        if self.unit.capabilities.caching_mode:  # no device-TLB holds what is not present
            self._start_range(domain, iova, size, keep_tables=False)
            self.wait()
        else:
            self._flush_write_buffer()

    def _flush_write_buffer(self) -> None:
        if self.unit.capabilities.write_buffer_flush:
            self.command("WBF", True, "WBFS")

    def _start_range(self, domain: Domain, iova: int, size: int, keep_tables: bool) -> None:
        first, last = iova // PAGE_SIZE, (iova + size - 1) // PAGE_SIZE
        mask = (first ^ last).bit_length()
        capabilities = self.unit.capabilities
        if capabilities.page_selective and mask <= capabilities.max_address_mask:
            self.invalidate_iotlb("page", domain.id, iova, mask, keep_tables=keep_tables)
        else:
            self._start_domain(domain)

    def _start_domain(self, domain: Domain) -> None:
        self.invalidate_iotlb("domain", domain.id)

    # ---- invalidation commands ---------------------------------------------------------------

    def invalidate_context(
        self,
        granularity: str = "global",
        domain_id: int = 0,
        requester: int = 0,
        function_mask: int = 0,
    ) -> None:
        """Start a context-cache invalidation; `wait` for it (VT-d 2.6, 7.2).

        Args:
            granularity: "global", "domain" or "device".
            domain_id: for "domain" and "device".
            requester: for "device".
            function_mask: for "device": 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0 ignored.
        """
        code = _granularity(granularity, ("global", "domain", "device"))
        if self.invalidation == "queue":
            self.submit(
                ContextInvalidation.build(g=code, did=domain_id, sid=requester, fm=function_mask)
            )
        elif self.invalidation == "register":
            self.wait()
            self._write_fields(
                "CCMD", ICC=1, CIRG=code, DID=domain_id, SID=requester, FM=function_mask
            )

    def invalidate_iotlb(
        self,
        granularity: str = "global",
        domain_id: int = 0,
        iova: int = 0,
        address_mask: int = 0,
        *,
        keep_tables: bool = False,
    ) -> None:
        """Start an IOTLB invalidation, with draining; `wait` for it (VT-d 2.7, 7.2).

        Args:
            granularity: "global", "domain" or "page".
            domain_id: for "domain" and "page".
            iova: for "page": an address in the range.
            address_mask: for "page": the range is 2**n pages, aligned to its size.
            keep_tables: for "page": paging-structure caches may be kept (IH).
        """
        code = _granularity(granularity, ("global", "domain", "page"))
        page = granularity == "page"
        where = {
            "am": address_mask if page else 0,
            "ih": int(keep_tables and page),
            "addr": iova & ~(PAGE_SIZE - 1) if page else 0,
        }
        capabilities = self.unit.capabilities
        drain = {"dw": int(capabilities.drain_writes), "dr": int(capabilities.drain_reads)}
        if self.invalidation == "queue":
            self.submit(IotlbInvalidation.build(g=code, did=domain_id, **drain, **where))
        elif self.invalidation == "register":
            self.wait()
            if page:
                address = where["addr"] >> self.unit.field_info("IVA", "ADDR").low
                self._write_fields("IVA", AM=where["am"], IH=where["ih"], ADDR=address)
            self._write_fields(
                "IOTLB", IVT=1, IIRG=code, DID=domain_id, DW=drain["dw"], DR=drain["dr"]
            )

    def _start_device_tlb(self, requester: int, sized: int, address: int) -> None:
        # While translation is off no device would be allowed to answer (VT-d 6.1).
        if self.unit.field("GSTS", "TES"):
            pending = self.device_tlbs.get(requester, MOST_PENDING) % MOST_PENDING
            self.submit(
                DeviceTlbInvalidation.build(sid=requester, mip=pending, s=sized, addr=address)
            )

    def _write_fields(self, register: str, **values: int) -> None:
        info = {name: self.unit.field_info(register, name) for name in values}
        self.unit.write(register, sum(value << info[name].low for name, value in values.items()))

    def submit_wait(self) -> Callable[[], bool]:
        """Let the unit say when everything submitted so far is complete (VT-d 7.5)."""
        if self.invalidation == "queue":
            self._waits += 1
            number = self._waits & 0xFFFF_FFFF
            self._pending[number] = self._tail
            self.submit(WaitDescriptor.build(sw=1, status_data=number, status_address=self._status))
            return partial(self._waited, number)
        if self.invalidation == "register":
            return self._registers_done
        return lambda: True

    def _waited(self, number: int) -> bool:
        status = self.unit.read("FSTS")
        if status & self.unit.field_info("FSTS", "ICE").mask:
            self._clear_queue_error("ICE")
        if status & self.unit.field_info("FSTS", "ITE").mask:
            self._abort_waits()
        if number in self._aborted:
            raise DeviceTlbTimeoutError(self._aborted.pop(number))
        if status & self.unit.field_info("FSTS", "IQE").mask:
            code = self.unit.field("IQERCD", "IQEI")
            raise RuntimeError(
                f"invalidation queue error {code} at descriptor {self._head() // COMMAND_SIZE} "
                "(VT-d 7.6)"
            )
        if not self._written(number):
            return False
        self._pending.pop(number, None)
        return True

    def _written(self, number: int) -> bool:
        # Waits complete in their order, so a later one's number will do.
        written = int.from_bytes(self.memory.read(self._status, 4), "little")
        return (written - number) & 0xFFFF_FFFF < 1 << 31

    def _abort_waits(self) -> None:
        """Give up the waits that a time-out has aborted, and let the queue go on (VT-d 7.6).

        Those are the ones that the unit has fetched, which the head may still point at; what is
        behind it comes later.
        """
        requester, head = self.unit.field("IQERCD", "ITESID"), self._head()
        to_come = (self._tail - head) % PAGE_SIZE
        for number, position in list(self._pending.items()):
            if position == head or (position - head) % PAGE_SIZE >= to_come:
                del self._pending[number]
                if not self._written(number):
                    self._aborted[number] = requester
        self._clear_queue_error("ITE")

    def _clear_queue_error(self, name: str) -> None:
        head = self._head()
        at_head, before = (
            self.memory.read(self._queue + position % PAGE_SIZE, COMMAND_SIZE)
            for position in (head, head - COMMAND_SIZE)
        )
        requester = self.unit.field("IQERCD", f"{name}SID")
        self.on_queue_error(QueueError(name, requester, at_head, before))
        self.unit.write("FSTS", self.unit.field_info("FSTS", name).mask)

    def _registers_done(self) -> bool:
        for register, busy, wanted, performed in (
            ("CCMD", "ICC", "CIRG", "CAIG"),
            ("IOTLB", "IVT", "IIRG", "IAIG"),
        ):
            if self.unit.field(register, busy):
                return False
            if self.unit.field(register, wanted) and not self.unit.field(register, performed):
                raise RuntimeError(f"{register}: the unit refused the invalidation ({performed}=0)")
        return True

    # ---- faults ------------------------------------------------------------------------------

    def faults(self) -> list[FaultRecord]:
        """Take the fault records, oldest first, and clear them (VT-d 2.8, 8.1)."""
        records = self.unit.fault_records()
        for record in records:
            self.unit.write("FRCD", FRCD_F, record.index)
        self.unit.write("FSTS", self.unit.field_info("FSTS", "PFO").mask)
        return records


def _granularity(name: str, allowed: tuple[str, ...]) -> int:
    check_granularity(name, allowed)
    return GRANULARITIES[name]
