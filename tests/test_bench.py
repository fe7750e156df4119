"""The benchmarks do what they say. How long it takes is asserted nowhere."""

import argparse
import json

import numpy as np
import pytest

from iommu_emu._core import lib
from iommu_emu.bench import (
    BENCHMARKS,
    BURST,
    DATA,
    IOVA,
    PAGE,
    Bed,
    Measurement,
    call_burst,
    measure,
    met,
    select,
)
from iommu_emu.cli.bench import add_parser

NAMES = [
    "translate_hit_1",
    "translate_hit_512",
    "translate_miss_65536",
    "translate_miss_1m",
    "dma_read_64_hot",
    "dma_read_4k_hot",
    "inval_page_0",
    "inval_page_1024",
    "wait_descriptor",
    "map_dma_unmap_0",
    "map_dma_unmap_512",
    "fault",
    "mmio_read",
    "python_dma_64",
    "batch_translate",
]


def pages(*numbers, count=BURST):
    return np.resize(np.array([IOVA + n * PAGE for n in numbers], dtype=np.uint64), count)


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    chosen = parser.parse_args(["bench", *arguments])
    return chosen.run(chosen)


def counted(bed, run):
    before = bed.unit.counters
    run()
    return {name: value - before[name] for name, value in bed.unit.counters.items()}


