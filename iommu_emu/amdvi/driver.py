"""A small software driver for AMD-Vi with host (v1) page tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from iommu_emu.amdvi.events import EventRecord
from iommu_emu.amdvi.structures import (
    COMMANDS,
    CompletionWait,
    DeviceTableEntry,
    InvalidateDevtabEntry,
    InvalidateIommuAll,
    InvalidateIommuPages,
    InvalidateIotlbPages,
    PageDirectoryEntry,
    PageTableEntry,
)
from iommu_emu.amdvi.unit import AmdviUnit
from iommu_emu.core import Access
from iommu_emu.domain import Domain
from iommu_emu.driver import (
    ALL_PAGES,
    COMMAND_SIZE,
    MESSAGE_ADDRESS,
    Driver,
    check_granularity,
    check_vector,
    invalidation_address,
)
from iommu_emu.page_table import PAGE_SIZE, EntryFormat
from iommu_emu.pci.ats import MOST_PENDING

if TYPE_CHECKING:
    from iommu_emu.machine import Machine

__all__ = ["AmdviDriver", "HostFormat"]

EVENT_SIZE = 16
RING_LENGTH = (PAGE_SIZE // COMMAND_SIZE).bit_length() - 1  # of both rings: log2 of entries
LARGEST_PAGE_SHIFT = 51
ONE_SECOND = 4  # Control.InvTimeOut (AMD-Vi 3.4)
DEFAULT_SHIFTS = frozenset({12, 21, 30})


class HostFormat(EntryFormat):
    """Host (v1) page-table entries (AMD-Vi 5.1, 5.3).

    Every power of two from 4 KiB up is a page size: those that are no level's own are encoded
    with NextLevel 7, in as many equal entries as they cover.

    Args:
        levels: deepest table that the unit supports.
        output_bits: width of a physical address.
    """

    def __init__(self, levels: int, output_bits: int) -> None:
        self.levels = frozenset(range(1, levels + 1))
        self.page_shifts = frozenset(range(12, LARGEST_PAGE_SHIFT + 1))
        self.preferred_shifts = DEFAULT_SHIFTS
        self.output_bits = output_bits

    def input_bits(self, levels: int) -> int:
        """Return the width of an input address."""
        return min(12 + 9 * levels, 64)

    def table_entry(self, level: int, address: int) -> int:
        """Return the entry that points to a table."""
        return PageDirectoryEntry.build_int(pr=1, next_level=level - 1, address=address, ir=1, iw=1)

    def leaf_entry(self, shift: int, permissions: Access) -> int:
        """Return the entry of a page at address 0."""
        own = (shift - 12) % 9 == 0
        # Ones below the bit of half the size, from bit 12 up, tell the size.
        size = 0 if own else (1 << shift - 1) - PAGE_SIZE
        return PageTableEntry.build_int(
            pr=1,
            next_level=0 if own else 7,
            address=size,
            ir=int(Access.READ in permissions),
            iw=int(Access.WRITE in permissions),
        )


class AmdviDriver(Driver[AmdviUnit]):
    """Programs an AMD-Vi unit; see `Driver` for what both vendors offer.

    Args:
        machine: the machine.
        unit: the unit, as it is after reset.
        frames: range of RAM that the driver may use for its tables and queues.
        invalidation: "queue" or "none".
        buses: PCI buses that the device table covers, 1..256; devices above are blocked.

    Raises:
        ValueError: if an argument is outside its range.
    """

    STRUCTURES = COMMANDS
    WAIT = "COMPLETION_WAIT"
    QUEUE = "command buffer"
    QUEUE_HEAD = "CmdBufHead"
    QUEUE_TAIL = "CmdBufTail"

    def __init__(
        self,
        machine: Machine,
        unit: AmdviUnit,
        frames: range,
        invalidation: str = "queue",
        *,
        buses: int = 256,
    ) -> None:
        super().__init__(machine, unit, frames, invalidation)
        if not 1 <= buses <= 256:
            raise ValueError(f"buses must be in 1..256, not {buses}")
        self._table_frames = buses * 256 * DeviceTableEntry.size // PAGE_SIZE
        self._table = 0
        self._events = 0
        self._status = 0
        self._waits = 0

    @staticmethod
    def _type_of(command: bytes) -> int:
        return command[7] >> 4

    # ---- bringing the unit up ----------------------------------------------------------------

    def start(self, *, fault_vector: int = 0x30) -> None:
        """Bring the unit up with every device blocked (AMD-Vi 3.4).

        Args:
            fault_vector: interrupt vector of log events, 16..254; used if the unit shows its
                MSI capability through registers.
        """
        check_vector(fault_vector)
        self._table = self.frames.take(self._table_frames)
        entries = self._table_frames * PAGE_SIZE // DeviceTableEntry.size
        self.memory.write(self._table, self._blocked() * entries)
        self._queue = self.frames.take()
        self._events = self.frames.take()
        self._status = self.frames.take()
        self._tail = 0
        self.unit.write("DevTabBase", self._table | self._table_frames - 1)
        self.unit.write("CmdBufBase", self._queue | RING_LENGTH << 56)
        self.unit.write("EvtLogBase", self._events | RING_LENGTH << 56)
        for pointer in ("CmdBufHead", "CmdBufTail", "EvtLogHead", "EvtLogTail"):
            self.unit.write(pointer, 0)
        if self.unit.features.message_registers:
            self.unit.write("MsiAddrLow", MESSAGE_ADDRESS)
            self.unit.write("MsiAddrHigh", 0)
            self.unit.write("MsiData", fault_vector)
            self.unit.write_field("MsiCapHdr", "Enable", 1)
        names = ("Coherent", "CmdBufEn", "EventLogEn", "EventIntEn", "IommuEn")
        control = sum(self.unit.field_info("Control", name).mask for name in names)
        control |= ONE_SECOND << self.unit.field_info("Control", "InvTimeOut").low
        self.unit.write("Control", control)
        self.invalidate_all()
        self.wait()

    def stop(self) -> None:
        """Switch the unit off: every request passes untranslated from then on."""
        self.unit.write("Control", 0)

    def _blocked(self) -> bytes:
        """A valid entry without permissions: everything is refused (AMD-Vi 4.3)."""
        return DeviceTableEntry.build(v=1, tv=1)

    # ---- devices -----------------------------------------------------------------------------

    def entry_format(self) -> EntryFormat:
        """Return how page-table entries are encoded for this unit."""
        return HostFormat(self.unit.features.levels, self.unit.config.host_address_width)

    def domain_ids(self) -> range:
        """Return the usable domain IDs: 0 is for blocked devices, 1 for pass-through."""
        return range(2, 1 << 16)

    def context_entry_address(self, requester: int) -> int:
        """Return the address of a device's table entry.

        Raises:
            ValueError: if the device table does not cover it.
        """
        self._check_requester(requester)
        offset = DeviceTableEntry.size * requester
        if offset >= self._table_frames * PAGE_SIZE:
            last = self._table_frames * PAGE_SIZE // DeviceTableEntry.size - 1
            raise ValueError(f"requester must be in 0..{last:#x}, not {requester:#x}")
        return self._table + offset

    @property
    def has_device_tlbs(self) -> bool:
        """Whether the unit knows ATS (AMD-Vi 2: IotlbSup)."""
        return self.unit.config.device_tlbs

    def _translating(self, domain: Domain, ats: bool) -> bytes:
        table = domain.table
        return DeviceTableEntry.build(
            v=1,
            tv=1,
            mode=table.levels,
            root=table.root,
            ir=1,
            iw=1,
            domain_id=domain.id,
            i=int(ats),
        )

    def pass_through(self, requester: int, *, invalidate: bool = True, wait: bool = True) -> None:
        """Let a device reach physical memory untranslated; see `Driver.pass_through`."""
        entry = DeviceTableEntry.build(v=1, tv=1, mode=0, ir=1, iw=1, domain_id=1)
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
        """Write a device table entry, and invalidate in the order of AMD-Vi 9.3."""
        address = self.context_entry_address(requester)
        old = DeviceTableEntry.parse(self.memory.read(address, DeviceTableEntry.size))
        self.memory.write(address, entry)
        self._note(requester, domain_id, queue_depth)
        if invalidate:
            self.invalidate_context("device", requester=requester)
            self.invalidate_iotlb("domain", old.domain_id)
            if old.i:
                self.invalidate_device_tlb(requester)
            if wait:
                self.wait()

    # ---- what mappings owe -------------------------------------------------------------------

    def mapped(self, domain: Domain, iova: int, size: int) -> None:
        """Do what is owed after something was mapped (AMD-Vi 13: NpCache)."""
        if self.unit.config.np_cache:  # no device-TLB holds what is not present
            self._start_range(domain, iova, size, keep_tables=False)
            self.wait()

    def _start_range(self, domain: Domain, iova: int, size: int, keep_tables: bool) -> None:
        self.invalidate_iotlb("page", domain.id, iova, size, keep_tables=keep_tables)

    def _start_domain(self, domain: Domain) -> None:
        self.invalidate_iotlb("domain", domain.id)

    # ---- invalidation commands ---------------------------------------------------------------

    def invalidate_context(self, granularity: str = "device", requester: int = 0) -> None:
        """Start INVALIDATE_DEVTAB_ENTRY; `wait` for it (AMD-Vi 9.2).

        Args:
            granularity: "device"; AMD-Vi has no other, but for `invalidate_all`.
            requester: device ID.
        """
        check_granularity(granularity, ("device",))
        if self.invalidation == "queue":
            self.submit(InvalidateDevtabEntry.build(device_id=requester))

    def invalidate_iotlb(
        self,
        granularity: str,
        domain_id: int = 0,
        iova: int = 0,
        size: int = PAGE_SIZE,
        *,
        keep_tables: bool = False,
    ) -> None:
        """Start INVALIDATE_IOMMU_PAGES; `wait` for it (AMD-Vi 9.2).

        Args:
            granularity: "domain" or "page".
            domain_id: whose translations.
            iova: for "page": first input address.
            size: for "page": bytes; the command covers the smallest power of two around them.
            keep_tables: for "page": page-structure caches may be kept (PDE=0).
        """
        check_granularity(granularity, ("domain", "page"))
        page = granularity == "page"
        sized, address = invalidation_address(iova, size) if page else (1, ALL_PAGES)
        if self.invalidation == "queue":
            self.submit(
                InvalidateIommuPages.build(
                    domain_id=domain_id,
                    s=sized,
                    pde=int(not (page and keep_tables)),
                    address=address,
                )
            )

    def _start_device_tlb(self, requester: int, sized: int, address: int) -> None:
        self.submit(
            InvalidateIotlbPages.build(
                device_id=requester,
                queue_id=requester,
                max_pending=self.device_tlbs.get(requester, MOST_PENDING),
                s=sized,
                address=address,
            )
        )

    def invalidate_all(self) -> None:
        """Start INVALIDATE_IOMMU_ALL, or what does the same; `wait` for it (AMD-Vi 13)."""
        if self.invalidation != "queue":
            return
        if self.unit.features.invalidate_all:
            self.submit(InvalidateIommuAll.build())
            return
        for requester in self.attached:
            self.invalidate_context("device", requester)
        for domain_id in (0, 1, *self.domains):
            self.invalidate_iotlb("domain", domain_id)

    def submit_wait(self) -> Callable[[], bool]:
        """Let the unit say when everything submitted so far is complete (AMD-Vi 9.2)."""
        if self.invalidation != "queue":
            return lambda: True
        self._waits += 1
        number = self._waits
        self.submit(CompletionWait.build(s=1, store_address=self._status, store_data=number))
        return partial(self._waited, number)

    def _waited(self, number: int) -> bool:
        if not self.unit.field("Status", "CmdBufRun"):
            raise RuntimeError(
                f"the command buffer stopped at command {self._head() // COMMAND_SIZE}"
            )
        # Waits complete in their order, so a later one's number will do.
        return int.from_bytes(self.memory.read(self._status, 8), "little") >= number

    # ---- events ------------------------------------------------------------------------------

    def faults(self) -> list[EventRecord]:
        """Take the events from the log, oldest first (AMD-Vi 3.3, 3.6)."""
        head, tail = self.unit.read("EvtLogHead"), self.unit.read("EvtLogTail")
        records = []
        while head != tail:
            records.append(EventRecord.decode(self.memory.read(self._events + head, EVENT_SIZE)))
            head = (head + EVENT_SIZE) % PAGE_SIZE
        self.unit.write("EvtLogHead", head)
        overflow = self.unit.field_info("Status", "EventOverflow").mask
        pending = overflow | self.unit.field_info("Status", "EventLogInt").mask
        self.unit.write("Status", pending)
        return records
