"""Entries are fetched in granules; software that writes between two of them tears the entry."""

from __future__ import annotations

import pytest
from core_bench import DEVICE, IRE, QUEUE, SIRTP, Bench, iotlb_descriptor, wait_descriptor

OLD, NEW = (0x20_0000, 1), (0x21_0000, 2)  # page, domain


def with_update_of_context(granule: int) -> tuple[Bench, int]:
    """The context entry moves to another table and domain: low quadword first, high in between.

    The armed store is the second half of the update: it lands directly after the fetch of the
    granule that holds the low quadword.
    """
    bench = Bench(granule=granule)
    first = bench.attach(domain=OLD[1])
    first.map(0x5000, OLD[0])
    second = bench.attach(domain=NEW[1])
    second.map(0x5000, NEW[0])
    entry = bench.context_entry()
    bench.poke(entry, first.root | 1, OLD[1] << 8 | 2)
    bench.enable()
    bench.machine.arm_store(entry, entry + 8, NEW[1] << 8 | 2)
    return bench, entry


@pytest.mark.parametrize(("granule", "domain"), [(64, NEW[1]), (128, OLD[1]), (256, OLD[1])])
def test_torn_update_of_a_context_entry(granule: int, domain: int) -> None:
    """64 bits: the old table under the new domain, which no version of the entry ever said."""
    bench, _ = with_update_of_context(granule)
    result = bench.translate(0x5000)
    assert (result.address, result.domain) == (OLD[0], domain)


@pytest.mark.parametrize("granule", [64, 128, 256])
def test_torn_update_store_has_landed_after_the_fetch(granule: int) -> None:
    bench, entry = with_update_of_context(granule)
    bench.translate(0x5000)
    assert bench.peek(entry + 8) == NEW[1] << 8 | 2


@pytest.mark.parametrize(("granule", "fault"), [(64, 0x0A), (128, 0), (256, 0)])
def test_torn_update_of_a_root_entry(granule: int, fault: int) -> None:
    bench = Bench(granule=granule)
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    root = bench.root_entry(0)
    bench.machine.arm_store(root, root + 8, 1)  # a reserved bit in the upper half
    assert bench.fault(0x5000) == fault


@pytest.mark.parametrize("granule", [64, 128, 256])
def test_torn_update_of_a_page_table_entry_is_impossible(granule: int) -> None:
    bench = Bench(granule=granule)
    leaf = bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.arm_store(leaf, leaf, 0)
    assert bench.reads(0x5000) == 0x20_0000


@pytest.mark.parametrize(("granule", "error"), [(64, 4), (128, None), (256, None)])
def test_torn_update_of_a_descriptor(granule: int, error: int | None) -> None:
    bench = Bench(granule=granule)
    bench.enable_queue()
    bench.machine.arm_store(QUEUE, QUEUE + 8, 1 << 7)  # reserved in an IOTLB descriptor
    bench.submit(iotlb_descriptor(1))
    assert bench.queue_error == error


@pytest.mark.parametrize(("granule", "fault"), [(64, 0x26), (128, 0), (256, 0)])
def test_torn_update_of_an_interrupt_entry(granule: int, fault: int) -> None:
    """10.2: the entry must be read as one; in two halves, the source check is another's."""
    bench = Bench(granule=granule, interrupt_remapping=True)
    bench.poke(0x4_0000, 0x31_0001, 1 << 18 | DEVICE)
    bench.write("IRTA", 0x4_0000)
    bench.command(SIRTP)
    bench.command(IRE)
    bench.machine.arm_store(0x4_0000, 0x4_0008, 1 << 18 | 0xFFFF)
    assert bench.port().write(0xFEE0_0010, bytes(4)).fault == fault


def test_torn_update_between_entries_of_one_walk(bench: Bench) -> None:
    """The directory entry is read, then its table changes: the walk sees the new leaf."""
    table = bench.attach()
    leaf = table.map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.arm_store(table.entry(0x5000, 2), leaf, 0x30_0003)
    assert bench.reads(0x5000) == 0x30_0000


def test_torn_update_of_a_descriptor_behind_the_head(bench: Bench) -> None:
    bench.enable_queue()
    bench.put(iotlb_descriptor(1), wait_descriptor(write=1, address=0x2_0000, data=1))
    bench.machine.arm_store(QUEUE, QUEUE + 16, wait_descriptor(fence=1)[0])
    bench.write("IQT", bench.tail)
    assert bench.peek(0x2_0000) == 0
    assert bench.read("IQH") == 32