def test_bench_names_are_the_published_ones():
    assert list(BENCHMARKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_bench_operation_and_floor_come_to_the_same(name):
    pair = BENCHMARKS[name].prepare()
    for _ in range(2):  # the second round meets warm caches
        pair.subject()
        pair.floor()  # raises if its checksum differs


def test_bench_reports_a_floor_that_differs(monkeypatch):
    monkeypatch.setattr("iommu_emu.bench.Loop.run", lambda self, part, floor=False: (1.0, floor))
    pair = BENCHMARKS["translate_hit_1"].prepare()
    with pytest.raises(RuntimeError, match=r"^checksum 0x0 of the core, 0x1 of its floor$"):
        pair.floor()


@pytest.mark.parametrize("floor", [False, True])
def test_bench_translate_sums_the_physical_addresses(floor):
    loop = Bed(4).loop(lib.IEMU_BENCH_TRANSLATE, pages(0, 3))
    _, checksum = loop.run(floor=floor)
    assert checksum == BURST // 2 * (DATA + DATA + 3 * PAGE)


def test_bench_hit_is_a_hit():
    bed = Bed(2)
    loop = bed.loop(lib.IEMU_BENCH_TRANSLATE, pages(0, 1))
    loop.run()
    counters = counted(bed, loop.run)
    assert (counters["iotlb_hit"], counters["iommu_mrds"]) == (BURST, 0)


def test_bench_miss_is_a_miss_every_time():
    bed = Bed(8192)
    loop = bed.loop(lib.IEMU_BENCH_TRANSLATE, pages(*range(8192), count=8192))

    def run_all():
        for part in range(loop.parts):
            loop.run(part)

    run_all()
    counters = counted(bed, run_all)
    assert (counters["iotlb_lookup"], counters["iotlb_hit"]) == (8192, 0)


@pytest.mark.parametrize("floor", [False, True])
def test_bench_dma_reads_the_data(floor):
    bed = Bed(1)
    bed.machine.memory.write_u8(DATA, 7)
    loop = bed.loop(lib.IEMU_BENCH_DMA_READ, pages(0), length=PAGE)
    assert loop.run(floor=floor)[1] == 7 * BURST


def test_bench_invalidations_leave_the_others_cached():
    bed = Bed(16)
    bed.loop(lib.IEMU_BENCH_TRANSLATE, pages(*range(16))).run()
    loop = bed.loop(lib.IEMU_BENCH_INVALIDATE, pages(16))
    counters = counted(bed, loop.run)
    assert counters["descriptors"] == BURST
    assert len(bed.unit.entries("iotlb")) == 16


def test_bench_wait_sees_every_status_write():
    loop = Bed(1).loop(lib.IEMU_BENCH_WAIT, pages(0))
    assert loop.run()[1] == BURST


def test_bench_map_unmap_misses_and_leaves_nothing_behind():
    bed = Bed(1)
    counters = counted(bed, bed.loop(lib.IEMU_BENCH_MAP_UNMAP, pages(0)).run)
    assert (counters["iotlb_lookup"], counters["iotlb_hit"]) == (BURST, 0)
    assert counters["descriptors"] == 2 * BURST
    assert bed.unit.entries("iotlb") == []


def test_bench_queue_ends_where_it_began():
    bed = Bed(1)
    bed.loop(lib.IEMU_BENCH_WAIT, pages(0)).run()
    bed.domain.unmap(IOVA, PAGE)  # raises unless driver and unit agree on the tail
    assert bed.unit.translate(bed.requester, IOVA).cause.code == 6


def test_bench_fault_records_and_clears_each():
    bed = Bed(1)
    counters = counted(bed, bed.loop(lib.IEMU_BENCH_FAULT, pages(1)).run)
    assert (counters["faults_recorded"], counters["faults_lost"]) == (BURST, 0)
    assert bed.unit.fault_records() == []


def test_bench_python_device_writes_the_data():
    bed = Bed(1)
    bed.device.burst(2, IOVA + 8, b"data")
    assert bed.machine.memory.read(DATA + 8, 4) == b"data"


def test_bench_floor_of_a_call_writes_nothing():
    bed = Bed(1)
    call_burst(2, bed.port, IOVA, b"data", 4)
    assert bed.machine.memory.read(DATA, 4) == bytes(4)


@pytest.mark.parametrize("change", [{"queue": 1 << 40}, {"length": PAGE + 1}, {"length": 0}])
def test_bench_refuses_what_is_not_in_ram(change):
    loop = Bed(1).loop(lib.IEMU_BENCH_WAIT, pages(0), **change)
    with pytest.raises(RuntimeError, match="not in RAM"):
        loop.run()


def test_bench_select_takes_a_part_or_a_pattern():
    assert [b.name for b in select("dma_read")] == ["dma_read_64_hot", "dma_read_4k_hot"]
    assert [b.name for b in select("*_hit_?")] == ["translate_hit_1"]


def test_bench_measure_takes_medians_of_at_least_three_rounds():
    texts = []
    (measurement,) = measure(select("mmio_read"), 0, texts.append)
    assert measurement.name == "mmio_read"
    assert texts == ["preparing mmio_read", "round 1", "round 2", "round 3"]


def test_bench_measure_refuses_negative_time():
    with pytest.raises(ValueError, match=r"^seconds must be 0 or more, not -1$"):
        next(measure([], -1))


@pytest.mark.parametrize(
    ("ns", "floor_ns", "reached"),
    [(5.0, 2.0, True), (5.1, 2.0, False), (6.0, 4.0, True), (6.1, 4.0, False)],
)
def test_bench_met_needs_nanoseconds_and_ratio(ns, floor_ns, reached):
    assert met(Measurement("translate_hit_1", ns, floor_ns)) is reached


def test_bench_met_needs_the_relative_target():
    empty = Measurement("inval_page_0", 10.0, 1.0)
    assert met(Measurement("inval_page_1024", 13.0, 1.0), [empty])
    assert not met(Measurement("inval_page_1024", 13.1, 1.0), [empty])
    assert met(Measurement("inval_page_1024", 25.0, 1.0))


def test_bench_command_prints_json(capsys):
    assert command("--filter", "dma_read", "--seconds", "0", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["dma_read_64_hot", "dma_read_4k_hot"]
    assert all(list(row) == ["name", "ns", "floor_ns", "ratio"] for row in rows)


def test_bench_command_prints_a_table(capsys):
    assert command("--filter", "mmio_read", "--seconds", "0") == 0
    assert "15 ns" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_bench_command_keeps_names_whole(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert command("--filter", "translate_*", "--seconds", "0") == 0
    out = capsys.readouterr().out
    assert "translate_miss_65536" in out
    assert "…" not in out


def test_bench_command_refuses_an_unknown_name(capsys):
    assert command("--filter", "warp") == 2
    assert "no benchmark matches 'warp'" in capsys.readouterr().err


def test_bench_command_refuses_negative_seconds(capsys):
    with pytest.raises(SystemExit, match="2"):
        command("--seconds", "-1")
    assert "must be 0 or more, not -1" in capsys.readouterr().err
