"""What the tests of transactions in flight share."""

from __future__ import annotations

from core_bench import DEVICE, OTHER, Bench

from iommu_emu.core import Port

OLD, NEW = 0x20_0000, 0x40_0000
FABRIC, MEMORY = 100, 50


def prepared(**arguments: object) -> Bench:
    """Pages 0 to 15 of domain 1 (DEVICE) and 2 (OTHER) lead to OLD."""
    bench = Bench(**arguments)
    for requester, domain in ((DEVICE, 1), (OTHER, 2)):
        table = bench.attach(requester, domain=domain)
        for page in range(16):
            table.map(page << 12, OLD + (page << 12))
    bench.enable()
    return bench


def slow(bench: Bench, requester: int = DEVICE, fabric: int = FABRIC, memory: int = MEMORY) -> Port:
    port = bench.port(requester)
    port.set_latency(fabric, memory)
    return port


def at(bench: Bench, page: int = 0, base: int = OLD) -> int:
    return bench.machine.read(base + (page << 12), 1)[0]


def remap(bench: Bench, page: int = 0) -> None:
    """Move a page of domain 1 from OLD to NEW, without any invalidation."""
    table = bench.peek(bench.context_entry()) & ~0xFFF
    for _ in range(3):
        table = bench.peek(table) & ~0xFFF
    bench.poke(table + 8 * page, NEW + (page << 12) | 3)
