"""Random calls of the DMA API, good and bad, beside a naive model of what they did.

Whatever is refused changes nothing; what is mapped is what the devices reach, and nothing else
but what waits for a flush; what is unmapped leaves nothing behind.
"""

import random

import pytest
from linux_bed import BOTH, FROM, PAGE, RAM, TO, Bed, boot, new_machine

from iommu_emu.clock import MILLISECOND, SECOND
from iommu_emu.core import StateError
from iommu_emu.devices import MaliciousDevice
from iommu_emu.linux.bounce import BounceRule
from iommu_emu.linux.bouncer import DmaMappingError
from iommu_emu.linux.fast_and_safe import FastAndSafe
from iommu_emu.linux.flush_queue import GLOBAL_LIST, SINGLE
from iommu_emu.linux.lazy_variants import BounceLazy, LazyCoherentOnly, LazyDevicePrivate, LazyOptIn
from iommu_emu.linux.permanent import PermanentMappings
from iommu_emu.linux.shadow_copy import ShadowCopy
from iommu_emu.machine import ReservedRegion
from iommu_emu.refused import RefusedError
from iommu_emu.vtd.capabilities import Capabilities

POOL = 256 << 10
SMALL = range(RAM.start, RAM.start + POOL + (256 << 12))  # 256 pages beside the pool
STEPS = 80
LOOKS = 16  # pages that are tried after a step

STRICT, LAZY = "iommu.strict=1", "iommu.strict=0"
# Parameters, and what differs from a plain kernel with trusted devices.
KERNELS = {
    "strict": (STRICT, {}),
    "lazy": (LAZY, {}),
    "lazy-single": (LAZY, {"queue": SINGLE}),
    "legacy-250": (LAZY, {"queue": GLOBAL_LIST}),
    "bounce-whole": (STRICT, {"external": True}),
    "bounce-head-tail": (STRICT, {"external": True, "bounce": BounceRule.HEAD_TAIL}),
    "bounce-whole-lazy": (LAZY, {"external": True, "dma_api": BounceLazy}),
    "coherent-only": (LAZY, {"dma_api": LazyCoherentOnly}),
    "opt-in": (LAZY, {"dma_api": LazyOptIn}),
    "device-private": (LAZY, {"dma_api": LazyDevicePrivate}),
    "fast-and-safe": (STRICT, {"dma_api": FastAndSafe}),
    "shadow-copy": (STRICT, {"dma_api": ShadowCopy}),
    "permanent": (STRICT, {"dma_api": PermanentMappings}),
}
KEEPS_MORE_MAPPED = (ShadowCopy, PermanentMappings)


# Device-TLBs are caches as well; devices that are not trusted get none.
DEVICE_TLBS = {
    "vtd": {"capabilities": Capabilities(device_tlbs=True)},
    "amdvi": {"device_tlbs": True},
}


class Accelerator(MaliciousDevice):
    ats = True


def pages_of(address, size):
    return range(address & -PAGE, address + size, PAGE)


class Live:
    """What one call mapped: where the device and where the CPU sees it, piece by piece."""

    def __init__(self, device, kind, direction, entries, buffers, coherent=None):
        self.device = device
        self.kind = kind
        self.direction = direction
        self.entries = entries
        self.buffers = buffers
        self.coherent = coherent

    @property
    def pages(self):
        return {page for iova, size in self.entries for page in pages_of(iova, size)}


