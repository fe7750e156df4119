"""The system description table header that DMAR and IVRS share (ACPI 5.2.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from construct import Int8ul, Int32ul

from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.layout import Computed, Record, Typed, string, u8, u32, wire
from iommu_emu.acpi.text import BYTES, HEX

T = TypeVar("T", bound="Table")
S = TypeVar("S", bound=Typed)

CHECKSUM_OFFSET = 9


@dataclass(kw_only=True)
class Table(Record):
    """A table: header, structures, and whatever the data holds past the table's length.

    Attributes:
        signature: `DMAR` or `IVRS`.
        revision: Of the table's layout.
        checksum: The byte that `parse` found. `to_bytes` ignores it and writes the right one.
        oem_id: Up to 6 characters, trailing spaces kept.
        oem_table_id: Up to 8 characters.
        oem_revision: 32 bits.
        creator_id: Up to 4 characters, the tool that made the table.
        creator_revision: 32 bits.
        structures: In the order of the table.
        trailing: Bytes past `length`, which no checksum covers.
    """

    children: ClassVar[str] = "structures"

    signature: str = string(4)
    length = Computed(Int32ul, lambda table: table.measure())
    revision: int = u8(1)
    checksum: int = wire(Int8ul, 0, None, compare=False)
    oem_id: str = string(6, "IOMEMU")
    oem_table_id: str = string(8, "IOMMUEMU")
    oem_revision: int = u32(1, HEX)
    creator_id: str = string(4, "IEMU")
    creator_revision: int = u32(1, HEX)
    structures: list[Typed] = field(default_factory=list)
    trailing: bytes = field(default=b"", metadata={"text": BYTES})

    @property
    def checksum_ok(self) -> bool:
        """Whether `checksum` makes the bytes of the table add up to 0 (modulo 256)."""
        return self.checksum == self.to_bytes()[CHECKSUM_OFFSET]

    def find(self, kind: type[S]) -> list[S]:
        """Return the structures of one class, in the order of the table."""
        return [structure for structure in self.structures if isinstance(structure, kind)]

    def to_bytes(self) -> bytes:
        """Build the table: lengths and checksum computed, trailing bytes appended.

        Raises:
            AcpiError: A value does not fit its field.
        """
        data = bytearray(super().to_bytes())
        data[CHECKSUM_OFFSET] = 0
        data[CHECKSUM_OFFSET] = -sum(data) & 0xFF
        return bytes(data) + self.trailing

    @classmethod
    def from_bytes(cls: type[T], data: bytes) -> T:
        """Parse a table, whatever its checksum.

        Raises:
            AcpiError: The table is cut off, or a structure in it is not well formed.
        """
        header = cls.layout.sizeof()
        if len(data) < header:
            raise AcpiError(f"{len(data)} bytes, the header alone has {header}", len(data))
        length = int(cls.layout.parse(data).length)
        if length < header:
            raise AcpiError(f"table of length {length}, its header alone has {header}", 4)
        if length > len(data):
            raise AcpiError(f"table of {length} bytes overruns the {len(data)} that are there", 4)
        table = cls.parse(data, 0, length)
        table.trailing = data[length:]
        return table
