"""Tables to test with: real ones where the checkout has them beside it, built-in ones always."""

from pathlib import Path

import pytest

from iommu_emu import acpi

SHARED = Path(__file__).parents[3] / "shared" / "tables"
REAL = sorted(SHARED.glob("*.bin"))
BUILT_IN = [acpi.build(acpi.platforms.load(name).table) for name in acpi.platforms.names()]
ALL = BUILT_IN + [path.read_bytes() for path in REAL]

needs_real = pytest.mark.skipif(not REAL, reason="shared tables not present (../shared/tables)")
each_real = pytest.mark.parametrize("path", REAL, ids=[path.stem for path in REAL])


def real(part):
    """Return the parsed real table whose file name contains `part`."""
    (path,) = [path for path in REAL if part in path.name]
    return acpi.parse(path.read_bytes())


def sealed(data):
    """Return a table with its length and checksum put right, whatever else is in it."""
    data = bytearray(data)
    data[4:8] = len(data).to_bytes(4, "little")
    data[9] = 0
    data[9] = -sum(data) & 0xFF
    return bytes(data)


def dmar(*structures):
    """Return the bytes of a DMAR table with these raw structures."""
    return sealed(acpi.build(acpi.Dmar()) + b"".join(structures))


def ivrs(*blocks):
    """Return the bytes of an IVRS table with these raw blocks."""
    return sealed(acpi.build(acpi.Ivrs()) + b"".join(blocks))


DRHD = bytes.fromhex("0000 1000 0100 0000 0010d9fe00000000")
IVHD = bytes.fromhex("10b0 1800 0200 4000 000010fd00000000 0000 0000 6e8f0480")
IVHD11 = bytes.fromhex("1130 2800 0200 4000 000010fd00000000 0000 0000 00800400" + 16 * "00")
