"""Physical memory: RAM, BAR windows, register windows, holes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import numpy as np
import pytest
from core_bench import BASE, HOLE, RAM, Bench

from iommu_emu.core import (
    CoreMachine,
    FullError,
    NotRamError,
    OverlapError,
    Region,
    Status,
    UnsealedError,
)

PAGE = 4096


@pytest.fixture
def machine() -> CoreMachine:
    """RAM at 1 MiB, two pages, and 4 pages further on one more page; nothing else."""
    machine = CoreMachine()
    machine.map(0x10_0000, Region(2 * PAGE))
    machine.map(0x10_6000, Region(PAGE))
    return machine


# ---- RAM ------------------------------------------------------------------------------------


def test_memory_is_zeroed(machine: CoreMachine) -> None:
    assert machine.read(0x10_0000, 2 * PAGE) == bytes(2 * PAGE)


@pytest.mark.parametrize("address", [0x10_0000, 0x10_0001, 0x10_0FFF, 0x10_1FF8])
def test_memory_reads_back(machine: CoreMachine, address: int) -> None:
    machine.write(address, b"abcdefgh")
    assert machine.read(address, 8) == b"abcdefgh"


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0x0F_FFFF, 1),
        (0x0F_FFFF, 2),
        (0x10_1FFF, 2),
        (0x10_2000, 1),
        (0x10_1000, 2 * PAGE),
        (0x10_1000, 6 * PAGE),  # over the hole into the next region
        ((1 << 64) - 1, 2),
        ((1 << 64) - 1, 1),
    ],
)
def test_memory_access_outside_ram_is_all_or_nothing(
    machine: CoreMachine, address: int, length: int
) -> None:
    with pytest.raises(NotRamError, match=f"{address:#x}"):
        machine.read(address, length)
    with pytest.raises(NotRamError):
        machine.write(address, b"\xff" * length)
    assert machine.read(0x10_0000, 2 * PAGE) == bytes(2 * PAGE)
    assert machine.read(0x10_6000, PAGE) == bytes(PAGE)


def test_memory_adjacent_regions_are_one_piece(machine: CoreMachine) -> None:
    machine.map(0x10_2000, Region(PAGE))
    data = bytes(range(256)) * 12
    machine.write(0x10_1800, data)
    assert machine.read(0x10_1800, len(data)) == data
    assert machine.read(0x10_2000, 1024) == data[0x800:]


def test_memory_empty_access_is_nothing(machine: CoreMachine) -> None:
    assert machine.read(0, 0) == b""
    machine.write(0, b"")


def test_memory_region_is_a_view(machine: CoreMachine) -> None:
    region = Region(PAGE)
    machine.map(0, region)
    machine.write(0x10, b"xyz")
    assert bytes(region.array[0x10:0x13]) == b"xyz"
    region.array[0x20] = 7
    assert machine.read(0x20, 1) == b"\x07"


def test_memory_view_outlives_machine_and_region() -> None:
    region = Region(PAGE)
    machine = CoreMachine()
    machine.map(0, region)
    machine.write(0, b"kept")
    view = region.array
    del region, machine
    assert bytes(view[:4]) == b"kept"
    view[:] = 1
    assert np.all(view == 1)


def test_memory_one_region_at_two_places(machine: CoreMachine) -> None:
    region = Region(PAGE)
    machine.map(0, region)
    machine.map(0x1000, region)
    machine.write(0x10, b"alias")
    assert machine.read(0x1010, 5) == b"alias"


# ---- the map --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0x10_0000, 0x10_1000, 0x0F_F000, 0x10_5000, 0x10_6000])
def test_memory_overlap_is_refused(machine: CoreMachine, base: int) -> None:
    with pytest.raises(OverlapError, match=f"{base:#x}"):
        machine.map(base, Region(2 * PAGE))
    with pytest.raises(OverlapError):
        machine.map_bar(base, 2 * PAGE, 0)


def test_memory_region_that_encloses_another_is_refused(machine: CoreMachine) -> None:
    with pytest.raises(OverlapError):
        machine.map_bar(0x10_5000, 4 * PAGE, 0)


@pytest.mark.parametrize("base", [0x0F_E000, 0x10_2000, 0x10_4000, 0x10_7000])
def test_memory_neighbours_touch(machine: CoreMachine, base: int) -> None:
    machine.map(base, Region(2 * PAGE))
    machine.write(base, b"\x55" * 2 * PAGE)
    assert machine.read(0x10_0000, 2 * PAGE) == bytes(2 * PAGE)
    assert machine.read(0x10_6000, PAGE) == bytes(PAGE)


def test_memory_overlap_with_a_register_window_is_refused(bench: Bench) -> None:
    with pytest.raises(OverlapError):
        bench.machine.map(BASE + PAGE, Region(PAGE))
    bench.machine.map(BASE + 2 * PAGE, Region(PAGE))


@pytest.mark.parametrize(("base", "size"), [(1, PAGE), (0x800, PAGE), (0, 100)])
def test_memory_must_be_page_aligned(machine: CoreMachine, base: int, size: int) -> None:
    with pytest.raises(ValueError):
        machine.map_bar(base, size, 0)


def test_memory_may_end_at_the_last_address_but_not_wrap(machine: CoreMachine) -> None:
    machine.map_bar((1 << 64) - PAGE, PAGE, 0)
    with pytest.raises(ValueError):
        machine.map_bar((1 << 64) - 4 * PAGE, 8 * PAGE, 0)


def test_memory_unmapped_is_gone(machine: CoreMachine) -> None:
    machine.unmap(0x10_0000)
    with pytest.raises(NotRamError):
        machine.read(0x10_0000, 1)
    assert machine.read(0x10_6000, 1) == b"\0"
    machine.map(0x10_0000, Region(PAGE))
    assert machine.read(0x10_0000, 1) == b"\0"


@pytest.mark.parametrize("base", [0, 0x10_1000, 0x10_2000])
def test_memory_unmap_needs_the_start(machine: CoreMachine, base: int) -> None:
    with pytest.raises(ValueError, match=f"{base:#x}"):
        machine.unmap(base)


def test_memory_unmap_spares_register_windows(bench: Bench) -> None:
    with pytest.raises(ValueError):
        bench.machine.unmap(BASE)
    assert bench.read("VER") == 0x10


def test_memory_has_room_for_256_ranges() -> None:
    machine = CoreMachine()
    for n in range(256):
        machine.map_bar(2 * n * PAGE, PAGE, n)
    with pytest.raises(FullError):
        machine.map_bar(1 << 40, PAGE, 0)
    machine.unmap(0)
    machine.map_bar(1 << 40, PAGE, 0)


def test_memory_many_regions_are_all_found() -> None:
    machine = CoreMachine()
    order = [n * 7 % 64 for n in range(64)]
    for n in order:
        machine.map(3 * n * PAGE, Region(PAGE))
    for n in order:
        machine.write(3 * n * PAGE, bytes([n]))
    assert [machine.read(3 * n * PAGE, 1)[0] for n in range(64)] == list(range(64))


# ---- regions --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, -4096])
def test_memory_region_size_must_be_pages(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        Region(size)


@pytest.mark.parametrize("offset", [1, 100, -4096])
def test_memory_region_offset_must_be_pages(offset: int) -> None:
    with pytest.raises(ValueError, match="offset"):
        Region(PAGE, offset=offset)


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("ram", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


def test_memory_shared_region_must_be_sealed(file: int) -> None:
    with pytest.raises(UnsealedError, match="SHRINK"):
        Region(PAGE, file)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(UnsealedError):
        Region(PAGE, file)


def test_memory_shared_region_is_the_file(file: int) -> None:
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    os.pwrite(file, b"from the file", PAGE)
    machine = CoreMachine()
    machine.map(0, Region(2 * PAGE, file, PAGE))
    assert machine.read(0, 13) == b"from the file"
    machine.write(PAGE, b"from the machine")
    assert os.pread(file, 16, 2 * PAGE) == b"from the machine"


@pytest.mark.parametrize(("size", "offset"), [(5, 0), (4, 1), (1, 4)])
def test_memory_shared_region_must_lie_in_the_file(file: int, size: int, offset: int) -> None:
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(UnsealedError):
        Region(size * PAGE, file, offset * PAGE)


# ---- what a device sees (the map decides) ---------------------------------------------------


@pytest.mark.parametrize("address", [HOLE, RAM, BASE, BASE + 0x1000, BASE + 0x2000])
def test_memory_dma_to_holes_and_registers_is_unsupported(bench: Bench, address: int) -> None:
    port = bench.port()
    assert port.read(address, 4).status is Status.UNSUPPORTED_REQUEST
    assert port.write(address, bytes(4)).status is Status.UNSUPPORTED_REQUEST
    assert port.read(address, 4).fault == 0


def test_memory_dma_reaches_the_last_byte_of_ram(bench: Bench) -> None:
    port = bench.port()
    assert port.write(RAM - 4, b"last").ok
    assert bench.machine.read(RAM - 4, 4) == b"last"
    assert not port.write(RAM - 4, b"too long").ok


def test_memory_dma_after_unmap_is_unsupported(bench: Bench) -> None:
    port = bench.port()
    assert port.write(0x5000, b"x").ok
    bench.machine.unmap(0)
    assert not port.write(0x5000, b"x").ok


# ---- armed stores ---------------------------------------------------------------------------


def test_memory_armed_store_fires_once_after_the_fetch(bench: Bench) -> None:
    table = bench.attach()
    leaf = table.map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.arm_store(leaf, leaf, 0x30_0003)
    assert bench.reads(0x5000) == 0x20_0000
    assert bench.peek(leaf) == 0x30_0003
    bench.poke(leaf, 0x40_0003)
    bench.write("IOTLB", 1 << 63 | 1 << 60)
    assert bench.reads(0x5000) == 0x40_0000
    assert bench.peek(leaf) == 0x40_0003


def test_memory_armed_store_fires_once_beside_one_that_waits(bench: Bench) -> None:
    leaf = bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.arm_store(HOLE, 0x1_0000, 1)
    bench.machine.arm_store(leaf, 0x1_0008, 1)
    for expected in (1, 0):
        bench.poke(0x1_0008, 0)
        bench.write("IOTLB", 1 << 63 | 1 << 60)
        bench.translate(0x5000)
        assert (bench.peek(0x1_0000), bench.peek(0x1_0008)) == (0, expected)


def test_memory_armed_store_waits_for_its_granule(bench: Bench) -> None:
    table = bench.attach()
    leaf = table.map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.arm_store(leaf + 8, 0x1_0000, 1)
    bench.machine.arm_store(leaf - 1, 0x1_0008, 1)
    bench.machine.arm_store(leaf + 7, 0x1_0010, 1)
    bench.translate(0x5000)
    assert [bench.peek(0x1_0000 + 8 * n) for n in range(3)] == [0, 0, 1]


def test_memory_armed_stores_of_one_granule_all_fire(bench: Bench) -> None:
    leaf = bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    for n in range(4):
        bench.machine.arm_store(leaf, 0x1_0000 + 8 * n, n + 1)
    bench.translate(0x5000)
    assert [bench.peek(0x1_0000 + 8 * n) for n in range(4)] == [1, 2, 3, 4]


def test_memory_armed_stores_are_at_most_16(bench: Bench) -> None:
    for n in range(16):
        bench.machine.arm_store(0x1000, 0x1_0000 + 8 * n, 1)
    with pytest.raises(FullError):
        bench.machine.arm_store(0x1000, 0x1_0000, 1)


@pytest.mark.parametrize("target", [0x1_0001, 0x1_0004])
def test_memory_armed_store_must_be_aligned(bench: Bench, target: int) -> None:
    with pytest.raises(ValueError):
        bench.machine.arm_store(0x1000, target, 1)


@pytest.mark.parametrize("target", [HOLE, RAM, BASE])
def test_memory_armed_store_must_hit_ram(bench: Bench, target: int) -> None:
    with pytest.raises(NotRamError):
        bench.machine.arm_store(0x1000, target, 1)


def test_memory_armed_store_survives_the_removal_of_its_target(bench: Bench) -> None:
    bench.machine.map(HOLE, Region(PAGE))
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    bench.machine.arm_store(bench.root_entry(0), HOLE, 1)
    bench.machine.unmap(HOLE)
    assert bench.reads(0x5000) == 0x20_0000


# ---- machines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"transactions": 0},
        {"transactions": 4097},
        {"messages": 63},
        {"messages": 65537},
        {"trace_events": 3},
        {"trace_events": 1 << 25},
    ],
    ids=str,
)
def test_memory_machine_limits(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CoreMachine(**arguments)


def test_memory_units_are_at_most_64(bench: Bench) -> None:
    for n in range(1, 64):
        unit = bench.config["unit"] | {"base": 0x1_0000_0000 + 0x2000 * n}
        assert bench.machine.create_vtd(bench.config | {"unit": unit}).number == n
    unit = bench.config["unit"] | {"base": 0x2_0000_0000}
    with pytest.raises(FullError):
        bench.machine.create_vtd(bench.config | {"unit": unit})


# ---- routes ---------------------------------------------------------------------------------


def test_memory_routes_select_the_unit(bench: Bench) -> None:
    unit = bench.config["unit"] | {"base": BASE + 0x10_0000}
    second = bench.machine.create_vtd(bench.config | {"unit": unit})
    bench.machine.route(0, 0x100, 0x1FF, second)
    bench.machine.route(7, 0x40, 0x40, second)
    found = {
        (segment, requester): bench.machine.routed_unit(segment, requester)
        for segment, requester in [(0, 0xFF), (0, 0x100), (0, 0x1FF), (0, 0x200), (7, 0x40), (7, 0)]
    }
    assert list(found.values()) == [bench.unit, second, second, bench.unit, second, None]


def test_memory_routes_change_for_ports_that_exist(bench: Bench) -> None:
    bench.attach().map(0x5000, 0x20_0000)
    bench.enable()
    port = bench.port()
    port.write(0x5000, b"through the unit")
    bench.machine.route(0, 0, 0xFFFF, None)
    port.write(0x5000, b"past it")
    assert bench.machine.read(0x20_0000, 16) == b"through the unit"
    assert bench.machine.read(0x5000, 7) == b"past it"


def test_memory_routes_need_an_order(bench: Bench) -> None:
    with pytest.raises(ValueError, match="last"):
        bench.machine.route(0, 5, 4, bench.unit)


def test_memory_routes_serve_64_segments(bench: Bench) -> None:
    for segment in range(1, 64):
        bench.machine.route(segment, 0, 0, bench.unit)
    with pytest.raises(FullError):
        bench.machine.route(64, 0, 0, bench.unit)
