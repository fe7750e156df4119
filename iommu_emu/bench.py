"""Benchmarks of the core: each operation beside its floor, in one process and one run.

A floor is the least that could be right for the same operation (`csrc/bench/floors.c`), compiled
with the same flags and driven by the same loop. Absolute times drift from machine to machine;
the ratio to the floor is what holds.

Beside `iommu_emu.core` this is the only module that touches cffi: the loops are no part of the
public C API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import cycle, islice
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iommu_emu._core import ffi, lib
from iommu_emu.core import RESULT_DTYPE, Request
from iommu_emu.devices.base import Device
from iommu_emu.machine import Machine
from iommu_emu.vtd.driver import VtdDriver
from iommu_emu.vtd.presets import preset
from iommu_emu.vtd.structures import IotlbInvalidation, WaitDescriptor
from iommu_emu.vtd.unit import VtdUnit

__all__ = ["BENCHMARKS", "Benchmark", "Measurement", "Pair", "measure", "met", "select"]

PAGE = 4096
MEMORY = 64 << 20
DATA = 16 << 20  # physical address of the pages that are read
TABLES = range(32 << 20, MEMORY)
IOVA = 1 << 32
ELSEWHERE = 1 << 40  # physical address of pages that are translated to and never read
FAR_IOVA = 1 << 45  # shares no table with IOVA but the root
REGISTERS = 0xFED9_0000
READ = 64  # bytes
# Operations of one run: a multiple of the queue's 256 descriptors, and short enough that few runs
# are interrupted by whatever else the host does.
BURST = 4096
PYTHON_BURST = 512
RUNS = 16  # of a benchmark in one round: all 65,536 pages


class Writer(Device):
    """A device model as its author would write it."""

    def burst(self, count: int, address: int, data: bytes) -> None:
        """Write the same data `count` times."""
        for _ in range(count):
            self.dma.write(address, data)


def call_burst(count: int, port: Any, address: int, data: bytes, length: int) -> None:
    """Make the bare calls that are the floor of `Writer.burst`."""
    call = lib.iemu_floor_call
    for _ in range(count):
        call(port, address, data, length)


class Bed:
    """A machine with one VT-d unit of the default preset, and a device whose pages are mapped.

    Args:
        pages: 4 KiB pages at `IOVA`; up to 2048 of them are in RAM.
    """

    def __init__(self, pages: int) -> None:
        self.machine = Machine(memory=MEMORY)
        self.unit = VtdUnit(self.machine, preset("default", base=REGISTERS))
        self.driver = VtdDriver(self.machine, self.unit, TABLES)
        self.driver.start()
        self.unit.write_field("FECTL", "IM", 1)  # nobody takes the messages of fault events
        self.device = self.machine.attach(Writer())
        self.requester = self.device.dma.requester
        self.domain = self.driver.create_domain(levels=4)
        self.driver.attach(self.domain, self.requester)
        target = DATA if pages <= 2048 else ELSEWHERE
        self.domain.map(IOVA, target, pages * PAGE, page_size=PAGE)
        handle, error = self.machine.core.handle, ffi.new("int *")
        self.port = lib.iemu_port_create(handle, 0, self.requester, error)
        floor = lib.iemu_floor_create(handle, self.domain.table.root)
        if not self.port or not floor:
            raise MemoryError("no memory for a benchmark's port and floor")
        self.floor = ffi.gc(floor, lib.iemu_floor_destroy)

    def loop(self, kind: int, addresses: NDArray[np.uint64], **changes: Any) -> Loop:
        """Return a loop of the C core over these addresses.

        Args:
            kind: of enum iemu_bench_kind.
            addresses: shape (n,); n is a multiple of `BURST`.
            **changes: fields of struct iemu_bench that differ from the usual.
        """
        unit, capabilities = self.unit, self.unit.capabilities
        entry = self.domain.table.entry_address(1, IOVA) or 0
        drain = {"dw": int(capabilities.drain_writes), "dr": int(capabilities.drain_reads)}
        status = self.driver.frames.take()
        values: dict[str, Any] = {
            "unit": unit.core.handle,
            "port": self.port,
            "floor": self.floor,
            "length": READ,
            "requester": self.requester,
            "records": capabilities.fault_records,
            "reg": unit.offset("FSTS"),
            "tail": unit.offset("IQT"),
            "record": unit.offset("FRCD"),
            "queue": unit.read("IQA") & ~(PAGE - 1),
            "invalidation": _words(IotlbInvalidation.build(g=3, did=self.domain.id, **drain)),
            "wait": _words(WaitDescriptor.build(sw=1, status_address=status)),
            "status": status,
            "entry": entry,
            "leaf": self.machine.memory.read_u64(entry),
        }
        return Loop(self, kind, addresses, values | changes)


def _words(descriptor: bytes) -> list[int]:
    return [int.from_bytes(descriptor[i : i + 8], "little") for i in (0, 8)]


class Loop:
    """A loop of the C core, or the same loop over the floor; see `Bed.loop`.

    Attributes:
        parts: how many runs of `BURST` operations it takes to meet every address once.
    """

    def __init__(
        self, bed: Bed, kind: int, addresses: NDArray[np.uint64], values: dict[str, Any]
    ) -> None:
        self.parts = len(addresses) // BURST
        self._bed = bed  # what the pointers point to
        self._kind = kind
        self._addresses = addresses
        self._struct = ffi.new("struct iemu_bench *", values)
        self._struct.count = BURST

    def run(self, part: int = 0, *, floor: bool = False) -> tuple[float, int]:
        """Run over one part of the addresses; return ns per operation and the checksum."""
        addresses = self._addresses[part * BURST : (part + 1) * BURST]
        pointer = ffi.from_buffer("uint64_t[]", addresses)  # keeps the array where it is
        self._struct.addresses = pointer
        elapsed: int = lib.iemu_bench_run(self._struct, self._kind, floor)
        if not elapsed:
            raise RuntimeError("the benchmark's tables or its queue are not in RAM")
        return elapsed / BURST, self._struct.checksum


@dataclass(frozen=True)
class Pair:
    """An operation and its floor, ready to run in turns.

    Attributes:
        subject: runs the operation `operations` times; returns ns per operation.
        floor: the same for the floor.
        operations: how many operations one run does.
    """

    subject: Callable[[], float]
    floor: Callable[[], float]
    operations: int


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: what `select` and the results call it.
        description: one line for people.
        floor: what its floor does, one line.
        target_ns: what it must reach on the machine that the targets were set on.
        prepare: builds a fresh machine for it.
        target_ratio: the ratio to its floor that it must reach; None: no such target.
        relative: another benchmark, and the ratio to it that must be reached.
    """

    name: str
    description: str
    floor: str
    target_ns: float
    prepare: Callable[[], Pair] = field(repr=False)
    target_ratio: float | None = None
    relative: tuple[str, float] | None = None


