"""The DMAR table: Intel's report of its remapping units (VT-d chapter 8)."""

# ruff: noqa: RUF009 - flag_set returns a dataclass field, which the rule does not see

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import ClassVar

from construct import ExprAdapter, Int8ul, Int16ul

from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.header import Table
from iommu_emu.acpi.layout import Computed, Typed, blob, flag_set, string, u8, u16, u32, u64, wire
from iommu_emu.acpi.text import BYTES, DECIMAL, HEX, PATH, STRING, Hops, named


class DmarFlags(IntFlag):
    """Flags of the table (VT-d 8.1)."""

    INTR_REMAP = 1
    X2APIC_OPT_OUT = 2
    DMA_CTRL_PLATFORM_OPT_IN = 4


class DrhdFlags(IntFlag):
    """Flags of a remapping unit (VT-d 8.3)."""

    INCLUDE_PCI_ALL = 1


class AtsrFlags(IntFlag):
    """Flags of a root port ATS report (VT-d 8.5)."""

    ALL_PORTS = 1


class SatcFlags(IntFlag):
    """Flags of a SoC integrated address translation cache report (VT-d 8.8)."""

    ATC_REQUIRED = 1


class ScopeFlags(IntFlag):
    """Flags of a device scope, defined inside SIDP only (VT-d 8.3.1)."""

    REQ_WO_PASID_NESTED_NOTALLOWED = 1
    REQ_WO_PASID_PWSNP_NOTALLOWED = 2
    REQ_WO_PASID_PGSNP_NOTALLOWED = 4
    ATC_HARDENED = 8
    ATC_REQUIRED = 16


SCOPE_NAMES = {1: "PCI_ENDPOINT", 2: "PCI_SUB_HIERARCHY", 3: "IOAPIC", 4: "HPET", 5: "NAMESPACE"}
PCI_ENDPOINT, PCI_SUB_HIERARCHY, IOAPIC, HPET, NAMESPACE = SCOPE_NAMES

STRUCTURE_NAMES = {0: "DRHD", 1: "RMRR", 2: "ATSR", 3: "RHSA", 4: "ANDD", 5: "SATC", 6: "SIDP"}
_STRUCTURE = named(STRUCTURE_NAMES)


@dataclass(kw_only=True)
class DeviceScope(Typed):
    """One device, or a bridge with all below it, in the scope of a structure (VT-d 8.3.1).

    Attributes:
        type: 1 PCI endpoint, 2 PCI sub-hierarchy, 3 I/O APIC, 4 HPET, 5 ACPI namespace device.
        enumeration_id: I/O APIC id, HPET number or ANDD device number.
        start_bus: Bus of the first hop.
        path: Hops as (device, function); each next one is behind the bridge before it.
    """

    names: ClassVar[dict[int, str]] = SCOPE_NAMES
    derived: ClassVar[tuple[str, ...]] = ("source_id",)

    type: int = u8(PCI_ENDPOINT, named(SCOPE_NAMES))
    length = Computed(Int8ul, lambda scope: scope.measure())
    flags: ScopeFlags = flag_set(Int8ul, ScopeFlags)
    reserved: int = u8()
    enumeration_id: int = u8()
    start_bus: int = u8(0, HEX)
    path: Hops = field(default_factory=list, metadata={"text": PATH})

    @property
    def source_id(self) -> int | None:
        """The 16-bit requester ID, if one hop tells it; otherwise it depends on bus numbers."""
        if len(self.path) != 1:
            return None
        device, function = self.path[0]
        return self.start_bus << 8 | (device & 31) << 3 | function & 7

    @classmethod
    def is_padding(cls, data: bytes, start: int, end: int) -> bool:
        """Take zeros up to the end of the structure as padding: no scope has type 0, length 0."""
        return data[start] == 0 and not any(data[start:end])

    def parse_tail(self, data: bytes, start: int, end: int) -> None:
        """Parse the hops; an odd last byte is no hop and stays in `rest`."""
        stop = end - (end - start) % 2
        self.path = list(zip(data[start:stop:2], data[start + 1 : stop : 2], strict=True))
        self.rest = data[stop:end]

    def tail(self) -> bytes:
        """Return the hops as bytes.

        Raises:
            AcpiError: A device or function is no byte.
        """
        try:
            return bytes(number for hop in self.path for number in hop) + self.rest
        except (TypeError, ValueError) as error:
            raise AcpiError(f"DeviceScope: path {self.path}: {error}") from error


@dataclass(kw_only=True)
class Structure(Typed):
    """A remapping structure (VT-d 8.2); used as it is for types that are not known."""

    names: ClassVar[dict[int, str]] = STRUCTURE_NAMES

    type: int = u16(0, _STRUCTURE)
    length = Computed(Int16ul, lambda structure: structure.measure())


@dataclass(kw_only=True)
class Scoped(Structure):
    """A structure that ends in device scopes."""

    children: ClassVar[str] = "scopes"
    child: ClassVar[type[DeviceScope]] = DeviceScope

    scopes: list[DeviceScope] = field(default_factory=list)


