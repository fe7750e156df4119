"""What a VT-d unit reports in CAP and ECAP: named arguments in, two words out.

A capability is the only switch there is for a behaviour, so a configuration is checked here: what
the specification does not allow, and what this version does not implement, is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

from iommu_emu import core
from iommu_emu.core import FieldInfo, Vendor, require_range

__all__ = ["Capabilities", "unimplemented"]

SAGAW_LOWEST = 2  # SAGAW bit n stands for n + 2 levels (VT-d 3.1)
LARGE_PAGE_SHIFTS = (21, 30)  # of SSLPS bits 0 and 1

UNIMPLEMENTED: dict[tuple[str, str], str] = {
    ("CAP", "AFL"): "advanced fault logging",
    ("CAP", "FS1GP"): "first-stage translation (1 GiB pages)",
    ("CAP", "PI"): "posted interrupts",
    ("CAP", "FS5LP"): "first-stage translation (5 levels)",
    ("CAP", "ECMDS"): "enhanced commands",
    ("ECAP", "MTS"): "memory types (MTRRs)",
    ("ECAP", "NEST"): "nested translation",
    ("ECAP", "PRS"): "page requests",
    ("ECAP", "ERS"): "execute requests",
    ("ECAP", "SRS"): "supervisor requests",
    ("ECAP", "EAFS"): "the extended accessed flag",
    ("ECAP", "PSS"): "PASIDs (their width)",
    ("ECAP", "PASID"): "PASIDs",
    ("ECAP", "DIT"): "device-TLB invalidation throttling",
    ("ECAP", "PDS"): "page-request draining",
    ("ECAP", "SMTS"): "scalable mode",
    ("ECAP", "VCS"): "virtual commands",
    ("ECAP", "SSADS"): "second-stage accessed and dirty flags",
    ("ECAP", "FSTS"): "first-stage translation",
    ("ECAP", "SMPWCS"): "scalable-mode walk coherency",
    ("ECAP", "RPS"): "the RID_PASID field",
    ("ECAP", "TDXCS"): "TDX Connect",
    ("ECAP", "PMS"): "performance monitoring",
    ("ECAP", "ADMS"): "abort-DMA mode",
    ("ECAP", "RPRIVS"): "the RID_PRIV field",
    ("ECAP", "HPTS"): "host permission tables",
    ("ECAP", "PTRS"): "PASIDs in translated requests",
    ("ECAP", "SSIRWS"): "second-stage IR and IW bits",
    ("ECAP", "SMS"): "stop markers",
    ("ECAP", "HPT1GPS"): "host permission tables (1 GiB pages)",
    ("ECAP", "RDTS"): "resource director registers",
}
"""Fields that must be 0 in this version, and the feature that each stands for."""


@lru_cache
def _layout(register: str) -> dict[str, FieldInfo]:
    """Return the fields of a register as the core declares them."""
    index = next(row.index for row in core.registers(Vendor.VTD) if row.name == register)
    return {row.name: row for row in core.fields(Vendor.VTD) if row.register == index}


def unimplemented(cap: int, ecap: int) -> list[str]:
    """Return the features in two capability words that this version does not implement."""
    words = {"CAP": cap, "ECAP": ecap}
    return [
        f"{feature} ({register}.{name})"
        for (register, name), feature in UNIMPLEMENTED.items()
        if _layout(register)[name].extract(words[register])
    ]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Contents of CAP and ECAP (VT-d 3.1, 3.2).

    Attributes:
        domain_bits: width of a domain ID: 4, 6, … 16 (ND).
        write_buffer_flush: maps need GCMD.WBF (RWBF).
        protected_low: there is a protected low-memory region (PLMR).
        protected_high: there is a protected high-memory region (PHMR).
        caching_mode: faulting entries may be cached (CM).
        levels: depths of page tables that are supported, of 3, 4 and 5 (SAGAW).
        guest_address_width: bits of an input address, 1..64 (MGAW + 1).
        zero_length_reads: reads of no byte pass on write-only pages (ZLR).
        fault_offset: first fault recording register, bytes, a multiple of 16 up to 3FF0h (FRO).
        large_pages: none, {21}, or {21, 30}: log2 of their sizes (SSLPS).
        page_selective: page-selective invalidation is supported (PSI).
        fault_records: fault recording registers, 1..256 (NFR + 1).
        max_address_mask: page-selective invalidation covers up to 2**n pages, 0..63 (MAMV).
        drain_writes: write draining is supported (DWD).
        drain_reads: read draining is supported (DRD).
        root_invalidates: setting the root table pointer invalidates every cache (ESRTPS).
        interrupt_table_invalidates: the same for the interrupt table (ESIRTPS).
        coherent: table walks snoop CPU caches (C).
        queued_invalidation: there is an invalidation queue (QI).
        interrupt_remapping: the unit remaps interrupts (IR).
        extended_interrupts: 32-bit APIC IDs (EIM).
        pass_through: translation type 10 is supported (PT).
        snoop_control: leaves may force snooping (SC).
        iotlb_offset: IVA and IOTLB registers, bytes, a multiple of 16 up to 3FF0h (IRO).
        max_handle_mask: IEC invalidation covers up to 2**n entries, 0..15 (MHMV).
        device_tlbs: the unit answers translation requests and invalidates device-TLBs (DT).
        no_write_flag: a translation request may say that it asks for reads only (NWFS).
        second_stage: second-stage translation of scalable mode; from major version 6 on it is
            what keeps page tables available (SSTS).
        extended_interrupts_required: EIME must be 1 (EIMER).
        interrupts_blocked_until_remapped: no interrupt passes while IRES=0 (IRREQ).

    Raises:
        ValueError: if a value is outside its range, or a combination is not allowed.
    """

    domain_bits: int = 16
    write_buffer_flush: bool = False
    protected_low: bool = True
    protected_high: bool = True
    caching_mode: bool = False
    levels: frozenset[int] = frozenset({3, 4, 5})
    guest_address_width: int = 57
    zero_length_reads: bool = True
    fault_offset: int = 0x220
    large_pages: frozenset[int] = frozenset(LARGE_PAGE_SHIFTS)
    page_selective: bool = True
    fault_records: int = 8
    max_address_mask: int = 18
    drain_writes: bool = True
    drain_reads: bool = True
    root_invalidates: bool = False
    interrupt_table_invalidates: bool = False
    coherent: bool = True
    queued_invalidation: bool = True
    interrupt_remapping: bool = False
    extended_interrupts: bool = False
    pass_through: bool = True
    snoop_control: bool = True
    iotlb_offset: int = 0xF0
    max_handle_mask: int = 0
    device_tlbs: bool = False
    no_write_flag: bool = False
    second_stage: bool = False
    extended_interrupts_required: bool = False
    interrupts_blocked_until_remapped: bool = False

    def __post_init__(self) -> None:
        # A caller may well write levels={3, 4}; stored, it has to be hashable.
        object.__setattr__(self, "levels", frozenset(self.levels))
        object.__setattr__(self, "large_pages", frozenset(self.large_pages))
        self._check_ranges()
        self._check_combinations()

    def _check_ranges(self) -> None:
        if self.domain_bits not in range(4, 17, 2):
            raise ValueError(f"domain_bits must be an even number in 4..16, not {self.domain_bits}")
        if not self.levels <= {3, 4, 5}:
            raise ValueError(f"levels must be of 3, 4 and 5, not {sorted(self.levels)}")
        if self.large_pages not in (set(), {21}, {21, 30}):
            raise ValueError(
                f"large_pages must be none, {{21}} or {{21, 30}}, not {sorted(self.large_pages)}"
            )
        require_range("guest_address_width", self.guest_address_width, 64, 1)
        require_range("fault_records", self.fault_records, 256, 1)
        require_range("max_address_mask", self.max_address_mask, 63)
        require_range("max_handle_mask", self.max_handle_mask, 15)
        for name in ("fault_offset", "iotlb_offset"):
            offset = getattr(self, name)
            require_range(name, offset, 0x3FF0)
            if offset % 16:
                raise ValueError(f"{name} must be a multiple of 16, not {offset:#x}")

    def _check_combinations(self) -> None:
        """Refuse what the column "must be 0 unless" of VT-d 3.2 and the notes of 3.1 forbid."""
        for name, needed in (
            ("interrupt_remapping", "queued_invalidation"),
            ("device_tlbs", "queued_invalidation"),
            ("no_write_flag", "device_tlbs"),
            ("extended_interrupts", "interrupt_remapping"),
            ("max_handle_mask", "interrupt_remapping"),
            ("interrupt_table_invalidates", "interrupt_remapping"),
            ("interrupts_blocked_until_remapped", "interrupt_remapping"),
            ("extended_interrupts_required", "extended_interrupts"),
        ):
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"{name} needs {needed}")

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Return offset and size, in bytes, of the registers that these words place."""
        return {
            "fault_offset": (self.fault_offset, 16 * self.fault_records),
            "iotlb_offset": (self.iotlb_offset, 16),
        }

    @property
    def cap(self) -> int:
        """The CAP register."""
        return _pack(
            "CAP",
            ND=(self.domain_bits - 4) // 2,
            RWBF=self.write_buffer_flush,
            PLMR=self.protected_low,
            PHMR=self.protected_high,
            CM=self.caching_mode,
            SAGAW=sum(1 << level - SAGAW_LOWEST for level in self.levels),
            MGAW=self.guest_address_width - 1,
            ZLR=self.zero_length_reads,
            FRO=self.fault_offset // 16,
            SSLPS=sum(1 << LARGE_PAGE_SHIFTS.index(shift) for shift in self.large_pages),
            PSI=self.page_selective,
            NFR=self.fault_records - 1,
            MAMV=self.max_address_mask,
            DWD=self.drain_writes,
            DRD=self.drain_reads,
            ESIRTPS=self.interrupt_table_invalidates,
            ESRTPS=self.root_invalidates,
        )

    @property
    def ecap(self) -> int:
        """The ECAP register."""
        return _pack(
            "ECAP",
            C=self.coherent,
            QI=self.queued_invalidation,
            DT=self.device_tlbs,
            IR=self.interrupt_remapping,
            EIM=self.extended_interrupts,
            PT=self.pass_through,
            SC=self.snoop_control,
            IRO=self.iotlb_offset // 16,
            MHMV=self.max_handle_mask,
            NWFS=self.no_write_flag,
            SSTS=self.second_stage,
            EIMER=self.extended_interrupts_required,
            IRREQ=self.interrupts_blocked_until_remapped,
        )

    @classmethod
    def parse(cls, cap: int, ecap: int) -> Capabilities:
        """Decode two capability words, as a boot log shows them.

        Raises:
            ValueError: if they are not allowed, or name features that are not implemented.
        """
        refused = unimplemented(cap, ecap)
        if refused:
            raise ValueError(f"not implemented: {', '.join(refused)}")
        c = {name: row.extract(cap) for name, row in _layout("CAP").items()}
        e = {name: row.extract(ecap) for name, row in _layout("ECAP").items()}
        parsed = cls(
            domain_bits=4 + 2 * c["ND"],
            write_buffer_flush=bool(c["RWBF"]),
            protected_low=bool(c["PLMR"]),
            protected_high=bool(c["PHMR"]),
            caching_mode=bool(c["CM"]),
            levels=frozenset(bit + SAGAW_LOWEST for bit in range(5) if c["SAGAW"] >> bit & 1),
            guest_address_width=c["MGAW"] + 1,
            zero_length_reads=bool(c["ZLR"]),
            fault_offset=16 * c["FRO"],
            large_pages=frozenset(21 + 9 * bit for bit in range(4) if c["SSLPS"] >> bit & 1),
            page_selective=bool(c["PSI"]),
            fault_records=c["NFR"] + 1,
            max_address_mask=c["MAMV"],
            drain_writes=bool(c["DWD"]),
            drain_reads=bool(c["DRD"]),
            root_invalidates=bool(c["ESRTPS"]),
            interrupt_table_invalidates=bool(c["ESIRTPS"]),
            coherent=bool(e["C"]),
            queued_invalidation=bool(e["QI"]),
            interrupt_remapping=bool(e["IR"]),
            extended_interrupts=bool(e["EIM"]),
            pass_through=bool(e["PT"]),
            snoop_control=bool(e["SC"]),
            iotlb_offset=16 * e["IRO"],
            max_handle_mask=e["MHMV"],
            device_tlbs=bool(e["DT"]),
            no_write_flag=bool(e["NWFS"]),
            second_stage=bool(e["SSTS"]),
            extended_interrupts_required=bool(e["EIMER"]),
            interrupts_blocked_until_remapped=bool(e["IRREQ"]),
        )
        if (parsed.cap, parsed.ecap) != (cap, ecap):
            raise ValueError(
                f"reserved bits are set: CAP {parsed.cap ^ cap:#x}, ECAP {parsed.ecap ^ ecap:#x}"
            )
        return parsed

    @classmethod
    def masked(cls, cap: int, ecap: int) -> Capabilities:
        """Decode two capability words without the features that are not implemented.

        Raises:
            ValueError: if what is left is not allowed.
        """
        known = {"CAP": 0, "ECAP": 0}
        for register in known:
            for name, row in _layout(register).items():
                if (register, name) not in UNIMPLEMENTED:
                    known[register] |= row.mask
        return cls.parse(cap & known["CAP"], ecap & known["ECAP"])

    def __str__(self) -> str:
        chosen = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"cap {self.cap:x} ecap {self.ecap:x} ({chosen})"


def _pack(register: str, **values: int) -> int:
    layout = _layout(register)
    return sum(int(value) << layout[name].low for name, value in values.items())