@dataclass(frozen=True)
class Measurement:
    """Medians of one benchmark.

    Attributes:
        name: of the benchmark.
        ns: per operation.
        floor_ns: per operation of the floor, measured in turns with it.
    """

    name: str
    ns: float
    floor_ns: float

    @property
    def ratio(self) -> float:
        """How many times its floor it costs."""
        return self.ns / self.floor_ns


# ---- how each benchmark is set up ------------------------------------------------------------


def _pages(count: int, length: int) -> NDArray[np.uint64]:
    """Return `length` addresses in random order over `count` pages, each as often as the others."""
    generator = np.random.default_rng(count)
    rounds = [generator.permutation(count) for _ in range(-(-length // count))]
    numbers = np.concatenate(rounds)[:length].astype(np.uint64)
    addresses: NDArray[np.uint64] = np.uint64(IOVA) + numbers * np.uint64(PAGE)
    return addresses


def _pair(loop: Loop) -> Pair:
    """Run a loop in turns with its floor; both must come to the same result.

    The floor is half a round ahead, so that neither finds the tables of its part in the host's
    caches because the other has just used them.
    """
    expected = [loop.run(part)[1] for part in range(loop.parts)]
    parts = cycle(range(loop.parts))
    floor_parts = islice(cycle(range(loop.parts)), loop.parts // 2, None)

    def subject() -> float:
        return loop.run(next(parts))[0]

    def floor() -> float:
        part = next(floor_parts)
        elapsed, checksum = loop.run(part, floor=True)
        if checksum != expected[part]:
            raise RuntimeError(
                f"checksum {expected[part]:#x} of the core, {checksum:#x} of its floor"
            )
        return elapsed

    return Pair(subject, floor, BURST)


def _translate(pages: int) -> Callable[[], Pair]:
    def prepare() -> Pair:
        addresses = _pages(pages, max(pages, BURST))
        return _pair(Bed(pages).loop(lib.IEMU_BENCH_TRANSLATE, addresses))

    return prepare


def _dma_read(length: int) -> Callable[[], Pair]:
    def prepare() -> Pair:
        return _pair(Bed(1).loop(lib.IEMU_BENCH_DMA_READ, _pages(1, BURST), length=length))

    return prepare


def _cache(bed: Bed, pages: int) -> None:
    """Let the unit and the floor cache the first `pages` pages."""
    if pages:
        loop = bed.loop(lib.IEMU_BENCH_TRANSLATE, _pages(pages, BURST))
        for floor in (False, True):
            loop.run(floor=floor)


def _invalidate(cached: int) -> Callable[[], Pair]:
    def prepare() -> Pair:
        bed = Bed(max(cached, 1))
        _cache(bed, cached)
        others = _pages(1024, BURST) + np.uint64(FAR_IOVA)
        return _pair(bed.loop(lib.IEMU_BENCH_INVALIDATE, others))

    return prepare


def _map_unmap(cached: int) -> Callable[[], Pair]:
    def prepare() -> Pair:
        bed = Bed(cached + 1)
        _cache(bed, cached)
        page = IOVA + cached * PAGE
        entry = bed.domain.table.entry_address(1, page) or 0
        # The leaf's table stays, so paging-structure caches may be kept: IH, as Linux does.
        leaf_only = IotlbInvalidation.build(g=3, did=bed.domain.id, dw=1, dr=1, ih=1)
        loop = bed.loop(
            lib.IEMU_BENCH_MAP_UNMAP,
            np.full(BURST, page, dtype=np.uint64),
            invalidation=_words(leaf_only),
            entry=entry,
            leaf=bed.machine.memory.read_u64(entry),
        )
        return _pair(loop)

    return prepare


def _wait() -> Pair:
    return _pair(Bed(1).loop(lib.IEMU_BENCH_WAIT, _pages(1, BURST)))


def _fault() -> Pair:
    hole = np.full(BURST, IOVA + PAGE, dtype=np.uint64)
    return _pair(Bed(1).loop(lib.IEMU_BENCH_FAULT, hole))


def _mmio_read() -> Pair:
    return _pair(Bed(1).loop(lib.IEMU_BENCH_MMIO_READ, _pages(1, BURST)))


def _timed(operations: int, action: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter_ns()
        action()
        return (time.perf_counter_ns() - began) / operations

    return run


def _python_dma() -> Pair:
    bed = Bed(1)
    data = bytes(READ)
    return Pair(
        _timed(PYTHON_BURST, lambda: bed.device.burst(PYTHON_BURST, IOVA, data)),
        _timed(PYTHON_BURST, lambda: call_burst(PYTHON_BURST, bed.port, IOVA, data, READ)),
        PYTHON_BURST,
    )


def _batch() -> Pair:
    bed = Bed(512)
    addresses = _pages(512, BURST)
    request = Request(0, READ, bed.requester).struct()
    results = np.empty(BURST, dtype=RESULT_DTYPE)
    inputs = ffi.from_buffer("uint64_t[]", addresses)
    outputs = ffi.from_buffer("struct iemu_result[]", results, require_writable=True)
    return Pair(
        _timed(BURST, lambda: bed.unit.translate_batch(bed.requester, addresses, length=READ)),
        _timed(BURST, lambda: lib.iemu_floor_batch(bed.floor, request, inputs, outputs, BURST)),
        BURST,
    )


PROBE = "one probe of a set, behind a call"
WALK = "probe, bare 4-level walk, fill"
COPY = "probe and memcpy"
DROP = "fetch, compare the tags of one set"
CYCLE = "the floors of its parts"

BENCHMARKS: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        Benchmark("translate_hit_1", "translate, 1 hot page", PROBE, 6, _translate(1), 2.5),
        Benchmark("translate_hit_512", "translate, 512 hot pages", PROBE, 7, _translate(512), 2.5),
        Benchmark(
            "translate_miss_65536", "translate, 65,536 pages", WALK, 30, _translate(65536), 2.5
        ),
        Benchmark(
            "translate_miss_1m", "translate, 1,048,576 pages", WALK, 45, _translate(1 << 20), 2.5
        ),
        Benchmark("dma_read_64_hot", "DMA read, 64 B", COPY, 15, _dma_read(64)),
        Benchmark("dma_read_4k_hot", "DMA read, 4 KiB", COPY, 55, _dma_read(PAGE)),
        Benchmark("inval_page_0", "invalidate a page, 0 cached", DROP, 25, _invalidate(0)),
        Benchmark(
            "inval_page_1024",
            "the same, 1,024 others cached",
            DROP,
            25,
            _invalidate(1024),
            relative=("inval_page_0", 1.3),
        ),
        Benchmark("wait_descriptor", "wait with status write", "fetch, 4-byte store", 25, _wait),
        Benchmark("map_dma_unmap_0", "map, 64 B DMA, unmap, invalidate", CYCLE, 100, _map_unmap(0)),
        Benchmark("map_dma_unmap_512", "the same, 512 others cached", CYCLE, 100, _map_unmap(512)),
        Benchmark("fault", "fault recorded and cleared", "walk, 16-byte record", 80, _fault),
        Benchmark("mmio_read", "register read", "bounds check and load", 15, _mmio_read),
        Benchmark(
            "python_dma_64",
            "DMA write, 64 B, from Python",
            "a cffi call with its arguments",
            600,
            _python_dma,
            3,
        ),
        Benchmark("batch_translate", "an address of a numpy batch", PROBE, 8, _batch),
    )
}


# ---- measuring -------------------------------------------------------------------------------


def select(pattern: str = "") -> list[Benchmark]:
    """Return the benchmarks whose names match a shell pattern, or contain it.

    Raises:
        ValueError: if there is none.
    """
    chosen = [b for b in BENCHMARKS.values() if pattern in b.name or fnmatch(b.name, pattern)]
    if not chosen:
        raise ValueError(f"no benchmark matches {pattern!r}; there are {', '.join(BENCHMARKS)}")
    return chosen


def _ignore(text: str) -> None:
    pass


def measure(
    benchmarks: Sequence[Benchmark],
    seconds: float = 10.0,
    progress: Callable[[str], None] = _ignore,
) -> Iterator[Measurement]:
    """Run benchmarks, each in turns with its floor, round by round over all of them.

    So whatever else the host does meanwhile meets all of them alike.

    Args:
        benchmarks: which.
        seconds: how long the rounds take together, 0 or more; at least three are done.
        progress: is told what happens.

    Yields:
        Medians over all runs, in the order of `benchmarks`.

    Raises:
        ValueError: if `seconds` is negative.
        RuntimeError: if an operation and its floor do not come to the same result.
    """
    if not seconds >= 0:
        raise ValueError(f"seconds must be 0 or more, not {seconds}")
    pairs = []
    for benchmark in benchmarks:
        progress(f"preparing {benchmark.name}")
        pairs.append(benchmark.prepare())
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in pairs]
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < 3 or time.monotonic() < end:
        rounds += 1
        progress(f"round {rounds}")
        for pair, (subject, floor) in zip(pairs, times, strict=True):
            # What ran before has emptied the host's caches: the first half is not counted.
            for _ in range(RUNS):
                pair.subject(), pair.floor()
            for _ in range(RUNS):
                subject.append(pair.subject())
                floor.append(pair.floor())
    for benchmark, (subject, floor) in zip(benchmarks, times, strict=True):
        yield Measurement(benchmark.name, median(subject), median(floor))


def met(measurement: Measurement, others: Sequence[Measurement] = ()) -> bool:
    """Return whether a measurement reaches every target of its benchmark.

    Args:
        measurement: what to judge.
        others: of the same run; a target relative to one that is not among them is left out.
    """
    benchmark = BENCHMARKS[measurement.name]
    limits = [benchmark.target_ns]
    if benchmark.target_ratio is not None:
        limits.append(benchmark.target_ratio * measurement.floor_ns)
    if benchmark.relative is not None:
        name, ratio = benchmark.relative
        limits += [ratio * other.ns for other in others if other.name == name]
    return measurement.ns <= min(limits)