class Run:
    """A kernel with two devices in one group, one of them with ATS, and what is mapped for them."""

    def __init__(self, iommu, name, seed):
        parameters, options = KERNELS[name]
        self.random = random.Random(f"{iommu} {name} {seed}")
        options = {"ram": SMALL, "pool_size": POOL, "config": DEVICE_TLBS[iommu], **options}
        self.bed = Bed(iommu, parameters, **options)
        self.linux, self.dma = self.bed.linux, self.bed.dma
        self.twin = self.bed.machine.attach(Accelerator("twin"), "01:00.1")
        assert self.linux.add(self.twin).ats is not self.devices[0].untrusted
        self.live = []
        self.seen = set()  # pages that ever were mapped
        self.driver = self.devices[0].driver
        self.lazy = LAZY in parameters
        self.start = self.frames()

    @property
    def devices(self):
        return [self.linux.device(function) for function in (self.bed.evil, self.twin)]

    # ---- what is counted ---------------------------------------------------------------------

    def counts(self):
        """Return everything that can leak; what waits for a flush is in use."""
        return {
            **self.linux.leaks(),
            "frames": self.frames(),
            "attached": sorted(self.driver.attached),
            "mappings": sum(len(d.domain.mappings) for d in self.linux.devices.values()),
        }

    def frames(self):
        """Return how many frames are free or hold a page table: unmaps keep tables, as Linux."""
        tables = [frame for d in self.driver.domains.values() for frame in d.table.frames()]
        return self.driver.frames.available + len(tables)

    def check_counts(self, before):
        """Check that nothing leaked; buffers that are there for good may have become more."""
        if not isinstance(self.dma, KEEPS_MORE_MAPPED):
            assert self.counts() == before

    def flush(self):
        self.bed.machine.clock.advance(SECOND + MILLISECOND)

    # ---- what is done ------------------------------------------------------------------------

    def buffer(self, device, size):
        """Return memory of the driver's with random bytes, maybe not at its beginning."""
        physical = self.dma.alloc_buffer(device, size)
        self.bed.machine.memory.write(physical, self.random.randbytes(size))
        return physical

    def map(self):
        random = self.random
        device, direction = random.choice(self.devices), random.choice((TO, FROM, BOTH))
        cpu = random.randrange(2)
        kind = random.choice(("single", "single", "sg", "batch", "coherent"))
        if kind == "coherent":
            buffer = self.dma.alloc_coherent(device, random.choice((1, PAGE, 3 * PAGE)), cpu)
            there, here = [(buffer.iova, buffer.size)], [(buffer.physical, buffer.size)]
            self.live.append(Live(device, kind, BOTH, there, here, buffer))
            return
        buffers = []
        try:
            for _ in range(1 if kind == "single" else random.randint(1, 4)):
                size = random.choice((1, 64, 700, 1500, PAGE, PAGE + 1, 3 * PAGE, 17 * PAGE))
                buffers.append((self.buffer(device, size), size))
            if kind == "single":
                iova = self.dma.map_single(device, *buffers[0], direction, cpu)
                entries = [(iova, buffers[0][1])]
            elif kind == "sg":
                entries = self.dma.map_sg(device, buffers, direction, cpu)
            else:
                iovas = self.dma.map_batch(device, buffers, direction, cpu)
                entries = [(iova, size) for iova, (_, size) in zip(iovas, buffers, strict=True)]
        except Exception:
            for physical, _ in buffers:
                self.dma.free_buffer(device, physical)
            raise
        self.live.append(Live(device, kind, direction, entries, buffers))

    def unmap(self, live):
        cpu = self.random.randrange(2)
        written = self.use(live)
        self.live.remove(live)
        if live.kind == "coherent":
            self.dma.free_coherent(live.device, live.coherent, cpu)
            return
        if live.kind == "single":
            defer = self.random.random() < 0.3
            call = self.dma.unmap_single_deferred if defer else self.dma.unmap_single
            call(live.device, *live.entries[0], live.direction, cpu)
        elif live.kind == "sg":
            self.dma.unmap_sg(live.device, live.entries, live.direction, cpu)
        else:
            self.dma.unmap_batch(live.device, live.entries, live.direction, cpu)
        assert self.cpu_sees(live) == written
        for physical, _ in live.buffers:
            self.dma.free_buffer(live.device, physical)

    def use(self, live):
        """Let the device do all that it may with a mapping; return what the CPU must find."""
        expected = self.cpu_sees(live)
        if live.direction is not FROM:
            assert self.device_sees(live) == expected
        if live.direction is not TO:
            expected = self.random.randbytes(len(expected))
            at = 0
            for iova, size in live.entries:
                assert live.device.function.write(iova, expected[at : at + size]).ok
                at += size
        return expected

    def cpu_sees(self, live):
        return b"".join(self.bed.memory(*buffer) for buffer in live.buffers)

    def device_sees(self, live):
        reads = [live.device.function.read(*entry) for entry in live.entries]
        assert all(read.ok for read in reads)
        return b"".join(read.data for read in reads)

    # ---- what is refused ---------------------------------------------------------------------

    def refused(self, work, *errors):
        self.flush()
        before = self.counts()
        with pytest.raises(errors):
            work()
        self.flush()
        self.check_counts(before)

    def mistake(self):
        """Make a mistake that a driver can make."""
        random, dma = self.random, self.dma
        device = random.choice(self.devices)
        other = self.devices[self.devices[0] is device]
        calls = [
            lambda: dma.map_single(device, 0x60_0000, random.choice((0, -1)), TO),
            lambda: dma.map_single(device, random.choice((-1, 1 << 64)), PAGE, TO),
            lambda: dma.map_single(device, 0x60_0000, PAGE, TO, random.choice((-1, 2))),
            lambda: dma.map_single(device, 0x60_0000, PAGE, "to-device"),
            lambda: dma.map_sg(device, [], TO),
            lambda: dma.map_sg(device, [(0x60_0000, PAGE), (0x60_1000, 0)], TO),
            lambda: dma.map_batch(device, [(0x60_0000, PAGE), (-1, PAGE)], TO),
            lambda: dma.alloc_coherent(device, random.choice((0, -PAGE, (4 << 20) + 1))),
            lambda: dma.unmap_single(device, 0x10, PAGE, TO),
            lambda: dma.unmap_sg(device, [], TO),
            lambda: dma.unmap_batch(device, [(0x10, PAGE)], TO),
            lambda: dma.sync_for_cpu(device, 0x10, 4, TO),
        ]
        if self.live:
            live = random.choice(self.live)
            iova, size = live.entries[0]
            wrong = next(d for d in (TO, FROM, BOTH) if d is not live.direction)
            mine = live.device, iova, size, live.direction
            calls += [
                lambda: dma.unmap_single(live.device, iova, size + 1, live.direction),
                lambda: dma.unmap_single(live.device, iova + 1, size, live.direction),
                lambda: dma.unmap_single(live.device, iova, size, wrong),
                lambda: dma.unmap_single(*mine, 2),
                lambda: dma.unmap_sg(live.device, [*live.entries, live.entries[0]], live.direction),
                lambda: dma.unmap_sg(live.device, [(iova, 0), *live.entries], live.direction),
                lambda: dma.unmap_sg(live.device, live.entries, live.direction, 2),
                lambda: dma.sync_for_device(live.device, iova, 1 << 20, live.direction),
                lambda: dma.sync_for_cpu(live.device, iova, 0, live.direction),
                lambda: dma.sync_for_cpu(live.device, iova, size, wrong),
            ]
            if live.kind == "coherent":
                calls += [lambda: dma.unmap_single(live.device, iova, PAGE, BOTH)]
            else:
                twice = [live.entries[0]] * 2
                calls += [lambda: dma.unmap_batch(live.device, twice, live.direction)]
            if live.device is device:
                calls += [lambda: dma.unmap_single(other, iova, size, live.direction)]
                if live.coherent:
                    calls += [lambda: dma.free_coherent(other, live.coherent)]
        self.refused(random.choice(calls), ValueError)

    def shortage(self):
        """Map while something is short; all of it, or nothing, is mapped then."""
        self.flush()
        what = self.random.choice(("frames", "iova", "pool", "memory"))
        taken, limit = [], [each.limit.last for each in self.devices]
        memory, pool, frames = self.linux.memory, self.linux.pool, self.driver.frames
        left = self.random.randrange(4)
        if what == "frames":
            taken = [frames.take() for _ in range(frames.available - left)]
        elif what == "iova":
            for each in self.devices:
                each.limit.last = left * PAGE + self.random.choice((-1, 0, 700))
        elif what == "pool":
            while pool.free_slots > left:
                taken.append(pool.map(RAM.stop - PAGE, 1, FROM))
        else:
            while memory.used < 256 - left:
                taken.append(memory.alloc_pages(1, "hog"))
        before, live = self.counts(), list(self.live)
        try:
            self.map()
        except (DmaMappingError, MemoryError):
            assert self.live == live
            self.flush()
            self.check_counts(before)
        finally:
            for each, last in zip(self.devices, limit, strict=True):
                each.limit.last = last
            if what == "frames":
                frames.release(taken)
            for address in taken:
                if what == "pool":
                    pool.unmap(address, 1, FROM, skip_sync=True)
                elif what == "memory":
                    memory.free_pages(address)

    # ---- what happens else -------------------------------------------------------------------

    def replug(self):
        """Let a device go, by surprise or not, with all that it has mapped, and come back."""
        device = self.random.choice(self.devices)
        function = device.function
        for live in [live for live in self.live if live.device is device]:
            self.live.remove(live)
            for physical, _ in live.buffers if live.coherent is None else ():
                self.dma.free_buffer(device, physical)
        calls = [self.linux.remove, self.bed.machine.remove]
        where = f"01:00.{function.devfn}"
        for call in self.random.sample(calls, 2):
            call(function)
        # AMD-Vi's driver does not wait until its unit gives up a device-TLB that is gone.
        self.bed.machine.clock.advance(60 * SECOND)
        with pytest.raises((ValueError, StateError)):
            self.dma.map_single(device, SMALL.start, PAGE, TO)
        self.bed.machine.attach(function, where)
        self.linux.add(function)

    def switch(self):
        """Change the group's type; whatever is mapped stays mapped, or it is refused."""
        kind = self.random.choice(("DMA", "DMA-FQ", "nonsense"))
        before = self.counts()
        try:
            self.linux.set_type(self.devices[0].group, kind)
        except RefusedError:
            self.check_counts(before)

    # ---- what must hold ----------------------------------------------------------------------

    def check_reach(self):
        """Check that the devices reach what is mapped, and nothing else but what waits."""
        domain = self.devices[0].domain
        mapped = {page for live in self.live for page in live.pages}
        self.seen |= mapped
        waits = set()
        if domain.queue is not None:
            for entry in domain.queue.entries:
                waits.update(pages_of(entry.iova, entry.size))
        looked_at = [page for page in sorted(self.seen) if page not in waits]
        looked_at = self.random.sample(looked_at, min(LOOKS, len(looked_at)))
        for function in (self.bed.evil, self.twin):
            for page in looked_at:
                reached = function.read(page, 1).ok or function.write(page, b"x").ok
                if page in mapped or not isinstance(self.dma, KEEPS_MORE_MAPPED):
                    assert reached is (page in mapped)

    def step(self):
        what = self.random.choices(
            (self.map, None, self.mistake, self.shortage, self.replug, self.switch),
            (30, 25, 15, 10, 2, 2),
        )[0]
        if what is not None:
            try:
                what()
            except (DmaMappingError, MemoryError):
                assert what == self.map
        elif self.live:
            self.unmap(self.random.choice(self.live))


