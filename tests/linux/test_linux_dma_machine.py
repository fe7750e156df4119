"""Any sequence of DMA API calls, with every variant: data arrives, and nothing is left behind."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linux_bed import BOTH, FROM, PAGE, TO, Bed

from iommu_emu.clock import MILLISECOND
from iommu_emu.direction import Direction
from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.dma_device import CoherentBuffer
from iommu_emu.linux.fast_and_safe import FastAndSafe
from iommu_emu.linux.flush_queue import GLOBAL_LIST
from iommu_emu.linux.lazy_variants import (
    BounceLazy,
    LazyCoherentOnly,
    LazyDevicePrivate,
    LazyOptIn,
)
from iommu_emu.linux.permanent import PermanentMappings
from iommu_emu.linux.shadow_copy import ShadowCopy

KIB = 1024
SIZES = (1, 64, 700, 2048, 4096, 5000, 12 * KIB, 64 * KIB, 300 * KIB)

KERNELS = {
    "strict": {"parameters": "iommu.strict=1"},
    "lazy": {"parameters": "iommu.strict=0"},
    "legacy": {"parameters": "iommu.strict=0", "queue": GLOBAL_LIST},
    "passthrough": {"parameters": "iommu.passthrough=1 swiotlb=force"},
    "untrusted": {"external": True},
    "head and tail": {"external": True, "bounce": BounceRule.HEAD_TAIL},
    "bounce lazily": {"external": True, "dma_api": BounceLazy},
    "coherent only": {"dma_api": LazyCoherentOnly},
    "opt in": {"dma_api": LazyOptIn},
    "device private": {"dma_api": LazyDevicePrivate},
    "shadow copy": {"parameters": "iommu.strict=1", "dma_api": ShadowCopy},
    "permanent": {"parameters": "iommu.strict=1", "dma_api": PermanentMappings},
    "fast and safe": {"parameters": "iommu.strict=1", "dma_api": FastAndSafe},
}


class Mapped(NamedTuple):
    """A buffer that the device has."""

    physical: int
    offset: int
    size: int
    direction: Direction
    entries: list[tuple[int, int]]
    how: str

    @property
    def start(self) -> int:
        return self.physical + self.offset


class Driver:
    """A driver that does anything that a driver may do."""

    def __init__(self, kernel: str, seed: int) -> None:
        # The pool is small: it runs out now and then.
        self.bed = Bed("vtd" if seed % 2 else "amdvi", pool_size=256 * KIB, **KERNELS[kernel])
        self.random = random.Random(seed)
        self.mapped: list[Mapped] = []
        self.coherent: list[CoherentBuffer] = []

    def map(self) -> None:
        bed, chance = self.bed, self.random
        size, direction = chance.choice(SIZES), chance.choice((TO, FROM, BOTH))
        how = chance.choice(("single", "sg", "batch"))
        offset = chance.choice((0, 0, 16, 2048))
        physical = bed.dma.alloc_buffer(bed.device, size + offset)
        start, cpu = physical + offset, chance.randrange(2)
        bed.machine.memory.write(start, self.data(size))
        if chance.random() < 0.1:
            bed.device.limit.last = PAGE - 1
        cut = size // 2 if size > 1 else size
        pieces = [(start, cut), (start + cut, size - cut)] if size > cut else [(start, cut)]
        try:
            if how == "single":
                entries = [(bed.dma.map_single(bed.device, start, size, direction, cpu), size)]
            elif how == "sg":
                entries = bed.dma.map_sg(bed.device, pieces, direction, cpu)
            else:
                iovas = bed.dma.map_batch(bed.device, pieces, direction, cpu)
                entries = [(iova, size) for iova, (_, size) in zip(iovas, pieces, strict=True)]
        except DmaMappingError:
            bed.dma.free_buffer(bed.device, physical)
        else:
            self.mapped.append(Mapped(physical, offset, size, direction, entries, how))
        bed.device.limit.last = (1 << 64) - 1

    def transfer(self) -> None:
        """Let the device do what it was given the buffer for."""
        if not self.mapped:
            return
        mapped = self.random.choice(self.mapped)
        at = 0
        for iova, size in mapped.entries:
            if mapped.direction is not FROM:
                got = self.bed.evil.read(iova, size)
                assert got.data == self.bed.memory(mapped.start + at, size)
            at += size
        assert at == mapped.size

    def unmap(self) -> None:
        if not self.mapped:
            return
        bed = self.bed
        mapped = self.mapped.pop(self.random.randrange(len(self.mapped)))
        direction, sent = mapped.direction, self.data(mapped.size)
        if direction is not TO:
            at = 0
            for iova, size in mapped.entries:
                assert bed.evil.write(iova, sent[at : at + size]).ok
                at += size
        if mapped.how == "single":
            bed.dma.unmap_single(bed.device, *mapped.entries[0], direction)
        elif mapped.how == "sg":
            bed.dma.unmap_sg(bed.device, mapped.entries, direction)
        else:
            bed.dma.unmap_batch(bed.device, mapped.entries, direction)
        if direction is not TO:
            assert bed.memory(mapped.start, mapped.size) == sent
        bed.dma.free_buffer(bed.device, mapped.physical)

    def allocate(self) -> None:
        try:
            buffer = self.bed.dma.alloc_coherent(self.bed.device, self.random.choice(SIZES))
        except DmaMappingError:
            return
        assert self.bed.evil.write(buffer.iova, b"x").ok
        assert self.bed.memory(buffer.physical, 2) == b"x\0"
        self.coherent.append(buffer)

    def free(self) -> None:
        if self.coherent:
            buffer = self.coherent.pop(self.random.randrange(len(self.coherent)))
            self.bed.dma.free_coherent(self.bed.device, buffer)

    def wait(self) -> None:
        self.bed.machine.clock.advance(self.random.choice((1, 3 * MILLISECOND, 10 * MILLISECOND)))

    def data(self, size: int) -> bytes:
        return self.random.randbytes(size)


@pytest.mark.parametrize("kernel", KERNELS)
@given(
    seed=st.integers(0, 1 << 32),
    steps=st.lists(
        st.sampled_from(["map", "map", "transfer", "unmap", "allocate", "free", "wait"]),
        max_size=25,
    ),
)
@settings(max_examples=12, deadline=None)
def test_whatever_a_driver_does_data_arrives_and_nothing_is_left(kernel, seed, steps):
    driver = Driver(kernel, seed)
    for step in steps:
        getattr(driver, step)()
    while driver.mapped:
        driver.unmap()
    while driver.coherent:
        driver.free()
    linux = driver.bed.linux
    linux.remove(driver.bed.evil)
    assert set(linux.leaks().values()) == {0}
