"""Reference walk of VT-d in legacy mode, in the order of checks of VT-d 8.3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iommu_emu import reference
from iommu_emu.core import Access, AddressType, Outcome, Request, RequestFlag
from iommu_emu.reference import (
    INTERRUPT_BASE,
    INTERRUPT_LAST,
    LEVEL_CONTEXT,
    LEVEL_ROOT,
    READ_WRITE,
    Answer,
    Failure,
    Leaf,
    MemoryRead,
    Node,
    ats_range,
    in_interrupt_range,
    nothing,
    pass_through,
)
from iommu_emu.reference.oracle import Oracle
from iommu_emu.vtd.structures import (
    ContextEntry,
    ContextInvalidation,
    DeviceTlbInvalidation,
    FaultRecording,
    IotlbInvalidation,
    RootEntry,
    second_stage_page,
    second_stage_table,
)

if TYPE_CHECKING:
    from iommu_emu.vtd.unit import VtdUnit

__all__ = ["FAILURES", "Context", "Unit", "Walker", "fault_record", "invalidate", "walk"]

FAILURES: dict[str, Failure] = {
    name: Failure(code, name, qualified)
    for name, code, qualified in (
        ("LRT.1", 0x08, False),
        ("LRT.2", 0x01, False),
        ("LRT.3", 0x0A, False),
        ("LCT.1", 0x09, False),
        ("LCT.2", 0x02, True),
        ("LCT.3", 0x0B, True),
        ("LCT.4.1", 0x03, True),
        ("LCT.4.2", 0x03, True),
        ("LCT.4.3", 0x03, True),
        ("LCT.5", 0x0D, True),
        ("LGN.1.1", 0x04, True),
        ("LGN.1.2", 0x04, True),
        ("LGN.1.3", 0x04, True),
        ("LGN.2", 0x05, True),
        ("LGN.3", 0x06, True),
        ("LGN.4", 0x0E, True),
        ("LSS.1", 0x07, True),
        ("LSS.2", 0x0C, True),
        ("RTA.1.1", 0x30, False),
        ("RTA.1.2", 0x30, False),
        ("RTA.1.3", 0x30, False),
        ("RTA.2", 0x31, False),
        ("IR.29", 0x29, False),
        ("PMR", 0, True),
        ("AT", 0, True),
    )
}
"""Every failure in legacy mode: code, and whether FPD suppresses it (VT-d 8.2, 10.7)."""

NO_TRANSLATION = frozenset({"LGN.1.1", "LGN.2", "LGN.3"})
"""What a translation request is told by granting it nothing ("0" in column TR of VT-d 8.2)."""

UNSUPPORTED_TRANSLATION_REQUEST = frozenset({"LRT.2", "LCT.2", "LCT.5", "RTA.2", "AT"})
"""What answers a translation request with UR, not CA (column TR of VT-d 8.2)."""


@dataclass(frozen=True)
class Unit:
    """What a walk depends on besides memory: capabilities and programmed registers.

    Attributes:
        root_table: the latched RTADDR, all 64 bits.
        translation_enabled: GSTS.TES.
        host_address_width: bits (DMAR header).
        guest_address_width: CAP.MGAW + 1.
        levels: page-table depths in CAP.SAGAW, of 3, 4 and 5.
        large_pages: leaf levels in CAP.SSLPS, of 2 and 3.
        domain_bits: 4 + 2 * CAP.ND.
        zero_length_reads: CAP.ZLR.
        caching_mode: CAP.CM.
        pass_through: ECAP.PT.
        snoop_control: ECAP.SC.
        device_tlb: ECAP.DT.
        no_write_flag: ECAP.NWFS.
        major: VER.MAX.
        protected: enabled protected-memory regions, first and last address of each.
    """

    root_table: int
    translation_enabled: bool = True
    host_address_width: int = 46
    guest_address_width: int = 57
    levels: frozenset[int] = frozenset({3, 4, 5})
    large_pages: frozenset[int] = frozenset({2, 3})
    domain_bits: int = 16
    zero_length_reads: bool = True
    caching_mode: bool = False
    pass_through: bool = True
    snoop_control: bool = True
    device_tlb: bool = False
    no_write_flag: bool = False
    major: int = 1
    protected: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, unit: VtdUnit) -> Unit:
        """Return what the registers of a unit say now; RTADDR is taken as latched."""
        granule = 1 << unit.config.protected_shift
        protected = []
        if unit.field("PMEN", "PRS"):
            for kind, there in (("PLM", "PLMR"), ("PHM", "PHMR")):
                base, limit = unit.read(f"{kind}BASE"), unit.read(f"{kind}LIMIT") | granule - 1
                if unit.field("CAP", there) and base <= limit:
                    protected.append((base, limit))
        sagaw, sslps = unit.field("CAP", "SAGAW"), unit.field("CAP", "SSLPS")
        return cls(
            root_table=unit.read("RTADDR"),
            translation_enabled=bool(unit.field("GSTS", "TES")),
            host_address_width=unit.config.host_address_width,
            guest_address_width=unit.field("CAP", "MGAW") + 1,
            levels=frozenset(levels for levels in (3, 4, 5) if sagaw >> levels - 2 & 1),
            large_pages=frozenset(level for level in (2, 3) if sslps >> level - 2 & 1),
            domain_bits=4 + 2 * unit.field("CAP", "ND"),
            zero_length_reads=bool(unit.field("CAP", "ZLR")),
            caching_mode=bool(unit.field("CAP", "CM")),
            pass_through=bool(unit.field("ECAP", "PT")),
            snoop_control=bool(unit.field("ECAP", "SC")),
            device_tlb=bool(unit.field("ECAP", "DT")),
            no_write_flag=bool(unit.field("ECAP", "NWFS")),
            major=unit.field("VER", "MAX"),
            protected=tuple(protected),
        )


@dataclass(frozen=True)
class Context(reference.Context):
    """What a context cache remembers of root and context entry."""

    translation_type: int
    levels: int
    table: int


class Walker(reference.Walker[Context]):
    """The steps of a VT-d walk.

    Args:
        unit: capabilities and registers.
        read: reads physical memory.
    """

    def __init__(self, unit: Unit, read: MemoryRead) -> None:
        super().__init__(read)
        self.unit = unit

    def _above_host(self, address: int) -> bool:
        return address >> self.unit.host_address_width != 0

    def admit(self, request: Request) -> Answer | None:
        """Answer what needs no table (VT-d 8.3 steps 1 and 2)."""
        untranslated = request.at is AddressType.UNTRANSLATED
        asks = request.at is AddressType.TRANSLATION_REQUEST
        if request.at is AddressType.RESERVED or (asks and request.access & Access.WRITE):
            return self.fail(request, None, FAILURES["AT"])  # VT-d 6.1
        if not untranslated and not self.unit.translation_enabled:
            return self.fail(request, None, FAILURES["AT"])  # VT-d 5.1
        # A PASID prefix is ignored while translation is off (VT-d 5.1).
        plain = request.pasid is None or not self.unit.translation_enabled
        if untranslated and plain and in_interrupt_range(request.address):
            return self._interrupt_range(request)
        if asks and plain and in_interrupt_range(request.address):
            # VT-d 8.4, S.1 and S.2: messages are not translated.
            if self._no_write(request):
                return nothing(0)
            return Answer(Outcome.MEMORY, request.address, 12, Access.WRITE, untranslated=True)
        if not self.unit.translation_enabled:
            return self._protect(request, None, pass_through(request))
        mode = self.unit.root_table >> 10 & 3
        if mode:  # neither scalable nor abort-dma mode is supported (VT-d 2.5, 8.2)
            name = {1: "RTA.1.3", 2: "RTA.1.2", 3: "RTA.1.1"}[mode]
            return self.fail(request, None, FAILURES[name])
        if request.pasid is not None:
            return self.fail(request, None, FAILURES["RTA.2"])
        return None

    def _no_write(self, request: Request) -> bool:
        return bool(request.flags & RequestFlag.NO_WRITE) and self.unit.no_write_flag

    def _interrupt_range(self, request: Request) -> Answer:
        # VT-d 5.4: a write of one DWORD is a message, a zero-length read is harmless.
        if request.access is Access.WRITE and request.length == 4 and not request.address & 3:
            return Answer(Outcome.INTERRUPT, request.address)
        if request.flags & RequestFlag.ZERO_LENGTH:
            return Answer(Outcome.DISCARDED)
        return self.fail(request, None, FAILURES["IR.29"])

    def context(self, requester: int) -> Context | Failure:
        """Read root and context entry (VT-d 8.3 steps 3 and 4)."""
        address = (self.unit.root_table & ~0xFFF) + 16 * (requester >> 8)
        data = self.fetch(LEVEL_ROOT, address, 16)
        if data is None:
            return FAILURES["LRT.1"]
        root = RootEntry.parse(data)
        if not root.p:
            return FAILURES["LRT.2"]
        if int.from_bytes(data, "little") & RootEntry.reserved_mask or self._above_host(root.ctp):
            return FAILURES["LRT.3"]
        data = self.fetch(LEVEL_CONTEXT, root.ctp + 16 * (requester & 0xFF), 16)
        if data is None:
            return FAILURES["LCT.1"]
        entry = ContextEntry.parse(data)
        suppressed = bool(entry.fpd)
        name = self._check_context(int.from_bytes(data, "little"))
        if name:
            # Not present: domain 0 (VT-d 9.5); else by its own, as any other (9.2).
            domain = entry.did & (1 << self.unit.domain_bits) - 1 if entry.p else 0
            return replace(FAILURES[name], suppressed=suppressed, domain=domain)
        return Context(entry.did, suppressed, entry.tt, entry.aw + 2, entry.ssptptr)

    def _check_context(self, value: int) -> str | None:
        entry = ContextEntry.parse_int(value)
        if not entry.p:
            return "LCT.2"
        # SSPTPTR is ignored for pass-through (VT-d 4.3).
        high_table = entry.tt != 2 and self._above_host(entry.ssptptr)
        high_domain = entry.did >> self.unit.domain_bits != 0
        if value & ContextEntry.reserved_mask or high_table or high_domain:
            return "LCT.3"
        # What AW must be depends on the translation type, so that comes first.
        supported = {0: True, 1: self.unit.device_tlb, 2: self.unit.pass_through}
        if not supported.get(entry.tt, False):
            return "LCT.4.2"
        levels = entry.aw + 2
        if levels not in self.unit.levels:
            return "LCT.4.1"
        if entry.tt == 2 and levels != max(self.unit.levels):
            return "LCT.4.1"
        return None

    def enter(self, context: Context, request: Request) -> Node | Failure | Answer:
        """Apply the context to this request (VT-d 8.3 steps 4, 5 and 7)."""
        high = self._above_host(request.address)
        if request.at is not AddressType.UNTRANSLATED and context.translation_type != 1:
            return FAILURES["LCT.5"]
        if request.at is AddressType.TRANSLATED:
            if high:
                return FAILURES["LGN.1.2"]
            if in_interrupt_range(request.address):
                return FAILURES["LGN.4"]
            return self._protect(request, None, pass_through(request, context.domain))
        if context.translation_type == 2:
            if high:
                return FAILURES["LGN.1.3"]
            return self._protect(request, None, pass_through(request, context.domain))
        if request.address >> min(self.unit.guest_address_width, 12 + 9 * context.levels):
            return FAILURES["LGN.1.1"]
        return Node(context.levels, context.table, READ_WRITE, top=True)

    def step(self, node: Node, address: int) -> Node | Leaf | Failure:
        """Read one entry: fetch, present, reserved, accumulate (VT-d 8.3 step 8, 4.8)."""
        shift = 12 + 9 * (node.level - 1)
        data = self.fetch(node.level, node.table + 8 * (address >> shift & 0x1FF), 8)
        if data is None:
            return FAILURES["LCT.4.3" if node.top else "LSS.1"]
        value = int.from_bytes(data, "little")
        permissions = Access(value & 3)
        if not permissions:
            return FAILURES["LGN.3"]  # not present; finish() makes it LGN.2 for a write
        large = node.level in (2, 3) and value >> 7 & 1 == 1
        if node.level == 1 or large:
            leaf = second_stage_page(node.level)
            entry = leaf.parse(data)
            unsupported = large and node.level not in self.unit.large_pages
            snoop = bool(entry.snp)
            if (
                value & leaf.reserved_mask
                or self._above_host(entry.address)
                or unsupported
                or (snoop and not self.unit.snoop_control)
            ):
                return FAILURES["LSS.2"]
            return _fragment(
                Leaf(entry.address, shift, permissions & node.permissions, snoop), address
            )
        table = second_stage_table(node.level)
        entry = table.parse(data)
        if value & table.reserved_mask or self._above_host(entry.address):
            return FAILURES["LSS.2"]
        return Node(node.level - 1, entry.address, permissions & node.permissions)

    def finish(self, context: Context, end: Leaf | Failure, request: Request) -> Answer:
        """Check permission and output (VT-d 8.3 steps 9 and 10; 5.5, 5.7)."""
        if isinstance(end, Failure):
            if end.name == "LGN.3" and request.access & Access.WRITE:
                end = FAILURES["LGN.2"]
            return self.fail(request, context, end)
        if request.at is AddressType.TRANSLATION_REQUEST:
            return self._completion(context, end, request)
        missing = request.access & ~end.permissions
        if missing & Access.WRITE:
            return self.fail(request, context, FAILURES["LGN.2"])
        harmless = (
            bool(request.flags & RequestFlag.ZERO_LENGTH)
            and self.unit.zero_length_reads
            and bool(end.permissions & Access.WRITE)
        )
        if missing & Access.READ and not harmless:
            return self.fail(request, context, FAILURES["LGN.3"])
        output = end.output(request.address)
        if in_interrupt_range(output):
            return self.fail(request, context, FAILURES["LGN.4"])
        answer = Answer(
            Outcome.MEMORY, output, end.shift, end.permissions, context.domain, end.snoop
        )
        return self._protect(request, context, answer)

    def _completion(self, context: Context, end: Leaf, request: Request) -> Answer:
        """Return what a translation completion grants (VT-d 6.2)."""
        permissions = end.permissions
        if self._no_write(request):
            permissions &= ~Access.WRITE
        if not permissions:
            return nothing(context.domain)
        output = end.output(request.address)
        if in_interrupt_range(output):
            return self.fail(request, context, FAILURES["LGN.4"])
        return Answer(Outcome.MEMORY, output, end.shift, permissions, context.domain, end.snoop)

    def _protect(self, request: Request, remapped: Context | None, answer: Answer) -> Answer:
        """Block what hits a protected region, silently (VT-d 2.11)."""
        if remapped is not None and self.unit.major < 2:
            return answer
        last = answer.address + max(request.length, 1) - 1
        if any(low <= last and answer.address <= high for low, high in self.unit.protected):
            return self.fail(request, remapped, FAILURES["PMR"])
        return answer

    def fail(self, request: Request, context: Context | None, found: Failure) -> Answer:
        """Return the answer to a faulting request (VT-d 8.1 step 1, columns of 8.2)."""
        suppressed = found.suppressed or (context is not None and context.suppressed)
        asks = request.at is AddressType.TRANSLATION_REQUEST
        if asks and found.name in NO_TRANSLATION:
            return nothing(context.domain if context else 0)
        aborted = asks and found.name not in UNSUPPORTED_TRANSLATION_REQUEST
        return Answer(
            Outcome.ABORTED if aborted else Outcome.UNSUPPORTED,
            domain=context.domain if context else 0,
            failure=found,
            recorded=found.code != 0 and not (found.qualified and suppressed),
        )


def _fragment(leaf: Leaf, address: int) -> Leaf:
    """Return the 4 KiB piece of a large page that reaches into the interrupt range.

    A translation that faults in places cannot be handed out as one (VT-d 5.4, 9.6).
    """
    last = leaf.address + (1 << leaf.shift) - 1
    if last < INTERRUPT_BASE or leaf.address > INTERRUPT_LAST:
        return leaf
    return replace(leaf, address=leaf.output(address) & ~0xFFF, shift=12)


def walk(unit: Unit, read: MemoryRead, request: Request) -> Answer:
    """Translate one request without any cache.

    Args:
        unit: capabilities and registers.
        read: reads physical memory, None where there is no RAM.
        request: what arrives.

    Returns:
        The only right answer if every cache is empty.
    """
    return Walker(unit, read).walk(request)


def invalidate(
    oracle: Oracle[Context], descriptor: bytes, *, guest_address_width: int = 64
) -> None:
    """Tell the oracle what an invalidation descriptor covers (VT-d 7.4).

    Args:
        oracle: of the unit that carried it out.
        descriptor: 16 bytes; those that invalidate neither contexts nor translations are none
            of the oracle's business. Device-TLB invalidations: the device has answered.
        guest_address_width: CAP.MGAW + 1: address bits above it are ignored (VT-d 7.2).
    """
    kind = descriptor[0] & 0xF
    if kind == ContextInvalidation["type"].value:
        entry = ContextInvalidation.parse(descriptor)
        oracle.invalidate_context(
            domain=entry.did if entry.g in (2, 3) else None,
            requester=entry.sid if entry.g == 3 else None,
            function_mask=(0, 4, 6, 7)[entry.fm],
        )
    elif kind == IotlbInvalidation["type"].value:
        entry = IotlbInvalidation.parse(descriptor)
        if entry.g != 3:
            oracle.invalidate_iotlb(domain=entry.did if entry.g == 2 else None)
            return
        size = 1 << 12 + entry.am
        first = entry.addr & ((1 << guest_address_width) - 1) & ~(size - 1)
        oracle.invalidate_iotlb(
            domain=entry.did, first=first, last=first + size - 1, keep_tables=bool(entry.ih)
        )
    elif kind == DeviceTlbInvalidation["type"].value:
        entry = DeviceTlbInvalidation.parse(descriptor)
        oracle.invalidate_device_tlb(entry.sid, *ats_range(entry.s, entry.addr))


def fault_record(unit: Unit, request: Request, answer: Answer) -> int:
    """Return the 128-bit fault record of a recorded fault (VT-d 2.10, 8.5).

    The PASID fields are 0: no unit in legacy mode supports them.
    """
    width = 12 + 9 * max(unit.levels)
    t1, t2 = {Access.WRITE: (0, 0), Access.READ: (1, 0), Access.ATOMIC: (1, 1)}[request.access]
    return FaultRecording.build_int(
        fi=request.address & ~0xFFF & ((1 << width) - 1),
        sid=request.requester,
        fr=answer.fault,
        at=int(request.at) if unit.device_tlb else 0,
        t1=t1,
        t2=t2,
        f=1,
    )
