"""What the tests of bounce buffers share."""

from iommu_emu.direction import Direction

POOL = 0x10_0000
SIZE = 1 << 20  # 512 slots in 4 segments
BUFFER = 0x20_0000
KIB = 1024
TO, FROM, BOTH = Direction.TO_DEVICE, Direction.FROM_DEVICE, Direction.BIDIRECTIONAL


def slot_of(address):
    return divmod(address - POOL, 2048)


def fill(pool):
    """Take every slot by a mapping of its own; return their addresses."""
    return [pool.map(BUFFER, 1, TO) for _ in range(pool.free_slots)]