@pytest.fixture(params=["vtd", "amdvi"])
def iommu(request):
    return request.param


@pytest.mark.parametrize("name", KERNELS)
def test_random_calls_leave_nothing_behind(iommu, name):
    run = Run(iommu, name, 0)
    for _ in range(STEPS):
        run.step()
        run.check_reach()
    while run.live:
        run.unmap(run.live[0])
    queue = run.devices[0].domain.queue
    for function in (run.bed.evil, run.twin):
        run.linux.remove(function)
    assert queue is None or not queue.waiting
    assert run.linux.leaks() == dict.fromkeys(run.linux.leaks(), 0)
    assert run.frames() == run.start


@pytest.mark.parametrize(
    ("first", "last"), [(0x70_0000, 0x6F_FFFF), (0, (1 << 64) - 1), (1 << 60, (1 << 60) + 0xFFF)]
)
def test_boot_goes_on_where_reserved_memory_makes_no_sense(iommu, first, last):
    machine = new_machine(iommu)
    evil = machine.attach(MaliciousDevice("evil"))
    other = machine.attach(MaliciousDevice("other"))
    mine = ((evil.dma.requester, evil.dma.requester),)
    machine.reserved_regions.append(ReservedRegion(first, last, 0, mine))
    linux = boot(machine)
    assert set(linux.devices) == {other}
    assert "" not in [line.text for line in linux.log]
    assert linux.leaks()["mapped pages"] == 0


def test_group_that_goes_flushes_the_list_of_all(iommu):
    bed = Bed(iommu, LAZY, queue=GLOBAL_LIST)
    other = MaliciousDevice("other")
    bed.plug(other)
    iova = bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO)
    assert bed.evil.read(iova, 4).ok
    bed.dma.unmap_single(bed.device, iova, PAGE, TO)
    bed.linux.remove(other)
    assert (bed.evil.read(iova, 4).ok, bed.linux.leaks()["iovas"]) == (False, 0)


@pytest.mark.parametrize(("queue", "cached"), [(GLOBAL_LIST, 0), (SINGLE, 1)])
def test_list_of_all_is_older_than_magazines(iommu, queue, cached):
    bed = Bed(iommu, LAZY, queue=queue)
    bed.dma.unmap_single(bed.device, bed.dma.map_single(bed.device, 0x60_0000, PAGE, TO), PAGE, TO)
    bed.machine.clock.advance(SECOND)
    assert bed.device.domain.iovas.cached == cached
