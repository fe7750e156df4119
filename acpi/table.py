"""Parse and build a table of either kind."""

from __future__ import annotations

from typing import Any, TypeAlias

from iommu_emu.acpi.dmar import Dmar
from iommu_emu.acpi.errors import AcpiError
from iommu_emu.acpi.header import CHECKSUM_OFFSET
from iommu_emu.acpi.ivrs import Ivrs

AnyTable: TypeAlias = Dmar | Ivrs

KINDS: dict[str, type[Dmar] | type[Ivrs]] = {"DMAR": Dmar, "IVRS": Ivrs}


def parse(data: bytes | bytearray | memoryview, *, strict: bool = True) -> AnyTable:
    """Parse a DMAR or IVRS table.

    Nothing is dropped: unknown structures, reserved bits, padding and bytes past the table's
    length are in the result, and `build` puts them back. Values are not judged; `lint` does.

    Args:
        data: The table from its signature on. More bytes than its length become `trailing`.
        strict: Whether a wrong checksum is an error. If not, see `checksum_ok`.

    Raises:
        AcpiError: Neither of the signatures, a length of zero or past the end, a structure,
            scope or entry that is cut off or overruns its parent, or a wrong checksum.
    """
    data = bytes(data)
    kind = KINDS.get(data[:4].decode("latin-1"))
    if len(data) < 4 or kind is None:
        raise AcpiError(f"signature {data[:4]!r} is none of {', '.join(KINDS)}", 0)
    table: AnyTable = kind.from_bytes(data)
    if strict and not table.checksum_ok:
        right = table.to_bytes()[CHECKSUM_OFFSET]
        reason = f"checksum is {table.checksum:#04x}, should be {right:#04x}"
        raise AcpiError(reason, CHECKSUM_OFFSET)
    return table


def build(table: AnyTable) -> bytes:
    """Build the bytes of a table; lengths and checksum are computed.

    `build(parse(data)) == data` for every table with a right checksum.

    Raises:
        AcpiError: A value does not fit its field.
    """
    if not isinstance(table, (Dmar, Ivrs)):
        raise AcpiError(f"{type(table).__name__} is no table")
    return table.to_bytes()


def table_class(signature: Any) -> type[Dmar] | type[Ivrs]:
    """Return the class of a table by its signature.

    Raises:
        AcpiError: There is none.
    """
    if not isinstance(signature, str) or signature not in KINDS:
        raise AcpiError(f"signature {signature!r} is none of {', '.join(KINDS)}")
    return KINDS[signature]