@dataclass(kw_only=True)
class Drhd(Scoped):
    """A remapping unit: where its registers are and which devices it serves (VT-d 8.3).

    Attributes:
        size: Bits 3:0: the register window is `2 ** size` pages of 4 KiB; the rest is reserved.
        segment: PCI segment of the unit's devices.
        base_address: Physical address of the registers, 4 KiB aligned.
    """

    derived: ClassVar[tuple[str, ...]] = ("register_window",)

    flags: DrhdFlags = flag_set(Int8ul, DrhdFlags)
    size: int = u8()
    segment: int = u16()
    base_address: int = u64()

    @property
    def include_pci_all(self) -> bool:
        """Whether the unit serves every PCI function that no other unit of its segment claims."""
        return DrhdFlags.INCLUDE_PCI_ALL in self.flags

    @property
    def register_window(self) -> int:
        """Size of the register window in bytes: 4 KiB to 128 MiB."""
        return 4096 << (self.size & 0xF)


@dataclass(kw_only=True)
class Rmrr(Scoped):
    """Memory that its devices must reach from reset on (VT-d 8.4).

    Attributes:
        base_address: First byte, 4 KiB aligned.
        limit_address: Last byte; limit + 1 is 4 KiB aligned.
    """

    type: int = u16(1, _STRUCTURE)
    reserved: int = u16()
    segment: int = u16()
    base_address: int = u64()
    limit_address: int = u64()

    @property
    def region_size(self) -> int:
        """Size in bytes, both ends included; 0 or less if the limit lies below the base."""
        return self.limit_address - self.base_address + 1


@dataclass(kw_only=True)
class Atsr(Scoped):
    """Root ports that support ATS (VT-d 8.5)."""

    type: int = u16(2, _STRUCTURE)
    flags: AtsrFlags = flag_set(Int8ul, AtsrFlags)
    reserved: int = u8()
    segment: int = u16()

    @property
    def all_ports(self) -> bool:
        """Whether every root port of the segment supports ATS."""
        return AtsrFlags.ALL_PORTS in self.flags


@dataclass(kw_only=True)
class Rhsa(Structure):
    """The NUMA node of a remapping unit (VT-d 8.6)."""

    type: int = u16(3, _STRUCTURE)
    reserved: int = u32()
    base_address: int = u64()
    proximity_domain: int = u32()


@dataclass(kw_only=True)
class Andd(Structure):
    """An ACPI namespace device that does DMA (VT-d 8.7).

    Attributes:
        device_number: What the enumeration id of a namespace device scope refers to.
        object_name: Path in the ACPI namespace, up to the first NUL.
        rest: From that NUL on; empty if the firmware forgot it.
    """

    type: int = u16(4, _STRUCTURE)
    reserved: bytes = blob(3)
    device_number: int = u8()
    object_name: str = field(default="", metadata={"text": STRING})
    rest: bytes = field(default=b"\0", metadata={"text": BYTES})

    def parse_tail(self, data: bytes, start: int, end: int) -> None:
        """Split the tail at its first NUL."""
        name = data[start:end].split(b"\0")[0]
        self.object_name = name.decode("latin-1")
        self.rest = data[start + len(name) : end]

    def tail(self) -> bytes:
        """Return the name and what follows it.

        Raises:
            AcpiError: The name has a character that is no byte.
        """
        try:
            return self.object_name.encode("latin-1") + self.rest
        except UnicodeEncodeError as error:
            raise AcpiError(f"Andd: object_name: {error}") from error


@dataclass(kw_only=True)
class Satc(Scoped):
    """SoC integrated devices with an address translation cache (VT-d 8.8)."""

    type: int = u16(5, _STRUCTURE)
    flags: SatcFlags = flag_set(Int8ul, SatcFlags)
    reserved: int = u8()
    segment: int = u16()

    @property
    def atc_required(self) -> bool:
        """Whether the devices work correctly only with ATS enabled."""
        return SatcFlags.ATC_REQUIRED in self.flags


@dataclass(kw_only=True)
class Sidp(Scoped):
    """Properties of SoC integrated devices, in the flags of the scopes (VT-d 8.9)."""

    type: int = u16(6, _STRUCTURE)
    reserved: int = u16()
    segment: int = u16()


Structure.registry = dict(enumerate((Drhd, Rmrr, Atsr, Rhsa, Andd, Satc, Sidp)))


@dataclass(kw_only=True)
class Dmar(Table):
    """The DMAR table (VT-d 8.1).

    Attributes:
        host_address_width: Bits of a DMA address, 1 to 256; the table stores one less.
    """

    child: ClassVar[type[Structure]] = Structure
    derived: ClassVar[tuple[str, ...]] = ("host_address_width_field",)

    signature: str = string(4, "DMAR")
    host_address_width: int = wire(
        ExprAdapter(Int8ul, lambda value, _: value + 1, lambda bits, _: bits - 1), 39, DECIMAL
    )
    flags: DmarFlags = flag_set(Int8ul, DmarFlags)
    reserved: bytes = blob(10)

    @property
    def host_address_width_field(self) -> int:
        """The byte as stored: the width minus one."""
        return self.host_address_width - 1

    def units(self) -> list[Drhd]:
        """Return the remapping units, in the order of the table."""
        return self.find(Drhd)
